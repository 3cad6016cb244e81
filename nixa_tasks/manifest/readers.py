"""Readers: a place and a raw value of TOML in, a parsed value out, or a refusal that is kept.

They are made by functions (`whole(1, 65535)`) and put together to tables, one entry a key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, cast

from nixa_tasks.manifest import paths
from nixa_tasks.manifest.problems import Finding, KeyPath

MOST_SECONDS = 30 * 24 * 3600

Table = Mapping[str, Any]


class Refused(Exception):
    """A value that has been reported; the one who asked for it goes on without."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value stands, and where its refusal is kept."""

    path: KeyPath
    root: Path
    findings: list[Finding]

    def at(self, part: str | int) -> Place:
        return Place((*self.path, part), self.root, self.findings)

    def refuse(self, reason: str) -> Refused:
        self.findings.append(Finding(self.path, reason))
        return Refused()


Reader = Callable[[Place, Any], Any]


def read_fields(readers: Mapping[str, Reader], table: Table, place: Place) -> dict[str, Any]:
    """What the readers make of the table's known keys; what they refuse is left out."""
    fields: dict[str, Any] = {}
    for key, value in table.items():
        reader = readers.get(key)
        if reader is not None:
            try:
                fields[key] = reader(place.at(key), value)
            except Refused:
                continue
    return fields


def read_or(reader: Reader, place: Place, value: object, otherwise: object) -> Any:
    try:
        return reader(place, value)
    except Refused:
        return otherwise


def require(kind: type, place: Place, value: object) -> None:
    if type(value) is not kind:  # exactly: a boolean is no whole number
        raise place.refuse("is of the wrong kind")


def text(parse: Callable[[str], object]) -> Reader:
    def read(place: Place, value: Any) -> object:
        require(str, place, value)
        try:
            return parse(value)
        except ValueError as error:
            raise place.refuse(str(error)) from None

    return read


def local(parse: Callable[[str, Path], object]) -> Reader:
    """A text that is seen from the folder of hosts.toml."""

    def read(place: Place, value: Any) -> object:
        return text(lambda text: parse(text, place.root))(place, value)

    return read


def listed(item: Reader) -> Reader:
    def read(place: Place, value: Any) -> tuple[Any, ...]:
        require(list, place, value)
        kept = []
        for number, one in enumerate(value):
            try:
                kept.append(item(place.at(number), one))
            except Refused:
                continue
        return tuple(kept)

    return read


def program(place: Place, value: Any) -> tuple[str, ...]:
    words = listed(text(str))(place, value)
    if not words:
        raise place.refuse("is empty")
    try:
        return paths.program(list(words), place.root)
    except ValueError as error:
        raise place.refuse(str(error)) from None


def choice(kind: type[StrEnum]) -> Reader:
    return text(kind)


def flag(place: Place, value: Any) -> bool:
    require(bool, place, value)
    return cast(bool, value)


def whole(lowest: int, highest: int) -> Reader:
    def read(place: Place, value: Any) -> int:
        require(int, place, value)
        if not lowest <= value <= highest:
            raise place.refuse(f"must be from {lowest} to {highest}")
        return cast(int, value)

    return read


def seconds(place: Place, value: Any) -> float:
    if type(value) is not float:
        require(int, place, value)
    if not 0 < value <= MOST_SECONDS:  # also false for "not a number"
        raise place.refuse(f"must be a number of seconds above 0 and up to {MOST_SECONDS}")
    return float(value)
