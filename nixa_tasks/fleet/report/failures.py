"""What went wrong in the last runs, and whether it did so since. Pure, but for the reader it is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nixa_tasks.fleet.report.runs import Lane, Run, Span


@dataclass(frozen=True, slots=True)
class Log:
    """Where all of it lies, and its last lines."""

    path: str
    tail: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Failure:
    """One host's failed turn. `is_over`: a later run brought it to a good end."""

    host: str
    run: str
    step: str
    at: float
    text: str
    log: Log | None
    is_over: bool


FindLog = Callable[[str, str], Log | None]


def failures(runs: Sequence[Run], find_log: FindLog, *, at_most: int = 20) -> tuple[Failure, ...]:
    """From runs, newest first: the newest failures, newest first."""
    found: list[Failure] = []
    good: set[str] = set()
    for run in runs:
        for lane in run.lanes:
            if lane.outcome == "failed" and len(found) < at_most:
                found.append(_failure(run, lane, find_log, lane.name in good))
        good |= {lane.name for lane in run.hosts if lane.outcome == "done"}
    return tuple(found)


def _failure(run: Run, lane: Lane, find_log: FindLog, is_over: bool) -> Failure:
    span = _cause(lane)
    text = span.text or (lane.turn.text if lane.turn else "")
    return Failure(lane.name, run.id, span.step, span.end, text, find_log(lane.name, run.id), is_over)


def _cause(lane: Lane) -> Span:
    """The step that failed; the turn itself where none of its steps did."""
    failed = [one for one in lane.stages if one.outcome == "failed"]
    return max(failed, key=lambda one: one.end) if failed else lane.turn or lane.stages[-1]
