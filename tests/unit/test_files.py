"""Files replaced in one step, and locks across threads."""

from __future__ import annotations

import os
import stat
import threading
import time
from pathlib import Path

import pytest

from nixa_tasks.errors import DeadlinePassed, NixaError
from nixa_tasks.files import locked, replace_file, write_bytes


def test_a_held_lock_ends_the_wait_and_names_its_holder(tmp_path: Path) -> None:
    notes: list[str] = []
    path = tmp_path / "l"
    with locked(path, timeout=1), pytest.raises(DeadlinePassed, match=f"process {os.getpid()}"):  # noqa: SIM117
        with locked(path, timeout=0.4, what="the cache", announce=notes.append):
            raise AssertionError("both hold it")
    assert notes[0].startswith("waiting for the cache, held by process ")
    assert f"process {os.getpid()}" in notes[0]
    assert not path.exists()


def test_only_one_of_many_holds_a_lock(tmp_path: Path) -> None:
    inside: list[int] = []
    most: list[int] = []

    def enter() -> None:
        for _ in range(5):
            with locked(tmp_path / "l", timeout=120):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.002)
                inside.pop()

    threads = [threading.Thread(target=enter) for _ in range(6)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert most == [1] * 30


def test_a_lock_does_not_follow_a_planted_link(tmp_path: Path) -> None:
    (tmp_path / "l").symlink_to(tmp_path / "victim")
    with pytest.raises(NixaError, match="can't be opened"), locked(tmp_path / "l", timeout=1):
        raise AssertionError("the link was followed")
    assert not (tmp_path / "victim").exists()


def test_a_replaced_file_keeps_its_attributes(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")
    try:
        os.setxattr(path, "user.note", b"mine")
    except OSError:
        pytest.skip("this file system keeps no extended attributes")
    replace_file(path, b"new", 0o640, like=path)
    assert (path.read_bytes(), os.getxattr(path, "user.note")) == (b"new", b"mine")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_failed_replacement_leaves_the_file_and_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()  # a folder can't be replaced by a file
    with pytest.raises(NixaError, match="can't be written"):
        write_bytes(tmp_path / "f", b"new")
    assert [one.name for one in tmp_path.iterdir()] == ["f"]
