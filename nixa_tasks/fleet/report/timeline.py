"""A run as bars on a common scale: what the page draws of it. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nixa_tasks import text
from nixa_tasks.fleet.report.runs import Lane, Run, Span

MOST_LANES = 100
_LOOK, _BUILD, _SEND, _CHANGE, _CHECK = "look", "build", "send", "change", "check"
_KINDS: Mapping[str, str] = {
    "evaluate": _LOOK, "reach": _LOOK,
    "build": _BUILD, "build disko": _BUILD, "remote build": _BUILD,
    "upload": _SEND, "copy": _SEND, "copy disko": _SEND, "pin": _SEND,
    "kexec": _CHANGE, "disko": _CHANGE, "install": _CHANGE, "switch": _CHANGE, "set up boot": _CHANGE,
    "reboot": _CHECK, "verify": _CHECK, "checksum": _CHECK,
}  # fmt: skip
_IMAGE_KINDS: Mapping[str, str] = {
    **_KINDS,
    "kexec": _SEND,
}  # of an image it is the fetching, of a host the jump
LEGEND = (
    (_LOOK, "look"), (_BUILD, "build"), (_SEND, "fetch and send"), (_CHANGE, "install or switch"),
    (_CHECK, "boot and check"), ("failed", "failed"), ("open", "stopped, or no end noted"),
)  # fmt: skip
_TICKS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400)


@dataclass(frozen=True, slots=True)
class Bar:
    """One stage. `left` and `width` are percentages; `ended` says how, unless it was done."""

    name: str
    kind: str
    left: str
    width: str
    after: str
    took: str
    outcome: str
    ended: str


@dataclass(frozen=True, slots=True)
class Row:
    """One lane as the page shows it. `why`: why it failed."""

    name: str
    outcome: str
    took: str
    bars: tuple[Bar, ...]
    why: str
    decision: str


@dataclass(frozen=True, slots=True)
class Timeline:
    """One run. `ticks`: the scale's marks with their places; `step`: the distance of two, in percent."""

    run: Run
    counted: str
    took: str
    rows: tuple[Row, ...]
    left_out: int
    ticks: tuple[tuple[str, str], ...]
    step: str


def timeline(run: Run) -> Timeline:
    """The run's lanes, as many as a page bears; what did not end well goes first then."""
    lanes: Sequence[Lane] = run.lanes
    if len(lanes) > MOST_LANES:
        lanes = sorted(lanes, key=lambda lane: lane.outcome == "done")[:MOST_LANES]
    length = max(run.seconds, 0.001)
    step = _tick(length)
    # A mark too near the end would overflow the scale.
    marks = [number * step for number in range(7) if number * step <= length * 0.96 or number == 0]
    return Timeline(
        run,
        _counted(run),
        text.duration(run.seconds),
        tuple(_row(lane, run.start, length) for lane in lanes),
        len(run.lanes) - len(lanes),
        tuple((_mark(at), _percent(at / length)) for at in marks),
        _percent(step / length),
    )


def _counted(run: Run) -> str:
    hosts = run.hosts
    if not hosts:
        return ""
    if len(hosts) == 1:
        return hosts[0].name
    outcomes = [lane.outcome for lane in hosts]
    bad = [
        f"{count} {shown}"
        for shown, outcome in (("failed", "failed"), ("stopped", "stopped"), ("without an end", "open"))
        if (count := outcomes.count(outcome))
    ]
    return ", ".join([f"{len(hosts)} hosts", *bad])


def _row(lane: Lane, begin: float, length: float) -> Row:
    kinds = _IMAGE_KINDS if lane.is_image else _KINDS
    return Row(
        f"image {lane.name}" if lane.is_image else lane.name or "flake",
        lane.outcome,
        text.duration(lane.end - lane.start),
        tuple(_bar(span, begin, length, kinds) for span in lane.stages or lane.spans),
        next((span.text for span in reversed(lane.spans) if span.outcome == "failed" and span.text), ""),
        lane.decision,
    )


def _bar(span: Span, begin: float, length: float, kinds: Mapping[str, str]) -> Bar:
    left = min(max((span.start - begin) / length, 0.0), 1.0)
    ended = {"done": "", "failed": "failed", "stopped": "stopped"}.get(span.outcome, "no end noted")
    kind = kinds.get(span.step, _LOOK) if span.outcome == "done" else span.outcome
    return Bar(
        span.step,
        "open" if kind == "stopped" else kind,
        _percent(left),
        _percent(min(span.seconds / length, 1 - left)),
        text.duration(max(0.0, span.start - begin)),
        text.duration(span.seconds),
        span.outcome,
        ended,
    )


def _tick(length: float) -> float:
    """Seconds between two marks: at most six of them."""
    return next((float(one) for one in _TICKS if length / one <= 6), math.ceil(length / 6 / 86400) * 86400.0)


def _mark(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return (
        f"{whole // 60}:{whole % 60:02d}" if whole < 3600 else f"{whole // 3600}:{whole % 3600 // 60:02d} h"
    )


def _percent(part: float) -> str:
    return f"{min(max(part, 0.0), 1.0) * 100:.2f}%"
