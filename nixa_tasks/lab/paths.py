"""Where the lab keeps what: one folder, and in it a folder for every machine."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILES = Path(__file__).parent / "files"
SYSTEMS = {"x86_64": "x86_64-linux", "aarch64": "aarch64-linux", "arm64": "aarch64-linux"}


def default_root() -> Path:
    """`$NIXA_LAB`, else the user's state directory."""
    if given := os.environ.get("NIXA_LAB"):
        return Path(given)
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "nixa" / "lab"


def system() -> str:
    """This computer's architecture in Nix's words, such as `x86_64-linux`."""
    return SYSTEMS.get(platform.machine(), f"{platform.machine()}-linux")


@dataclass(frozen=True, slots=True)
class MachinePaths:
    """One machine's files; inside it they are to be seen in /run/lab."""

    root: Path

    @property
    def state(self) -> Path:
        return self.root / "state.json"

    @property
    def console(self) -> Path:
        return self.root / "console.log"

    @property
    def sshd_log(self) -> Path:
        return self.root / "sshd.log"

    @property
    def wipes(self) -> Path:
        return self.root / "wipes.log"

    @property
    def disk(self) -> Path:
        return self.root / "disk.img"

    @property
    def faults(self) -> Path:
        return self.root / "faults"

    @property
    def host_key(self) -> Path:
        """The old Linux's host key; whoever installs decides whether it lives on."""
        return self.root / "keys" / "ssh_host_ed25519_key"

    @property
    def loaded(self) -> Path:
        """What `kexec --load` took: kernel, initrd, command line."""
        return self.root / "loaded"

    @property
    def next(self) -> Path:
        """Left by `kexec -e`, so that the supervisor knows why pid 1 ended."""
        return self.root / "next"

    @property
    def oneshot(self) -> Path:
        """The boot entry that the firmware was told to boot once, until it has."""
        return self.root / "oneshot"

    @property
    def boot_system(self) -> Path:
        """What the boot loader chose at this boot, for the boot script."""
        return self.root / "boot-system"


@dataclass(frozen=True, slots=True)
class LabPaths:
    """The lab's files."""

    root: Path

    @property
    def id(self) -> str:
        """Eight hex digits that name this lab's network and sockets on this computer."""
        return hashlib.sha256(os.fsencode(self.root)).hexdigest()[:8]

    @property
    def bridge(self) -> str:
        return f"nx{self.id}"

    @property
    def config(self) -> Path:
        return self.root / "lab.json"

    @property
    def www(self) -> Path:
        return self.root / "www"

    @property
    def www_log(self) -> Path:
        return self.root / "www.log"

    @property
    def www_state(self) -> Path:
        return self.root / "www.json"

    @property
    def image(self) -> Path:
        return self.www / f"nixos-kexec-installer-lab-{system()}.tar.gz"

    @property
    def flake(self) -> Path:
        return self.root / "flake"

    @property
    def identity(self) -> Path:
        return self.root / "id_ed25519"

    @property
    def nix_conf(self) -> Path:
        return self.root / "nix.conf"

    @property
    def bin(self) -> Path:
        return self.root / "bin"

    @property
    def firmware(self) -> Path:
        return self.root / "firmware"

    @property
    def machines(self) -> Path:
        return self.root / "machines"

    def machine(self, name: str) -> MachinePaths:
        return MachinePaths(self.machines / name)


def read_json(path: Path) -> dict[str, Any]:
    """The object in `path`; empty where there is none that can be read."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write in one step: a reader sees the old or the new, never a half."""
    write_bytes(path, json.dumps(value, indent=1).encode() + b"\n")


def write_bytes(path: Path, data: bytes, mode: int = 0o644) -> None:
    """The same for any file: who is killed in between leaves no half of it."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_bytes(data)
    new.chmod(mode)
    new.rename(path)
