"""Systems that break what they run on: the host itself goes back, with and without a controller."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator

import pytest

from nixa_tasks.lab import Lab
from nixa_tasks.lab.machine import Machine
from tests.integration.deploy.background import Background, wait_until
from tests.integration.deploy.conftest import Fleet

pytestmark = [pytest.mark.lab, pytest.mark.xdist_group("bad-systems")]

BAD = {
    "web1": ("break-network", "nobody confirmed it within 4 s"),
    "web2": ("break-sshd", "nobody confirmed it within 4 s"),
    "web3": ("hang", "timed out after"),
    "web4": ("fail", "units failed (status 4)"),
    "web5": ("", "grep -qx bad"),  # all is well but for what the check says
}
CONFIRM = 4
CHECK = '{ command = "! grep -qx bad /etc/lab-message", retries = 1 }'
SLOW = '{ command = "sleep 1" }'


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Five machines that run a good system, installed once for this module."""
    place = tmp_path_factory.mktemp("bad")
    with Lab(place / "lab", boot_delay=0.1, kexec_delay=0) as lab:
        lab.up(len(BAD))
        fleet = Fleet(lab, place / "home")
        manifest = fleet.flake / "hosts.toml"
        text = manifest.read_text().replace("[defaults]", f"[defaults]\nconfirm_timeout = {CONFIRM}")
        manifest.write_text(text.replace("[hosts.web5]", f"[hosts.web5]\nchecks = [{CHECK}, {SLOW}]"))
        fleet.doit("deploy")
        yield fleet


@pytest.fixture
def bad(five: Fleet) -> Iterator[Fleet]:
    """Bad systems are wanted; afterwards all machines run good ones again."""
    for name, (activation, _) in BAD.items():
        five.change(name, f'{{ message = "bad"; activation = "{activation}"; }}\n')
    yield five
    for name in BAD:
        five.change(name, '{ message = "hello"; }\n')
    five.doit("deploy")


def remote(machine: Machine, name: str) -> str:
    return machine.exec(["cat", f"/var/lib/nixa/{name}"]).stdout


def local(fleet: Fleet, name: str) -> dict[str, object]:
    value: dict[str, object] = json.loads((fleet.flake / ".nixa/hosts" / name / "deployed.json").read_text())
    return value


def systems(fleet: Fleet) -> dict[str, str | None]:
    return {name: machine.current_system() for name, machine in fleet.lab.machines.items()}


def test_each_comes_back_by_itself_and_both_sides_say_so(bad: Fleet) -> None:
    good = systems(bad)
    said = bad.doit("deploy", status=1)
    assert systems(bad) == good
    for name, machine in bad.lab.machines.items():
        receipt = local(bad, name)
        assert receipt["outcome"] == "rolled-back", name
        assert receipt["out"] == good[name] != receipt["wanted"]
        assert json.loads(remote(machine, "receipt.json")) == receipt, "the same on both sides"
        assert f"{name}: rolled back: " in said
        assert BAD[name][1] in said.split(f"{name}: rolled back: ")[1].split("\n")[0]
        assert f"doit deploy:{name}" in said.split(f"{name}: rolled back: ")[1]


def test_each_comes_back_with_the_controller_killed_in_the_middle(bad: Fleet) -> None:
    good = systems(bad)
    run = Background.begin(bad.flake, bad.environment(), "deploy", output=bad.home / "killed")
    changed: dict[str, float] = {}

    def all_were_changed() -> bool:
        for name, machine in bad.lab.machines.items():
            if name not in changed and has_begun(machine, BAD[name][0], good[name]):
                changed[name] = time.monotonic()
        return changed.keys() == BAD.keys()

    wait_until(all_were_changed, "all switches are under way")
    run.signal(signal.SIGKILL)
    run.end()
    for name, machine in bad.lab.machines.items():
        wait_until(
            lambda machine=machine: "rolled-back" in remote(machine, "receipt.json"),  # type: ignore[misc]
            f"{name} went back",
            seconds=CONFIRM + 30,
        )
        receipt = json.loads(remote(machine, "receipt.json"))
        assert receipt["out"] == good[name] != receipt["wanted"]
        assert machine.current_system() == good[name]
        assert bad.doit(f"reach:{name}"), "it can be reached again"


def has_begun(machine: Machine, activation: str, good: str | None) -> bool:
    """Whether the bad system's activation is under way, or through."""
    if activation == "hang":
        return "never gets ready" in machine.exec(["sh", "-c", "cat /run/nixa/switch-*/*.log"]).stdout
    if activation == "fail":  # may have gone back already
        return "rolled-back" in remote(machine, "receipt.json") or machine.current_system() != good
    return machine.current_system() != good


def test_a_controller_killed_after_the_confirmation_forgets_nothing(five: Fleet) -> None:
    """What the host runs then is not in the local receipt; taking the change back is a deploy."""
    machine = five.lab.machines["web1"]
    good = machine.current_system()
    five.change("web1", '{ message = "another"; }\n')
    run = Background.begin(five.flake, five.environment(), "deploy:web1", output=five.home / "confirmed")
    wait_until(lambda: is_confirmed(machine, good), "confirmed")
    run.signal(signal.SIGKILL)
    run.end()
    assert machine.current_system() != good
    five.change("web1", '{ message = "hello"; }\n')
    five.doit("deploy:web1")
    assert machine.current_system() == good


def is_confirmed(machine: Machine, good: str | None) -> bool:
    receipt = json.loads(remote(machine, "receipt.json"))
    return bool(receipt["outcome"] == "done" and receipt["out"] != good)


def test_a_system_that_was_not_confirmed_is_not_taken_for_deployed(five: Fleet) -> None:
    """Killed after the activation and before the word that keeps it: the host is about to go back,
    so the next run waits for that, and switches again."""
    machine = five.lab.machines["web5"]
    good = machine.current_system()
    before = len(remote(machine, "history.jsonl").splitlines())
    five.change("web5", '{ message = "unconfirmed"; }\n')
    run = Background.begin(five.flake, five.environment(), "deploy:web5", output=five.home / "unconfirmed")
    wait_until(lambda: machine.current_system() != good, "activated")
    run.signal(signal.SIGKILL)
    run.end()
    assert "the host itself still carries out" in five.doit("deploy:web5")
    history = [json.loads(line) for line in remote(machine, "history.jsonl").splitlines()[before:]]
    assert [one["outcome"] for one in history] == ["rolled-back", "done"]
    assert machine.current_system() == history[1]["out"] != good
