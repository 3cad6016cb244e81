"""One host's turn in a run: what is asked of it, and what that needs, as one value."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nixa_tasks.deploy.decide import Action, Asked, Judgement
from nixa_tasks.flake.evaluate import Output
from nixa_tasks.host.reach import Access
from nixa_tasks.host.ssh import Ssh
from nixa_tasks.image.delivery.neighbours import Neighbours
from nixa_tasks.image.obtain import Obtained
from nixa_tasks.manifest.model import Host, Manifest
from nixa_tasks.process.clock import Clock, rfc3339
from nixa_tasks.state.journal import Journal, RunLog
from nixa_tasks.state.layout import Layout
from nixa_tasks.state.receipt import Receipt

_POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Started:
    """The beginning of a turn: what a receipt says of its time."""

    at: str
    clock: Clock
    since: float

    @classmethod
    def now(cls, clock: Clock) -> Started:
        return cls(rfc3339(clock.now()), clock, clock.monotonic())

    @property
    def seconds(self) -> float:
        return round(self.clock.monotonic() - self.since, 1)


class Uplink:
    """How many hosts are sent something large at the same time, over all threads of this process.

    Closures and uploaded images share it, and `[fleet] copy_jobs` bounds both together. What a host
    fetches by itself (a substituter, `deliver = "pull"`) and what nixos-anywhere copies in its own
    kexec phase is not counted.
    """

    def __init__(self, jobs: int, clock: Clock) -> None:
        self._clock = clock
        self._jobs = jobs
        self._free = threading.BoundedSemaphore(jobs)

    @contextmanager
    def slot(self, announce: Callable[[str], None]) -> Iterator[None]:
        """Wait for a slot, announcing that once, and hold it. The transfers that hold the others have
        deadlines, so the wait ends. Raises Interrupted."""
        if not self._free.acquire(blocking=False):
            announce(f"waiting to be sent to: copy_jobs = {self._jobs}")
            while not self._free.acquire(blocking=False):
                self._clock.sleep(_POLL_SECONDS)
        try:
            yield
        finally:
            self._free.release()


@dataclass(frozen=True, slots=True)
class Suppliers:
    """What a turn asks for only when its decision needs it: built closures and a kexec image.

    `system` and `disko` build and root a closure here; `image` gives a verified tarball that suits
    the host's architecture; `there` has the host build its own system, and gives its path.
    """

    system: Callable[[Turn], Path]
    disko: Callable[[Turn], Path]
    image: Callable[[Turn], Obtained]
    there: Callable[[Turn, Ssh], str]


@dataclass(frozen=True, slots=True)
class Undo:
    """The way back of one switch: to the system `to` that ran before it, and only while what it
    switched to, `since`, still runs."""

    to: str
    since: str


@dataclass(frozen=True, slots=True)
class Turn:
    """One host's turn.

    `output`: what the host should run, evaluated from the locked reference `flake`. `neighbours`:
    the hosts of this run that hand the image on to each other. `undo`: for a rollback of one switch
    and nothing else; `generation`: for a rollback to that number of the system profile; without
    either, the host's history says to where. `again`: deploy an output that was rolled back.
    """

    manifest: Manifest
    host: Host
    output: Output
    flake: str | None
    layout: Layout
    journal: Journal
    log: RunLog
    access: Access
    suppliers: Suppliers
    neighbours: Neighbours
    uplink: Uplink
    started: Started
    asked: Asked = Asked.DEPLOY
    undo: Undo | None = None
    generation: int | None = None
    again: bool = False

    @property
    def name(self) -> str:
        return self.host.name

    @property
    def wanted(self) -> str:
        return self.output.toplevel_out

    def note(self, step: str, text: str) -> None:
        self.journal.note(self.name, step, text)

    @contextmanager
    def sending(self, step: str) -> Iterator[None]:
        """A step that sends something large: it begins when the uplink has a slot."""
        with self.slot(step), self.journal.step(self.name, step):
            yield

    @contextmanager
    def slot(self, step: str) -> Iterator[None]:
        """A slot of the uplink."""
        with self.uplink.slot(lambda text: self.note(step, text)):
            yield


@dataclass(frozen=True, slots=True)
class Done:
    """How a host's turn ended well. `before` is the system that ran when it began, `was` the name of the
    operating system then."""

    judgement: Judgement
    receipt: Receipt | None
    before: str | None
    was: str | None = None

    @property
    def action(self) -> Action:
        return self.judgement.action
