"""What a run shows: plain lines, one an event, or a live view on a terminal; at the end one table.

Fed by the journal's events from many threads. Knows nothing of doit.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TextIO

from nixa_tasks import text
from nixa_tasks.errors import NixaError
from nixa_tasks.state.journal import TURNS, Event, Kind

_PROGRESS_SECONDS = 5.0
_MOST_NAMES = 6
FAILED, NOT_STARTED, UNCHANGED = "failed", "not started", "unchanged"


@dataclass(frozen=True, slots=True)
class Result:
    """How a host's or an image's turn ended. `said`: what was done, or why it failed."""

    name: str
    outcome: str
    said: str
    seconds: float = 0.0


class View(Protocol):
    """Something that shows a run as it goes."""

    def __call__(self, event: Event) -> None: ...

    def close(self) -> None: ...


def wants_colour(stream: TextIO) -> bool:
    """Whether escape sequences are welcome there: https://no-color.org, and TERM."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"


def view_for(stream: TextIO) -> View:
    """The live view where there is a terminal that can show one, else plain lines."""
    if stream.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        from nixa_tasks.fleet.live import Live

        return Live(stream, colour=wants_colour(stream))
    return Lines(stream)


class Lines:
    """Plain lines, each with the name in front, for logs and CI."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._last_progress: dict[tuple[str, str], float] = {}

    def __call__(self, event: Event) -> None:
        line = self._line(event)
        if line is not None:
            with self._lock:
                text.write(self._stream, f"{event.host}: {line}\n" if event.host else f"{line}\n")

    def close(self) -> None:
        pass

    def _line(self, event: Event) -> str | None:
        match event.kind:
            case Kind.BEGIN:
                return None if event.step in TURNS else f"{event.step} …"
            case Kind.NOTE:
                return f"{event.step}: {event.text}"
            case Kind.END:
                took = text.duration(event.seconds)
                if event.outcome == "done":
                    return f"{event.step}: done in {took}"
                return f"{event.step}: {event.outcome} after {took}" + (
                    f": {event.text}" if event.text else ""
                )
            case Kind.PROGRESS:
                return self._progress(event)

    def _progress(self, event: Event) -> str | None:
        """A line every few seconds: who reads a log wants to know that it lives, not each block."""
        key, now = (event.host, event.step), time.monotonic()
        if now - self._last_progress.setdefault(key, now) < _PROGRESS_SECONDS:
            return None
        self._last_progress[key] = now
        of = f" of {text.size(event.total)}" if event.total else ""
        return f"{event.step}: {text.size(event.done)}{of}"


def summary(results: Sequence[Result], errors: Sequence[NixaError], width: int | None = None) -> list[str]:
    """The end of a run: the errors in full, then one table."""
    width = width or text.terminal_width()
    lines: list[str] = []
    for error in _grouped(errors):
        lines += ["", *error.render().splitlines()]
    if results:
        rows = [
            (one.name, one.outcome, text.duration(one.seconds) if one.seconds else "-", one.said)
            for one in results
        ]
        lines += ["", *text.table(("host", "outcome", "time", "what"), rows, width)]
    return lines


def _grouped(errors: Sequence[NixaError]) -> list[NixaError]:
    """The errors; what is the same for several hosts once, with their names in front."""
    groups: dict[tuple[object, ...], list[NixaError]] = {}
    for error in errors:
        groups.setdefault((error.what, error.tail, error.log, error.hint), []).append(error)
    shown = []
    for group in groups.values():
        first = group[0]
        hosts = list(dict.fromkeys(error.host for error in group if error.host))
        more = f" and {len(hosts) - _MOST_NAMES} more" if len(hosts) > _MOST_NAMES else ""
        names = (", ".join(hosts[:_MOST_NAMES]) + more) or None
        shown.append(NixaError(first.what, host=names, tail=first.tail, log=first.log, hint=first.hint))
    return shown
