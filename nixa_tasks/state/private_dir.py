"""Folders that nobody else may look into, for as long as a run needs them.

A killed run can't remove its own folders: cleanup_after_kill.py does. Each is locked by its live run, so that a
later run finds those that nobody holds any more, and removes what was left all the same.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from nixa_tasks.process.run import Processes

_PREFIX = "nixa-"
_MARK = ".held-by-a-run"
_TMPFS = Path("/dev/shm")  # noqa: S108 -- only folders of mode 0700 are made in it


def temporary() -> Path:
    """Where a run's sockets may lie: /tmp where TMPDIR is too long for a socket's path (108 bytes)."""
    parent = tempfile.gettempdir()
    return Path(parent if len(parent) < 40 else "/tmp")  # noqa: S108 -- as above


@contextlib.contextmanager
def folder(parent: Path, processes: Processes) -> Iterator[Path]:
    """A new folder of mode 0700, removed at the end."""
    place = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    handle = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        (place / _MARK).touch(0o600)  # from here on it is removed if nobody holds the lock
        processes.remove_at_death(place)
        yield place
    finally:
        if not any(path.is_socket() for path in place.glob("*")):  # else shared connections still live:
            shutil.rmtree(place, ignore_errors=True)  # cleanup_after_kill.py ends them, and needs it for that
        os.close(handle)


@contextlib.contextmanager
def memory_folder(fallback: Path, processes: Processes) -> Iterator[Path]:
    """The same on a tmpfs, where there is one, for what must never be on a disk; else in `fallback`."""
    with folder(_TMPFS if os.access(_TMPFS, os.W_OK) else fallback, processes) as place:
        yield place


def sweep() -> None:
    """Remove what this user's killed runs left behind."""
    for parent in {temporary(), _TMPFS}:
        for mark in parent.glob(f"{_PREFIX}*/{_MARK}"):
            with contextlib.suppress(OSError):
                _remove_unless_held(mark.parent)


def _remove_unless_held(place: Path) -> None:
    handle = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.fstat(handle).st_uid == os.getuid():
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(place, ignore_errors=True)
    finally:
        os.close(handle)
