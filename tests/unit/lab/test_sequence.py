"""What a machine boots next, and which faults exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from nixa_tasks.lab.errors import LabError
from nixa_tasks.lab.faults import FAULTS, active, parse
from nixa_tasks.lab.sequence import End, Stage, next_stage


@pytest.mark.parametrize(
    ("end", "faults", "is_bootable", "stage"),
    [
        (End.POWER_ON, "", False, Stage.OLD),
        (End.POWER_ON, "", True, Stage.INSTALLED),
        (End.REBOOT, "", False, Stage.OLD),
        (End.REBOOT, "", True, Stage.INSTALLED),
        (End.CRASH, "", True, Stage.INSTALLED),
        (End.KEXEC, "", False, Stage.INSTALLER),
        (End.KEXEC, "", True, Stage.INSTALLER),
        (End.KEXEC, "kexec-hangs", False, Stage.DARK),
        (End.KEXEC, "boot-fails", False, Stage.INSTALLER),
        (End.REBOOT, "boot-fails", True, Stage.DARK),
        (End.REBOOT, "kexec-hangs", True, Stage.INSTALLED),
        (End.POWER_OFF, "", True, Stage.OFF),
    ],
)
def test_what_boots_next(end: End, faults: str, is_bootable: bool, stage: Stage) -> None:
    assert next_stage(end, faults=frozenset(faults.split()), is_bootable=is_bootable) is stage


def test_every_fault_says_what_it_does() -> None:
    assert all(len(fault.what) > 10 for fault in FAULTS.values())


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("silent", None, ("silent", "")),
        ("slow", None, ("slow", FAULTS["slow"].default)),
        ("slow", "5mbit", ("slow", "5mbit")),
        ("drop-after:1000", None, ("drop-after", "1000")),
    ],
)
def test_a_fault_is_named_with_or_without_its_value(
    name: str, value: str | None, expected: tuple[str, str]
) -> None:
    assert parse(name, value) == expected


@pytest.mark.parametrize(
    ("name", "value"), [("silnt", None), ("silent", "yes"), ("low-memory", "much"), ("", None)]
)
def test_a_fault_that_makes_no_sense_is_refused(name: str, value: str | None) -> None:
    with pytest.raises(LabError):
        parse(name, value)


def test_only_known_faults_are_active(tmp_path: Path) -> None:
    (tmp_path / "slow").write_text("2mbit\n")
    (tmp_path / ".slow.swp").write_text("")

    assert active(tmp_path) == {"slow": "2mbit"}
    assert active(tmp_path / "missing") == {}
