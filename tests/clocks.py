"""Clocks for tests: the real one, and one that goes only when it is told to."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

from nixa_tasks.process.clock import SystemClock

CLOCK = SystemClock(threading.Event())


class FakeClock:
    """A clock on which every wait is over at once, and which `pass_time` moves."""

    def __init__(self, moment: datetime = datetime(2026, 7, 14, 10, 0, tzinfo=UTC)) -> None:
        self._start = self._now = moment

    def monotonic(self) -> float:
        return (self._now - self._start).total_seconds()

    def now(self) -> datetime:
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)

    def pass_time(self, **how_long: float) -> None:
        self._now += timedelta(**how_long)
