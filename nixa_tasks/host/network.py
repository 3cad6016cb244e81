"""Which network set-ups an installer that is booted by kexec does not restore.

The installer's `kexec/run` carries addresses and routes over and finds each interface by its MAC
address. It creates no interfaces: bonds, VLANs, bridges and tunnels are gone after the jump
(nixos-images, pull request 391).
"""

from __future__ import annotations

import ipaddress
import json
from dataclasses import dataclass
from typing import Any

_MADE_BY_SOFTWARE = {
    "bond": "bond",
    "team": "team",
    "vlan": "VLAN",
    "bridge": "bridge",
    "macvlan": "macvlan",
    "ipvlan": "ipvlan",
    "vxlan": "VXLAN",
    "vrf": "VRF",
    "wireguard": "WireGuard tunnel",
    "tun": "tunnel",
    "gre": "tunnel",
    "sit": "tunnel",
    "ipip": "tunnel",
}


@dataclass(frozen=True, slots=True)
class Lost:
    """The interface that our connection arrives on, and that the installer will not create."""

    name: str
    kind: str
    parts: tuple[str, ...]

    def described(self) -> str:
        of = f" of {', '.join(self.parts)}" if self.parts else ""
        return f"{self.name} ({self.kind}{of})"


def lost_by_kexec(answer: str) -> Lost | None:
    """What network.sh printed → the interface that ssh arrives on, where it will not come back.

    None also where the host has no `ip`, or says what makes no sense: then nothing is known.
    """
    first, _, rest = answer.partition("\n")
    words = rest.split()
    try:
        interfaces: Any = json.loads(first)
        ours = ipaddress.ip_address(words[2].partition("%")[0])
    except (ValueError, IndexError):
        return None
    if not isinstance(interfaces, list):
        return None
    known = [entry for entry in interfaces if isinstance(entry, dict)]
    carrying = next((entry for entry in known if ours in _addresses(entry)), None)
    if carrying is None:
        return None
    name, kind = str(carrying.get("ifname", "")), _kind(carrying)
    if kind not in _MADE_BY_SOFTWARE:
        return None
    parts = [str(entry.get("ifname")) for entry in known if entry.get("master") == name]
    parts += [str(carrying["link"])] if "link" in carrying else []
    return Lost(name, _MADE_BY_SOFTWARE[kind], tuple(parts))


def _addresses(entry: dict[str, Any]) -> set[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    found = set()
    listed = entry.get("addr_info")
    for one in listed if isinstance(listed, list) else ():
        try:
            found.add(ipaddress.ip_address(one["local"]))
        except (ValueError, KeyError, TypeError):
            continue
    return found


def _kind(entry: dict[str, Any]) -> str:
    info = entry.get("linkinfo")
    return str(info.get("info_kind", "")) if isinstance(info, dict) else ""
