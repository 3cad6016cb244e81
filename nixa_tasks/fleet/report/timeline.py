"""A run as bars: one line a host, one bar a stage, on a common scale. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from nixa_tasks import text
from nixa_tasks.fleet.report.fleet_table import badge, when
from nixa_tasks.fleet.report.markup import Child, Html, element
from nixa_tasks.fleet.report.runs import Lane, Run, Span, latest

MOST_LANES = 100
_LOOK, _BUILD, _SEND, _CHANGE, _CHECK = "look", "build", "send", "change", "check"
_KINDS = {
    "evaluate": _LOOK, "reach": _LOOK,
    "build": _BUILD, "build disko": _BUILD,
    "upload": _SEND, "copy": _SEND, "copy disko": _SEND, "pin": _SEND,
    "kexec": _CHANGE, "disko": _CHANGE, "install": _CHANGE, "switch": _CHANGE,
    "reboot": _CHECK, "verify": _CHECK, "checksum": _CHECK,
}  # fmt: skip
_IMAGE_KINDS = {**_KINDS, "kexec": _SEND}  # of an image it is the fetching, of a host the jump
_LEGEND = (
    (_LOOK, "look"), (_BUILD, "build"), (_SEND, "fetch and send"), (_CHANGE, "install or switch"),
    (_CHECK, "boot and check"), ("failed", "failed"), ("open", "stopped, or no end noted"),
)  # fmt: skip
_TICKS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400)


def timeline(runs: Sequence[Run]) -> Html:
    """Every run folded up, but for the one to look at first. It needs no script."""
    legend = [element("li", element("i", class_=f"bar {kind}"), name) for kind, name in _LEGEND]
    return element(
        "div",
        element("ul", legend, class_="legend", aria_label="What the colours mean"),
        [_run(run, is_open=run is latest(runs)) for run in runs],
    )


def _run(run: Run, *, is_open: bool) -> Html:
    lanes = _chosen(run.lanes)
    left_out = len(run.lanes) - len(lanes)
    begin, length = run.start, max(run.seconds, 0.001)
    step = _tick(length)
    return element(
        "details",
        element(
            "summary",
            when(run.start, seconds=True), " ", element("b", run.what), " ", badge(run.outcome), " ",
            element("span", _counted(run), class_="said"),
            element("span", text.duration(run.seconds), class_="took"),
        ),
        element(
            "table",
            element("caption", f"Timeline of run {run.id}", class_="unseen"),
            element("thead", element(
                "tr",
                element("th", "Host", scope="col"),
                element("th", "Outcome", scope="col"),
                element("th", _axis(length, step), element("span", "Stages", class_="unseen"), scope="col"),
            )),
            element("tbody", [_lane(lane, begin, length) for lane in lanes]),
            class_="gantt",
            style=f"--tick:{_percent(step / length)}",
        ),
        element("p", f"and {left_out} more, which are not shown", class_="note") if left_out else None,
        _numbers(lanes, begin),
        class_="run",
        open=is_open,
    )  # fmt: skip


def _chosen(lanes: Sequence[Lane]) -> Sequence[Lane]:
    """As many as a page bears; what did not end well goes first then."""
    if len(lanes) <= MOST_LANES:
        return lanes
    return sorted(lanes, key=lambda lane: lane.outcome == "done")[:MOST_LANES]


def _counted(run: Run) -> str:
    hosts = run.hosts
    if not hosts:
        return ""
    if len(hosts) == 1:
        return hosts[0].name
    outcomes = [lane.outcome for lane in hosts]
    bad = [
        f"{count} {said}"
        for said, word in (("failed", "failed"), ("stopped", "stopped"), ("without an end", "open"))
        if (count := outcomes.count(word))
    ]
    return ", ".join([f"{len(hosts)} hosts", *bad])


def _name(lane: Lane) -> str:
    return f"image {lane.name}" if lane.is_image else lane.name or "flake"


def _tick(length: float) -> float:
    """Seconds between two marks: at most six of them."""
    return next((float(one) for one in _TICKS if length / one <= 6), math.ceil(length / 6 / 86400) * 86400.0)


def _axis(length: float, step: float) -> Html:
    """The scale. A mark too near the end would stand out of it."""
    marks = [number * step for number in range(7) if number * step <= length * 0.96 or number == 0]
    return element(
        "span",
        [element("span", _mark(at), style=f"left:{_percent(at / length)}") for at in marks],
        class_="axis",
        aria_hidden="true",
    )


def _mark(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return (
        f"{whole // 60}:{whole % 60:02d}" if whole < 3600 else f"{whole // 3600}:{whole % 3600 // 60:02d} h"
    )


def _percent(part: float) -> str:
    return f"{min(max(part, 0.0), 1.0) * 100:.2f}%"


def _lane(lane: Lane, begin: float, length: float) -> Html:
    shown = lane.stages or lane.spans
    kinds = _IMAGE_KINDS if lane.is_image else _KINDS
    why = next((span.text for span in reversed(lane.spans) if span.outcome == "failed" and span.text), "")
    said = element("small", why or lane.decision, class_="why" if why else None)
    return element(
        "tr",
        element("th", _name(lane), scope="row"),
        element(
            "td", badge(lane.outcome), element("span", text.duration(lane.end - lane.start), class_="took")
        ),
        element(
            "td", element("ol", [_bar(span, begin, length, kinds) for span in shown], class_="track"), said
        ),
    )


def _bar(span: Span, begin: float, length: float, kinds: Mapping[str, str]) -> Html:
    left = min(max((span.start - begin) / length, 0.0), 1.0)
    how = {"done": "", "failed": ", failed", "stopped": ", stopped"}.get(span.outcome, ", no end noted")
    kind = kinds.get(span.step, _LOOK) if span.outcome == "done" else span.outcome
    took = text.duration(span.seconds)
    return element(
        "li",
        element("span", span.step, class_="name"),
        element("span", f", {took}{how}", class_="unseen"),
        class_=f"bar {'open' if kind == 'stopped' else kind}",
        style=f"left:{_percent(left)};width:{_percent(min(span.seconds / length, 1 - left))}",
        title=f"{span.step}: {took}{how}",
    )


def _numbers(lanes: Sequence[Lane], begin: float) -> Html:
    """The same as numbers, for those who read rather than look, and for narrow screens."""
    head = ("Host", "Stage", "Began after", "Took", "Outcome")
    return element(
        "details",
        element("summary", "as numbers"),
        element(
            "table",
            element("caption", "Every stage of this run", class_="unseen"),
            element("thead", element("tr", [
                element("th", one, scope="col", class_="num" if one in ("Began after", "Took") else None)
                for one in head
            ])),
            [element("tbody", _rows(lane, begin)) for lane in lanes],
            class_="numbers",
        ),
        class_="inner",
    )  # fmt: skip


def _rows(lane: Lane, begin: float) -> list[Html]:
    rows: list[Html] = []
    spans = lane.stages or lane.spans
    for number, span in enumerate(spans):
        name: Child = None
        if number == 0:
            name = element("th", _name(lane), scope="rowgroup", rowspan=len(spans))
        rows.append(element(
            "tr",
            name,
            element("td", span.step),
            element("td", text.duration(max(0.0, span.start - begin)), class_="num"),
            element("td", text.duration(span.seconds), class_="num"),
            element("td", badge(span.outcome)),
        ))  # fmt: skip
    return rows
