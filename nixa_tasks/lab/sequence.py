"""What a machine does next: one small table, without any I/O."""

from __future__ import annotations

from enum import StrEnum


class Stage(StrEnum):
    """What a machine is at the moment."""

    OLD = "old"
    INSTALLER = "installer"
    INSTALLED = "installed"
    DARK = "dark"
    OFF = "off"


class End(StrEnum):
    """Why a boot ended."""

    POWER_ON = "power-on"
    REBOOT = "reboot"
    KEXEC = "kexec"
    POWER_OFF = "poweroff"
    CRASH = "crash"


def next_stage(end: End, *, faults: frozenset[str], is_bootable: bool) -> Stage:
    """What comes after `end`. `is_bootable`: whether the disk holds an installed system."""
    match end:
        case End.POWER_OFF:
            return Stage.OFF
        case End.KEXEC:
            return Stage.DARK if "kexec-hangs" in faults else Stage.INSTALLER
        case End.POWER_ON | End.REBOOT | End.CRASH:
            if "boot-fails" in faults:
                return Stage.DARK
            return Stage.INSTALLED if is_bootable else Stage.OLD
