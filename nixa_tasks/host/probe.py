"""What a machine says of itself: asked in one login, read with suspicion.

The answers are `key=value` lines of bounded size; nothing of them is ever executed or used as a
path to write to. A value that is not of its kind is left out.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, assert_never

from nixa_tasks.host.ssh import Ssh, script
from nixa_tasks.host.sudo import Elevation
from nixa_tasks.process.run import Output

PROBE_SECONDS = 45
MAX_ANSWER = 1 << 20
MAX_RECEIPT = 64 << 10
_OUTPUT = Output(sink_stdout=False, keep=MAX_ANSWER, limit=MAX_ANSWER)
RECEIPT = "/var/lib/nixa/receipt.json"
TOOLS = (
    "bash",
    "tar",
    "gzip",
    "xz",
    "zstd",
    "cpio",
    "setsid",
    "sha256sum",
    "curl",
    "wget",
    "nix",
    "systemctl",
    "systemd-run",
    "flock",
    "timeout",
)


class Os(StrEnum):
    """What decides how a deploy goes."""

    NIXOS = "nixos"
    INSTALLER = "installer"
    INITRD = "initrd"  # still booting: it waits there, for a passphrase as a rule
    OTHER = "other"


class Root(StrEnum):
    """How the login can become root: at once, without a password, with one, or not at all."""

    YES = "yes"
    SUDO = "sudo"
    DOAS = "doas"
    PASSWORD = "password"  # noqa: S105 -- the name of a way, not a password
    NO = "no"


@dataclass(frozen=True, slots=True)
class Facts:
    """What the probe saw. Sizes are bytes; systems are store paths, None where they are not known.

    `system` runs, `profile` is the system profile's, `boots` the boot loader's default; `before`:
    the one to go back to, while a booted system waits to be confirmed. `loader`: a boot loader that
    can boot a system just once, `systemd-boot` or `grub`; else empty. `guard`: seconds until a
    switch under way goes back. `is_installing`: nixa has begun to install it, in this boot.
    """

    os: Os
    os_name: str = ""
    kernel: str = ""
    arch: str = ""
    hostname: str = ""
    system: str | None = None
    booted: str | None = None
    profile: str | None = None
    boots: str | None = None
    before: str | None = None
    guard: int | None = None
    is_installing: bool = False
    loader: str = ""
    boot_id: str = ""
    memory: int = 0
    memory_available: int = 0
    free: int = 0
    home: str = "/root"
    user: str = ""
    root: Root = Root.NO
    tools: tuple[str, ...] = ()
    receipt: Mapping[str, Any] | None = field(default=None)

    @property
    def elevation(self) -> Elevation | None:
        """How to become root there; None where it can't be done without a password, or at all."""
        match self.root:
            case Root.YES:
                return Elevation.NONE
            case Root.SUDO:
                return Elevation.SUDO
            case Root.DOAS:
                return Elevation.DOAS
            case Root.PASSWORD | Root.NO:
                return None
            case _ as never:
                assert_never(never)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


_STORE_PATH = re.compile(r"/nix/store/[0-9a-z]{32}-[0-9A-Za-z+\-._?=]{1,211}")
_BOOT_ID = re.compile(r"[0-9a-f-]{36}")
_LOADER = re.compile("systemd-boot|grub")
_WORD = re.compile(r"[\x20-\x7e]{1,200}")


def ask(ssh: Ssh) -> Facts:
    """One login, one script, its facts. Raises Unreachable, or as Processes.run does."""
    arguments = (RECEIPT, str(MAX_RECEIPT), *TOOLS)
    done = ssh.run(script("probe"), *arguments, deadline=PROBE_SECONDS, output=_OUTPUT, what="probe")
    return parse(done.stdout)


def parse(answer: str) -> Facts:
    """Facts from the lines. Never raises: what is not of its kind counts as not said."""
    said: dict[str, str] = {}
    tools: list[str] = []
    for line in answer.splitlines():
        key, _, value = line.partition("=")
        if key == "tool" and value in TOOLS:
            tools.append(value)
        elif key == "receipt" or (_WORD.fullmatch(value) and key not in said):
            said[key] = value
    is_installer = said.get("variant_id") == "installer"
    system = _match(_STORE_PATH, said.get("system"))
    # A NixOS may call itself by another name (system.nixos.distroId), and must not be wiped for that.
    is_nixos = said.get("os_id") == "nixos" or "etc_nixos" in said or system is not None
    if "initrd" in said:
        os = Os.INITRD
    else:
        os = Os.INSTALLER if is_installer else Os.NIXOS if is_nixos else Os.OTHER
    return Facts(
        os=os,
        os_name=said.get("os_name", said.get("os_id", "")),
        kernel=said.get("kernel", ""),
        arch=said.get("arch", ""),
        hostname=said.get("hostname", ""),
        system=system,
        booted=_match(_STORE_PATH, said.get("booted")),
        profile=_match(_STORE_PATH, said.get("profile")),
        boots=_match(_STORE_PATH, said.get("boots")),
        before=_match(_STORE_PATH, said.get("before")),
        guard=_guard(said.get("guard")),
        is_installing="installing" in said,
        loader=_match(_LOADER, said.get("loader")) or "",
        boot_id=_match(_BOOT_ID, said.get("boot_id")) or "",
        memory=_kib(said.get("memory_kib")),
        memory_available=_kib(said.get("available_kib")),
        free=_kib(said.get("free_kib")),
        home=said.get("home", "/root"),
        user=said.get("user", ""),
        root=Root(said["root"]) if said.get("root") in tuple(Root) else Root.NO,
        tools=tuple(tools),
        receipt=_receipt(said.get("receipt")),
    )


def _match(pattern: re.Pattern[str], value: str | None) -> str | None:
    return value if value and pattern.fullmatch(value) else None


def _guard(value: str | None) -> int | None:
    """The seconds that are left; None where the time is over, or nothing is under way."""
    return int(value) if value and value.isascii() and value.isdigit() and len(value) < 8 else None


def _kib(value: str | None) -> int:
    return int(value) * 1024 if value and value.isascii() and value.isdigit() and len(value) < 16 else 0


def _receipt(value: str | None) -> Mapping[str, Any] | None:
    if not value or len(value) > MAX_RECEIPT * 2:
        return None
    try:
        receipt = json.loads(base64.b64decode(value, validate=True))
    except (binascii.Error, ValueError, RecursionError):
        return None
    return receipt if isinstance(receipt, dict) else None
