"""What a key of `hosts.toml` is: its kind, default, meaning and example, declared once, in `model`.

A kind says twice what it allows: to nixa as a reader (a raw value of TOML in, a parsed value out, or a
refusal that is kept), and to editors as a JSON Schema. The schema file, the tables of the manual and the
checks all come from these declarations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, cast

from nixa_tasks.manifest import paths
from nixa_tasks.manifest.problems import Finding, KeyPath

MOST_SECONDS = 30 * 24 * 3600
WORD = r"^[^\s-]\S*$"
NAME = "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"

Table = Mapping[str, Any]


class Refused(Exception):
    """A value that has been reported; the one who asked for it goes on without."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value is in the file, and where its refusal is kept."""

    path: KeyPath
    root: Path
    findings: list[Finding]

    def at(self, part: str | int) -> Place:
        return Place((*self.path, part), self.root, self.findings)

    def refuse(self, reason: str) -> Refused:
        self.findings.append(Finding(self.path, reason))
        return Refused()


Reader = Callable[[Place, Any], Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """What values are allowed: as a reader, and as a JSON Schema, made anew at each call."""

    read: Reader
    schema: Callable[[], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Key:
    """One key. `default` is the model's value; MISSING for a required key. `otherwise` says in a sentence
    what holds without the key where no value does."""

    name: str
    field: str
    kind: Kind
    title: str
    meaning: str
    example: object
    default: object
    otherwise: str

    @property
    def schema(self) -> dict[str, Any]:
        """The key's JSON Schema, with what editors show."""
        text = f"{self.meaning} Default: {self.otherwise}." if self.otherwise else self.meaning
        said: dict[str, Any] = {"title": self.title, "description": text, **self.kind.schema()}
        if self.default is not MISSING and self.default is not None and not self.otherwise:
            said["default"] = plain_value(self.default)
        return said | {"examples": [self.example]}


def key(
    kind: Kind,
    title: str,
    meaning: str,
    *,
    example: object,
    default: Any = MISSING,
    otherwise: str = "",
    name: str = "",
) -> Any:
    """A field of the model that a key of the manifest fills. `name`: the key's, where the field has another."""
    about = {
        "kind": kind, "title": title, "meaning": meaning, "example": example, "otherwise": otherwise, "name": name,
    }  # fmt: skip
    return field(default=default, metadata=about)


def keys_of(*models: Any) -> dict[str, Key]:
    """The keys that the classes declare, in their order."""
    return {one.name: one for model in models for one in _declared(fields(model))}


def _declared(found: Iterable[Field[Any]]) -> Iterator[Key]:
    for one in found:
        if one.metadata:
            about: dict[str, Any] = dict(one.metadata)
            about["name"] = about["name"] or one.name
            yield Key(field=one.name, default=one.default, **about)


def plain_value(value: object) -> object:
    """A model's value as TOML and JSON write it."""
    if isinstance(value, tuple):
        return [plain_value(one) for one in value]
    if isinstance(value, StrEnum):
        return str(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def read_fields(keys: Mapping[str, Key], table: Table, place: Place) -> dict[str, Any]:
    """What the table's known keys say, by the names of the model's fields; what is refused is left out."""
    found: dict[str, Any] = {}
    for name, value in table.items():
        if name in keys:
            try:
                found[keys[name].field] = keys[name].kind.read(place.at(name), value)
            except Refused:
                continue
    return found


def read_or(kind: Kind, place: Place, value: object, otherwise: object) -> Any:
    """What the value says, or `otherwise` where it is refused."""
    try:
        return kind.read(place, value)
    except Refused:
        return otherwise


def require(kind: type, place: Place, value: object) -> None:
    """Refuse what is of another type of TOML."""
    if type(value) is not kind:  # exactly: a boolean is no whole number
        raise place.refuse("is of the wrong kind")


# --- kinds


def text(parse: Callable[[str], object], pattern: str = "", *, may_be_empty: bool = False) -> Kind:
    """A text. `parse` raises ValueError with the reason; `pattern` is for editors, and no stricter."""

    def read(place: Place, value: Any) -> object:
        require(str, place, value)
        try:
            return parse(value)
        except ValueError as error:
            raise place.refuse(str(error)) from None

    def schema() -> dict[str, Any]:
        length: dict[str, Any] = {} if may_be_empty else {"minLength": 1}
        return {"type": "string"} | length | ({"pattern": pattern} if pattern else {})

    return Kind(read, schema)


def local(parse: Callable[[str, Path], object], pattern: str = "") -> Kind:
    """A text whose meaning hangs on the folder of hosts.toml."""

    def read(place: Place, value: Any) -> object:
        return text(lambda given: parse(given, place.root)).read(place, value)

    return Kind(read, text(str, pattern).schema)


def listed(item: Kind, *, at_least: int = 0, is_set: bool = False) -> Kind:
    """A list; a refused item leaves the others."""

    def read(place: Place, value: Any) -> tuple[Any, ...]:
        require(list, place, value)
        found = []
        for number, one in enumerate(value):
            try:
                found.append(item.read(place.at(number), one))
            except Refused:
                continue
        return tuple(found)

    def schema() -> dict[str, Any]:
        size: dict[str, Any] = {"minItems": at_least} if at_least else {}
        return {"type": "array"} | size | ({"uniqueItems": True} if is_set else {}) | {"items": item.schema()}

    return Kind(read, schema)


def choice(values: type[StrEnum]) -> Kind:
    return Kind(text(values).read, lambda: {"enum": [str(one) for one in values]})


def whole(lowest: int, highest: int) -> Kind:
    """A whole number within bounds, both included."""

    def read(place: Place, value: Any) -> int:
        require(int, place, value)
        if not lowest <= value <= highest:
            raise place.refuse(f"must be from {lowest} to {highest}")
        return cast(int, value)

    return Kind(read, lambda: {"type": "integer", "minimum": lowest, "maximum": highest})


def _read_flag(place: Place, value: Any) -> bool:
    require(bool, place, value)
    return cast(bool, value)


def _read_true(place: Place, value: Any) -> bool:
    if not _read_flag(place, value):
        raise place.refuse("must be true")
    return True


def _read_seconds(place: Place, value: Any) -> float:
    if type(value) is not float:
        require(int, place, value)
    if not 0 < value <= MOST_SECONDS:  # also false for "not a number"
        raise place.refuse(f"must be a number of seconds above 0 and up to {MOST_SECONDS}")
    return float(value)


def _read_program(place: Place, value: Any) -> tuple[str, ...]:
    words = listed(text(str)).read(place, value)
    if not words:
        raise place.refuse("is empty")
    try:
        return paths.program(list(words), place.root)
    except ValueError as error:
        raise place.refuse(str(error)) from None


FLAG = Kind(_read_flag, lambda: {"type": "boolean"})
TRUE = Kind(_read_true, lambda: {"const": True})
SECONDS = Kind(_read_seconds, lambda: {"type": "number", "exclusiveMinimum": 0, "maximum": MOST_SECONDS})
PROGRAM = Kind(_read_program, lambda: {"type": "array", "minItems": 1, "items": {"type": "string"}})
PORT = whole(1, 65535)
