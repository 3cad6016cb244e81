"""What is wrong with a manifest, as values: where, which key, and why, in words."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from nixa_tasks.errors import EXIT_USAGE, NixaError
from nixa_tasks.text import SHOWN_LENGTH, printable

KeyPath = tuple[str | int, ...]

RENDERED_PROBLEMS = 200

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem before its line is known: the path of keys and list positions, and the reason."""

    path: KeyPath
    text: str


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing that is wrong. `line` counts from 1, and is 0 where it concerns the file as such;
    `key` is the key's path as TOML would write it, or "" for the whole file."""

    line: int
    key: str
    text: str


class ManifestError(NixaError):
    """`hosts.toml` can't be used: every problem of it, in the order of its lines. Exit status 3.

    `what`, and so `render()`, is one line a problem: `hosts.toml:LINE: key.path: reason`.
    """

    exit_status = EXIT_USAGE

    def __init__(self, path: Path, problems: Collection[Problem], *, hint: str | None = None) -> None:
        self.path = path
        self.problems = tuple(sorted(problems))
        name = shortest(path)
        lines = [_line(name, problem) for problem in self.problems[:RENDERED_PROBLEMS]]
        left = len(self.problems) - RENDERED_PROBLEMS
        if left > 0:
            lines.append(f"{name}: and {left} problems more")
        super().__init__("\n".join(lines), hint=hint)


def _line(name: str, problem: Problem) -> str:
    where = f"{name}:{problem.line}" if problem.line else name
    return ": ".join(part for part in (where, problem.key, problem.text) if part)


def shortest(path: Path) -> str:
    """The path as a user would write it: relative to the working directory where that is shorter."""
    absolute = os.path.normpath(path.absolute())
    try:
        relative = os.path.relpath(absolute)
    except (OSError, ValueError):  # the working directory is gone
        return printable(absolute)
    return printable(min(relative, absolute, key=len))


def key_text(path: KeyPath) -> str:
    """The path as TOML writes keys; list positions in brackets, counted from 0."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
            continue
        key = part if _BARE_KEY.fullmatch(part) else f'"{_key_characters(part)}"'
        text += f".{key}" if text else key
    return text


def _key_characters(part: str) -> str:
    return printable(part[:SHOWN_LENGTH].replace("\\", "\\\\").replace('"', '\\"'))
