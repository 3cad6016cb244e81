"""Simulated time: one queue of events, and threads of control that wait in it.

A controller runs nixa's real code, which blocks; so each of its runs is a greenlet that switches to
the scheduler wherever it waits. A process on a host is a generator that yields how long it waits.
"""

from __future__ import annotations

import contextlib
import heapq
from collections.abc import Callable, Generator
from typing import Any

from greenlet import getcurrent, greenlet

Process = Generator[float, None, Any]


class Killed(BaseException):
    """A controller that was killed: nothing of it runs any more."""


class TooLong(Exception):
    """A history that does not end."""


class Scheduler:
    """The queue. `now` is in seconds since the history began."""

    def __init__(self, *, most_events: int = 200_000) -> None:
        self.now = 0.0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._left = most_events
        self.hub = getcurrent()

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._queue, (self.now + seconds, self._count, action))

    def run(self, until: float, *, is_over: Callable[[], bool] = lambda: False) -> None:
        """Let events happen up to the moment `until`, or until `is_over`."""
        queue = self._queue
        while queue and queue[0][0] <= until and not is_over():
            self._left -= 1
            if self._left < 0:
                raise TooLong("too many events")
            when, _, action = heapq.heappop(queue)
            self.now = max(self.now, when)
            action()
        if not is_over():
            self.now = max(self.now, until)

    def spawn(
        self, process: Process, *, is_alive: Callable[[], bool], ended: Callable[[Any], None] | None = None
    ) -> None:
        """Run a process of a host, for as long as `is_alive`; `ended` gets what it returns."""

        def step() -> None:
            if not is_alive():
                process.close()
                return
            try:
                pause = next(process)
            except StopIteration as stop:
                if ended is not None:
                    ended(stop.value)
                return
            self.after(pause, step)

        step()


class Timeout:
    """What `Task.wait` returns when nobody woke it in time."""


TIMEOUT = Timeout()


class Task:
    """A thread of control of a controller. `frozen_until` tells until when it is stopped (SIGSTOP)."""

    def __init__(
        self, scheduler: Scheduler, work: Callable[[], None], *, frozen_until: Callable[[], float]
    ) -> None:
        self._scheduler = scheduler
        self._frozen_until = frozen_until
        self._token = 0
        self.is_killed = False
        self._greenlet = greenlet(lambda: self._main(work), parent=scheduler.hub)
        scheduler.after(0.0, self._start)

    @property
    def is_over(self) -> bool:
        return bool(self._greenlet.dead)

    def _start(self) -> None:
        if not self.is_killed:
            self._greenlet.switch()

    def _main(self, work: Callable[[], None]) -> None:
        with contextlib.suppress(Killed):
            work()

    def wait(self, seconds: float) -> Any:
        """Wait to be woken: what `wake` was given, or TIMEOUT after `seconds`. Called by the task itself."""
        if self.is_killed:
            raise Killed
        token = self._token
        self._scheduler.after(seconds, lambda: self._resume(token, TIMEOUT))
        return self._scheduler.hub.switch()

    def waker(self) -> Callable[[Any], None]:
        """What wakes the task out of the wait that it is about to begin; later it does nothing."""
        token = self._token
        return lambda value: self._scheduler.after(0.0, lambda: self._resume(token, value))

    def throw(self, error: BaseException) -> None:
        """Have the wait that it is in end with an error."""
        token = self._token
        self._scheduler.after(0.0, lambda: self._resume(token, error))

    def _resume(self, token: int, value: Any) -> None:
        if token != self._token or self._greenlet.dead or not self._greenlet:
            return
        pause = self._frozen_until() - self._scheduler.now
        if pause > 0 and not self.is_killed:
            self._scheduler.after(pause, lambda: self._resume(token, value))
            return
        self._token += 1
        if isinstance(value, BaseException):
            self._greenlet.throw(value)
        else:
            self._greenlet.switch(value)

    def kill(self) -> None:
        """As `kill -9`. What `finally` does afterwards can't wait and can't start anything."""
        if self.is_killed or self._greenlet.dead:
            return
        self.is_killed = True
        if self._greenlet:
            self._token += 1
            self._greenlet.throw(Killed())
