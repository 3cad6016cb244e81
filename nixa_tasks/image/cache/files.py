"""Local files: hashed in one pass, and copied into the cache, without copying bytes where possible."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

BLOCK = 1 << 20
_FICLONE = 0x40049409  # ioctl_ficlone(2)


def hash_file(path: Path, progress: Callable[[int, int | None], None] | None = None) -> str:
    """SHA-256 of a file in lower-case hex. Raises OSError, and whatever `progress` raises."""
    import hashlib

    digest = hashlib.sha256()
    block = memoryview(bytearray(BLOCK))
    done = 0
    with path.open("rb", buffering=0) as file:
        total = os.fstat(file.fileno()).st_size
        while count := file.readinto(block):
            digest.update(block[:count])
            done += count
            if progress is not None:
                progress(done, total)
    return digest.hexdigest()


def copy_file(source: Path, target: Path) -> None:
    """Make `target` a new file with the same content: blocks shared where the file system can (btrfs,
    xfs), else a copy. Never a link: who writes to the source must not write to the copy.

    Raises OSError; no half file is left then.
    """
    try:
        try:
            _reflink(source, target)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.ENOENT):
                raise
            shutil.copyfile(source, target)
    except BaseException:
        with contextlib.suppress(OSError):
            target.unlink()
        raise


def link_file(source: Path, target: Path) -> None:
    """Give a file of the cache a second name, or copy it where there are no links. Raises OSError."""
    target.unlink(missing_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:
        copy_file(source, target)


def _reflink(source: Path, target: Path) -> None:
    with source.open("rb") as old, target.open("wb") as new:
        fcntl.ioctl(new.fileno(), _FICLONE, old.fileno())
        if os.fstat(new.fileno()).st_size != os.fstat(old.fileno()).st_size:
            raise OSError(errno.EIO, "short clone")
