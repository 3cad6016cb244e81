"""The few system calls that Python 3.11 has no name for: namespaces, mounts, loop devices."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import struct
from pathlib import Path

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
MNT_DETACH = 2

_PR_SET_PDEATHSIG = 1
_LOOP_CTL_GET_FREE = 0x4C82
_LOOP_CONFIGURE = 0x4C0A
_LO_FLAGS_AUTOCLEAR = 4
_LOOP_MAJOR = 7

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """New namespaces for this process. Raises OSError."""
    _check(_libc.unshare(flags), "unshare")


def die_with_parent(signal: int) -> None:
    """Get `signal` when the parent ends, however it ends: a killed supervisor leaves nothing."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal, 0, 0, 0), "prctl")


def mount(source: str, target: Path, kind: str | None, flags: int = 0, data: str | None = None) -> None:
    """mount(2). Raises OSError with the target in its text."""
    result = _libc.mount(
        os.fsencode(source), os.fsencode(target), kind.encode() if kind else None,
        ctypes.c_ulong(flags), data.encode() if data else None,
    )  # fmt: skip
    _check(result, f"mount {source} on {target}")


def unmount(target: Path) -> None:
    """Detach what is mounted there; nothing where nothing is."""
    with contextlib.suppress(OSError):
        _check(_libc.umount2(os.fsencode(target), MNT_DETACH), f"umount {target}")


def private_mounts() -> None:
    """A mount namespace of our own, from which nothing travels back."""
    unshare(CLONE_NEWNS)
    try:
        mount("none", Path("/"), None, MS_REC | MS_PRIVATE)
    except OSError:
        _private_in_chroot()


def _private_in_chroot() -> None:
    """In a chroot / is no mount point, so it can't be made private: climb out, do it, come back."""
    here = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    try:
        _climb_out()
        with contextlib.suppress(OSError):
            mount("none", Path("/"), None, MS_REC | MS_PRIVATE)
    finally:
        os.fchdir(here)
        os.chroot(".")
        os.close(here)


def _climb_out() -> None:
    """Make the root of the mount namespace this process's root, wherever it was."""
    here = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    os.chroot("/proc")  # a root below where we stand: `..` leads past it
    os.fchdir(here)
    os.close(here)
    while True:
        before = Path().stat()
        os.chdir("..")
        after = Path().stat()
        if (before.st_dev, before.st_ino) == (after.st_dev, after.st_ino):
            break
    os.chroot(".")


def enter_root(target: Path) -> None:
    """Make the mount `target` the root of the whole mount namespace, and let go of all others; as
    on a real machine there is nothing outside of it then. Programs such as Nix go back to the root
    of the namespace for some children, and would leave a mere chroot. Raises OSError."""
    wanted = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    _climb_out()
    os.fchdir(wanted)
    os.close(wanted)
    if _libc.pivot_root(b".", b".") == 0:
        _check(_libc.umount2(b".", MNT_DETACH), "umount of the old root")
    else:  # a root that can't be left, such as an initramfs
        os.chroot(".")
    os.chdir("/")


def attach_loop(image: Path) -> tuple[int, int]:
    """A loop device on `image`: (file descriptor, minor number). The kernel frees it by itself when
    the descriptor and the last mount are gone, so that no crash leaves one. Raises OSError."""
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    backing = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(64):
            minor = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
            device = os.open(_loop_node(minor), os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, _LOOP_CONFIGURE, _loop_config(backing, image))
            except OSError as error:
                os.close(device)
                if error.errno != 16:  # EBUSY: another process was quicker
                    raise
            else:
                return device, minor
        raise OSError(16, "no free loop device")
    finally:
        os.close(backing)
        os.close(control)


def _loop_config(backing: int, image: Path) -> bytes:
    """struct loop_config of <linux/loop.h>."""
    name = os.fsencode(image)[-63:]
    info = struct.pack(
        "<5QIIII64s64s32s2Q", 0, 0, 0, 0, 0, 0, 0, 0, _LO_FLAGS_AUTOCLEAR, name, b"", b"", 0, 0
    )
    return struct.pack("<II", backing, 0) + info + bytes(64)


def _loop_node(minor: int) -> str:
    node = f"/dev/loop{minor}"
    if not Path(node).exists():  # a /dev that is no devtmpfs
        os.mknod(node, 0o600 | 0o060000, os.makedev(_LOOP_MAJOR, minor))
    return node


def loop_device(minor: int) -> int:
    """The device number of a loop device, for mknod."""
    return os.makedev(_LOOP_MAJOR, minor)


def start_time(pid: int) -> str | None:
    """When a process started, in the kernel's ticks; with its pid the name of that very process.
    None where there is none, or only its corpse."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
