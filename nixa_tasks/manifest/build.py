"""From TOML's tables to the model: every value parsed, every refusal kept, nothing raised.

Both ways of loading read through this one module, so what a stamp lets pass is still parsed. The
shape (unknown keys, required keys, ranges) is the schema's to judge, and what concerns several
hosts at once is `cross`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
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
from nixa_tasks.manifest.problems import Finding
from nixa_tasks.manifest.public_key import parse_host_key
from nixa_tasks.manifest.readers import (
    Place,
    Reader,
    Refused,
    Table,
    choice,
    flag,
    listed,
    local,
    program,
    read_fields,
    read_or,
    require,
    seconds,
    text,
    whole,
)
from nixa_tasks.text import shown


def build(data: Table, path: Path) -> tuple[Manifest, list[Finding]]:
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


def _table(data: Table, key: str) -> Table:
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


def _secret(place: Place, value: Any) -> SecretSource:
    if isinstance(value, dict):
        fields = read_fields({"command": program}, value, place)
        if "command" not in fields:
            raise Refused if "command" in value else place.refuse("needs the key `command`")
        return CommandSecret(fields["command"])
    return FileSecret(cast(Path, local(paths.path)(place, value)))


def _secrets(place: Place, value: Any) -> tuple[tuple[str, SecretSource], ...]:
    require(dict, place, value)
    kept = []
    for remote, source in value.items():
        try:
            kept.append((cast(str, text(values.remote_path)(place.at(remote), remote)), source))
        except Refused:
            continue
    return tuple((remote, _secret(place.at(remote), source)) for remote, source in kept)


def _check(place: Place, value: Any) -> Check:
    require(dict, place, value)
    fields = read_fields(_CHECK, value, place)
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
            if not _PROBES.isdisjoint(value):
                raise Refused  # it is there, and was refused by itself
            raise place.refuse("needs exactly one of `http`, `command`, `tcp`, `units`")
    return Check(probe, **{key: fields[key] for key in ("retries", "deadline") if key in fields})


def _units(place: Place, value: Any) -> bool:
    if not flag(place, value):
        raise place.refuse("must be true")
    return True


def _shell(text: str) -> str:
    """A check's command: a shell is to read it, so only what no shell can read is refused."""
    return values.clean(text, newlines=True)


_PORT = whole(1, 65535)
_PROBES = frozenset({"http", "command", "tcp", "units"})

_FLEET: Mapping[str, Reader] = {
    "flake": local(paths.flake),
    "cache": local(paths.path),
    "jobs": whole(1, 1000),
    "nixos_anywhere": program,
    "kexec_phase": choice(KexecPhase),
    "waves": listed(listed(text(values.clean))),
    "rollback_wave": flag,
    "on_finish": program,
    "eval_workers": whole(1, 256),
    "eval_memory": whole(256, 1048576),
    "copy_jobs": whole(1, 1000),
}

_IMAGE: Mapping[str, Reader] = {
    "url": local(paths.url),
    "sha256": text(parse_sha256),
    "mirrors": listed(local(paths.url)),
    "store": flag,
    "installable": local(paths.installable),
    "deliver": choice(Deliver),
}

_CHECK: Mapping[str, Reader] = {
    "http": text(values.web_url),
    "status": whole(100, 599),
    "body": text(lambda text: values.clean(text, newlines=True)),
    "cert_days": whole(0, 3650),
    "command": text(_shell),
    "tcp": _PORT,
    "units": _units,
    "retries": whole(0, 1000),
    "deadline": seconds,
}

_HOST: Mapping[str, Reader] = {
    "target": text(values.target),
    "user": text(values.user),
    "port": _PORT,
    "identity": local(paths.path),
    "ssh_options": listed(text(values.ssh_option)),
    "host_key": text(parse_host_key),
    "shared_target": flag,
    "flake_attr": text(values.flake_attribute),
    "tags": listed(text(values.name)),
    "kexec": text(values.name),
    "kexec_extra_flags": text(values.kexec_flags),
    "install": choice(InstallPolicy),
    "build_on": choice(BuildOn),
    "mode": choice(Mode),
    "reboot": flag,
    "post_kexec_target": text(values.address),
    "post_kexec_port": _PORT,
    "copy_host_keys": flag,
    "extra_files": _secret,
    "disk_encryption_keys": _secrets,
    "hardware": local(paths.path),
    "checks": listed(_check),
    "on_drift": choice(OnDrift),
    "confirm_timeout": seconds,
    "lock_timeout": seconds,
    "install_timeout": seconds,
}
