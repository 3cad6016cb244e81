"""What happens, as it happens: one line a step begun and a step ended, the one stream of events that
the live view, the plain lines and the report all read, and what the tools print in a run."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TextIO

from nixa_tasks.errors import Interrupted, NixaError, plain
from nixa_tasks.process.clock import Clock

_MOST_LOGS = 50  # files of each host

# The steps that are a host's whole turn; all others are parts of one, or an image's or the flake's.
TURNS = frozenset({"deploy", "reinstall", "rollback"})


class Kind(StrEnum):
    """What an event tells. `PROGRESS` goes to the listeners only."""

    BEGIN = "begin"
    END = "end"
    NOTE = "note"
    PROGRESS = "progress"


@dataclass(frozen=True, slots=True)
class Event:
    """One moment. `host` is a host's name, or an image's for `kexec` steps, or "" for the fleet.

    `outcome` of an END: `done`, `failed`, `stopped`; of a NOTE: `not started`, where a host's turn
    does not come. `done`/`total` of a PROGRESS are bytes; of an END with a `file` (a SHA-256 in hex)
    they are how many bytes of that file travelled, and its size; `upstream`: how many the host got
    from upstream by itself.
    """

    kind: Kind
    host: str
    step: str
    text: str = ""
    outcome: str = ""
    seconds: float = 0.0
    done: int = 0
    total: int | None = None
    file: str = ""
    upstream: int = 0


Listener = Callable[[Event], None]


@dataclass(slots=True)
class Step:
    """A step under way. One that moves a file says which (`sha256`), and how large it is (`size`);
    `moved` are the bytes that travelled: what was there before is not among them. `upstream` are
    those that a host got from upstream by itself."""

    journal: Journal
    host: str
    name: str
    sha256: str = ""
    size: int | None = None
    moved: int = 0
    upstream: int = 0
    _last: int | None = None

    def progress(self, done: int, total: int | None) -> None:
        """How far the transfer is, in bytes; the first call tells what was there before."""
        if self._last is not None and done > self._last:
            self.moved += done - self._last
        self._last = done
        self.journal.progress(self.host, self.name, done, total)

    def downloaded(self, count: int) -> None:
        """The host itself got that many bytes from upstream."""
        self.upstream += count


class Journal:
    """Appends to `journal.jsonl` and tells the listeners. Safe to use from many threads."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self.path = path
        self.clock = clock
        self.run = os.urandom(6).hex()
        self._lock = threading.Lock()
        self._listeners: list[Listener] = []

    def subscribe(self, listener: Listener) -> None:
        self._listeners.append(listener)

    @contextlib.contextmanager
    def step(self, host: str, step: str, text: str = "") -> Iterator[Step]:
        """Mark a step's beginning and its end, whatever the end is."""
        begun = Step(self, host, step)
        self.emit(Event(Kind.BEGIN, host, step, text))
        started = self.clock.monotonic()
        outcome, said = "failed", ""
        try:
            yield begun
            outcome = "done"
        except Interrupted as error:
            outcome, said = "stopped", plain(error.what)
            raise
        except NixaError as error:
            said = plain(error.what)
            raise
        finally:
            seconds = round(self.clock.monotonic() - started, 3)
            self.emit(Event(
                Kind.END, host, step, said, outcome=outcome, seconds=seconds,
                done=begun.moved, total=begun.size, file=begun.sha256, upstream=begun.upstream,
            ))  # fmt: skip

    def note(self, host: str, step: str, text: str) -> None:
        """Something worth a line."""
        self.emit(Event(Kind.NOTE, host, step, plain(text)))

    def progress(self, host: str, step: str, done: int, total: int | None) -> None:
        """How far a transfer is, in bytes. Not written to the file."""
        self.emit(Event(Kind.PROGRESS, host, step, done=done, total=total))

    def emit(self, event: Event) -> None:
        if event.kind is not Kind.PROGRESS:
            self._append(event)
        for listener in self._listeners:
            with contextlib.suppress(OSError, ValueError):  # whoever shows it: nobody has to be able to read
                listener(event)

    def _append(self, event: Event) -> None:
        line: dict[str, object] = {
            "at": self.clock.now().isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "run": self.run,
            "pid": os.getpid(),
            "event": event.kind.value,
            "host": event.host,
            "step": event.step,
        }
        if event.text:
            line["text"] = event.text
        if event.kind is Kind.END:
            line |= {"outcome": event.outcome, "seconds": event.seconds}
            if event.file:
                line |= {"sha256": event.file, "bytes": event.done, "size": event.total}
            if event.upstream:
                line["upstream"] = event.upstream
        data = (json.dumps(line, ensure_ascii=False) + "\n").encode()
        with self._lock, contextlib.suppress(OSError):  # a full disk must not fail a deploy half-way
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab", buffering=0) as file:
                file.write(data)  # one write in append mode: lines of two runs never mix


class RunLog:
    """One log file a host and run, and a sink for lines. Each line is flushed, so that a hang leaves a log. Tools may say anything, so
    nobody else may read it."""

    def __init__(self, folder: Path, what: str, run: str, clock: Clock) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for old in sorted(folder.glob("*.log"))[: -_MOST_LOGS + 1]:
                old.unlink(missing_ok=True)
        except OSError as error:
            raise NixaError(
                f"the log folder {folder} can't be written: {error.strerror}",
                hint="nothing is done to a host without a log: make room, or give the folder to the user who runs nixa",
            ) from error
        stamp = clock.now().strftime("%Y%m%dT%H%M%SZ")
        self.path = folder / f"{stamp}-{what}-{run}.log"
        self._clock, self._started = clock, clock.monotonic()
        self._lock = threading.Lock()
        self._file: TextIO | None = None

    def __call__(self, line: str) -> None:
        with self._lock, contextlib.suppress(OSError):  # a full disk must not fail a deploy half-way
            if self._file is None:
                self.path.touch(0o600)
                self._file = self.path.open("a", encoding="utf-8", errors="replace", buffering=1)
            self._file.write(f"{self._clock.monotonic() - self._started:9.3f}  {line}\n")

    def close(self) -> None:
        with self._lock:
            if self._file is not None:
                with contextlib.suppress(OSError):
                    self._file.close()
                self._file = None
