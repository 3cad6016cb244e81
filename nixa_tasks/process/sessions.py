"""The sessions that this process has started and that still live.

Every process gets a session of its own, so that ending it ends its children too (killing only
the bash of nixos-anywhere leaves its ssh running).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
import weakref
from collections.abc import Mapping
from typing import IO

from nixa_tasks.errors import Interrupted
from nixa_tasks.process.cleanup_after_kill import CLEANER, Cleanup

SUDO_PASSWORD = "NIXA_SUDO_PASSWORD"  # noqa: S105 -- the variable's name
GRACE_SECONDS = 3.0


class Sessions:
    """The live sessions, so that a signal handler can end them all, and nothing starts afterwards."""

    def __init__(self) -> None:
        self._live: dict[int, subprocess.Popen[bytes]] = {}
        self._lock = threading.RLock()  # re-entrant: a signal handler runs in the main thread
        self._cleanup: Cleanup | None = None
        self.stopped = threading.Event()

    def start(
        self, argv: tuple[str, ...], env: Mapping[str, str] | None, **options: object
    ) -> subprocess.Popen[bytes]:
        """No child inherits the password for sudo: what it starts may be anybody's to look at."""
        with self._lock:
            if self.stopped.is_set():
                raise Interrupted("stopped before it was started: " + argv[0])
            child: subprocess.Popen[bytes] = subprocess.Popen(  # type: ignore[call-overload]
                argv, env=_without_password(env), start_new_session=True, **options
            )
            self._live[child.pid] = child
            self.cleanup.add(child.pid)
            return child

    @property
    def cleanup(self) -> Cleanup:
        with self._lock:
            if self._cleanup is None:
                cleaner = subprocess.Popen(
                    CLEANER,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                    env=_without_password(None),
                )
                cleaner.returncode = 0  # nobody waits for it: it outlives this process
                assert cleaner.stdin is not None  # noqa: S101
                self._cleanup = Cleanup(cleaner.stdin)
                # An object that is dropped ends its cleaner; a process that ends lets the kernel do so.
                weakref.finalize(self, _dismiss, cleaner, cleaner.stdin).atexit = False
            return self._cleanup

    def forget(self, child: subprocess.Popen[bytes]) -> None:
        with self._lock:
            self._live.pop(child.pid, None)
            self.cleanup.forget(child.pid)

    def live(self) -> list[subprocess.Popen[bytes]]:
        with self._lock:
            return list(self._live.values())

    def stop_all(self, grace: float = GRACE_SECONDS) -> None:
        """End every live session, first asking, then by force; from now on nothing can be started."""
        self.stopped.set()
        children = self.live()
        for child in children:
            signal_group(child.pid, signal.SIGTERM)
        deadline = time.monotonic() + grace
        while time.monotonic() < deadline and any(_group_exists(child.pid) for child in children):
            for child in children:
                child.poll()
            time.sleep(0.02)
        for child in children:
            signal_group(child.pid, signal.SIGKILL)


def _dismiss(cleaner: subprocess.Popen[bytes], pipe: IO[bytes]) -> None:
    with contextlib.suppress(OSError):
        pipe.close()
    with contextlib.suppress(ChildProcessError):
        os.waitpid(cleaner.pid, os.WNOHANG)


def _without_password(env: Mapping[str, str] | None) -> dict[str, str]:
    given = os.environ if env is None else env
    return {name: value for name, value in given.items() if name != SUDO_PASSWORD}


def signal_group(pgid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pgid, number)


def _group_exists(pgid: int) -> bool:
    try:
        os.killpg(pgid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def end(child: subprocess.Popen[bytes], grace: float = GRACE_SECONDS) -> None:
    signal_group(child.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(grace)
    signal_group(child.pid, signal.SIGKILL)
    child.wait()
