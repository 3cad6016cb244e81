"""Local files: hashed in one pass, and put into the cache without copying bytes where possible."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from nixa_tasks.errors import Interrupted
from nixa_tasks.process.run import is_stopping

BLOCK = 1 << 20


def hash_file(path: Path, progress: Callable[[int, int | None], None] | None = None) -> str:
    """SHA-256 of a file in lower-case hex. Raises OSError, and Interrupted when nixa is stopped."""
    import hashlib

    digest = hashlib.sha256()
    block = memoryview(bytearray(BLOCK))
    done = 0
    with path.open("rb", buffering=0) as file:
        total = os.fstat(file.fileno()).st_size
        while count := file.readinto(block):
            digest.update(block[:count])
            done += count
            if is_stopping():
                raise Interrupted(f"stopped while reading {path}")
            if progress is not None:
                progress(done, total)
    return digest.hexdigest()


_FICLONE = 0x40049409  # ioctl_ficlone(2)


def clone(source: Path, target: Path, *, is_link_first: bool = False) -> None:
    """Make `target` the same file: blocks shared (btrfs, xfs), else a hard link, else a copy.

    With `is_link_first` a hard link is tried first. Raises OSError; no half file is left then.
    """
    target.unlink(missing_ok=True)
    ways = (_link, _reflink) if is_link_first else (_reflink, _link)
    for way in ways:
        try:
            way(source, target)
        except OSError as error:
            target.unlink(missing_ok=True)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
        else:
            return
    try:
        shutil.copyfile(source, target)
    except BaseException:
        with contextlib.suppress(OSError):
            target.unlink()
        raise


def _link(source: Path, target: Path) -> None:
    target.hardlink_to(source.resolve())


def _reflink(source: Path, target: Path) -> None:
    with source.open("rb") as old, target.open("wb") as new:
        fcntl.ioctl(new.fileno(), _FICLONE, old.fileno())
        if os.fstat(new.fileno()).st_size != os.fstat(old.fileno()).st_size:
            raise OSError(errno.EIO, "short clone")
