"""Private folders: for their owner alone, and swept away once nobody holds them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nixa_tasks.process.run import LocalProcesses
from nixa_tasks.state import private_dir as private


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for both places where private folders lie."""
    monkeypatch.setattr(private, "temporary", lambda: tmp_path)
    monkeypatch.setattr(private, "_TMPFS", tmp_path)
    return tmp_path


def test_a_folder_is_its_owners_and_gone_at_the_end(parent: Path) -> None:
    with private.memory_folder(parent / "elsewhere", LocalProcesses()) as place:
        assert place.parent == parent
        assert place.stat().st_mode & 0o777 == 0o700
        (place / "secret").write_text("x")
    assert not list(parent.iterdir())


def test_one_that_somebody_removed_meanwhile_is_no_fault_of_nixas(parent: Path) -> None:
    with private.folder(parent, LocalProcesses()) as place:
        shutil.rmtree(place)
    assert not list(parent.iterdir())


def test_without_a_tmpfs_it_lies_where_it_is_told(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private, "_TMPFS", parent / "missing")
    with private.memory_folder(parent, LocalProcesses()) as place:
        assert place.parent == parent


def test_what_a_killed_run_left_is_swept_and_nothing_else(parent: Path) -> None:
    """Left, since whoever ends the rest of a killed run was killed too, as by a power cut."""
    code = f"""
import os, pathlib, signal
from nixa_tasks.process.run import LocalProcesses
from nixa_tasks.state import private_dir as private
class Forgetful(LocalProcesses):
    def remove_at_death(self, folder):
        pass
with private.folder(pathlib.Path({str(parent)!r}), Forgetful()) as place:
    (place / "secret").write_text("x")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run((sys.executable, "-c", code), check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = parent.glob("nixa-*")
    assert (left / "secret").exists()
    (parent / "nixa-of-a-person").mkdir()
    (parent / "nixa-link").symlink_to(parent / "nixa-of-a-person")
    with private.folder(parent, LocalProcesses()) as held:
        private.sweep()
        assert not left.exists()
        assert held.exists()
        assert (parent / "nixa-of-a-person").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_another_users_folder_is_left_alone(parent: Path) -> None:
    place = parent / "nixa-abcdefgh"
    place.mkdir()
    (place / ".held-by-a-run").touch()
    os.chown(place, 1000, 1000)
    private.sweep()
    assert place.exists()
