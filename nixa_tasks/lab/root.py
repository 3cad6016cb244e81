"""A machine's file system: this computer's / below, a layer of the machine's own above it.

What must not shine through (host keys, users, stores, homes) is covered in that layer by opaque
folders and whiteouts of the overlay.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nixa_tasks.lab import linux
from nixa_tasks.lab.linux import MS_BIND, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY, MS_REMOUNT

ADMIN = 1000
ADMIN_PASSWORD = "practice \"makes' $perfect"  # noqa: S105 -- of practice machines only
"""What sudo asks `admin` for, where the fault `sudo-password` makes it ask."""
_ADMIN_HASH = (  # openssl passwd -6 -salt nixalab
    "$6$nixalab$45w201dYnPyp5ramKpkfZXgdWyXraEuMu1eNa.1..p/yd.qoZFfshyQVh9Nn4D4GGcombTHzrY6LMzj1NC0MQ1"
)
_OPAQUE = ("boot", "etc/ssh", "home", "mnt", "nix", "root", "srv", "tmp", "var/lib", "var/tmp")
_DEVICES = {
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "tty": (5, 0),
}
_PROGRAMS = {  # the ways to end the machine, what tells its firmware, and a systemd that it has not
    "usr/sbin/reboot": "reboot",
    "usr/sbin/poweroff": "poweroff",
    "usr/sbin/halt": "halt",
    "usr/bin/systemctl": "systemctl",
    "usr/bin/bootctl": "bootctl",
    "usr/bin/busybox": "busybox",
}
_COVERED = {"usr/sbin/kexec": "kexec"}  # only where this computer has one


@dataclass(frozen=True, slots=True)
class Content:
    """A file's bytes, mode and owner."""

    data: bytes
    mode: int = 0o644
    owner: int = 0


@dataclass(frozen=True, slots=True)
class Root:
    """What a boot's file system is made of. `layer` holds `upper`; `hidden`: paths that don't exist
    in it; `disk`: the device number of the machine's disk, or a folder that stands for it."""

    target: Path
    layer: Path
    machine: Path
    firmware: Path
    files: Mapping[str, Content] = field(default_factory=dict)
    hidden: tuple[str, ...] = ()
    disk: int | Path | None = None


def build(root: Root) -> None:
    """Mount it all at `root.target`, in this process's mount namespace. Raises OSError."""
    upper = root.layer / "@root"
    _cover(upper, root)
    work = root.layer / f"work-{os.getpid()}"
    work.mkdir(exist_ok=True)
    here = Path.cwd()
    os.chdir(root.layer)  # so that no comma or colon of the path gets into the options
    try:
        options = f"lowerdir=/,upperdir=@root,workdir={work.name}"
        linux.mount("overlay", root.target, "overlay", 0, options)
    finally:
        os.chdir(here)
    _devices(root.target / "dev", root.disk)
    linux.mount("tmpfs", root.target / "run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    try:
        linux.mount("sysfs", root.target / "sys", "sysfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC)
    except OSError:
        linux.mount("/sys", root.target / "sys", None, MS_BIND)
    lab = root.target / "run" / "lab"
    lab.mkdir()
    linux.mount(str(root.machine), lab, None, MS_BIND)
    linux.mount(str(root.firmware), lab / "fw", None, MS_BIND)
    linux.mount("none", lab / "fw", None, MS_BIND | MS_REMOUNT | MS_RDONLY)


def processes(target: Path, boot_id: Path) -> None:
    """/proc of a new pid namespace, with a boot_id of its own. Called in that namespace."""
    linux.mount("proc", target / "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    linux.mount(str(boot_id), target / "proc/sys/kernel/random/boot_id", None, MS_BIND)


def users(shell: str) -> dict[str, Content]:
    """Accounts: root, `admin` with a sudo that does not ask, and those that programs need."""
    passwd = (
        f"root:x:0:0:root:/root:{shell}\ndaemon:x:1:1::/usr/sbin:/usr/sbin/nologin\n"
        f"sshd:x:101:65534::/run/sshd:/usr/sbin/nologin\nadmin:x:{ADMIN}:{ADMIN}::/home/admin:{shell}\n"
        "nobody:x:65534:65534::/nonexistent:/usr/sbin/nologin\n"
    )
    group = f"root:x:0:\ndaemon:x:1:\ntty:x:5:\ndisk:x:6:\nshadow:x:42:\nadmin:x:{ADMIN}:\nnogroup:x:65534:\n"
    names = [line.split(":")[0] for line in passwd.splitlines()]
    hashes = {"admin": _ADMIN_HASH}
    shadow = "".join(f"{name}:{hashes.get(name, '*')}:19000:0:99999:7:::\n" for name in names)
    return {
        "etc/passwd": Content(passwd.encode()),
        "etc/group": Content(group.encode()),
        "etc/shadow": Content(shadow.encode(), 0o640),
        "etc/sudoers.d/lab": Content(b"admin ALL=(ALL) NOPASSWD: ALL\n", 0o440),
    }


def write(base: Path, path: str, content: Content) -> None:
    """Put one file below `base`, with the folders above it; those of a .ssh are private."""
    target = base / path
    for folder in reversed(target.relative_to(base).parents[:-1]):
        made = base / folder
        if not made.is_dir():
            made.mkdir(0o755)
            made.chmod(0o700 if folder.name in {".ssh", "root"} else 0o755)
            os.chown(made, content.owner, content.owner)
    with contextlib.suppress(FileNotFoundError):
        target.unlink()
    target.write_bytes(content.data)
    target.chmod(content.mode)
    os.chown(target, content.owner, content.owner)


def _cover(upper: Path, root: Root) -> None:
    upper.mkdir(mode=0o755, exist_ok=True)
    upper.chmod(0o755)
    for path in (path for path in _OPAQUE if path not in root.hidden):
        folder = upper / path
        if not folder.is_dir():
            folder.mkdir(parents=True)
            folder.chmod({"root": 0o700, "tmp": 0o1777, "var/tmp": 0o1777}.get(path, 0o755))
        os.setxattr(folder, "trusted.overlay.opaque", b"y")
    for path, program in (_PROGRAMS | _COVERED).items():
        if path in _PROGRAMS or Path("/", path).exists():
            link = upper / path
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                link.unlink(missing_ok=True)
                link.symlink_to(f"/run/lab/fw/{program}")
    for path in root.hidden:
        _whiteout(upper / path)
    for path, content in root.files.items():
        write(upper, path, content)


def _whiteout(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.path.lexists(path):  # else it is one already, or was made in the machine
        os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))


def _devices(dev: Path, disk: int | Path | None) -> None:
    linux.mount("tmpfs", dev, "tmpfs", MS_NOSUID, "mode=755,size=64k")
    for name, (major, minor) in _DEVICES.items():
        os.mknod(dev / name, stat.S_IFCHR | 0o666, os.makedev(major, minor))
        (dev / name).chmod(0o666)
    if isinstance(disk, int):
        os.mknod(dev / "vda", stat.S_IFBLK | 0o660, disk)
    for name in ("pts", "shm"):
        (dev / name).mkdir()
    linux.mount(
        "devpts", dev / "pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620,gid=5"
    )
    linux.mount("tmpfs", dev / "shm", "tmpfs", MS_NOSUID | MS_NODEV)
    (dev / "ptmx").symlink_to("pts/ptmx")
    (dev / "fd").symlink_to("/proc/self/fd")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        (dev / name).symlink_to(f"/proc/self/fd/{number}")
    if isinstance(disk, Path):
        (dev / "vda").mkdir()
        linux.mount(str(disk), dev / "vda", None, MS_BIND)
