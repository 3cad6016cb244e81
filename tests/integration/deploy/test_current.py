"""A fleet that runs what it should stays alone, whatever is lost or wrong on this side."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from nixa_tasks.lab import Lab
from tests.integration.deploy.conftest import Fleet

pytestmark = [pytest.mark.lab, pytest.mark.xdist_group("current"), pytest.mark.timeout(900)]

MACHINES = 20
HOUR = 3600

# Read by every Python at its start, from PYTHONPATH: nixa's own clock, an hour behind that of the
# files, of git, of Nix and of the hosts. (The real clock has no namespace.)
CLOCK = f"""
import datetime, time

_time, _time_ns = time.time, time.time_ns
time.time = lambda: _time() - {HOUR}
time.time_ns = lambda: _time_ns() - {HOUR} * 10**9


class _Slow(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return super().now(tz) - datetime.timedelta(seconds={HOUR})


datetime.datetime = _Slow
"""


@pytest.fixture(scope="module")
def twenty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    place = tmp_path_factory.mktemp("twenty")
    with Lab(place / "lab", boot_delay=0.1, kexec_delay=0, disk_mb=64) as lab:
        lab.up(MACHINES)
        fleet = Fleet(lab, place / "home")
        fleet.doit("deploy", timeout=600)
        yield fleet


def standing(fleet: Fleet) -> dict[str, tuple[object, ...]]:
    """What a deploy could change on the machines."""
    seen: dict[str, tuple[object, ...]] = {}
    for name, machine in fleet.lab.machines.items():
        receipts = machine.exec(
            ["sh", "-c", "cd /var/lib/nixa && tail -n 99 receipt.json history.jsonl"]
        ).stdout
        seen[name] = (machine.current_system(), machine.boot_id, machine.wipes(), receipts)
        assert '"done"' in receipts
    return seen


def age(folder: Path, seconds: float) -> None:
    """Set the time of every file back by so much; a negative number makes them come from the future."""
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            seen = path.stat()
            os.utime(path, (seen.st_atime - seconds, seen.st_mtime - seconds))


def deploy_changes_nothing(fleet: Fleet, project: Path, **environment: str) -> None:
    before = standing(fleet)
    done = subprocess.run(
        (sys.executable, "-m", "doit", "deploy"),
        cwd=project,
        env=fleet.environment() | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    table = said[said.index("\nhost ") :]
    assert sorted(line.split()[:2] for line in table.splitlines()[2:] if line.startswith("web")) == sorted(
        [name, "current"] for name in fleet.lab.machines
    ), said
    assert standing(fleet) == before


def test_without_any_local_state(twenty: Fleet) -> None:
    shutil.rmtree(twenty.flake / ".nixa")
    deploy_changes_nothing(twenty, twenty.flake)


def test_without_the_database_of_doit(twenty: Fleet) -> None:
    databases = list(twenty.flake.glob(".nixa/doit.db*"))
    assert databases
    for database in databases:
        database.unlink()
    deploy_changes_nothing(twenty, twenty.flake)


@pytest.mark.parametrize("files_are", [HOUR, -HOUR])
def test_with_a_clock_that_is_an_hour_wrong(twenty: Fleet, tmp_path: Path, files_are: int) -> None:
    (tmp_path / "sitecustomize.py").write_text(CLOCK)
    age(twenty.flake, files_are)
    shutil.rmtree(twenty.flake / ".nixa/hosts")
    deploy_changes_nothing(twenty, twenty.flake, PYTHONPATH=str(tmp_path))
    line = (twenty.flake / ".nixa/journal.jsonl").read_text().splitlines()[-1]
    noted = datetime.fromisoformat(json.loads(line)["at"])
    assert HOUR - 600 < (datetime.now(UTC) - noted).total_seconds() < HOUR + 600, "the clock was wrong"


def test_from_a_fresh_clone_elsewhere(twenty: Fleet, tmp_path: Path) -> None:
    clone = tmp_path / "elsewhere"
    subprocess.run(
        ("git", "clone", "-q", str(twenty.flake), str(clone)), check=True, timeout=60, capture_output=True
    )
    deploy_changes_nothing(twenty, clone, XDG_STATE_HOME=str(tmp_path / "state"))
