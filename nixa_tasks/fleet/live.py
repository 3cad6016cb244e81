"""The live view: hosts and the stages they are in, and a bar for each transfer."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live as RichLive
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from nixa_tasks import text
from nixa_tasks.state.journal import TURNS, Event, Kind

_MARKS = {"done": ("✓", "green"), "failed": ("✗", "red"), "stopped": ("■", "yellow"),
          "not started": ("○", "yellow")}  # fmt: skip

_LASTING = frozenset({"on_finish"})  # its words stay on the screen when the table goes


@dataclass(slots=True)
class _Row:
    stages: list[str] = field(default_factory=list)
    current: str = ""
    said: str = ""
    since: float = field(default_factory=time.monotonic)
    outcome: str = ""
    seconds: float = 0.0
    is_turn: bool = False


class Live:
    """Redraws a table in place, a few times a second. Finished hosts go first out of a short screen."""

    def __init__(self, stream: TextIO, *, colour: bool) -> None:
        self._rows: dict[str, _Row] = {}
        self._lock = threading.Lock()
        self._console = Console(file=stream, no_color=not colour, highlight=False, legacy_windows=False)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(compact=True),
            console=self._console,
            expand=True,
        )
        self._tasks: dict[tuple[str, str], TaskID] = {}
        self._live = RichLive(
            console=self._console,
            get_renderable=self._draw,
            refresh_per_second=8,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()

    def close(self) -> None:
        self._live.stop()

    def __call__(self, event: Event) -> None:
        if event.kind is Kind.NOTE and event.step in _LASTING:
            self._console.print(
                Text(f"{event.step}: {event.text}")
            )  # without the lock: it draws the table anew
            return
        with self._lock:
            if event.kind is Kind.PROGRESS:
                self._progress(event)
                return
            row = self._rows.setdefault(event.host or "flake", _Row())
            match event.kind:
                case Kind.BEGIN if event.step in TURNS:
                    row.since, row.is_turn = time.monotonic(), True
                case Kind.BEGIN:
                    row.current, row.said, row.outcome = event.step, event.text, ""
                case Kind.NOTE:
                    row.said, row.outcome = event.text, event.outcome or row.outcome
                case Kind.END if event.step in TURNS:
                    row.outcome, row.seconds, row.current = event.outcome, event.seconds, ""
                case Kind.END:
                    mark = _MARKS.get(event.outcome, ("?", ""))[0]
                    if row.stages[-1:] != [f"{mark} {event.step}"]:  # an image is asked for by each host
                        row.stages.append(f"{mark} {event.step}")
                    if not row.is_turn:
                        row.outcome, row.seconds = event.outcome, event.seconds
                    row.current, row.said = "", event.text or row.said
                    self._end_bar(event.host, event.step)

    def _progress(self, event: Event) -> None:
        key = (event.host, event.step)
        if key not in self._tasks:
            self._tasks[key] = self._bars.add_task(f"{event.host} {event.step}", total=event.total)
        self._bars.update(self._tasks[key], completed=event.done, total=event.total)

    def _end_bar(self, host: str, step: str) -> None:
        task = self._tasks.pop((host, step), None)
        if task is not None:
            self._bars.remove_task(task)

    def _draw(self) -> Group:
        with self._lock:
            rows = dict(self._rows)
        room = max(3, self._console.height - 4 - len(self._tasks))
        shown = sorted(rows.items(), key=lambda item: bool(item[1].outcome))[:room]
        names = [name for name in rows if name in dict(shown)]
        grid = Table.grid(padding=(0, 2))
        for name in names:
            row = rows[name]
            mark, style = _MARKS.get(row.outcome, ("•", "cyan"))
            took = text.duration(row.seconds if row.outcome else time.monotonic() - row.since)
            stages = Text(
                "  ".join(row.stages[-4 if self._console.width >= 100 else -2 :]),
                style="dim",
                overflow="ellipsis",
                no_wrap=True,
            )
            if row.current:
                stages.append(f"  {row.current} …", style="not dim cyan")
            grid.add_row(
                Text(f"{mark} {name}", style=style, no_wrap=True),
                Text(took, no_wrap=True),
                stages,
                Text(row.said, overflow="ellipsis", no_wrap=True),
            )
        hidden = len(rows) - len(names)
        more = [Text(f"… and {hidden} more", style="dim")] if hidden > 0 else []
        bars = [self._bars] if self._tasks else []
        return Group(grid, *more, *bars)
