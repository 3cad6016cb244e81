"""What the machine's three systems consist of: the old Linux, the installer, the installed one."""

from __future__ import annotations

import ipaddress
import json
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nixa_tasks.lab import image, initrd, network
from nixa_tasks.lab.boot import NIXOS_PATH, Boot
from nixa_tasks.lab.disk import entry_of
from nixa_tasks.lab.initrd import BrokenInitrd
from nixa_tasks.lab.paths import LabPaths, MachinePaths
from nixa_tasks.lab.root import ADMIN, Content, Root, users
from nixa_tasks.lab.sequence import Stage

_KEY = "ssh_host_ed25519_key"
_NOT_HERE = (".dockerenv",)  # nothing that would make a machine look like a container
_NO_NIX = ("usr/bin", "usr/local/bin", "usr/sbin")
_INSTALLER_SYSTEM = "nix/store/00000000000000000000000000000000-nixos-system-nixos-installer-lab"
_INSTALLER_TOOLS = ("nixos-install", "nixos-generate-config", "nixos-facter")
_DEBIAN = b'PRETTY_NAME="Debian GNU/Linux 12 (practice machine)"\nNAME="Debian GNU/Linux"\nVERSION_ID="12"\nID=debian\n'
_NIX_CONF = b"""\
experimental-features = nix-command flakes
build-users-group =
sandbox = false
sandbox-paths =
substituters =
flake-registry =
"""
_SSHD_CONFIG = """\
Port 22
HostKey /etc/ssh/ssh_host_ed25519_key
AuthorizedKeysFile .ssh/authorized_keys /etc/ssh/authorized_keys.d/%u
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
PrintMotd no
LogLevel VERBOSE
MaxStartups 200
MaxSessions 200
PidFile /run/sshd.pid
Subsystem sftp internal-sftp
"""


@dataclass(frozen=True, slots=True)
class Machine:
    """What is the same at every boot."""

    lab: LabPaths
    paths: MachinePaths
    name: str
    address: str


def prepare(machine: Machine, stage: Stage, layer: Path, disk: int | Path, faults: Mapping[str, str]) -> Boot:
    """The boot of `stage`, its files written. Raises BrokenInitrd for an image that does not boot."""
    addresses = [f"{machine.address}/24"]
    hidden: tuple[str, ...] = ()
    match stage:
        case Stage.INSTALLER:
            files, addresses = _installer(machine, faults)
        case Stage.INSTALLED:
            files = _installed(machine, layer / "@root")
        case _:
            files, hidden = _old(machine, layer / "@root"), _hidden_nix()
    path = "" if stage is Stage.OLD else f"SetEnv PATH={NIXOS_PATH}\n"
    (machine.paths.root / "sshd_config").write_text(_SSHD_CONFIG + path)
    batch = _batch(addresses)
    (machine.paths.root / "network.batch").write_text(batch)
    boot_id = machine.paths.root / "boot_id"
    boot_id.unlink(missing_ok=True)  # the boot before may still show its own
    boot_id.write_text(f"{uuid.uuid4()}\n")
    target = machine.paths.root / "root"
    target.mkdir(exist_ok=True)
    (machine.paths.root / "fw").mkdir(exist_ok=True)
    root = Root(target, layer, machine.paths.root, machine.lab.firmware, files, (*hidden, *_NOT_HERE), disk)
    hostname = "nixos-installer" if stage is Stage.INSTALLER else machine.name
    return Boot(stage, hostname, root, boot_id, machine.paths.console, batch)


def _batch(addresses: list[str]) -> str:
    lines = ["link set lo up", "link set eth0 up"]
    return "\n".join(lines + [f"addr replace {address} brd + dev eth0" for address in addresses]) + "\n"


def _common(hostname: str) -> dict[str, Content]:
    shell = "/bin/bash" if Path("/bin/bash").exists() else "/bin/sh"
    return {
        **users(shell),
        "etc/hostname": Content(f"{hostname}\n".encode()),
        "etc/hosts": Content(f"127.0.0.1 localhost {hostname}\n::1 localhost\n".encode()),
        "etc/resolv.conf": Content(b""),
        "etc/nix/nix.conf": Content(_NIX_CONF),
    }


def _old(machine: Machine, upper: Path) -> dict[str, Content]:
    """A Debian that knows the lab's key; once made, it keeps what is changed in it."""
    if (upper / "etc/hostname").exists():
        return {}
    login = machine.lab.identity.with_suffix(".pub").read_bytes()
    key = machine.paths.host_key
    return {
        **_common(machine.name),
        "etc/os-release": Content(_DEBIAN),
        "etc/machine-id": Content(f"{uuid.uuid5(uuid.NAMESPACE_DNS, machine.address).hex}\n".encode(), 0o444),
        "root/.ssh/authorized_keys": Content(login, 0o600),
        "home/admin/.ssh/authorized_keys": Content(login, 0o600, ADMIN),
        f"etc/ssh/{_KEY}": Content(key.read_bytes(), 0o600),
        f"etc/ssh/{_KEY}.pub": Content(key.with_suffix(".pub").read_bytes()),
    }


def _hidden_nix() -> tuple[str, ...]:
    """The paths that would give an old Linux a Nix."""
    found = [
        str(path.relative_to("/"))
        for folder in _NO_NIX
        for path in Path("/", folder).glob("nix*")
        if not path.is_dir()
    ]
    return ("nix", *found)


def _installer(machine: Machine, faults: Mapping[str, str]) -> tuple[dict[str, Content], list[str]]:
    """What the loaded kernel and initrd make of the machine."""
    loaded = machine.paths.loaded
    try:
        if not image.is_kernel((loaded / "kernel").read_bytes()):
            raise BrokenInitrd("the kernel is damaged")
        given = initrd.unpack(loaded / "initrd")
    except OSError as error:
        raise BrokenInitrd(f"there is nothing to boot: {error}") from error
    finally:
        shutil.rmtree(loaded, ignore_errors=True)
    files = _common("nixos-installer")
    release = _DEBIAN if "installer-as-debian" in faults else given.get("etc/os-release", _DEBIAN)
    files["etc/os-release"] = Content(release)
    files["etc/NIXOS"] = Content(b"")
    for tool in _INSTALLER_TOOLS:
        files[f"{_INSTALLER_SYSTEM}/sw/bin/{tool}"] = Content(
            f'#!/bin/sh\nexec /run/lab/fw/{tool} "$@"\n'.encode(), 0o755
        )
    files[f"{_INSTALLER_SYSTEM}/init"] = Content(b"#!/bin/sh\n", 0o755)
    for path, data in given.items():
        folder, _, name = path.rpartition("/")
        if folder == "ssh" and name.startswith("ssh_host_") and "new-hostkey" not in faults:
            files[f"etc/ssh/{name}"] = Content(data, 0o644 if name.endswith(".pub") else 0o600)
        elif path == "ssh/authorized_keys":
            files["root/.ssh/authorized_keys"] = Content(data, 0o600)
        elif folder == "" and name.endswith(".json"):
            files[f"root/network/{name}"] = Content(data)
        elif path == "machine-id":
            files["etc/machine-id"] = Content(data, 0o444)
    return files, _travelled(given.get("addrs.json", b"[]"), network.mac(machine.address))


def _travelled(addrs: bytes, mac: str) -> list[str]:
    """The IPv4 addresses that the interface with this hardware address had before the kexec."""
    try:
        links = json.loads(addrs)
        return [
            str(ipaddress.IPv4Interface(f"{entry['local']}/{entry['prefixlen']}"))
            for link in links
            if link.get("address") == mac
            for entry in link.get("addr_info", [])
            if entry.get("family") == "inet"
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BrokenInitrd(f"addrs.json in it can't be read: {error}") from error


def _installed(machine: Machine, base: Path) -> dict[str, Content]:
    """What a boot adds to the disk; the rest is the activation of the system that is booted."""
    once = machine.paths.oneshot
    name = once.read_text().strip() if once.exists() else None
    once.unlink(missing_ok=True)
    system = entry_of(base, name) or "/"
    machine.paths.boot_system.write_text(f"{system}\n")
    release = base / system[1:] / "etc/os-release"
    files = _common(machine.name)
    files["etc/os-release"] = Content(release.read_bytes() if release.exists() else b"ID=nixos\n")
    if not (base / "etc/machine-id").exists():
        files["etc/machine-id"] = Content(f"{uuid.uuid4().hex}\n".encode(), 0o444)
    return files
