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
from typing import Any

from nixa_tasks.host.ssh import Ssh
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

# POSIX sh only: it runs on whatever Linux the target has. Each line is one fact.
SCRIPT = rf"""
PATH=$PATH:/run/current-system/sw/bin:/usr/sbin:/sbin
say() {{ printf '%s=%s\n' "$1" "$2"; }}
say kernel "$(uname -r)"; say arch "$(uname -m)"; say hostname "$(uname -n)"
[ ! -r /etc/os-release ] || (
  . /etc/os-release
  say os_id "${{ID-}}"; say os_name "${{PRETTY_NAME-}}"; say variant_id "${{VARIANT_ID-}}" )
[ ! -e /etc/NIXOS ] || say etc_nixos yes
say system "$(readlink -f /run/current-system 2>/dev/null)"
say booted "$(readlink -f /run/booted-system 2>/dev/null)"
say profile "$(readlink -f /nix/var/nix/profiles/system 2>/dev/null)"
if command -v bootctl >/dev/null 2>&1 && {{ [ -e /boot/loader/loader.conf ] ||
  tr -d '\000' </sys/firmware/efi/efivars/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f 2>/dev/null |
  grep -q systemd-boot; }}; then say loader systemd-boot
elif command -v grub-reboot >/dev/null 2>&1 && [ -e /boot/grub/grub.cfg ]; then say loader grub; fi
say boot_id "$(cat /proc/sys/kernel/random/boot_id 2>/dev/null)"
while read -r key value unit; do case $key in
  MemTotal:) say memory_kib "$value";; MemAvailable:) say available_kib "$value";;
esac; done </proc/meminfo
say free_kib "$(df -Pk "$HOME" 2>/dev/null |
  (read -r _; read -r _ _ _ free _; echo "$free"))"
say home "$HOME"; say uid "$(id -u)"; say user "$(id -un)"
for tool in {" ".join(TOOLS)}; do command -v $tool >/dev/null 2>&1 && say tool $tool; done
if [ "$(id -u)" = 0 ]; then say root yes
elif command -v sudo >/dev/null && sudo -k -n true 2>/dev/null; then say root sudo
elif command -v doas >/dev/null && doas -n true 2>/dev/null; then say root doas
elif command -v sudo >/dev/null; then say root password
else say root no; fi
[ ! -r {RECEIPT} ] || say receipt "$(head -c {MAX_RECEIPT} {RECEIPT} | base64 | tr -d '\n')"
say end yes
"""


class Os(StrEnum):
    """What decides how a deploy goes."""

    NIXOS = "nixos"
    INSTALLER = "installer"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Facts:
    """What the probe saw. Sizes are bytes; `system` is the live system's store path or None.
    `loader`: a boot loader that can boot a system just once, `systemd-boot` or `grub`; else empty."""

    os: Os
    os_name: str = ""
    kernel: str = ""
    arch: str = ""
    hostname: str = ""
    system: str | None = None
    booted: str | None = None
    profile: str | None = None
    loader: str = ""
    boot_id: str = ""
    memory: int = 0
    memory_available: int = 0
    free: int = 0
    home: str = "/root"
    user: str = ""
    root: str = "no"
    tools: tuple[str, ...] = ()
    receipt: Mapping[str, Any] | None = field(default=None)

    @property
    def elevation(self) -> Elevation | None:
        """How to become root there; None where it can't be done without a password, or at all."""
        match self.root:
            case "yes":
                return Elevation.NONE
            case "sudo":
                return Elevation.SUDO
            case "doas":
                return Elevation.DOAS
            case _:
                return None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


_STORE_PATH = re.compile(r"/nix/store/[0-9a-z]{32}-[0-9A-Za-z+\-._?=]{1,211}")
_BOOT_ID = re.compile(r"[0-9a-f-]{36}")
_LOADER = re.compile("systemd-boot|grub")
_WORD = re.compile(r"[\x20-\x7e]{1,200}")


def ask(ssh: Ssh) -> Facts:
    """One login, one script, its facts. Raises Unreachable, or as Processes.run does."""
    done = ssh.run(SCRIPT, deadline=PROBE_SECONDS, output=_OUTPUT, what="probe")
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
    return Facts(
        os=Os.INSTALLER if is_installer else Os.NIXOS if is_nixos else Os.OTHER,
        os_name=said.get("os_name", said.get("os_id", "")),
        kernel=said.get("kernel", ""),
        arch=said.get("arch", ""),
        hostname=said.get("hostname", ""),
        system=system,
        booted=_match(_STORE_PATH, said.get("booted")),
        profile=_match(_STORE_PATH, said.get("profile")),
        loader=_match(_LOADER, said.get("loader")) or "",
        boot_id=_match(_BOOT_ID, said.get("boot_id")) or "",
        memory=_kib(said.get("memory_kib")),
        memory_available=_kib(said.get("available_kib")),
        free=_kib(said.get("free_kib")),
        home=said.get("home", "/root"),
        user=said.get("user", ""),
        root=said.get("root", "no"),
        tools=tuple(tools),
        receipt=_receipt(said.get("receipt")),
    )


def _match(pattern: re.Pattern[str], value: str | None) -> str | None:
    return value if value and pattern.fullmatch(value) else None


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
