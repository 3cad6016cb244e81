"""From the journal's events to runs: who did what, for how long, and how it ended. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nixa_tasks.fleet.report.events import Record
from nixa_tasks.state.journal import TURNS, Kind

_IMAGE_STEPS = frozenset({"kexec", "checksum", "pin"})
# From the best end to the worst: a host's outcome is the worst of its steps' ones.
_WORSE = ("done", "stopped", "open", "failed")


@dataclass(frozen=True, slots=True)
class Span:
    """One step. `start`: seconds since 1970. `outcome`: done, failed, stopped, or open: its end is
    not in the journal."""

    step: str
    start: float
    seconds: float
    outcome: str
    text: str = ""

    @property
    def end(self) -> float:
        return self.start + self.seconds


@dataclass(frozen=True, slots=True)
class Lane:
    """What happened to one host, image, or (name "") the flake. `decision`: what a deploy chose to
    do, and why. `turn` is the deploy itself; `stages` are the steps in it."""

    name: str
    turn: Span | None
    stages: tuple[Span, ...]
    decision: str = ""

    @property
    def spans(self) -> tuple[Span, ...]:
        return ((self.turn,) if self.turn else ()) + self.stages

    @property
    def is_image(self) -> bool:
        return self.turn is None and all(one.step in _IMAGE_STEPS for one in self.stages)

    @property
    def outcome(self) -> str:
        return self.turn.outcome if self.turn else max((one.outcome for one in self.stages), key=_badness)

    @property
    def start(self) -> float:
        return min(one.start for one in self.spans)

    @property
    def end(self) -> float:
        return max(one.end for one in self.spans)


@dataclass(frozen=True, slots=True)
class Run:
    """One run of doit. Its lanes are in the order in which they began."""

    id: str
    lanes: tuple[Lane, ...]

    @property
    def start(self) -> float:
        return min(lane.start for lane in self.lanes)

    @property
    def end(self) -> float:
        return max(lane.end for lane in self.lanes)

    @property
    def seconds(self) -> float:
        return self.end - self.start

    @property
    def outcome(self) -> str:
        return max((lane.outcome for lane in self.lanes), key=_badness)

    @property
    def hosts(self) -> tuple[Lane, ...]:
        """The lanes of hosts that had a turn; where none had, all of hosts."""
        turns = tuple(lane for lane in self.lanes if lane.turn)
        return turns or tuple(lane for lane in self.lanes if lane.name and not lane.is_image)

    @property
    def what(self) -> str:
        """What the run was about: its turns' names, else its steps'."""
        names = [lane.turn.step for lane in self.lanes if lane.turn]
        names = names or [span.step for lane in self.lanes for span in lane.stages]
        return ", ".join(dict.fromkeys(names))


def latest(runs: Sequence[Run]) -> Run:
    """The newest that worked on a host; looking (`doit plan`) is a run too, and tells less."""
    return next((run for run in runs if any(lane.turn for lane in run.lanes)), runs[0])


def _badness(outcome: str) -> int:
    return _WORSE.index(outcome)


def runs(records: Iterable[Record], *, without: str = "", at_most: int = 20) -> tuple[Run, ...]:
    """The last runs, newest first; a run in which no step was begun is none."""
    by_run: dict[str, list[Record]] = {}
    for record in records:
        if record.run != without:
            by_run.setdefault(record.run, []).append(record)
    found: list[Run] = []
    for name, its in reversed(by_run.items()):
        run = _run(name, its)
        if run is not None:
            found.append(run)
        if len(found) == at_most:
            break
    return tuple(sorted(found, key=lambda one: one.start, reverse=True))


def _run(name: str, records: Sequence[Record]) -> Run | None:
    last = max(record.at for record in records)
    by_lane: dict[str, list[Record]] = {}
    for record in records:
        by_lane.setdefault(record.host, []).append(record)
    lanes = [lane for host, its in by_lane.items() if (lane := _lane(host, its, last)) is not None]
    return Run(name, tuple(sorted(lanes, key=lambda lane: (lane.name != "", lane.start)))) if lanes else None


def _lane(name: str, records: Sequence[Record], last: float) -> Lane | None:
    decision = next((r.text for r in reversed(records) if r.kind is Kind.NOTE and r.step == "decide"), "")
    spans = sorted(_spans(records, last), key=lambda one: (one.start, -one.seconds))
    turn = next((one for one in reversed(spans) if one.step in TURNS), None)
    stages = tuple(one for one in spans if one.step not in TURNS)
    return Lane(name, turn, stages, decision) if spans else None


def _spans(records: Sequence[Record], last: float) -> list[Span]:
    """Beginnings and ends put together. An end alone (the rest was cut off) tells its beginning by
    how long it took; a beginning alone lasts until the run's last word."""
    begun: dict[str, list[Record]] = {}
    spans: list[Span] = []
    for record in records:
        if record.kind is Kind.BEGIN:
            begun.setdefault(record.step, []).append(record)
        elif record.kind is Kind.END:
            earlier = begun.get(record.step)
            start = earlier.pop().at if earlier else record.at - record.seconds
            outcome = record.outcome if record.outcome in _WORSE else "failed"
            spans.append(Span(record.step, start, record.seconds, outcome, record.text))
    for left in begun.values():
        spans += [Span(one.step, one.at, max(0.0, last - one.at), "open", one.text) for one in left]
    return spans
