"""A switch disturbed in every step in every way: the next deploy ends well, and nothing is wiped."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nixa_tasks.lab import Lab
from tests.integration.deploy.background import Background
from tests.integration.deploy.conftest import Fleet
from tests.integration.deploy.matrix import Cell, Moment, Place, Trial, check, table, try_all

pytestmark = [pytest.mark.lab, pytest.mark.timeout(1200)]

MACHINES = 10
CONFIRM_SECONDS = 5
CHECK = '{ command = "touch /run/checking; sleep 1; rm /run/checking", retries = 0 }'
ON_HOST = ("reach", "copy", "launch", "activated", "check", "confirmed")
STEPS = ("evaluate", "build", *ON_HOST)
FAULTS = {
    "cut": ON_HOST,  # takes longest, so it comes first
    "kill doit": STEPS,
    "SIGTERM": STEPS,
    "SIGINT": ("reach", "activated", "check"),
    "kill tool": ("evaluate", "build", "copy"),
    "kill ssh": ON_HOST,
    "power": ON_HOST,
    "disk full": ("copy", "launch", "activated", "check"),
}
CELLS = [Cell(step, fault) for fault, steps in FAULTS.items() for step in steps]


def is_activated(trial: Trial) -> bool:
    return trial.run.has_begun("switch") and trial.machine.current_system() == trial.wanted()


def is_confirmed(trial: Trial) -> bool:
    if not trial.run.has_begun("switch"):
        return False
    text = trial.remote("/var/lib/nixa/receipt.json")
    return bool(text) and json.loads(text)["out"] == trial.wanted()


def is_checking(trial: Trial) -> bool:
    return (
        trial.run.has_begun("switch") and trial.machine.exec(["test", "-e", "/run/checking"]).returncode == 0
    )


def begun(step: str) -> Moment:
    return lambda trial: trial.run.has_begun(step)


MOMENTS: dict[str, Moment] = {
    "evaluate": begun("evaluate"),
    "build": begun("build"),
    "reach": begun("reach"),
    "copy": begun("copy"),
    "launch": begun("switch"),
    "activated": is_activated,
    "check": is_checking,
    "confirmed": is_confirmed,
}


def prepare(_fleet: Fleet, place: Place, cell: Cell) -> Background:
    """A machine that runs a system of ours, and another system that nobody has built yet."""
    if place.machine.stage != "installed":
        run = place.deploy()
        assert run.end() == 0, run.said
    place.machine.exec(["rm", "-f", "/run/checking"])
    place.want(f"{cell.moment}, {cell.fault}")
    return place.deploy()


@contextmanager
def lab_for(place: Path, machines: int) -> Iterator[Fleet]:
    with Lab(place / "lab", boot_delay=0.1, kexec_delay=0) as lab:
        lab.up(machines)
        fleet = Fleet(lab, place / "home")
        manifest = fleet.flake / "hosts.toml"
        text = manifest.read_text()
        manifest.write_text(
            text.replace("[defaults]", f"[defaults]\nconfirm_timeout = {CONFIRM_SECONDS}\nchecks = [{CHECK}]")
        )
        fleet.doit("kexec")
        yield fleet


def test_every_step_and_every_fault(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    with lab_for(tmp_path, MACHINES) as fleet:
        endings = try_all(fleet, CELLS, prepare, MOMENTS)
    record_property("table", table(endings))  # printed at the end: conftest.py
    check(endings, CELLS)
