"""SHA-256 of files: in one pass, in little memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from nixa_tasks.errors import Interrupted
from nixa_tasks.process.run import is_stopping

BLOCK = 1 << 20


def hash_file(path: Path, progress: Callable[[int, int | None], None] | None = None) -> str:
    """SHA-256 of a file in lower-case hex. Raises OSError, and Interrupted on the user's word."""
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
