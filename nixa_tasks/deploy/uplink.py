"""The controller's uplink: how many hosts are sent something large at the same time.

Closures and uploaded images share it, and `[fleet] copy_jobs` bounds both together. What a host
fetches by itself (a substituter, `deliver = "pull"`) and what nixos-anywhere copies in its own
kexec phase is not counted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from nixa_tasks.process.clock import Clock

_POLL_SECONDS = 0.2


class Uplink:
    """At most `jobs` transfers at a time, over all threads of this process."""

    def __init__(self, jobs: int, clock: Clock) -> None:
        self._clock = clock
        self._jobs = jobs
        self._free = threading.BoundedSemaphore(jobs)

    @contextmanager
    def turn(self, announce: Callable[[str], None]) -> Iterator[None]:
        """Wait for a turn, saying so once, and hold it. The transfers that hold the others have
        deadlines, so the wait ends. Raises Interrupted."""
        if not self._free.acquire(blocking=False):
            announce(f"waiting for its turn: copy_jobs = {self._jobs}")
            while not self._free.acquire(blocking=False):
                self._clock.sleep(_POLL_SECONDS)
        try:
            yield
        finally:
            self._free.release()
