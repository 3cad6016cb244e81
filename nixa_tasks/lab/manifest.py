"""The hosts.toml of a lab."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nixa_tasks.lab.paths import system


@dataclass(frozen=True, slots=True)
class Image:
    url: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Host:
    name: str
    address: str
    host_key: str


def render(
    *,
    hosts: Iterable[Host],
    image: Image,
    identity: str,
    flake: str,
    nix_conf: str,
    stand_in: Path | None,
    fleet: Mapping[str, Any],
) -> str:
    """The file's text. `stand_in`: the command for nixos-anywhere where none is on PATH; `fleet`:
    more keys for its table."""
    lines = [
        "# The practice machines of a nixa lab. Nix needs no daemon here with:",
        f"#   export NIX_USER_CONF_FILES={nix_conf}",
        "version = 1",
        "",
        "[fleet]",
        f"flake = {_toml(flake)}",
    ]
    lines += [f"{key} = {_toml(value)}" for key, value in fleet.items()]
    if stand_in is not None and "nixos_anywhere" not in fleet:
        lines += [
            "# There is no nixos-anywhere on PATH: this is the lab's own stand-in for it,",
            "# which is good for practice machines and for nothing else.",
            f"nixos_anywhere = [{_toml(str(stand_in))}]",
        ]
    lines += ["", f"[kexec.{system()}]", f"url = {_toml(image.url)}", f"sha256 = {_toml(image.sha256)}", ""]
    lines += ["[defaults]", 'user = "root"', f"identity = {_toml(identity)}"]
    for host in hosts:
        lines += [
            "",
            f"[hosts.{host.name}]",
            f"target = {_toml(host.address)}",
            f"host_key = {_toml(host.host_key)}",
            'tags = ["lab"]',
        ]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    """TOML for text, numbers, booleans and lists of them: JSON's way to write these is TOML's too."""
    return json.dumps(value, ensure_ascii=False)
