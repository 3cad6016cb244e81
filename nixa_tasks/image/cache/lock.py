"""One holder at a time, across processes and threads, on one machine.

`flock` on a small file: the kernel drops it with its holder, so a dead holder never blocks
anyone. The file says who holds it, for the message of those who wait.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from nixa_tasks.errors import DeadlinePassed, NixaError
from nixa_tasks.process.run import sleep
from nixa_tasks.state.stamps import now

WAIT_SECONDS = 6 * 3600.0
_FIRST_PAUSE = 0.02
_LONGEST_PAUSE = 0.5


def _try(path: Path) -> int | None:
    """The descriptor of the held lock; None where somebody else holds it."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise NixaError(
            f"{path} can't be opened: {error.strerror}",
            hint="give the cache folder to the user who runs nixa, or choose another one by NIXA_CACHE",
        ) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(handle).st_ino == path.stat().st_ino:
            return handle
    except FileNotFoundError:
        pass  # its last holder removed it between our open and our lock: the next try makes a new one
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.EINTR):
            os.close(handle)
            raise NixaError(f"{path} can't be locked: {error.strerror}") from error
    os.close(handle)
    return None


def holder(path: Path) -> str:
    """Who holds the lock, in words; "" where that can't be read."""
    try:
        who = json.loads(path.read_bytes())
        return f"process {who['pid']} on {who['host']} since {who['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


@contextlib.contextmanager
def hold(
    path: Path,
    *,
    note: Callable[[str], None] = lambda _text: None,
    wait: float = WAIT_SECONDS,
    tick: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """Hold the lock; while another has it, wait up to `wait` seconds, and say once for whom.

    `tick` is called at every look. Raises DeadlinePassed, Interrupted, NixaError.
    """
    until = time.monotonic() + wait
    pause, is_said = _FIRST_PAUSE, False
    while (handle := _try(path)) is None:
        if time.monotonic() > until:
            raise DeadlinePassed(f"{path.name} is still held by {holder(path) or 'another run'}")
        if not is_said and pause > 5 * _FIRST_PAUSE:
            note(f"waiting for {holder(path) or 'another run'}")
            is_said = True
        tick()
        sleep(pause)
        pause = min(pause * 1.5, _LONGEST_PAUSE)
    try:
        with contextlib.suppress(OSError):  # a full disk: the lock holds without its label
            os.ftruncate(handle, 0)
            label = {"pid": os.getpid(), "host": socket.gethostname(), "since": now()}
            os.pwrite(handle, json.dumps(label).encode(), 0)
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()  # while it is held: whoever waits on this inode sees that it is no longer there
        os.close(handle)
