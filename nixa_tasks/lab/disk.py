"""A machine's disk: a sparse file behind a loop device, or a folder in memory where there is none."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from nixa_tasks.lab import linux

DEFAULT_MB = 2048
_LAYER = "@root"  # what is mounted on /mnt while installing, and is / afterwards


@dataclass(slots=True)
class Disk:
    """`mounted`: where the supervisor sees its file system. `minor` is None for the folder."""

    image: Path
    mounted: Path
    descriptor: int | None = None
    minor: int | None = None

    @property
    def device(self) -> int | Path:
        """What the machine's /dev/vda is made of."""
        return self.mounted if self.minor is None else linux.loop_device(self.minor)

    def attach(self, megabytes: int) -> None:
        """Make the disk there, with what it held before. Raises OSError."""
        self.mounted.mkdir(exist_ok=True)
        if not self.image.exists():
            with self.image.open("wb") as stream:
                stream.truncate(megabytes << 20)
        try:
            self.descriptor, self.minor = linux.attach_loop(self.image)
        except OSError:
            linux.mount("tmpfs", self.mounted, "tmpfs", 0, f"size={megabytes}m,mode=755")

    def mount(self) -> bool:
        """Mount its file system for a boot from it; whether there is one."""
        if self.minor is None:
            return True
        try:
            linux.mount(f"/dev/loop{self.minor}", self.mounted, "ext4", 0, None)
        except OSError:
            return False
        return True

    def unmount(self) -> None:
        if self.minor is not None:
            linux.unmount(self.mounted)

    def is_bootable(self) -> bool:
        """Whether an installed system lies on it, boot loader and all."""
        if not self.mount():
            return False
        try:
            base = self.mounted / _LAYER
            system = system_of(base)
            return system is not None and (base / "boot" / "lab-loader").is_file()
        finally:
            self.unmount()

    def erase(self) -> None:
        """A disk as it comes from the shop."""
        self.unmount()
        if self.minor is None:
            linux.unmount(self.mounted)
        else:
            os.close(self.descriptor or -1)
        self.descriptor = self.minor = None
        self.image.unlink(missing_ok=True)


def system_of(base: Path) -> str | None:
    """The store path that the profile `system` below `base` leads to, if it is there and whole."""
    link = base / "nix/var/nix/profiles/system"
    for _ in range(4):
        if not link.is_symlink():
            return None
        target = str(link.readlink())
        if target.startswith("/nix/store/"):
            return target if (base / target[1:] / "init").exists() else None
        link = base / target[1:] if target.startswith("/") else link.parent / target
    return None


def entry_of(base: Path, oneshot: str | None) -> str | None:
    """The system that the boot loader below `base` boots: that of the entry `oneshot`, else of its
    default entry; without any, the one of the profile."""
    loader = base / "boot/loader"
    for name in (oneshot, _after(loader / "loader.conf", "default ")):
        init = _after(loader / "entries" / name, "options init=") if name else None
        if init is not None and (base / init[1:]).exists():
            return init.removesuffix("/init")
    return system_of(base)


def _after(file: Path, start: str) -> str | None:
    """What follows `start` in the line that begins with it."""
    lines = file.read_text().splitlines() if file.is_file() else []
    return next((line.removeprefix(start).strip() for line in lines if line.startswith(start)), None)
