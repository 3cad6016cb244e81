"""Which hosts of a run hold an image already, and hand it on: one copy crosses the uplink.

Whoever comes first gets it from outside, the others wait and take it from a host that has it.
Each one that got it hands it on too, to one host at a time, so that the number of copies doubles
with every round; it leaves for the jump once nobody waits any more.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from nixa_tasks.process.clock import Clock, SystemClock

_LOOK_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A host that has the image, and where it serves it."""

    name: str
    urls: tuple[str, ...]


@dataclass(slots=True)
class _Pool:
    """One image: who gets it from outside, who waits, who has it, and who is handing it on."""

    obtaining: set[str] = field(default_factory=set)
    waiting: set[str] = field(default_factory=set)
    holders: dict[str, Neighbour] = field(default_factory=dict)
    busy: set[str] = field(default_factory=set)


class Neighbours:
    """The hosts of this run, by image. Safe for several threads. `clock` ends waits at a stop."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._changed = threading.Condition()
        self._pools: dict[str, _Pool] = {}

    @contextlib.contextmanager
    def joined(self, sha256: str, host: str) -> Iterator[Member]:
        """Take part for as long as the body runs; whatever ends it, nobody waits for this host then."""
        with self._changed:
            pool = self._pools.setdefault(sha256, _Pool())
        member = Member(host, pool, self._changed, self._clock)
        try:
            yield member
        finally:
            member.leave()


@dataclass(slots=True)
class Member:
    """One host's part in it."""

    host: str
    _pool: _Pool
    _changed: threading.Condition
    _clock: Clock
    _tried: set[str] = field(default_factory=set)

    @contextlib.contextmanager
    def source(self, note: Callable[[str], None]) -> Iterator[Neighbour | None]:
        """A neighbour to take it from while the body runs, each one once. None: this host gets it from
        outside, since nobody has it or is about to.

        Waits only before the first: a host that can't reach one neighbour will hardly reach another.
        Raises Interrupted.
        """
        found = self._wait(note)
        try:
            yield found
        finally:
            if found is not None:
                with self._changed:
                    self._tried.add(found.name)
                    self._pool.busy.discard(found.name)
                    self._changed.notify_all()

    def _wait(self, note: Callable[[str], None]) -> Neighbour | None:
        pool, is_announced = self._pool, False
        try:
            while True:
                with self._changed:
                    for name, neighbour in pool.holders.items():
                        if name not in self._tried and name not in pool.busy:
                            pool.busy.add(name)
                            return neighbour
                    others = sorted({*pool.holders, *pool.obtaining})
                    if self._tried or not others:
                        pool.obtaining.add(self.host)
                        return None
                    pool.waiting.add(self.host)
                    if is_announced:
                        self._changed.wait(_LOOK_SECONDS)
                if not is_announced:
                    note(f"waiting to take it from {', '.join(others)}")
                    is_announced = True
                self._clock.sleep(0.0)
        finally:
            with self._changed:
                pool.waiting.discard(self.host)

    def is_wanted(self) -> bool:
        """Whether somebody waits to take it from this host or another."""
        with self._changed:
            return bool(self._pool.waiting)

    def serve(self, urls: tuple[str, ...]) -> None:
        """Offer it at `urls`, until nobody waits any more. Raises Interrupted."""
        pool = self._pool
        with self._changed:
            pool.obtaining.discard(self.host)
            pool.holders[self.host] = Neighbour(self.host, urls)
            self._changed.notify_all()
        while True:
            with self._changed:
                if self.host not in pool.busy and not pool.waiting:
                    del pool.holders[self.host]
                    return
                self._changed.wait(_LOOK_SECONDS)
            self._clock.sleep(0.0)

    def leave(self) -> None:
        """Nobody can count on this host any more."""
        with self._changed:
            self._pool.obtaining.discard(self.host)
            self._pool.holders.pop(self.host, None)
            self._changed.notify_all()
