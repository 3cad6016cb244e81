"""One attempt at one source: connections that fill one part, and the coordinator that watches them.

The first connection asks for everything from the first gap on. Where it is slow and the server can
serve ranges of a file that it names by a strong validator, more are opened, each taking half of
the largest piece that is still to come; `connections` decides how many.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from nixa_tasks.errors import NixaError
from nixa_tasks.image.download import answers
from nixa_tasks.image.download.connections import Connections, limit, observe
from nixa_tasks.image.download.http import Limits, Plan, Reply, Wire, first_answer, range_headers
from nixa_tasks.image.download.part import Origin, Part
from nixa_tasks.image.errors import (
    ContentChanged,
    DiskFull,
    FetchError,
    NoRoom,
    RangesBroken,
    SourceError,
    TooLarge,
)
from nixa_tasks.process.clock import Clock


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
class ServerFacts:
    """What the first answer said about the source, for the other connections."""

    url: str = ""
    origin: Origin = field(default_factory=Origin)
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


TICK = 0.1
_BUFFER = 1 << 20
_EXTRA_BUFFER = 1 << 17
_JOIN_SECONDS = 3.0

_ROOM_STEP = 16 << 20  # a body of unknown length: look at the disk after so many bytes
NO_ROOM_HINT = (
    "make room there (doit gc removes images that nothing pins),\n"
    "or move the cache by [fleet] cache or NIXA_CACHE"
)

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True, slots=True)
class Room:
    """How large a file may become, in a folder: `largest` bytes, and `reserve` bytes of the disk stay free."""

    folder: Path
    largest: int
    reserve: int

    def check(self, url: str, have: int, size: int | None, *, is_promise: bool = True) -> None:
        """Raises TooLarge, NoRoom. `have` bytes of it are on the disk already; `size` is promised, or
        (not `is_promise`) reached on the way to an unknown end."""
        if size is not None and size > self.largest:
            raise TooLarge(
                f"{url}: {'promises' if is_promise else 'sent'} {size} bytes, more than an image may have "
                f"({self.largest >> 20} MiB)",
                url=url,
                hint="name a mirror that has the file",
            )
        disk = os.statvfs(self.folder)
        free = disk.f_bavail * disk.f_frsize
        needed = max(0, (size or 0) - have) if is_promise else 0
        if needed + min(self.reserve, disk.f_blocks * disk.f_frsize // 20) > free:
            raise NoRoom(
                f"{self.folder} has {free >> 20} MiB free, and {needed >> 20} MiB are still to come",
                url=url,
                hint=NO_ROOM_HINT,
            )


@dataclass(slots=True)
class Transfer:
    """One attempt. `run` returns when the part is whole as far as the source is concerned."""

    wire: Wire
    url: str
    part: Part
    limits: Limits
    until: float
    progress: Progress
    room: Room
    clock: Clock
    server: ServerFacts = field(default_factory=ServerFacts)
    received: int = 0
    connections: Connections = field(default_factory=Connections)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _wake: threading.Event = field(default_factory=threading.Event)
    _workers: list[Worker] = field(default_factory=list)
    _pool: list[Lease] = field(default_factory=list)
    _error: BaseException | None = None
    _stopped: bool = False

    def run(self, plan: Plan) -> None:
        """Fetch until nothing is missing. Raises SourceError, DiskFull, ContentChanged,
        RangesBroken, NotModified, Interrupted; what came is kept in the part."""
        start = plan.start
        self.progress(self.part.kept, self.part.origin.size)
        first = Lease(start, None)
        if plan.is_ranged and self.part.origin.size is not None:
            holes = [(max(a, start), b) for a, b in self.part.missing() if b > start]
            if holes:
                first = Lease(start, holes[0][1])
                self._pool = [Lease(a, b) for a, b in holes[1:]]
        self._start(first, plan)
        try:
            self._watch()
        finally:
            self._stop()

    # --- the coordinator

    def _watch(self) -> None:
        seen_at = slow_since = self.clock.monotonic()
        seen = slow_mark = 0
        while True:
            self._wake.wait(TICK)
            self._wake.clear()
            now = self.clock.monotonic()
            self.progress(self.part.kept, self.part.origin.size)
            self.clock.sleep(0.0)  # Interrupted where nixa is stopped; what is here is kept
            with self._lock:
                live = [worker for worker in self._workers if worker.lease is not None]
                error, received = self._error, self.received
            if isinstance(error, (DiskFull, ContentChanged)) or (error is not None and not live):
                raise error
            if not live:
                return
            if received != seen:
                seen, seen_at = received, now
            grace = self.limits.stall if seen else self.limits.stall + self.limits.connect
            if now - seen_at > grace:
                raise self._late(f"no byte for {now - seen_at:.0f} s")
            if now - slow_since >= self.limits.low_time:
                rate = (received - slow_mark) / (now - slow_since)
                if rate < self.limits.low_rate:
                    raise self._late(f"only {rate:.0f} bytes a second for {now - slow_since:.0f} s")
                slow_since, slow_mark = now, received
            if now > self.until:
                raise FetchError(
                    f"{self.url}: not done in time ({self.limits.total:g} s); what is here is kept",
                    hint="run it again: it goes on where it ended; a nearer mirror may be quicker",
                )
            if received:
                self._adapt(now, live)

    def _late(self, what: str) -> SourceError:
        return SourceError(f"{self.url}: {what}", url=self.url, is_transient=True)

    def _adapt(self, now: float, live: list[Worker]) -> None:
        """Have as many connections as `connections` says."""
        size = self.part.origin.size
        if not self.server.can_split or size is None:
            return
        with self._lock:
            if self._error is not None:  # one was refused or lost: no more than what is left of them
                self.connections, self._error = limit(self.connections, len(live)), None
            left = sum(lease.left for lease in self._pool)
            left += sum(worker.lease.left for worker in live if worker.lease is not None)
            self.connections = observe(self.connections, now, self.received, left, self.limits)
            for worker in live[self.connections.width :]:
                worker.is_retired = True
        for _ in range(self.connections.width - len(live)):
            lease = self._next_lease()
            if lease is None:
                return
            self._start(lease, None)

    def _start(self, lease: Lease, plan: Plan | None) -> None:
        worker = Worker(lease=lease)
        worker.thread = threading.Thread(target=self._work, args=(worker, plan), name="fetch", daemon=True)
        with self._lock:
            self._workers.append(worker)
        worker.thread.start()

    def _stop(self) -> None:
        self._stopped = True
        with self._lock:
            workers = list(self._workers)
        for worker in workers:
            if worker.reply is not None:
                worker.reply.abort()
        until = self.clock.monotonic() + _JOIN_SECONDS
        for worker in workers:
            if worker.thread is not None:  # one that is stuck in a name's lookup writes nothing any more
                worker.thread.join(max(0.0, until - self.clock.monotonic()))

    # --- the connections

    def _work(self, worker: Worker, plan: Plan | None) -> None:
        buffer = memoryview(bytearray(_BUFFER if plan else _EXTRA_BUFFER))
        try:
            while worker.lease is not None and not self._stopped:
                if plan is not None:
                    self._first(worker, plan, buffer)
                    plan = None
                else:
                    self._more(worker, buffer)
                done = worker.lease
                with self._lock:
                    if worker.is_retired and done.left > 0:
                        self._pool.append(done)
                    is_over = worker.is_retired or done.end is None
                worker.lease = None if is_over or not self.server.can_split else self._next_lease()
        except BaseException as error:  # noqa: BLE001 - carried to the coordinator, which raises it
            self._failed(worker, error)
        finally:
            worker.lease = None
            self._wake.set()

    def _failed(self, worker: Worker, error: BaseException) -> None:
        with self._lock:
            if self._stopped:
                return
            if isinstance(error, OSError):
                error = self._disk(error)
            elif not isinstance(error, (NixaError, ContentChanged, RangesBroken)) and isinstance(
                error, ValueError
            ):
                return  # the part was closed under a connection that came too late
            self._error = error
            if worker.lease is not None and worker.lease.left > 0:
                self._pool.append(Lease(worker.lease.pos, worker.lease.end))

    def _disk(self, error: OSError) -> FetchError:
        folder = self.part.path.parent
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            what = f"the disk is full: {folder} takes no more ({error.strerror}); {self.part.kept} bytes are kept"
            if (
                self.part.origin.size is None
            ):  # nobody said how much it would be: another source may send less
                return NoRoom(what, url=self.url, hint=NO_ROOM_HINT)
            return DiskFull(what, hint=NO_ROOM_HINT)
        return DiskFull(f"{folder} can't be written: {error.strerror}", hint="look at that disk")

    def _first(self, worker: Worker, plan: Plan, buffer: memoryview) -> None:
        lease = worker.lease
        assert lease is not None  # noqa: S101 - for mypy: the worker was made with it
        with first_answer(self.wire, self.url, self.part, plan) as answer:
            reply = worker.reply = answer.reply
            if self._stopped:
                return
            origin = reply.origin
            self.room.check(self.url, self.part.kept, origin.size)
            lease.pos = reply.start
            if lease.end is None or reply.status == 200:
                lease.end = reply.origin.size
                self._pool = []
            if reply.start < self.part.prefix and origin != self.part.origin:
                known = Lease(reply.start, self.part.prefix)
                self._pour(worker, known, reply, buffer)  # only compared: nothing is believed before
                lease.pos = known.pos
                if known.left:  # stopped on the way
                    return
            self.part.is_joined = self.part.is_joined or answer.is_compared
            self.part.told(origin)
            self.server = ServerFacts(
                origin=origin,
                url=reply.url,
                validator=origin.validator,
                can_split=bool(origin.validator and reply.takes_ranges and origin.size),
                is_framed=reply.is_framed,
                encoding=reply.encoding,
            )
            self._pour(worker, lease, reply, buffer)
            if lease.end is None and not self._stopped:  # a body of untold length has come to its end
                lease.end = lease.pos
                self.part.told(replace(origin, size=lease.pos))

    def _more(self, worker: Worker, buffer: memoryview) -> None:
        lease = worker.lease
        if lease is None or lease.left <= 0:
            return
        headers = range_headers(lease.pos, lease.end, self.server.validator)
        with self.wire.get(self.url, headers, at=self.server.url) as reply:
            worker.reply = reply
            if reply.status != 206 or reply.start != lease.pos or reply.origin.size != self.part.origin.size:
                raise SourceError(f"{self.url}: serves no ranges after all", url=self.url, is_transient=True)
            if self.server.origin.contradicts(reply.origin):
                raise SourceError(
                    f"{self.url}: another connection gets another file", url=self.url, is_transient=True
                )
            self._pour(worker, lease, reply, buffer)

    def _pour(self, worker: Worker, lease: Lease, reply: Reply, buffer: memoryview) -> None:
        """From the socket into the part, up to the lease's end, which may shrink meanwhile."""
        first = lease.pos == 0
        while not self._stopped and not worker.is_retired:
            if lease.end is not None and lease.pos >= lease.end:
                return
            end = lease.end
            count = reply.read_into(buffer if end is None else buffer[: max(1, end - lease.pos)])
            if count == 0:
                if lease.end is None:
                    return
                raise SourceError(
                    f"{self.url}: the answer ended {lease.left} bytes too early",
                    url=self.url,
                    is_transient=True,
                )
            if first:
                first = False
                _refuse_page(self.url, reply, bytes(buffer[: min(count, 256)]))
            with self._lock:
                self.received += count
                end = lease.end
            good = count if end is None else min(count, end - lease.pos)
            if end is None and (lease.pos + good) // _ROOM_STEP > lease.pos // _ROOM_STEP:
                self.room.check(self.url, self.part.kept, lease.pos + good, is_promise=False)
            self.part.merge(buffer[:good], lease.pos)
            lease.pos += good

    def _next_lease(self) -> Lease | None:
        with self._lock:
            taken = [worker.lease for worker in self._workers if worker.lease is not None]
            return next_lease(self._pool, taken, self.limits.split)


def _refuse_page(url: str, reply: Reply, head: bytes) -> None:
    if answers.is_page(reply.content_type, head):
        raise SourceError(
            f"{url}: the server sent a web page instead of the file",
            url=url,
            hint="a login page, or a network that asks for a login first? Open it in a browser",
        )
