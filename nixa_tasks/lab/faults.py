"""What can be made to go wrong with a machine, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from nixa_tasks.lab.errors import LabError


@dataclass(frozen=True, slots=True)
class Fault:
    """`default`: the value where none is given; None for a fault that takes no value."""

    what: str
    default: str | None = None


FAULTS: Mapping[str, Fault] = MappingProxyType({
    "unreachable": Fault("the link is dark: nothing arrives and nothing is answered"),
    "refuse": Fault("no sshd: connections are refused, running ones are cut"),
    "slow": Fault("both directions limited to VALUE, as tc writes a rate", "2mbit"),
    "silent": Fault("it goes down without closing its connections"),
    "drop-after": Fault("connections are cut, once, after VALUE bytes were sent to it", "1000000"),
    "kexec-fails": Fault("`kexec --load` is refused"),
    "kexec-at-once": Fault("it jumps as the kernel is loaded, before `kexec/run` could say so"),
    "kexec-hangs": Fault("it never comes back after a kexec"),
    "boot-fails": Fault("it never comes back after a reboot"),
    "new-hostkey": Fault("the installer shows another host key than the one it was given"),
    "installer-as-debian": Fault("what boots after a kexec says that it is Debian"),
    "install-fails": Fault("nixos-install fails"),
    "disk-full": Fault("there is no space left"),
    "low-memory": Fault("it has VALUE MiB of memory, so it says", "512"),
    "no-sudo": Fault("there is no sudo"),
    "sudo-password": Fault("sudo asks `admin` for the password"),
    "no-nix": Fault("there is no nix, in the installer and in the installed system either"),
})  # fmt: skip

INSIDE = frozenset({"no-sudo", "sudo-password", "no-nix", "low-memory"})


def parse(name: str, value: str | None) -> tuple[str, str]:
    """(name, value) of a fault; `NAME:VALUE` is taken too. Raises LabError for one that does not exist."""
    if value is None and ":" in name:
        name, value = name.split(":", 1)
    fault = FAULTS.get(name)
    if fault is None:
        raise LabError(f"there is no fault {name!r}", hint="faults: " + ", ".join(FAULTS))
    if value is not None and fault.default is None:
        raise LabError(f"the fault {name} takes no value")
    chosen = value if value is not None else fault.default or ""
    if name in {"drop-after", "low-memory"} and not chosen.isdigit():
        raise LabError(f"the fault {name} takes a whole number, not {chosen!r}")
    return name, chosen


def active(folder: Path) -> dict[str, str]:
    """The faults that are set, with their values."""
    if not folder.is_dir():
        return {}
    return {path.name: path.read_text().strip() for path in folder.iterdir() if path.name in FAULTS}
