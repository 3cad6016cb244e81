"""Values as people read them: numbers, tables, quoted words, and the word that was probably meant."""

from __future__ import annotations

import contextlib
import os
import shutil
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TextIO

SHOWN_LENGTH = 60

_UNITS = ("B", "kB", "MB", "GB", "TB")


def write(stream: TextIO, text: str) -> None:
    """Write it at once. Where that fails (a closed pipe, a full disk, a terminal that is gone), the
    stream leads nowhere from then on: no host's work depends on anybody reading."""
    try:
        stream.write(text)
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError), Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())


def size(count: float) -> str:
    """Bytes in decimal units: 350 MB."""
    for unit in _UNITS:
        if count < 999.5 or unit == _UNITS[-1]:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def duration(seconds: float) -> str:
    """Seconds as 0.3 s, 12 s, 3 min 05 s, 2 h 10 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def store_path(path: str | None) -> str:
    """A store path as its hash's beginning and its name: enough to tell two apart."""
    if path is None:
        return "-"
    name = path.rpartition("/")[2]
    return f"{name[:7]}…{name[32:]}"[:34]


def terminal_width() -> int | None:
    """Columns of the terminal that standard output is; None where it is none, and nothing is cut."""
    return shutil.get_terminal_size().columns if os.isatty(1) else None


def table(head: Sequence[str], rows: Sequence[Sequence[str]], width: int | None) -> list[str]:
    """Aligned columns, a line a row; a line longer than `width` characters is cut at its end."""
    cells = [list(head), *([" ".join(cell.split()) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(widths[at]) for at, cell in enumerate(row)).rstrip() for row in cells]
    if width is None:
        return lines
    return [line if len(line) <= width else line[: max(1, width - 1)] + "…" for line in lines]


def printable(text: str) -> str:
    """The text with whatever a terminal might obey, or hide, written as an escape."""
    return "".join(
        char if unicodedata.category(char)[0] not in "CZ" or char == " " else escape(char) for char in text
    )


def escape(char: str) -> str:
    """`\\n` and the like for one character."""
    return char.encode("unicode_escape").decode("ascii")


def shown(value: str) -> str:
    """A value for a message: in backticks, one line, not too long."""
    cut = value if len(value) <= SHOWN_LENGTH else value[: SHOWN_LENGTH - 1] + "…"
    return f"`{printable(cut)}`"


def suggestion(word: str, known: Iterable[str]) -> str | None:
    """The known word that was probably meant."""
    if len(word) > SHOWN_LENGTH:
        return None
    import difflib  # only where something is misspelt

    lowered = {candidate.casefold(): candidate for candidate in known}
    close = difflib.get_close_matches(word.casefold(), lowered, n=1, cutoff=0.6)
    return lowered[close[0]] if close else None
