"""The one writer of `hosts.toml`: a value replaced where it stands, every other byte as it was.

The text is edited, not written anew from a model: comments, order, spacing, quoting and line ends
are kept because nothing touches them. The result is parsed again before it is written, and must
be the old manifest with that one value changed.
"""

from __future__ import annotations

import copy
import os
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nixa_tasks.errors import NixaError
from nixa_tasks.files import replace_file
from nixa_tasks.manifest.locate import Entry, Locations, locate
from nixa_tasks.manifest.problems import KeyPath, key_text, shortest


@dataclass(frozen=True, slots=True)
class _Assignment:
    """A text to be set: the table's path, the key in it, the value."""

    table: KeyPath
    key: str
    value: str

    @property
    def path(self) -> KeyPath:
        return (*self.table, self.key)


def set_pin(path: Path, image: str, sha256_sri: str, url: str | None = None) -> bool:
    """Write an image's hash, and its URL if given, into the manifest; False if it said so already.

    Raises NixaError where that can't be done without touching anything else; the file is then as
    it was.
    """
    table = ("kexec", image)
    changes = [_Assignment(table, "sha256", sha256_sri)]
    if url is not None:
        changes.append(_Assignment(table, "url", url))
    return _edit(path, table, changes)


def set_host_key(path: Path, host: str, key: str) -> bool:
    """Write a host's pinned key into the manifest; False if it said so already. Raises NixaError."""
    table = ("hosts", host)
    return _edit(path, table, [_Assignment(table, "host_key", key)])


def _edit(path: Path, table: KeyPath, changes: list[_Assignment]) -> bool:
    name = shortest(path)
    target = Path(os.path.realpath(path))  # a link to the file stays a link
    try:
        before = target.read_bytes()
        status = target.stat()
        text = before.decode()
        data = tomllib.loads(text)
    except OSError as error:
        raise NixaError(f"{name} can't be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise NixaError(f"{name} is not TOML, so that nothing can be changed in it: {error}") from error
    if not isinstance(_value(data, table), dict):
        raise NixaError(f"{name} has no table {key_text(table)}, so that nothing can be changed in it")
    for change in changes:
        text = _with(text, change)
    if not _says(text, data, changes):
        lines = [f"{key_text(one.path)} = {_quoted(one.value)}" for one in changes]
        raise NixaError(
            f"{name} is laid out so that {key_text(changes[0].path)} can't be changed without touching"
            " something else; it was left as it is",
            hint="write it by hand:\n" + "\n".join(lines),
        )
    after = text.encode()
    if after == before:
        return False
    _write(target, name, before, after, status)
    return True


def _write(target: Path, name: str, before: bytes, after: bytes, status: os.stat_result) -> None:
    try:
        if target.read_bytes() != before:
            raise NixaError(
                f"{name} was changed by someone else in the same moment; it was left as it is",
                hint="look at it, and run the command again",
            )
        replace_file(target, after, stat.S_IMODE(status.st_mode), like=target)
    except OSError as error:
        raise NixaError(
            f"{name} can't be written: {error.strerror}",
            hint="make room on the disk, or give the folder to the user who runs nixa",
        ) from error


def _value(data: Any, path: KeyPath) -> Any:
    for part in path:
        data = data.get(part) if isinstance(data, dict) else None
    return data


def _says(text: str, old: Mapping[str, Any], changes: list[_Assignment]) -> bool:
    """Whether the text means the old data with these changes and no others."""
    try:
        new = tomllib.loads(text)
    except (ValueError, RecursionError):
        return False
    wanted = copy.deepcopy(dict(old))
    for change in changes:
        _value(wanted, change.table)[change.key] = change.value
    return repr(_sorted(new)) == repr(_sorted(wanted))  # by text: "not a number" differs from itself


def _sorted(value: Any) -> Any:
    """The value with its keys in order: where a new key stands does not matter."""
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value


def _with(text: str, change: _Assignment) -> str:
    """The text with the value replaced, or added where its table has its other keys."""
    places = locate(text)
    entry = places.entries.get(change.path)
    if entry is not None:
        value = _like(text[entry.value : entry.end], change.value)
        return text[: entry.value] + value + text[entry.end :]
    addition = f"{change.key} = {_quoted(change.value)}"
    siblings = [one for path, one in places.entries.items() if _is_direct(path, one, change.table)]
    if siblings:
        return _after(text, max(siblings, key=lambda one: one.start), addition)
    table = places.entries.get(change.table)
    if table is None:
        return _at_end(places, change.table, addition)
    if table.is_header:
        return _new_line(text, table, addition)
    return f"{text[: table.value]}{{ {addition} }}{text[table.end :]}"  # `NAME = {}`


def _is_direct(path: KeyPath, entry: Entry, table: KeyPath) -> bool:
    return not entry.is_header and path[:-1] == table


def _after(text: str, sibling: Entry, addition: str) -> str:
    """Beside the last key of the table: in its line if that is inline, else in a line of its own,
    with the same dotted prefix."""
    if sibling.is_inline:
        return f"{text[: sibling.end]}, {addition}{text[sibling.end :]}"
    return _new_line(text, sibling, text[sibling.start : sibling.part] + addition)


def _new_line(text: str, above: Entry, addition: str) -> str:
    start = text.rfind("\n", 0, above.start) + 1
    indent = text[start : above.start]
    newline = _newline(text)
    end = text.find("\n", above.end)
    if end < 0:
        return f"{text}{newline}{indent}{addition}"
    return f"{text[: end + 1]}{indent}{addition}{newline}{text[end + 1 :]}"


def _at_end(places: Locations, table: KeyPath, addition: str) -> str:
    newline = _newline(places.text)
    text = places.text if places.text.endswith("\n") else places.text + newline
    return f"{text}{newline}[{key_text(table)}]{newline}{addition}{newline}"


def _newline(text: str) -> str:
    """How this file ends its lines."""
    first = text.find("\n")
    return "\r\n" if first > 0 and text[first - 1] == "\r" else "\n"


def _like(old: str, value: str) -> str:
    """The value in the quotes that the old one had, where they can hold it."""
    if old.startswith("'") and not old.startswith("'''") and "'" not in value and value.isprintable():
        return f"'{value}'"
    return _quoted(value)


def _quoted(value: str) -> str:
    """The value as a TOML basic string."""
    return f'"{"".join(_escaped(char) for char in value)}"'


def _escaped(char: str) -> str:
    if char in '"\\':
        return f"\\{char}"
    return f"\\u{ord(char):04x}" if ord(char) < 32 or ord(char) == 127 else char
