"""What the lab needs on this computer, and the message when it is not there."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

from nixa_tasks.lab.errors import LabError
from nixa_tasks.lab.paths import SYSTEMS

# Which command stands for which Debian package.
_PROGRAMS = {
    "ip": "iproute2",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "nix": "nix-bin",
    "mkfs.ext4": "e2fsprogs",
    "cpio": "cpio",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "mountpoint": "util-linux",
    "mount": "mount",
    "git": "git",
}
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
_BUSYBOX = ("/usr/bin/busybox", "/bin/busybox")


def path() -> str:
    """PATH with the folders of system programs, which a user's often lacks."""
    return f"{os.environ.get('PATH', '/usr/bin:/bin')}:{_SBIN}"


def check() -> None:
    """Raises LabError that names everything that is missing at once."""
    if platform.system() != "Linux" or platform.machine() not in SYSTEMS:
        raise LabError(
            f"the lab needs Linux on x86_64 or aarch64, not {platform.system()} {platform.machine()}"
        )
    if os.geteuid() != 0:
        raise LabError(
            "the lab needs root: it makes network namespaces, mounts and disks",
            hint="run it as root, or with `sudo --preserve-env=NIXA_LAB`",
        )
    missing = {
        package for program, package in _PROGRAMS.items() if shutil.which(program, path=path()) is None
    }
    if not Path("/usr/sbin/sshd").exists():
        missing.add("openssh-server")
    if busybox() is None:
        missing.add("busybox-static")
    if missing:
        raise LabError(
            f"the lab needs {', '.join(sorted(missing))}",
            hint=f"apt-get install --no-install-recommends {' '.join(sorted(missing))}",
        )


def busybox() -> Path | None:
    """A busybox that needs no libraries; the dynamic one of the package `busybox` won't do."""
    for name in _BUSYBOX:
        candidate = Path(name)
        # A program that needs a dynamic linker names it.
        if candidate.is_file() and b"/ld-linux" not in candidate.read_bytes()[:4096]:
            return candidate
    return None
