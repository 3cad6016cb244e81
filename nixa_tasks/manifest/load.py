"""Reading `hosts.toml`: every problem at once, and next to no time for a file that was found valid.

The slow way checks the schema and how the parts fit together; the fast way, for the very bytes that
were found valid last time, does neither and imports neither jsonschema nor tomlkit. Both parse every
value into the model.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nixa_tasks.files import replace_file
from nixa_tasks.manifest import paths, values
from nixa_tasks.manifest.keys import Place, Table, keys_of, local, read_fields, read_or, text
from nixa_tasks.manifest.model import Deliver, Fleet, Host, Image, InstallableImage, Manifest, UrlImage
from nixa_tasks.manifest.problems import Finding, KeyPath, ManifestError, Problem, key_text
from nixa_tasks.text import shown

__all__ = ["ManifestError", "Problem", "load"]

MOST_BYTES = 16 * 1024 * 1024
MOST_NESTING = 20
LARGEST_WHOLE = 2**63  # TOML promises no more, and what is beyond is no number of anything here

_SYNTAX_PLACE = re.compile(r"(?s)(.*) \(at (?:line (\d+), column (\d+)|end of document)\)")
_REPEATED = re.compile(r"Cannot (overwrite|declare|mutate|redefine)|Duplicate")
_PLAINER = {
    "Illegal character '\\n'": "a quote is left open",
    "Unterminated string": "a quote is left open",
    "Invalid value": "not a TOML value (text needs quotes)",
    "Invalid initial character for a key part": "not a TOML key",
}
_HINT = (
    "write one (README, `A real fleet in five minutes`), or start with practice machines:\n"
    "python -m nixa_tasks.lab up 3"
)


def load(path: Path, stamp: Path | None = None) -> Manifest:
    """The manifest in the file at `path`.

    `stamp`: a file that remembers which bytes were found valid, and their tables as JSON, which is
    read ten times as fast as TOML. It is written after a full check where its folder exists
    (whoever owns `.nixa/` makes that) and can be written; else the next load is a full check again.
    Raises ManifestError with every problem of the file.
    """
    path = Path(os.path.normpath(path.absolute()))
    content, status = _read(path)
    mark = _mark(content, status)
    remembered = _remembered(stamp, mark) if stamp is not None else None
    if remembered is not None:
        manifest, findings = build(remembered, path)
        if not findings:
            return manifest
        # A variable or a home that was there last time is not: the full check says so.
    data, manifest = _check(path, content)
    if stamp is not None:
        with contextlib.suppress(OSError):
            body = json.dumps(data, ensure_ascii=False).encode()
            # For the owner alone: hosts.toml may be closed to others.
            replace_file(stamp, _stamp_head(mark, body) + body, 0o600)
    return manifest


def is_found_valid(path: Path, stamp: Path) -> bool:
    """Whether the stamp says so of the file as it is now: then `load` is quick. Raises ManifestError
    where the file can't be read."""
    return _remembered(stamp, _mark(*_read(path))) is not None


def _read(path: Path) -> tuple[bytes, os.stat_result]:
    """The file's bytes, at most as many as a manifest may have, and its status."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            content = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise _unusable(path, "there is no such file", hint=_HINT) from None
    except IsADirectoryError:
        raise _unusable(path, "is a folder, not a file") from None
    except OSError as error:
        raise _unusable(path, f"can't be read: {error.strerror or error}") from error
    if len(content) > MOST_BYTES:
        raise _unusable(path, f"is larger than {MOST_BYTES // 1024 // 1024} MiB")
    return content, status


def _unusable(path: Path, reason: str, *, line: int = 0, hint: str | None = None) -> ManifestError:
    return ManifestError(path, (Problem(line, "", reason),), hint=hint)


def _mark(content: bytes, status: os.stat_result) -> str:
    """What a stamp vouches for: these bytes, by these rules, in this very file. (What hangs on the folder
    or the environment is parsed at every load.)

    The rules go by their content: all times are 1 in the Nix store. The file goes by its inode and
    ctime, which nobody can choose: a stamp that came with a repository fits no file here.
    """
    mark = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        mark.update(hashlib.sha256(source.read_bytes()).digest())
    mark.update(f"{status.st_dev} {status.st_ino} {status.st_ctime_ns}\n".encode())
    mark.update(hashlib.sha256(content).digest())
    return mark.hexdigest()


def _stamp_head(mark: str, body: bytes) -> bytes:
    return f"{mark} {hashlib.sha256(body).hexdigest()}\n".encode()


def _remembered(stamp: Path, mark: str) -> dict[str, Any] | None:
    """The tables of a manifest that was found valid; None where the stamp is of another, damaged,
    or not there."""
    try:
        head, newline, body = stamp.read_bytes().partition(b"\n")
    except OSError:
        return None
    if head + newline != _stamp_head(mark, body):
        return None
    data: dict[str, Any] = json.loads(body)
    return data


def _check(path: Path, content: bytes) -> tuple[Mapping[str, Any], Manifest]:
    """The full check: the tables and what they mean. Raises ManifestError."""
    from nixa_tasks.manifest.check import cross_check, judge

    text = _decode(path, content)
    data = _parse(path, text)
    verdict = judge(data)
    manifest, findings = build(data, path)
    misfits = cross_check(manifest, data, findings)
    everything = _without_repeats(verdict.shapes, findings, verdict.patterns, misfits)
    if everything:
        raise _error(path, text, everything)
    return data, manifest


def _without_repeats(*groups: Iterable[Finding]) -> list[Finding]:
    """All findings, but of those about one key only the first group's."""
    kept: dict[KeyPath, Finding] = {}
    for group in groups:
        fresh: dict[KeyPath, Finding] = {}
        for finding in group:
            if finding.path not in kept:
                fresh.setdefault(finding.path, finding)
        kept |= fresh
    return list(kept.values())


def _error(path: Path, text: str, findings: Iterable[Finding]) -> ManifestError:
    from nixa_tasks.manifest.locate import locate

    places = locate(text)
    return ManifestError(
        path, [Problem(places.line(one.path), key_text(one.path), one.text) for one in findings]
    )


def _decode(path: Path, content: bytes) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise _unusable(path, "is UTF-16, not UTF-8: save it as UTF-8", line=1)
    if content.startswith(b"\xef\xbb\xbf"):
        raise _unusable(path, "starts with a byte-order mark: save it as UTF-8 without one", line=1)
    for wrong, reason in ((content.find(b"\0"), "contains a NUL byte"), _first_undecodable(content)):
        if wrong >= 0:
            raise _unusable(path, reason, line=content.count(b"\n", 0, wrong) + 1)
    return content.decode()


def _first_undecodable(content: bytes) -> tuple[int, str]:
    try:
        content.decode()
    except UnicodeDecodeError as error:
        return error.start, f"is not UTF-8: the byte 0x{content[error.start]:02x} is invalid there"
    return -1, ""


def _parse(path: Path, text: str) -> Mapping[str, Any]:
    """TOML's tables, none of them deeper, no number larger than anything later can take."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _syntax_error(path, text, str(error)) from None
    except RecursionError:
        raise _unusable(path, "is not TOML: brackets nested too deep", line=_deepest_line(text)) from None
    except ValueError:  # Python turns no more than some 4300 digits into a number
        digits = re.search(r"[0-9_]{4000}", text)
        line = text.count("\n", 0, digits.start()) + 1 if digits else 1
        raise _unusable(path, "is not TOML: a number too long to read", line=line) from None
    if findings := _excesses(data):
        raise _error(path, text, findings)
    return data


def _deepest_line(text: str) -> int:
    """The line in which the brackets left open become too many."""
    depth = 0
    for found in re.finditer(r"[\[\]{}]", text):
        depth += 1 if found[0] in "[{" else -1
        if depth > MOST_NESTING:
            return text.count("\n", 0, found.start()) + 1
    return 1


def _excesses(data: Mapping[str, Any]) -> list[Finding]:
    findings: list[Finding] = []
    waiting: list[tuple[KeyPath, Any]] = [((), data)]
    while waiting:
        path, value = waiting.pop()
        if len(path) > MOST_NESTING:
            findings.append(Finding(path[:MOST_NESTING], "is nested too deep"))
        elif isinstance(value, dict):
            waiting += [((*path, key), inner) for key, inner in value.items()]
        elif isinstance(value, list):
            waiting += [((*path, number), inner) for number, inner in enumerate(value)]
        elif type(value) is int and not -LARGEST_WHOLE <= value < LARGEST_WHOLE:
            findings.append(Finding(path, "is a number beyond 64 bits"))
    return findings


def _syntax_error(path: Path, text: str, message: str) -> ManifestError:
    """tomllib's word with its line; keys that are there twice are all named, with both lines."""
    from nixa_tasks.manifest.locate import locate

    last = text.rstrip().count("\n") + 1
    found = _SYNTAX_PLACE.fullmatch(message)
    reason = found[1] if found else message
    line = int(found[2]) if found and found[2] else last
    if _REPEATED.match(reason):
        places = locate(text)
        twice = [
            Problem(
                places.line_at(entry.part),
                key_text(key),
                f"is already defined in line {places.line(key)}",
            )
            for key, entry in places.duplicates
        ]
        if twice:
            return ManifestError(path, twice)
    column = f", column {found[3]}" if found and found[3] else ""
    said = f"{_plain(reason)}{column}" if column else "it ends with a list, a table or a quote left open"
    return _unusable(path, f"is not TOML: {said}", line=max(1, min(line, last)))


def _plain(reason: str) -> str:
    """tomllib's reason as the rest of a sentence."""
    for theirs, ours in _PLAINER.items():
        if reason.startswith(theirs):
            return ours
    return reason[:1].lower() + reason[1:]


# --- from tables to the model

_FLEET, _HOST = keys_of(Fleet), keys_of(Host)
_IMAGE = keys_of(UrlImage, InstallableImage)


def build(data: Mapping[str, Any], path: Path) -> tuple[Manifest, list[Finding]]:
    """The manifest, and what is wrong with single values of it. With findings the manifest is
    what was left over: fit for further checks, for nothing else. `path` is absolute."""
    top = Place((), path.parent, [])
    fleet = read_fields(_FLEET, _table(data, "fleet"), top.at("fleet"))
    if "flake" not in fleet:
        fleet["flake"] = read_or(local(paths.flake), top.at("fleet").at("flake"), ".", "")
    images: dict[str, Image] = {}
    for name, table in _table(data, "kexec").items():
        read_or(text(values.name), top.at("kexec").at(name), name, None)
        image = _image(name, table, top.at("kexec").at(name)) if isinstance(table, dict) else None
        if image is not None:
            images[name] = image
    defaults = _host_fields(_table(data, "defaults"), top.at("defaults"))
    hosts: dict[str, Host] = {}
    for name, table in _table(data, "hosts").items():
        place = top.at("hosts").at(name)
        read_or(text(values.name), place, name, None)
        if isinstance(table, dict):
            fields = {"target": "", "flake_attr": name} | defaults | _host_fields(table, place)
            hosts[name] = Host(name=name, **fields)
    return Manifest(path, Fleet(**fleet), images, hosts), top.findings


def _table(data: Mapping[str, Any], key: str) -> Table:
    value = data.get(key, {})
    return value if isinstance(value, dict) else {}


def _host_fields(table: Table, place: Place) -> dict[str, Any]:
    fields = read_fields(_HOST, table, place)
    if "target" in fields:
        login, fields["target"] = fields["target"]
        if login is not None:
            if fields.get("user", login) != login:
                place.at("user").refuse(f"is {shown(fields['user'])}, but `target` says {shown(login)}")
            fields["user"] = login
    return fields


def _image(name: str, table: Table, place: Place) -> Image | None:
    fields = read_fields(_IMAGE, table, place)
    deliver = fields.get("deliver", Deliver.UPLOAD)
    if "installable" in fields:
        return InstallableImage(name, fields["installable"], deliver)
    if "url" in fields and "sha256" in fields:
        return UrlImage(name=name, **fields)
    return None
