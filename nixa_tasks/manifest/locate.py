"""Where each key is in the text of a TOML file, for messages with line numbers.

A tolerant scanner, not a parser: tomllib decides what is valid and what it means. This one only
notes offsets, never fails, and goes on at the next line after what it does not understand.
"""

from __future__ import annotations

import bisect
import re
import tomllib
from dataclasses import dataclass, field

from nixa_tasks.manifest.problems import KeyPath

MOST_NESTING = 40

_BLANK = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_LINE = re.compile(r"[^\n]*\n?")
_KEY_PART = re.compile(r"[A-Za-z0-9_-]+|\"(?:[^\"\\\n]|\\[^\n])*\"|'[^'\n]*'")
_DOT = re.compile(r"[ \t]*\.[ \t]*")
_EQUALS = re.compile(r"[ \t]*=[ \t]*")
_STRING = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*"{3,5}'
    r"|'''(?:[^']|'(?!''))*'{3,5}"
    r'|"(?:[^"\\\n]|\\[^\n])*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)
_SCALAR = re.compile(r"[^,\[\]{}#\"'\n]+")


@dataclass(frozen=True, slots=True)
class Entry:
    """One `key = value`, list item, or header, by offsets into the text. `part` is where the last
    part of the key begins; a header has no value (`value` and `end` are the header's own end).
    `is_inline`: in an inline table or a list."""

    start: int
    part: int
    value: int
    end: int
    is_header: bool = False
    is_inline: bool = False


@dataclass(slots=True)
class Locations:
    """The places of all keys. `implied` are tables that no line declares by itself."""

    text: str
    entries: dict[KeyPath, Entry] = field(default_factory=dict)
    implied: dict[KeyPath, int] = field(default_factory=dict)
    duplicates: list[tuple[KeyPath, Entry]] = field(default_factory=list)
    _line_ends: list[int] = field(default_factory=list)

    def line(self, path: KeyPath) -> int:
        """The line, from 1, of the key or of the nearest table around it."""
        while path:
            if path in self.entries:
                return self.line_at(self.entries[path].part)
            if path in self.implied:
                return self.line_at(self.implied[path])
            path = path[:-1]
        return 1

    def line_at(self, offset: int) -> int:
        """The line, from 1, of an offset."""
        if not self._line_ends:
            self._line_ends = [found.start() for found in re.finditer("\n", self.text)]
        return bisect.bisect_left(self._line_ends, offset) + 1


def locate(text: str) -> Locations:
    """Find every key of a TOML text. Never raises; about a second for 100,000 lines."""
    return _Scanner(text).run()


class _Lost(Exception):
    """The scanner does not understand the text here."""


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._found = Locations(text)
        self._prefix: KeyPath = ()
        self._list_sizes: dict[KeyPath, int] = {}

    def run(self) -> Locations:
        while True:
            self._skip(_BLANK)
            if self._at >= len(self._text):
                return self._found
            before = self._at
            try:
                if self._text[self._at] == "[":
                    self._header()
                else:
                    self._assignment(self._prefix, 0)
            except _Lost:
                self._at = max(self._at, before)
            self._skip(_LINE)

    def _skip(self, pattern: re.Pattern[str]) -> None:
        found = pattern.match(self._text, self._at)
        if found is not None:
            self._at = found.end()

    def _take(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._text, self._at)
        if found is None:
            raise _Lost
        self._at = found.end()
        return found[0]

    def _note(self, path: KeyPath, entry: Entry) -> None:
        if path in self._found.entries:
            self._found.duplicates.append((path, entry))
        else:
            self._found.entries[path] = entry

    def _key(self, prefix: KeyPath) -> tuple[KeyPath, int, int]:
        """The full path, where the key begins, and where its last part does."""
        start = self._at
        path = prefix
        while True:
            path = self._inside(path)
            part = self._at
            path = (*path, _unquoted(self._take(_KEY_PART)))
            if _DOT.match(self._text, self._at) is None:
                return path, start, part
            self._found.implied.setdefault(path, part)
            self._skip(_DOT)

    def _inside(self, path: KeyPath) -> KeyPath:
        """The path; for a list of tables, of its last table."""
        size = self._list_sizes.get(path)
        return path if size is None else (*path, size - 1)

    def _header(self) -> None:
        start = self._at
        is_list = self._text.startswith("[[", self._at)
        self._at += 2 if is_list else 1
        self._prefix = ()  # should the header be broken, its keys must not go to the table before
        self._skip(_SPACE)
        path, _, part = self._key(())
        self._skip(_SPACE)
        closing = "]]" if is_list else "]"
        if not self._text.startswith(closing, self._at):
            raise _Lost
        self._at += len(closing)
        if is_list:
            self._found.implied.setdefault(path, part)
            self._list_sizes[path] = self._list_sizes.get(path, 0) + 1
            path = self._inside(path)
        self._prefix = path
        self._note(path, Entry(start, part, self._at, self._at, is_header=True))

    def _assignment(self, prefix: KeyPath, depth: int) -> None:
        path, start, part = self._key(prefix)
        self._take(_EQUALS)
        value = self._at
        self._value(path, depth)
        self._note(path, Entry(start, part, value, self._at, is_inline=depth > 0))

    def _value(self, path: KeyPath, depth: int) -> None:
        if depth > MOST_NESTING:
            raise _Lost
        match self._text[self._at : self._at + 1]:
            case "[":
                self._list(path, depth)
            case "{":
                self._inline_table(path, depth)
            case '"' | "'":
                self._take(_STRING)
            case _:
                taken = self._take(_SCALAR)
                self._at -= len(taken) - len(taken.rstrip())

    def _list(self, path: KeyPath, depth: int) -> None:
        self._at += 1
        number = 0
        while not self._closed("]"):
            start = self._at
            item = (*path, number)
            self._value(item, depth + 1)
            self._note(item, Entry(start, start, start, self._at, is_inline=True))
            number += 1
            self._comma("]")

    def _inline_table(self, path: KeyPath, depth: int) -> None:
        self._at += 1
        while not self._closed("}"):
            self._assignment(path, depth + 1)
            self._comma("}")

    def _closed(self, bracket: str) -> bool:
        self._skip(_BLANK)
        if self._text.startswith(bracket, self._at):
            self._at += 1
            return True
        return False

    def _comma(self, bracket: str) -> None:
        self._skip(_BLANK)
        if self._text.startswith(",", self._at):
            self._at += 1
        elif not self._text.startswith(bracket, self._at):
            raise _Lost


def _unquoted(part: str) -> str:
    if part[0] == "'":
        return part[1:-1]
    if part[0] != '"':
        return part
    if "\\" not in part:
        return part[1:-1]
    try:
        return str(tomllib.loads(f"key = {part}")["key"])
    except ValueError:
        return part[1:-1]
