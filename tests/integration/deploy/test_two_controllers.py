"""Two controllers, each with a checkout and a `.nixa/` of its own, and one host."""

from __future__ import annotations

import getpass
import json
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nixa_tasks.lab import Lab
from nixa_tasks.lab.machine import Machine
from tests.integration.deploy.background import Background, wait_until
from tests.integration.deploy.conftest import Fleet

pytestmark = [pytest.mark.lab, pytest.mark.xdist_group("two-controllers")]

WAITS = "waiting for the host's lock, held by "
CHECK = '[hosts.web1]\nchecks = [{ command = "sleep 2" }]'


@dataclass
class Controller:
    """A checkout of the lab's flake elsewhere, and doit in it."""

    fleet: Fleet
    project: Path

    def deploy(self, message: str) -> Background:
        (self.project / "hosts/web1.nix").write_text(f'{{ message = "{message}"; }}\n')
        output = self.project.parent / f"said-{message}"
        return Background.begin(self.project, self.fleet.environment(), "-a", "deploy:web1", output=output)

    def wanted(self) -> str:
        value = json.loads((self.project / ".nixa/hosts/web1/output.json").read_text())
        return str(value["toplevel"]["out"])


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One machine, installed once for this module."""
    place = tmp_path_factory.mktemp("two")
    with Lab(place / "lab", boot_delay=0.1, kexec_delay=0) as lab:
        lab.up(1)
        fleet = Fleet(lab, place / "home")
        manifest = fleet.flake / "hosts.toml"
        manifest.write_text(manifest.read_text().replace("[hosts.web1]", CHECK))
        fleet.doit("deploy")
        yield fleet


@pytest.fixture
def pair(installed: Fleet, tmp_path: Path) -> tuple[Controller, Controller]:
    places = [tmp_path / name / "flake" for name in ("one", "two")]
    for place in places:
        shutil.copytree(installed.flake, place, ignore=shutil.ignore_patterns(".nixa"), symlinks=True)
    return Controller(installed, places[0]), Controller(installed, places[1])


def history(machine: Machine) -> list[tuple[str, str]]:
    lines = machine.exec(["cat", "/var/lib/nixa/history.jsonl"]).stdout.splitlines()
    return [(one["out"], one["outcome"]) for one in map(json.loads, lines)]


def test_one_waits_and_the_host_ends_with_the_later_one(
    installed: Fleet, pair: tuple[Controller, Controller]
) -> None:
    one, two = pair
    machine = installed.lab.machines["web1"]
    first = one.deploy("first")
    first.await_step("switch")
    second = two.deploy("second")
    assert first.end() == 0, first.said
    assert second.end() == 0, second.said
    said = next(line for line in second.said.splitlines() if "waiting for the host's lock" in line)
    assert f"held by {getpass.getuser()}@{socket.gethostname()} process {first.child.pid} since 20" in said
    assert history(machine)[-2:] == [(one.wanted(), "done"), (two.wanted(), "done")]
    assert machine.current_system() == two.wanted() != one.wanted()
    receipt = json.loads(machine.exec(["cat", "/var/lib/nixa/receipt.json"]).stdout)
    assert receipt == json.loads((two.project / ".nixa/hosts/web1/deployed.json").read_text())


def test_begun_at_the_same_moment_both_are_recorded_in_order(
    installed: Fleet, pair: tuple[Controller, Controller]
) -> None:
    machine = installed.lab.machines["web1"]
    runs = [controller.deploy(f"both-{number}") for number, controller in enumerate(pair)]
    assert [run.end() for run in runs] == [0, 0], runs[0].said + runs[1].said
    waited = ["waiting for the host's lock" in run.said for run in runs]
    assert sorted(waited) == [False, True], "one of them waits, and says so"
    earlier, later = (pair[number].wanted() for number in (waited.index(False), waited.index(True)))
    assert history(machine)[-2:] == [(earlier, "done"), (later, "done")]
    assert machine.current_system() == later


def test_who_waits_too_long_is_told_whom_for(installed: Fleet, pair: tuple[Controller, Controller]) -> None:
    one, two = pair
    manifest = two.project / "hosts.toml"
    manifest.write_text(manifest.read_text().replace("[defaults]", "[defaults]\nlock_timeout = 1"))
    first = one.deploy("holds")
    first.await_step("switch")
    second = two.deploy("gives-up")
    assert second.end() == 1
    assert f"process {first.child.pid} since 20" in second.said.split("the host's lock is still held by")[1]
    assert "lock_timeout" in second.said
    assert first.end() == 0, first.said
    assert installed.lab.machines["web1"].current_system() == one.wanted()


def test_a_new_machine_is_installed_by_one_and_switched_by_the_other(
    installed: Fleet, pair: tuple[Controller, Controller]
) -> None:
    """A boot ends a lock, so each system that runs in between has its own, and who waits goes on
    behind the boot. Which of them gets the installer's is anybody's guess."""
    machine = installed.lab.machines["web1"]
    machine.reset()
    machine.fault("slow", "8mbit")  # so that the image is on its way for as long as it takes
    first = pair[0].deploy("new")
    first.await_step("upload")
    second = pair[1].deploy("newer")
    wait_until(lambda: WAITS in second.said, "the other waits")
    assert f"{WAITS}{getpass.getuser()}@{socket.gethostname()} process {first.child.pid} " in second.said
    machine.clear()
    statuses = first.end(), second.end()
    assert "whoever held it has restarted the host: looking again" in second.said
    assert machine.wipes() == 1, "who waited wipes nothing"
    done = [out for out, outcome in history(machine) if outcome == "done"]
    assert machine.current_system() == done[-1]
    if statuses == (0, 0):
        assert sorted(done) == sorted(controller.wanted() for controller in pair)
    else:  # who did not install it had the new system's lock first
        assert sorted(statuses) == [0, 1], first.said + second.said
        over = statuses.index(1)
        said = (first, second)[over].said
        assert (
            f"it was installed, but {getpass.getuser()}@{socket.gethostname()} has deployed over it" in said
        )
        assert done == [pair[1 - over].wanted()]
