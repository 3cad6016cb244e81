"""The model is held to the truth: sampled histories are played with real shells, sshd and Nix, too.

After each step the practice machine and the simulated one must agree: how the command ended, what the
machine's receipt says, what runs, and what its profile leads to. `NIXA_REPLAYS=200` plays that many.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import pytest

from nixa_tasks.deploy.decide import Asked
from nixa_tasks.lab import Lab
from nixa_tasks.lab.machine import Machine
from tests.integration.deploy.conftest import Fleet
from tests.simulation.controller import clean_folder
from tests.simulation.history import TARGET, History, Play, clean_environment, scratch
from tests.simulation.machine import Content, Fate, Kind, System, store_path
from tests.simulation.scheduler import Scheduler
from tests.simulation.world import World

pytestmark = [pytest.mark.lab, pytest.mark.xdist_group("simulation-lab"), pytest.mark.timeout(1800)]

REPLAYS = int(os.environ.get("NIXA_REPLAYS", "2"))
CHECK = '{ command = "! grep -qx bad /etc/lab-message", retries = 1 }'
# How each system is made in the lab's flake: its message, and what its activation does.
SYSTEMS = {
    System(store_path("g0", 0)): ("zero", ""),
    System(store_path("g1", 1)): ("one", ""),
    System(store_path("fails", 2), switches=Fate.FAILS): ("two", "fail"),
    System(store_path("hangs", 3), switches=Fate.HANGS): ("three", "hang"),
    System(store_path("offline", 4), has_network=False): ("four", "break-network"),
    System(store_path("no-sshd", 5), has_sshd=False): ("five", "break-sshd"),
    System(store_path("ill", 6), is_healthy=False): ("bad", ""),
}


class Act(StrEnum):
    DEPLOY = "deploy"
    ROLLBACK = "rollback"
    LOSE_STATE = "lose .nixa"
    POWER = "pull the plug"


@dataclass(frozen=True, slots=True)
class Step:
    act: Act
    system: int = 0


@dataclass(frozen=True, slots=True)
class Seen:
    """What is to be seen after a step. Systems are numbers in SYSTEMS."""

    is_ok: bool
    outcome: str
    out: int | None
    live: int | None
    profile: int | None


def draw_steps(seed: int) -> tuple[Step, ...]:
    """An installation, and what becomes of it."""
    rng = random.Random(seed)
    steps = [Step(Act.DEPLOY, 0)]
    for _ in range(rng.randint(2, 4)):
        act = rng.choice((Act.DEPLOY, Act.DEPLOY, Act.DEPLOY, Act.ROLLBACK, Act.LOSE_STATE, Act.POWER))
        steps.append(Step(act, rng.randrange(len(SYSTEMS)) if act is Act.DEPLOY else 0))
    return tuple(steps)


def simulate(seed: int, steps: tuple[Step, ...]) -> list[Seen]:
    """The steps on a simulated machine."""
    history = History(seed, Content.LINUX, tuple(SYSTEMS), 1, ())
    numbers = {system.path: number for number, system in enumerate(SYSTEMS)}
    with clean_folder(scratch()) as folder, clean_environment():
        world = World(random.Random(seed), folder, Scheduler())
        played = Play(history, world)
        controller, machine = world.controllers[0], world.addresses[TARGET]
        wanted, seen = history.systems[0].path, []
        for step in steps:
            is_ok = True
            match step.act:
                case Act.LOSE_STATE:
                    controller.lose_state()
                case Act.POWER:
                    machine.reboot(is_clean=False, seconds=5)
                case _:
                    if step.act is Act.DEPLOY:
                        wanted = history.systems[step.system].path
                    run = played.begin(controller, wanted, Asked(step.act.value))
                    world.scheduler.run(world.now + 50_000, is_over=lambda run=run: run.task.is_over)  # type: ignore[misc]
                    is_ok = run.done is not None
            world.scheduler.run(world.now + 300)
            assert world.violation is None
            assert machine.root is not None
            receipt = json.loads(machine.root.files.get("receipt.json", "{}"))
            live, profile, _ = machine.snapshot()
            assert machine.boot is not None and machine.boot.kind is Kind.NIXOS
            seen.append(
                Seen(
                    is_ok,
                    receipt.get("outcome", ""),
                    *(numbers.get(path or "") for path in (receipt.get("out"), live, profile)),
                )
            )
        return seen


def replay(fleet: Fleet, machine: Machine, steps: tuple[Step, ...]) -> list[Seen]:
    """The same steps on a practice machine."""
    name, numbers, seen = machine.name, dict[str, int](), []
    place = fleet.flake / ".nixa" / "hosts" / name
    for step in steps:
        status = 0
        match step.act:
            case Act.LOSE_STATE:
                for file in (place / "deployed.json", place / "history.jsonl"):
                    file.unlink(missing_ok=True)
            case Act.POWER:
                machine.power_cycle()
            case Act.ROLLBACK:
                status = _doit(fleet, f"rollback:{name}")
            case Act.DEPLOY:
                message, activation = list(SYSTEMS.values())[step.system]
                fleet.change(name, f'{{ message = "{message}"; activation = "{activation}"; }}\n')
                status = _doit(fleet, "-a", f"deploy:{name}")
                output = json.loads((place / "output.json").read_text())
                numbers[output["toplevel"]["out"]] = step.system
        receipt = json.loads(machine.exec(["cat", "/var/lib/nixa/receipt.json"]).stdout)
        profile = machine.exec(["readlink", "-f", "/nix/var/nix/profiles/system"]).stdout.strip()
        paths = (receipt["out"], machine.current_system(), profile)
        seen.append(Seen(status == 0, receipt["outcome"], *(numbers.get(path or "") for path in paths)))
    return seen


def _doit(fleet: Fleet, *args: str) -> int:
    """The exit status."""
    done = subprocess.run(
        (sys.executable, "-m", "doit", *args),
        cwd=fleet.flake, env=fleet.environment(), capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode in (0, 1) and "Traceback" not in done.stderr, done.stdout + done.stderr
    return done.returncode


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    place: Path = tmp_path_factory.mktemp("replay")
    with Lab(place / "lab", boot_delay=0.1, kexec_delay=0) as lab:
        lab.up(1)
        fleet = Fleet(lab, place / "home")
        manifest = fleet.flake / "hosts.toml"
        text = manifest.read_text().replace("[defaults]", "[defaults]\nconfirm_timeout = 4")
        manifest.write_text(text.replace("[hosts.web1]", f"[hosts.web1]\nchecks = [{CHECK}]"))
        yield fleet


def test_the_model_and_the_lab_agree_on_every_step(fleet: Fleet) -> None:
    (machine,) = fleet.lab.machines.values()
    for seed in range(REPLAYS):
        steps = draw_steps(seed)
        assert replay(fleet, machine, steps) == simulate(seed, steps), f"seed {seed}: {steps}"
        machine.reset()
        (fleet.flake / ".nixa" / "hosts" / machine.name / "deployed.json").unlink(missing_ok=True)
