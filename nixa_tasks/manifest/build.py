"""From TOML's tables to the model: every value parsed, every refusal kept, nothing raised.

Both ways of loading read through this one module, so what a stamp lets pass is still parsed. The
shape (unknown keys, required keys, ranges) is the schema's to judge, and what concerns several
hosts at once is `cross`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, cast

from nixa_tasks.manifest import paths, values
from nixa_tasks.manifest.digest import parse_sha256
from nixa_tasks.manifest.model import (
    BuildOn,
    Check,
    CommandCheck,
    CommandSecret,
    Deliver,
    FileSecret,
    Fleet,
    Host,
    HttpCheck,
    Image,
    InstallableImage,
    InstallPolicy,
    KexecPhase,
    Manifest,
    Mode,
    OnDrift,
    Probe,
    SecretSource,
    TcpCheck,
    UnitsCheck,
    UrlImage,
)
from nixa_tasks.manifest.problems import Finding, KeyPath, shown
from nixa_tasks.manifest.public_key import parse_host_key

MOST_SECONDS = 30 * 24 * 3600

Table = Mapping[str, Any]


class _Refused(Exception):
    """A value that has been reported; the one who asked for it goes on without."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a value stands, and where its refusal is kept."""

    path: KeyPath
    root: Path
    findings: list[Finding]

    def at(self, part: str | int) -> _Place:
        return _Place((*self.path, part), self.root, self.findings)

    def refuse(self, reason: str) -> _Refused:
        self.findings.append(Finding(self.path, reason))
        return _Refused()


Reader = Callable[[_Place, Any], Any]


def build(data: Table, path: Path) -> tuple[Manifest, list[Finding]]:
    """The manifest, and what is wrong with single values of it. With findings the manifest is
    what was left over: fit for further checks, for nothing else. `path` is absolute."""
    top = _Place((), path.parent, [])
    fleet = _fields(_FLEET, _table(data, "fleet"), top.at("fleet"))
    if "flake" not in fleet:
        fleet["flake"] = _or(_local(paths.flake), top.at("fleet").at("flake"), ".", "")
    images: dict[str, Image] = {}
    for name, table in _table(data, "kexec").items():
        _or(_text(values.name), top.at("kexec").at(name), name, None)
        image = _image(name, table, top.at("kexec").at(name)) if isinstance(table, dict) else None
        if image is not None:
            images[name] = image
    defaults = _host_fields(_table(data, "defaults"), top.at("defaults"))
    hosts: dict[str, Host] = {}
    for name, table in _table(data, "hosts").items():
        place = top.at("hosts").at(name)
        _or(_text(values.name), place, name, None)
        if isinstance(table, dict):
            fields = {"target": "", "flake_attr": name} | defaults | _host_fields(table, place)
            hosts[name] = Host(name=name, **fields)
    return Manifest(path, Fleet(**fleet), images, hosts), top.findings


def _table(data: Table, key: str) -> Table:
    value = data.get(key, {})
    return value if isinstance(value, dict) else {}


def _fields(readers: Mapping[str, Reader], table: Table, place: _Place) -> dict[str, Any]:
    """What the readers make of the table's known keys; what they refuse is left out."""
    fields: dict[str, Any] = {}
    for key, value in table.items():
        reader = readers.get(key)
        if reader is not None:
            try:
                fields[key] = reader(place.at(key), value)
            except _Refused:
                continue
    return fields


def _or(reader: Reader, place: _Place, value: object, otherwise: object) -> Any:
    try:
        return reader(place, value)
    except _Refused:
        return otherwise


def _host_fields(table: Table, place: _Place) -> dict[str, Any]:
    fields = _fields(_HOST, table, place)
    if "target" in fields:
        login, fields["target"] = fields["target"]
        if login is not None:
            if fields.get("user", login) != login:
                place.at("user").refuse(f"is {shown(fields['user'])}, but `target` says {shown(login)}")
            fields["user"] = login
    return fields


def _image(name: str, table: Table, place: _Place) -> Image | None:
    fields = _fields(_IMAGE, table, place)
    deliver = fields.get("deliver", Deliver.UPLOAD)
    if "installable" in fields:
        return InstallableImage(name, fields["installable"], deliver)
    if "url" in fields and "sha256" in fields:
        return UrlImage(name=name, **fields)
    return None


# Readers: a place and a raw value in, a parsed value out, or a refusal.


def _of(kind: type, place: _Place, value: object) -> None:
    if type(value) is not kind:  # exactly: a boolean is no whole number
        raise place.refuse("is of the wrong kind")


def _text(parse: Callable[[str], object]) -> Reader:
    def read(place: _Place, value: Any) -> object:
        _of(str, place, value)
        try:
            return parse(value)
        except ValueError as error:
            raise place.refuse(str(error)) from None

    return read


def _local(parse: Callable[[str, Path], object]) -> Reader:
    """A text that is seen from the folder of hosts.toml."""

    def read(place: _Place, value: Any) -> object:
        return _text(lambda text: parse(text, place.root))(place, value)

    return read


def _list(item: Reader) -> Reader:
    def read(place: _Place, value: Any) -> tuple[Any, ...]:
        _of(list, place, value)
        kept = []
        for number, one in enumerate(value):
            try:
                kept.append(item(place.at(number), one))
            except _Refused:
                continue
        return tuple(kept)

    return read


def _program(place: _Place, value: Any) -> tuple[str, ...]:
    words = _list(_text(str))(place, value)
    if not words:
        raise place.refuse("is empty")
    try:
        return paths.program(list(words), place.root)
    except ValueError as error:
        raise place.refuse(str(error)) from None


def _choice(kind: type[StrEnum]) -> Reader:
    return _text(kind)


def _flag(place: _Place, value: Any) -> bool:
    _of(bool, place, value)
    return cast(bool, value)


def _whole(lowest: int, highest: int) -> Reader:
    def read(place: _Place, value: Any) -> int:
        _of(int, place, value)
        if not lowest <= value <= highest:
            raise place.refuse(f"must be from {lowest} to {highest}")
        return cast(int, value)

    return read


def _seconds(place: _Place, value: Any) -> float:
    if type(value) is not float:
        _of(int, place, value)
    if not 0 < value <= MOST_SECONDS:  # also false for "not a number"
        raise place.refuse(f"must be a number of seconds above 0 and up to {MOST_SECONDS}")
    return float(value)


def _secret(place: _Place, value: Any) -> SecretSource:
    if isinstance(value, dict):
        fields = _fields({"command": _program}, value, place)
        if "command" not in fields:
            raise place.refuse("needs `command`")
        return CommandSecret(fields["command"])
    return FileSecret(cast(Path, _local(paths.path)(place, value)))


def _secrets(place: _Place, value: Any) -> tuple[tuple[str, SecretSource], ...]:
    _of(dict, place, value)
    kept = []
    for remote, source in value.items():
        try:
            kept.append((cast(str, _text(values.remote_path)(place.at(remote), remote)), source))
        except _Refused:
            continue
    return tuple((remote, _secret(place.at(remote), source)) for remote, source in kept)


def _check(place: _Place, value: Any) -> Check:
    _of(dict, place, value)
    fields = _fields(_CHECK, value, place)
    probe: Probe
    match fields:
        case {"http": str(url)}:
            if "cert_days" in fields and not url.lower().startswith("https:"):
                raise place.at("cert_days").refuse("goes only with an https URL")
            options = {key: fields[key] for key in ("status", "body", "cert_days") if key in fields}
            probe = HttpCheck(url, **options)
        case {"command": str(command)}:
            probe = CommandCheck(command)
        case {"tcp": int(port)}:
            probe = TcpCheck(port)
        case {"units": True}:
            probe = UnitsCheck()
        case _:
            raise place.refuse("needs exactly one of `http`, `command`, `tcp`, `units`")
    return Check(probe, **{key: fields[key] for key in ("retries", "deadline") if key in fields})


def _shell(text: str) -> str:
    """A check's command: a shell is to read it, so only what no shell can read is refused."""
    return values.clean(text, newlines=True)


_PORT = _whole(1, 65535)

_FLEET: Mapping[str, Reader] = {
    "flake": _local(paths.flake),
    "cache": _local(paths.path),
    "jobs": _whole(1, 1000),
    "nixos_anywhere": _program,
    "kexec_phase": _choice(KexecPhase),
    "waves": _list(_list(_text(values.clean))),
    "rollback_wave": _flag,
    "on_finish": _program,
    "eval_workers": _whole(1, 256),
    "eval_memory": _whole(256, 1048576),
    "copy_jobs": _whole(1, 1000),
}

_IMAGE: Mapping[str, Reader] = {
    "url": _local(paths.url),
    "sha256": _text(parse_sha256),
    "mirrors": _list(_local(paths.url)),
    "store": _flag,
    "installable": _local(paths.installable),
    "deliver": _choice(Deliver),
}

_CHECK: Mapping[str, Reader] = {
    "http": _text(values.web_url),
    "status": _whole(100, 599),
    "body": _text(lambda text: values.clean(text, newlines=True)),
    "cert_days": _whole(0, 3650),
    "command": _text(_shell),
    "tcp": _PORT,
    "units": _flag,
    "retries": _whole(0, 1000),
    "deadline": _seconds,
}

_HOST: Mapping[str, Reader] = {
    "target": _text(values.target),
    "user": _text(values.user),
    "port": _PORT,
    "identity": _local(paths.path),
    "ssh_options": _list(_text(values.ssh_option)),
    "host_key": _text(parse_host_key),
    "shared_target": _flag,
    "flake_attr": _text(values.flake_attribute),
    "tags": _list(_text(values.name)),
    "kexec": _text(values.name),
    "kexec_extra_flags": _text(values.kexec_flags),
    "install": _choice(InstallPolicy),
    "build_on": _choice(BuildOn),
    "mode": _choice(Mode),
    "reboot": _flag,
    "post_kexec_target": _text(values.address),
    "post_kexec_port": _PORT,
    "copy_host_keys": _flag,
    "extra_files": _secret,
    "disk_encryption_keys": _secrets,
    "hardware": _local(paths.path),
    "checks": _list(_check),
    "on_drift": _choice(OnDrift),
    "confirm_timeout": _seconds,
    "lock_timeout": _seconds,
    "install_timeout": _seconds,
}
