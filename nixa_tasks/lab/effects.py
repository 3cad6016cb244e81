"""What a fault does to a running machine, and how it is taken back."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from pathlib import Path

from nixa_tasks.lab import faults, linux, network
from nixa_tasks.lab.errors import LabError
from nixa_tasks.lab.paths import MachinePaths

_SECONDS = 20.0
_COUNTED_RATE = "100mbit"  # slow enough that a few milliseconds are a few ten thousand bytes
_FILLER = ".full"


def enter(pid: int) -> tuple[str, ...]:
    """The command line that runs a command inside of the machine whose pid 1 this is."""
    return ("nsenter", f"--target={pid}", "--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd")


class Effects:
    """The faults of one machine; its supervisor tells when it boots."""

    def __init__(self, paths: MachinePaths, link: str) -> None:
        self._paths, self._link = paths, link
        self.layer: Path | None = None
        self._until: int | None = None

    @property
    def is_counting(self) -> bool:
        """Whether the bytes sent to the machine are being counted."""
        return self._until is not None

    def set(self, name: str, value: str, init: int | None) -> None:
        """Raises LabError for what this kernel can't do; the fault is not set then."""
        name, value = faults.parse(name, value or None)
        self._paths.faults.mkdir(exist_ok=True)
        file = self._paths.faults / name
        file.write_text(value)
        try:
            self._apply(name, value, init)
        except LabError:
            file.unlink()
            raise

    def clear(self, init: int | None) -> None:
        """Take every fault back. A machine that is dark by one stays so until its power is cycled."""
        for name in faults.active(self._paths.faults):
            (self._paths.faults / name).unlink()
            if name == "unreachable":
                network.set_dark(self._link, dark=False)
            elif name == "disk-full":
                self.make_room()
            elif init is not None and name in {"slow", "drop-after"}:
                self._shape(init, None)
            elif init is not None and name == "refuse":
                _inside(init, "start-sshd")
            elif init is not None and name in faults.INSIDE:
                _inside(init, "faults")
        self._until = None

    def plugged(self) -> None:
        """The cable of a new boot is in: the faults of the cable hold from the first packet."""
        if (self._paths.faults / "unreachable").exists():
            network.set_dark(self._link, dark=True)

    def booted(self, init: int | None) -> None:
        """A boot is through: what it can't do by itself."""
        for name, value in faults.active(self._paths.faults).items():
            if name in {"slow", "drop-after", "disk-full"}:
                with contextlib.suppress(LabError):
                    self._apply(name, value, init)

    def count(self, init: int | None) -> None:
        """Cut the connections if as many bytes have been sent as `drop-after` says."""
        if self._until is None or network.received(self._link) < self._until:
            return
        self._until = None
        (self._paths.faults / "drop-after").unlink(missing_ok=True)
        if init is not None:
            _inside(init, "stop-sshd", "sessions")
            self._shape(init, faults.active(self._paths.faults).get("slow"))

    def _apply(self, name: str, value: str, init: int | None) -> None:
        match name:
            case "unreachable":
                network.set_dark(self._link, dark=True)
            case "disk-full":
                self._fill()
            case "slow" if init is not None:
                self._shape(init, value)
            case "drop-after" if init is not None:
                if not (self._paths.faults / "slow").exists():
                    with contextlib.suppress(LabError):
                        self._shape(init, _COUNTED_RATE)
                self._until = network.received(self._link) + int(value)
            case "refuse" if init is not None:
                _inside(init, "stop-sshd", "all")
            case _ if init is not None and name in faults.INSIDE:
                _inside(init, "faults")

    def _shape(self, init: int, rate: str | None) -> None:
        network.shape((), self._link, rate)
        network.shape(("nsenter", f"--target={init}", "--net"), "eth0", rate)

    def _fill(self) -> None:
        if self.layer is None:
            return
        space = os.statvfs(self.layer)
        if _is_memory(self.layer):
            used = (space.f_blocks - space.f_bfree) * space.f_frsize
            linux.mount("tmpfs", self.layer, "tmpfs", linux.MS_REMOUNT, f"size={max(used, space.f_frsize)}")
            return
        with (self.layer / _FILLER).open("ab") as stream:
            step = space.f_bfree * space.f_frsize
            while step >= space.f_frsize:  # the file system takes some of it for its own books
                try:
                    os.posix_fallocate(stream.fileno(), os.fstat(stream.fileno()).st_size, step)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    step //= 2

    def make_room(self) -> None:
        """Empty a full disk: before a boot, which fills it again, and when the fault is taken back."""
        if self.layer is None:
            return
        (self.layer / _FILLER).unlink(missing_ok=True)
        if _is_memory(self.layer):
            linux.mount("tmpfs", self.layer, "tmpfs", linux.MS_REMOUNT, "size=50%")


def _is_memory(folder: Path) -> bool:
    """Whether the folder's file system is a tmpfs: it says so by its device, which has no major."""
    return os.major(folder.stat().st_dev) == 0


def _inside(init: int, program: str, *args: str) -> None:
    subprocess.run(
        (*enter(init), "/bin/sh", f"/run/lab/fw/{program}", *args),
        capture_output=True, stdin=subprocess.DEVNULL, timeout=_SECONDS, check=False,
    )  # fmt: skip
