"""Lines of the journal as values, read with suspicion: a damaged line is one that is not there."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from nixa_tasks.state.journal import Kind

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
