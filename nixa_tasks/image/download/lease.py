"""The pieces of a file that connections fetch, and the connections that fetch them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from nixa_tasks.image.download.http import Reply


@dataclass(slots=True)
class Lease:
    """A piece that one connection fetches: from `pos` to `end`; None is the end of the body."""

    pos: int
    end: int | None

    @property
    def left(self) -> int:
        return 0 if self.end is None else self.end - self.pos


@dataclass(slots=True)
class Worker:
    """One connection's thread. A retired one gives its lease back at the next byte."""

    thread: threading.Thread | None = None
    lease: Lease | None = None
    reply: Reply | None = None
    is_retired: bool = False


@dataclass(slots=True)
class Told:
    """What the first answer said of the source, for the other connections."""

    url: str = ""
    validator: str = ""
    can_split: bool = False
    is_framed: bool = True
    encoding: str = ""


def next_lease(pool: list[Lease], taken: Sequence[Lease], least: int) -> Lease | None:
    """A piece that nobody fetches: one that was given back, else half of the largest, which is cut
    for it. None where nothing of `least` bytes is left. The caller holds the lock."""
    while pool:
        lease = pool.pop()
        if lease.left > 0:
            return lease
    largest = max(taken, key=lambda lease: lease.left, default=None)
    if largest is None or largest.end is None or largest.left < least:
        return None
    lease = Lease(largest.pos + largest.left // 2, largest.end)
    largest.end = lease.pos
    return lease
