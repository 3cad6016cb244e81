"""What the schema can't say: how the parts of a manifest fit together. Pure: values in, findings out."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterator, Mapping

from nixa_tasks.manifest.model import Host, Manifest
from nixa_tasks.manifest.problems import Finding
from nixa_tasks.manifest.select import SelectionError, select
from nixa_tasks.text import shown, suggestion

DEFAULT_PORT = 22


def cross_check(manifest: Manifest, raw: Mapping[str, object], refused: Collection[Finding]) -> list[Finding]:
    """Every misfit. `raw`: the tables of the file, to say in which of them a value stands;
    `refused`: what was wrong with single values, so that nothing follows from a missing one."""
    images = raw.get("kexec")
    image_names = images if isinstance(images, dict) else {}  # also those that are themselves wrong
    findings = [
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
    """The table in which a host's value stands: its own, or `[defaults]`."""
    hosts, defaults = raw.get("hosts"), raw.get("defaults")
    own = hosts.get(host) if isinstance(hosts, dict) else None
    if isinstance(own, dict) and key in own:
        return ("hosts", host, key)
    if isinstance(defaults, dict) and key in defaults:
        return ("defaults", key)
    return ("hosts", host)


def _missing_targets(hosts: Mapping[str, Host], raw: Mapping[str, object]) -> Iterator[Finding]:
    for name, host in hosts.items():
        if not host.target and _origin(raw, name, "target")[-1] != "target":  # one that was refused is there
            yield Finding(("hosts", name), "has no `target`: where is the machine?")


def _unknown_images(
    hosts: Mapping[str, Host], known: Collection[str], raw: Mapping[str, object]
) -> Iterator[Finding]:
    told: dict[tuple[str, ...], None] = {}
    hints: dict[str, str] = {}
    for name, host in hosts.items():
        origin = _origin(raw, name, "kexec")
        if host.kexec is None or host.kexec in known or origin in told:
            continue
        told[origin] = None
        if host.kexec not in hints:
            meant = suggestion(host.kexec, known)
            listed = ", ".join(shown(image) for image in list(known)[:5]) or "none"
            hints[host.kexec] = f"did you mean {shown(meant)}?" if meant else f"declared are: {listed}"
        yield Finding(origin, f"names the image {shown(host.kexec)}, which is not there: {hints[host.kexec]}")


def _shared_targets(hosts: Mapping[str, Host], raw: Mapping[str, object]) -> Iterator[Finding]:
    first: dict[tuple[str, int], Host] = {}
    for name, host in hosts.items():
        if not host.target:
            continue
        other = first.setdefault(comparable_target(host), host)
        if other is not host and not (other.shared_target and host.shared_target):
            yield Finding(
                _origin(raw, name, "target"),
                f"is the machine of {shown(other.name)} as well; if {shown(name)} and {shown(other.name)}"
                " are meant to share it, write `shared_target = true` in both",
            )


def _confusable_tags(hosts: Mapping[str, Host], raw: Mapping[str, object]) -> Iterator[Finding]:
    names = {name.casefold(): name for name in hosts}
    told: set[tuple[str, ...]] = set()
    for name, host in hosts.items():
        origin = _origin(raw, name, "tags")
        if origin in told:
            continue
        for number, tag in enumerate(host.tags):
            if tag.casefold() in names:
                told.add(origin)
                namesake = shown(names[tag.casefold()])
                yield Finding((*origin, number), f"is the tag {shown(tag)}, and a host is called {namesake}")


def _waves(manifest: Manifest) -> Iterator[Finding]:
    if manifest.fleet.rollback_wave and not manifest.fleet.waves:
        yield Finding(("fleet", "rollback_wave"), "goes only with `waves`: there is no wave to take back")
    for number, wave in enumerate(manifest.fleet.waves):
        for place, expression in enumerate(wave):
            try:
                select(expression, manifest.hosts)
            except SelectionError as error:
                yield Finding(("fleet", "waves", number, place), error.reason)
