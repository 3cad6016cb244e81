"""The one writer of `hosts.toml`: sets a single text, and leaves every other byte as it was.

tomlkit parses the file with its layout and writes it again. What it gives is believed only after two
checks: the new text means the old tables with that one value changed, and it differs from the old text
in that value alone.
"""

from __future__ import annotations

import copy
import os
import stat
import tomllib
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import AbstractTable, Comment, InlineTable, Item, String, Whitespace

from nixa_tasks.errors import NixaError
from nixa_tasks.files import replace_file
from nixa_tasks.manifest.problems import KeyPath, key_text, shortest


def set_pin(path: Path, image: str, sha256_sri: str) -> bool:
    """Write an image's hash into the manifest; False if it says so already.

    Raises NixaError where that can't be done without touching anything else; the file is then as
    it was.
    """
    return _edit(path, ("kexec", image), "sha256", sha256_sri)


def set_host_key(path: Path, host: str, key: str) -> bool:
    """Write a host's pinned key into the manifest; False if it says so already. Raises NixaError."""
    return _edit(path, ("hosts", host), "host_key", key)


def _edit(path: Path, table: tuple[str, str], key: str, value: str) -> bool:
    name = shortest(path)
    target = Path(os.path.realpath(path))  # a link to the file stays a link
    try:
        before = target.read_bytes()
        text = before.decode()
        data = tomllib.loads(text)
    except OSError as error:
        raise NixaError(f"{name} can't be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise NixaError(f"{name} is not TOML, so nothing can be changed in it: {error}") from error
    if not isinstance(_value(data, table), dict):
        raise NixaError(f"{name} has no table {key_text(table)}, so nothing can be changed in it")
    if _value(data, (*table, key)) == value:
        return False
    after = changed_text(text, table, key, value)
    if after is None:
        raise NixaError(
            f"{name}: the layout of {key_text((*table, key))} can't be kept, so the file was left as it is",
            hint=f"write it by hand, in the table {key_text(table)}:\n{key} = {tomlkit.item(value).as_string()}",
        )
    _write(target, name, before, after.encode())
    return True


def changed_text(text: str, table: tuple[str, str], key: str, value: str) -> str | None:
    """The TOML text with `key` of `table` set to `value`; None where the layout can't be kept. Pure.

    `text` is valid TOML that has the table.
    """
    try:
        document = tomlkit.parse(text)
        parent: Any = document
        for part in table:
            parent = parent[part]
        old = parent.get(key)
        newline = "\r\n" if "\r\n" in text else "\n"
        if old is None:
            _add(parent, key, tomlkit.string(value), newline)
        else:
            parent[key] = _like(old, value)
        new = document.as_string()
    except (TOMLKitError, KeyError, TypeError, AttributeError, ValueError, IndexError):
        return None
    old_literal = old.as_string() if isinstance(old, Item) else ""
    is_kept = _is_meant(new, text, table, key, value) and _is_alone(new, text, key, value, old_literal)
    return new if is_kept else None


def _like(old: Item, value: str) -> String:
    """The value in the quotes of the old one, where they can hold it."""
    is_literal = isinstance(old, String) and old.as_string().startswith("'")
    return tomlkit.string(value, literal=is_literal and "'" not in value and value.isprintable())


def _add(table: Any, key: str, item: String, newline: str) -> None:
    """Add the key below the table's last one, indented alike: not below the comments that follow, which
    belong to the table after it."""
    if not isinstance(table, AbstractTable):  # its keys lie apart in the file
        table[key] = item
        return
    container = table.value
    trailing = []
    while container.body and isinstance(container.body[-1][1], Whitespace | Comment):
        trailing.append(container.body.pop())
    last = container.body[-1][1] if container.body else None
    table.append(key, item)
    if isinstance(table, InlineTable):
        item.trivia.indent = " "
        if isinstance(last, Item):
            item.trivia.trail, last.trivia.trail = last.trivia.trail, ""
        elif not trailing:
            item.trivia.trail = " "
    else:
        if isinstance(last, Item) and not isinstance(last, AbstractTable):
            item.trivia.indent = last.trivia.indent
        item.trivia.trail = newline
    container.body.extend(reversed(trailing))


def _is_meant(new: str, old: str, table: tuple[str, str], key: str, value: str) -> bool:
    """Whether the new text means the old tables with that one value changed."""
    try:
        meant = tomllib.loads(new)
    except (ValueError, RecursionError):
        return False
    wanted = copy.deepcopy(tomllib.loads(old))
    _value(wanted, table)[key] = value
    return repr(_sorted(meant)) == repr(_sorted(wanted))  # by text: "not a number" differs from itself


def _is_alone(new: str, old: str, key: str, value: str, old_literal: str) -> bool:
    """Whether the texts differ in the value alone: in its literal, or by one new line or item."""
    start = _common(old, new)
    end = _common(old[start:][::-1], new[start:][::-1])
    removed, added = old[start : len(old) - end], new[start : len(new) - end]
    if old_literal:
        return removed in old_literal and added.strip("\"'") in value + "\"'"
    return not removed.strip() and added.count(value) == 1 and len(added.splitlines()) <= 4 and key in added


def _common(one: str, other: str) -> int:
    """How many characters at the beginning are the same."""
    differing = (number for number, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differing, min(len(one), len(other)))


def _value(data: Any, path: KeyPath) -> Any:
    for part in path:
        data = data.get(part) if isinstance(data, dict) else None
    return data


def _sorted(value: Any) -> Any:
    """The value with its keys in order: where a new key is does not matter."""
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value


def _write(target: Path, name: str, before: bytes, after: bytes) -> None:
    try:
        status = target.stat()
        if target.read_bytes() != before:
            raise NixaError(
                f"{name} was changed by someone else at the same moment; it was left as it is",
                hint="look at it, and run the command again",
            )
        replace_file(target, after, stat.S_IMODE(status.st_mode), like=target)
    except OSError as error:
        raise NixaError(
            f"{name} can't be written: {error.strerror}",
            hint="make room on the disk, or give the folder to the user who runs nixa",
        ) from error
