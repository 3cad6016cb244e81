"""An installation disturbed in every step in every way: the next deploy ends well, or says what to do."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nixa_tasks.lab import Lab
from tests.integration.deploy.background import Background
from tests.integration.deploy.conftest import Fleet
from tests.integration.deploy.matrix import Cell, Moment, Place, check, table, try_all

pytestmark = [pytest.mark.lab, pytest.mark.timeout(1200)]

MACHINES = 10
STEPS = (
    "evaluate", "build", "reach", "fetch", "upload", "kexec",
    "copy disko", "disko", "copy", "install", "reboot", "verify",
)  # fmt: skip
ON_HOST = ("reach", "upload", "kexec", "copy disko", "disko", "copy", "install", "reboot", "verify")
FAULTS = {
    "cut": ON_HOST,  # takes longest, so it comes first
    "kill doit": STEPS,
    "SIGTERM": STEPS,
    "SIGINT": ("fetch", "kexec", "disko", "install"),
    "kill tool": ("evaluate", "build", "copy disko", "disko", "copy", "install"),
    "kill ssh": ON_HOST,
    "power": ON_HOST,
    "disk full": ("upload", "kexec", "copy disko"),
}
CELLS = [Cell(step, fault) for fault, steps in FAULTS.items() for step in steps]


def moment(step: str) -> Moment:
    if step == "fetch":
        return lambda trial: (
            trial.run.has_begun("kexec", "x86_64-linux") or trial.run.has_begun("kexec", "aarch64-linux")
        )
    if step in ("evaluate", "build"):
        return lambda trial: trial.run.has_begun(step)
    return lambda trial: trial.run.has_begun(step, trial.host)


def prepare(fleet: Fleet, place: Place, cell: Cell) -> Background:
    """A machine and a project as new, with a system that nobody has built yet."""
    place.machine.reset()
    shutil.rmtree(place.project / ".nixa", ignore_errors=True)
    place.want(f"{cell.moment}, {cell.fault}")
    cache = fleet.home / "cache"
    if cell.moment == "fetch":  # only then is there something to fetch
        cache = fleet.home / f"cache-{place.machine.name}"
        shutil.rmtree(cache, ignore_errors=True)
    place.environment["NIXA_CACHE"] = str(cache)
    return place.deploy()


MOMENTS = {step: moment(step) for step in STEPS}


@contextmanager
def lab_for(place: Path, machines: int) -> Iterator[Fleet]:
    with Lab(place / "lab", boot_delay=0.1, kexec_delay=0) as lab:
        lab.up(machines)
        fleet = Fleet(lab, place / "home")
        fleet.doit("kexec")
        yield fleet


def test_every_step_and_every_fault(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    with lab_for(tmp_path, MACHINES) as fleet:
        endings = try_all(fleet, CELLS, prepare, MOMENTS)
    record_property("table", table(endings))  # printed at the end: conftest.py
    check(endings, CELLS)
