"""Local locks: two runs in one project must not mix their state. A dead holder frees its lock."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nixa_tasks.errors import DeadlinePassed
from nixa_tasks.process import run as process
from nixa_tasks.state.stamps import now

_POLL_SECONDS = 0.1


@contextmanager
def locked(path: Path, *, timeout: float, announce: Callable[[str], None], what: str) -> Iterator[None]:
    """Hold the lock file `path`; a wait is announced once, with who holds it.

    Raises DeadlinePassed after `timeout` seconds, Interrupted.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        deadline = time.monotonic() + timeout
        announced = False
        while not _try(file.fileno()):
            holder = path.read_text().strip() or "another run"
            if not announced:
                announce(f"waiting for {what}: held by {holder}")
                announced = True
            if time.monotonic() > deadline:
                raise DeadlinePassed(
                    f"{what} is still held by {holder} after {timeout:g} s",
                    hint="wait for it, end it, or raise `lock_timeout`",
                )
            process.sleep(_POLL_SECONDS)
        file.truncate(0)
        file.write(f"process {os.getpid()} since {now()}\n")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _try(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
