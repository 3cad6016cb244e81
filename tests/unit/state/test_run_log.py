"""A run's log: everything that the tools print, and no failure of its own half-way through a deploy."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

import pytest

from nixa_tasks.errors import NixaError
from nixa_tasks.process.run import LocalProcesses
from nixa_tasks.state.journal import RunLog


def log(folder: Path) -> RunLog:
    return RunLog(folder, "deploy", "0123456789ab", LocalProcesses().clock)


def test_every_line_is_written_at_once_and_for_the_owner_alone(tmp_path: Path) -> None:
    made = log(tmp_path / "log")
    assert not made.path.exists(), "a run that printed nothing leaves no log"
    made("copying …")
    assert made.path.read_text().endswith("  copying …\n")
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o600
    made.close()


def test_a_folder_that_can_not_be_written_is_an_error_before_anything_is_done(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NixaError, match="can't be written: Not a directory"):
        log(tmp_path / "file" / "log")


def test_a_disk_that_fills_up_later_fails_no_deploy(tmp_path: Path) -> None:
    made = log(tmp_path / "log")
    shutil.rmtree(tmp_path / "log")
    made("a line")
    made.close()


def test_only_the_last_logs_are_kept(tmp_path: Path) -> None:
    for number in range(60):
        (tmp_path / f"20260101T0000{number:02d}Z-deploy-x.log").write_text("")
    made = log(tmp_path)
    made("a line")
    made.close()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 50
    assert "20260101T000059Z-deploy-x.log" in names
