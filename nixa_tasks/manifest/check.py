"""What is wrong with a manifest besides its single values: its shape, by the JSON Schema, and how its parts
fit together. Pure: values in, findings out. Imports jsonschema: for a changed manifest only."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend

from nixa_tasks.manifest.model import Host, Manifest
from nixa_tasks.manifest.problems import Finding, KeyPath
from nixa_tasks.manifest.schema import document
from nixa_tasks.manifest.select import SelectionError, select
from nixa_tasks.text import shown, suggestion

DEFAULT_PORT = 22


def cross_check(manifest: Manifest, raw: Mapping[str, object], refused: Collection[Finding]) -> list[Finding]:
    """Every misfit. `raw`: the tables of the file, to say which of them has a value;
    `refused`: what was wrong with single values, so that nothing follows from a missing one."""
    images = raw.get("kexec")
    image_names = images if isinstance(images, dict) else {}  # also those that are themselves wrong
    findings = [
        *_same_but_for_case(raw),
        *_missing_targets(manifest.hosts, raw),
        *_unknown_images(manifest.hosts, image_names, raw),
        *_shared_targets(manifest.hosts, raw),
        *_confusable_tags(manifest.hosts, raw),
    ]
    if not any(finding.path[0] in ("hosts", "defaults") for finding in (*refused, *findings)):
        findings += _waves(manifest)
    return findings


def comparable_target(host: Host) -> tuple[str, int]:
    """The machine that a target means, for telling whether two hosts share it."""
    address = host.target.casefold().rstrip(".")
    number, percent, zone = address.partition("%")
    try:
        ip = ipaddress.ip_address(number)
    except ValueError:
        return address, host.port or DEFAULT_PORT
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return f"{ip}{percent}{zone}", host.port or DEFAULT_PORT


def _origin(raw: Mapping[str, object], host: str, key: str) -> tuple[str, ...]:
    """The table that has a host's value: its own, or `[defaults]`."""
    hosts, defaults = raw.get("hosts"), raw.get("defaults")
    own = hosts.get(host) if isinstance(hosts, dict) else None
    if isinstance(own, dict) and key in own:
        return ("hosts", host, key)
    if isinstance(defaults, dict) and key in defaults:
        return ("defaults", key)
    return ("hosts", host)


def _same_but_for_case(raw: Mapping[str, object]) -> Iterator[Finding]:
    """Names that differ only in case: one folder for both on many file systems, and one for a tired eye."""
    for table in ("hosts", "kexec"):
        tables = raw.get(table)
        first: dict[str, str] = {}
        for name in tables if isinstance(tables, dict) else ():
            other = first.setdefault(name.casefold(), name)
            if other != name:
                yield Finding((table, name), f"differs from {shown(other)} only in case")


def _missing_targets(hosts: Mapping[str, Host], raw: Mapping[str, object]) -> Iterator[Finding]:
    for name, host in hosts.items():
        if not host.target and _origin(raw, name, "target")[-1] != "target":  # one that was refused is there
            yield Finding(("hosts", name), "has no `target`: where is the machine?")


def _unknown_images(
    hosts: Mapping[str, Host], known: Collection[str], raw: Mapping[str, object]
) -> Iterator[Finding]:
    reported: dict[tuple[str, ...], None] = {}
    hints: dict[str, str] = {}
    for name, host in hosts.items():
        origin = _origin(raw, name, "kexec")
        if host.kexec is None or host.kexec in known or origin in reported:
            continue
        reported[origin] = None
        if host.kexec not in hints:
            meant = suggestion(host.kexec, known)
            listed = ", ".join(shown(image) for image in list(known)[:5]) or "none"
            hints[host.kexec] = f"did you mean {shown(meant)}?" if meant else f"this file has {listed}"
        yield Finding(
            origin, f"names the image {shown(host.kexec)}, which is not declared: {hints[host.kexec]}"
        )


def _shared_targets(hosts: Mapping[str, Host], raw: Mapping[str, object]) -> Iterator[Finding]:
    first: dict[tuple[str, int], Host] = {}
    for name, host in hosts.items():
        if not host.target:
            continue
        other = first.setdefault(comparable_target(host), host)
        if other is not host and not (other.shared_target and host.shared_target):
            yield Finding(
                _origin(raw, name, "target"),
                f"is also the target of {shown(other.name)}; if {shown(name)} and {shown(other.name)}"
                " are meant to share it, write `shared_target = true` in both",
            )


def _confusable_tags(hosts: Mapping[str, Host], raw: Mapping[str, object]) -> Iterator[Finding]:
    names = {name.casefold(): name for name in hosts}
    reported: set[tuple[str, ...]] = set()
    for name, host in hosts.items():
        origin = _origin(raw, name, "tags")
        if origin in reported:
            continue
        for number, tag in enumerate(host.tags):
            if tag.casefold() in names:
                reported.add(origin)
                namesake = shown(names[tag.casefold()])
                yield Finding((*origin, number), f"is the tag {shown(tag)}, but a host is called {namesake}")


def _waves(manifest: Manifest) -> Iterator[Finding]:
    if manifest.fleet.rollback_wave and not manifest.fleet.waves:
        yield Finding(("fleet", "rollback_wave"), "goes only with `waves`: there is no wave to roll back")
    for number, wave in enumerate(manifest.fleet.waves):
        for place, expression in enumerate(wave):
            try:
                select(expression, manifest.hosts)
            except SelectionError as error:
                yield Finding(("fleet", "waves", number, place), error.reason)


# --- the shape

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
    schema = document()
    wording = _Wording(schema)
    verdict = Verdict()
    for error in _Validator(schema).iter_errors(data):
        if error.validator == "pattern":
            name = (error.instance,) if "propertyNames" in error.absolute_schema_path else ()
            path = (*error.absolute_path, *name)
            verdict.patterns.append(Finding(path, f"is not allowed: {shown(error.instance)}"))
        else:
            verdict.shapes += wording.findings(error)
    return verdict


class _Wording:
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
        return f"; known keys: {_listed(known)}"


def _reason(error: ValidationError) -> str:
    write = _REASONS.get(str(error.validator))
    if write is not None:
        return write(error.validator_value, error.instance)
    schema: Any = error.schema
    words = schema.get("errorMessage", {})
    return str(words.get(error.validator, f"violates the rule `{error.validator}` of the schema"))


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
        return f"is {_described(value)}, which is too new for this nixa: it knows version {rule}"
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
    "uniqueItems": lambda _rule, _value: "lists something twice",
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
