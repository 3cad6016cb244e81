"""The JSON Schema's verdict on a manifest, in words. Imports jsonschema: for the slow way only."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend

from nixa_tasks.manifest.problems import Finding, KeyPath
from nixa_tasks.text import shown, suggestion

SCHEMA = Path(__file__).with_name("hosts.schema.json")
MOST_SUGGESTIONS = 100  # each costs a search over all known words

_KINDS = {
    "string": "a text in quotes",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "a table",
}


def _is_whole(_checker: object, value: object) -> bool:
    return type(value) is int  # JSON Schema takes 22.0 for an integer; ssh does not


_Validator = extend(  # type: ignore[no-untyped-call]
    Draft202012Validator,
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine("integer", _is_whole),
)


class Verdict:
    """What the schema found. `patterns` are kept apart: the model's own parsers say the same
    with a better reason, so theirs is shown where both speak of one value."""

    def __init__(self) -> None:
        self.shapes: list[Finding] = []
        self.patterns: list[Finding] = []


def judge(data: Mapping[str, Any]) -> Verdict:
    """Everything that the schema has against the data."""
    schema = json.loads(SCHEMA.read_bytes())
    words = _Words(schema)
    verdict = Verdict()
    for error in _Validator(schema).iter_errors(data):
        if error.validator == "pattern":
            name = (error.instance,) if "propertyNames" in error.absolute_schema_path else ()
            path = (*error.absolute_path, *name)
            verdict.patterns.append(Finding(path, f"is not allowed: {shown(error.instance)}"))
        else:
            verdict.shapes += words.findings(error)
    return verdict


class _Words:
    """Turns one schema error into findings, in the user's language."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        definitions = schema["$defs"]
        self._tables = {
            "[fleet]": set(definitions["fleet"]["properties"]),
            "[kexec.NAME]": set(definitions["image"]["properties"]),
            "[hosts.NAME]": set(definitions["host"]["properties"]),
        }
        self._suggestions_left = MOST_SUGGESTIONS

    def findings(self, error: ValidationError) -> Iterator[Finding]:
        path: KeyPath = tuple(error.absolute_path)
        if error.validator == "additionalProperties":
            yield from self._unknown_keys(path, error)
            return
        yield Finding(path, _reason(error))

    def _unknown_keys(self, path: KeyPath, error: ValidationError) -> Iterator[Finding]:
        schema: Any = error.schema
        instance: Any = error.instance
        known = list(schema["properties"])
        for key in instance:
            if key not in known:
                yield Finding((*path, key), f"unknown key {shown(key)}{self._meant(key, known)}")

    def _meant(self, key: str, known: list[str]) -> str:
        if self._suggestions_left <= 0:
            return ""
        self._suggestions_left -= 1
        meant = suggestion(key, known)
        if meant is not None:
            return f": did you mean {shown(meant)}?"
        for table, keys in self._tables.items():
            if key in keys:
                return f": it belongs to {table}"
        return f"; known are {_listed(known)}"


def _reason(error: ValidationError) -> str:
    write = _REASONS.get(str(error.validator))
    if write is not None:
        return write(error.validator_value, error.instance)
    schema: Any = error.schema
    words = schema.get("errorMessage", {})
    return str(words.get(error.validator, f"breaks the rule `{error.validator}` of the schema"))


def _wrong_type(rule: Any, value: Any) -> str:
    kinds = rule if isinstance(rule, list) else [rule]
    return f"must be {' or '.join(_KINDS[kind] for kind in kinds)}, not {_described(value)}"


def _wrong_choice(rule: Any, value: Any) -> str:
    meant = suggestion(value, rule) if isinstance(value, str) else None
    hint = f": did you mean {shown(meant)}?" if meant else ""
    return f"must be one of {_listed(rule)}, not {_described(value)}{hint}"


def _wrong_constant(rule: Any, value: Any) -> str:
    if rule is True:
        return f"must be true, not {_described(value)}"
    if type(value) is int and value > rule:  # the only number that is fixed is the version
        return f"is {_described(value)}, which this nixa is too old for: it knows version {rule}"
    return f"must be {rule}, not {_described(value)}"


def _missing(rule: Any, value: Any) -> str:
    missing = next((key for key in rule if key not in value), rule[0])
    example = ": write `version = 1`" if missing == "version" else ""
    return f"needs the key {shown(missing)}{example}"


def _alone(rule: Any, value: Any) -> str:
    needs = [
        f"{shown(key)} needs {_listed(other for other in others if other not in value)} beside it"
        for key, others in rule.items()
        if key in value and not set(others) <= set(value)
    ]
    return "; ".join(needs)


_REASONS: dict[str, Callable[[Any, Any], str]] = {
    "type": _wrong_type,
    "enum": _wrong_choice,
    "const": _wrong_constant,
    "required": _missing,
    "dependentRequired": _alone,
    "minLength": lambda _rule, _value: "must not be empty",
    "minItems": lambda _rule, _value: "must not be empty",
    "uniqueItems": lambda _rule, _value: "names something twice",
    "minimum": lambda rule, value: f"must be at least {rule}, not {_described(value)}",
    "exclusiveMinimum": lambda rule, value: f"must be above {rule}, not {_described(value)}",
    "maximum": lambda rule, value: f"must be at most {rule}, not {_described(value)}",
}


def _listed(words: Iterable[str]) -> str:
    return ", ".join(shown(word) for word in words)


def _described(value: object) -> str:
    """A value in words: what it is, never a dump of what is in it."""
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return str(value)
        case str():
            return f"the text {shown(value)}"
        case list():
            return "a list"
        case dict():
            return "a table"
        case _:
            return "a date or time"
