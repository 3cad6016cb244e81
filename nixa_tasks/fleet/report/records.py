"""Lines of the journal as values, read with suspicion (a damaged line is one that is not there), and the ends
of the files that the report reads. All I/O of the report is here."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from nixa_tasks.state.journal import Kind
from nixa_tasks.state.layout import Layout

_LONGEST_SECONDS = 30 * 86400.0
_LARGEST = 1 << 50


@dataclass(frozen=True, slots=True)
class Record:
    """One line. `at` is seconds since 1970; `moved`, `size` and
    `upstream` (what the host got from there by itself) are bytes of the file `sha256`."""

    at: float
    run: str
    kind: Kind
    host: str
    step: str
    text: str = ""
    outcome: str = ""
    seconds: float = 0.0
    sha256: str = ""
    moved: int = 0
    size: int | None = None
    upstream: int = 0


def parse(lines: Iterable[bytes]) -> Iterator[Record]:
    for line in lines:
        record = parse_line(line)
        if record is not None:
            yield record


def parse_line(line: bytes) -> Record | None:
    """None for what is not an event."""
    try:
        value = json.loads(line)
        at = moment(value["at"])
        kind = Kind(value["event"])
        texts = [value[key] for key in ("run", "host", "step")]
        texts += [value.get(key, "") for key in ("text", "outcome", "sha256")]
        seconds = float(value.get("seconds", 0.0))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None
    if at is None or not all(isinstance(one, str) for one in texts):
        return None
    run, host, step, text, outcome, sha256 = texts
    seconds = min(max(seconds, 0.0), _LONGEST_SECONDS) if math.isfinite(seconds) else 0.0
    moved, size, upstream = (_bytes(value.get(key)) for key in ("bytes", "size", "upstream"))
    return Record(
        at, run, kind, host, step, text, outcome, seconds, sha256, moved or 0, size, upstream or 0
    )  # fmt: skip


def moment(text: object) -> float | None:
    """Seconds since 1970 of an RFC 3339 time; None where it is none."""
    if not isinstance(text, str):
        return None
    try:
        when = datetime.fromisoformat(text)
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def _bytes(value: object) -> int | None:
    return value if isinstance(value, int) and 0 <= value <= _LARGEST else None


# --- reading

_RUNS_BYTES = 8 << 20
_FILES_BYTES = 32 << 20
_LOG_BYTES = 8 << 10
_LOG_LINES = 10
_RUN = re.compile(r"[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class Log:
    """Where all of it lies, and its last lines."""

    path: str
    tail: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Journaled:
    """`recent`: every event of the last part. `files`: the events that moved a file, from further
    back. `since`: when what was read begins (seconds since 1970)."""

    recent: tuple[Record, ...]
    files: tuple[Record, ...]
    since: float | None


def read_journal(path: Path) -> Journaled:
    """The journal's end, however long it is; nothing where there is none."""
    lines = _last(path, _FILES_BYTES).splitlines()
    files = tuple(one for one in parse(line for line in lines if b'"sha256"' in line) if one.sha256)
    since = next((one.at for line in lines if (one := parse_line(line)) is not None), None)
    return Journaled(tuple(parse(_within(lines, _RUNS_BYTES))), files, since)


def _within(lines: list[bytes], limit: int) -> Iterator[bytes]:
    """The last lines that have `limit` bytes together."""
    first = len(lines)
    while first and (limit := limit - len(lines[first - 1]) - 1) >= 0:
        first -= 1
    yield from lines[first:]


def find_log(layout: Layout, host: str, run: str) -> Log | None:
    """The log that a run left of a host, if it is still there. `host` is one that hosts.toml has."""
    if not _RUN.fullmatch(run):
        return None
    found = sorted(layout.host(host).logs.glob(f"*-{run}.log"))
    if not found:
        return None
    lines = _last(found[-1], _LOG_BYTES).decode(errors="replace").splitlines()
    return Log(str(found[-1].relative_to(layout.root)), tuple(lines[-_LOG_LINES:]))


def _last(path: Path, limit: int) -> bytes:
    """The last whole lines within `limit` bytes."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - limit))
            data = file.read(limit)
    except OSError:
        return b""
    return data.partition(b"\n")[2] if size > limit else data
