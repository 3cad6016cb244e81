"""Time, as the code that waits sees it: behind one seam, so that a simulator can let years pass."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from typing import Protocol

from nixa_tasks.errors import Interrupted


class Clock(Protocol):
    def monotonic(self) -> float:
        """Seconds since some moment; never goes back."""
        ...

    def now(self) -> datetime:
        """The wall clock, in UTC. A person may set it, so that durations never come from it."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait, but not past a stop. Raises Interrupted."""
        ...


class SystemClock:
    """This machine's clock; `stopped` ends every wait."""

    def __init__(self, stopped: threading.Event | None = None) -> None:
        self._stopped = stopped or threading.Event()

    def monotonic(self) -> float:
        return time.monotonic()

    def now(self) -> datetime:
        return datetime.now(UTC)

    def sleep(self, seconds: float) -> None:
        if self._stopped.wait(seconds):
            raise Interrupted("stopped")


def rfc3339(moment: datetime) -> str:
    """A moment in UTC as the journal and receipts write it: RFC 3339, whole seconds."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
