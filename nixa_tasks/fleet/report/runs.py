"""What the journal tells: runs, what went wrong in them, and what the image cache saved. Pure, but for the
reader of logs that it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from nixa_tasks.fleet.report.records import Log, Record
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


# --- what went wrong


@dataclass(frozen=True, slots=True)
class Failure:
    """One host's failed turn. `is_over`: a later run of the same command succeeded."""

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
    good: set[tuple[str, str]] = set()
    for run in runs:
        for lane in run.lanes:
            if lane.outcome == "failed" and len(found) < at_most:
                found.append(_failure(run, lane, find_log, (lane.name, _command(lane)) in good))
        good |= {(lane.name, _command(lane)) for lane in run.lanes if lane.outcome == "done"}
    return tuple(found)


def _command(lane: Lane) -> str:
    """What was attempted: only the same, done well, makes up for its failure. A reinstallation deploys."""
    if lane.turn is None:
        return lane.stages[-1].step
    return "deploy" if lane.turn.step == "reinstall" else lane.turn.step


def _failure(run: Run, lane: Lane, find_log: FindLog, is_over: bool) -> Failure:
    span = _cause(lane)
    text = span.text or (lane.turn.text if lane.turn else "")
    return Failure(lane.name, run.id, span.step, span.end, text, find_log(lane.name, run.id), is_over)


def _cause(lane: Lane) -> Span:
    """The step that failed; the turn itself where none of its steps did."""
    failed = [one for one in lane.stages if one.outcome == "failed"]
    return max(failed, key=lambda one: one.end) if failed else lane.turn or lane.stages[-1]


# --- what the cache saved

# Every installation needs the image here, to send it, and there, to boot it. Without the cache it would be
# downloaded for each, and without what a host keeps of a cut upload it would be sent whole each time. An
# image that is not downloaded at all (a local file, or built by Nix) saves none here.
_DELIVERIES = frozenset({"upload", "install"})


@dataclass(frozen=True, slots=True)
class Image:
    """One file's account; all but `needed` are bytes. `needed`: how many installations booted it."""

    sha256: str
    name: str = ""
    size: int = 0
    needed: int = 0
    downloaded: int = 0
    uploaded: int = 0
    is_remote: bool = False

    @property
    def saved_download(self) -> int:
        return max(0, self.needed * self.size - self.downloaded) if self.is_remote else 0

    @property
    def saved_upload(self) -> int:
        return max(0, self.needed * self.size - self.uploaded)


def account(records: Iterable[Record]) -> tuple[Image, ...]:
    """Each image that was moved or needed, the one that saved most first."""
    images: dict[str, Image] = {}
    for record in records:
        if record.sha256:
            old = images.get(record.sha256, Image(record.sha256))
            images[record.sha256] = _added(old, record)
    return tuple(sorted(images.values(), key=lambda one: -one.saved_download - one.saved_upload))


def _added(image: Image, record: Record) -> Image:
    image = replace(image, size=max(image.size, record.size or 0))
    if record.step in _DELIVERIES:
        return replace(
            image,
            needed=image.needed + (record.outcome == "done"),
            uploaded=image.uploaded + record.moved,
            downloaded=image.downloaded + record.upstream,
            is_remote=image.is_remote or record.upstream > 0,
        )
    return replace(image, name=record.host, downloaded=image.downloaded + record.moved, is_remote=True)
