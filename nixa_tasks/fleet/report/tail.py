"""The ends of files: the journal's last part, and a log's last lines. All I/O of the report."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nixa_tasks.fleet.report.events import Record, parse, parse_line
from nixa_tasks.fleet.report.failures import Log
from nixa_tasks.state.layout import Layout

_RUNS_BYTES = 8 << 20
_FILES_BYTES = 32 << 20
_LOG_BYTES = 8 << 10
_LOG_LINES = 10
_RUN = re.compile(r"[0-9a-f]{12}")


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
