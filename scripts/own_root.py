"""Runs a command in a mount namespace whose root is the root that we see: `own_root.py COMMAND…`

In a chroot it is not: Nix, run by root, puts its children (git, ssh) back into the mount namespace
that it was started in, which leads them out of the chroot, where nothing is found. As on a machine
that boots: bind the root, move it over the namespace's own, and enter it.
"""

import ctypes
import os
import sys

CLONE_NEWNS = 0x00020000
MS_BIND, MS_MOVE, MS_REC, MS_PRIVATE = 4096, 8192, 16384, 1 << 18

libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: str, flags: int) -> None:
    if libc.mount(source.encode(), target.encode(), None, ctypes.c_ulong(flags), None):
        number = ctypes.get_errno()
        raise OSError(number, f"mount {source} on {target}: {os.strerror(number)}")


def main(command: list[str]) -> None:
    """Never returns. Raises OSError where the kernel does not let us."""
    back = os.getcwd()
    if libc.unshare(CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    here = os.open("/", os.O_RDONLY | os.O_DIRECTORY)  # only now: what was open leads to the old namespace
    os.chroot("/proc")  # a root below us: from here `..` leads all the way up
    os.fchdir(here)
    while True:
        before = os.stat(".")
        os.chdir("..")
        after = os.stat(".")
        if (before.st_dev, before.st_ino) == (after.st_dev, after.st_ino):
            break
    os.chroot(".")
    mount("none", "/", MS_REC | MS_PRIVATE)
    path = os.readlink(f"/proc/self/fd/{here}")
    mount(path, path, MS_BIND | MS_REC)
    os.chdir(path)
    mount(".", "/", MS_MOVE)
    os.chroot(".")
    os.chdir(back)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
