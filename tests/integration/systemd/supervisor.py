"""The power supply of a machine with a real systemd: `python -m tests.integration.systemd.supervisor FOLDER`.

As systemd-nspawn does, it gives a systemd namespaces of its own and starts it as pid 1; unlike nspawn it
needs no package on this computer, no user namespaces, and on cgroup v1 and v2 alike it hands over an
empty cgroup v2 of its own. The root file system is this computer's / below the packages of
scripts/setup.sh (`need_systemd`) below a layer in memory, which survives the machine's reboots. All of it
ends with this process.

FOLDER holds config.json: `tree` (the unpacked packages), `cgroup`, `hostname`, and `files` (path → text).
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any, Final, NoReturn

from nixa_tasks.lab import linux
from nixa_tasks.lab.linux import MS_BIND, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY, MS_REMOUNT

CLONE_NEWCGROUP: Final = 0x02000000
_PR_CAPBSET_DROP: Final = 24
# No module, no raw I/O and no clock of this computer is a test's to change: CAP_SYS_MODULE, _RAWIO, _TIME.
_DROPPED: Final = (16, 17, 25)
# What this computer has configured and the machine must not see.
_OPAQUE: Final = (
    "boot", "etc/init.d", "etc/modules-load.d", "etc/nix", "etc/pam.d", "etc/ssh", "etc/sudoers.d",
    "etc/sysctl.d", "etc/systemd", "etc/tmpfiles.d", "etc/udev", "home", "mnt", "nix", "root", "srv",
    "usr/local", "var/lib", "var/log", "var/tmp", *(f"etc/rc{level}.d" for level in "0123456S"),
)  # fmt: skip
_DEVICES: Final = {
    "null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0),
}  # fmt: skip


def main(folder: Path) -> int:
    """Boot it again and again, until it powers itself off."""
    config = json.loads((folder / "config.json").read_text())
    linux.private_mounts()
    linux.unshare(linux.CLONE_NEWNET | linux.CLONE_NEWPID)
    pid = os.fork()
    if pid == 0:
        linux.die_with_parent(signal.SIGKILL)
        _run(folder, config)
    (folder / "ready").touch()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _run(folder: Path, config: dict[str, Any]) -> NoReturn:
    """Pid 1 of everything that belongs to the machine: whatever happens, it takes the rest along."""
    linux.mount("proc", Path("/proc"), "proc")
    _own_cgroup(folder, config["cgroup"])
    memory = folder / "memory"
    memory.mkdir()
    linux.mount("tmpfs", memory, "tmpfs", 0, "mode=755")
    for name in ("upper", "work", "root"):
        (memory / name).mkdir(mode=0o755)
    shutil.copytree(config["tree"], memory / "tree", symlinks=True)
    _lay(memory / "upper", config["files"])
    subprocess.run(("ip", "link", "set", "lo", "up"), check=True, timeout=20)
    status = -signal.SIGHUP
    while status == -signal.SIGHUP:  # what reboot(2) sends to pid 1 of a pid namespace; SIGINT: power off
        status = _boot(folder, memory, config)
    os._exit(0 if status == -signal.SIGINT else 1)


def _own_cgroup(folder: Path, name: str) -> None:
    mounted = folder / "cgroup"
    mounted.mkdir()
    linux.mount("cgroup2", mounted, "cgroup2")
    (mounted / name).mkdir()
    (mounted / name / "cgroup.procs").write_text("0")
    linux.unmount(mounted)


def _lay(upper: Path, files: dict[str, str]) -> None:
    for path in _OPAQUE:
        folder = upper / path
        folder.mkdir(parents=True)
        folder.chmod({"root": 0o700, "var/tmp": 0o1777}.get(path, 0o755))
        os.setxattr(folder, "trusted.overlay.opaque", b"y")
    for path, text in files.items():
        target = upper / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if text.startswith("-> "):
            target.symlink_to(text[3:])
        else:
            target.write_text(text)
            secret = path.endswith(("_key", "shadow"))
            target.chmod(0o755 if text.startswith("#!") else 0o600 if secret else 0o644)


def _boot(folder: Path, memory: Path, config: dict[str, Any]) -> int:
    """One boot, to its end: minus the signal that ended pid 1. A process may make one pid namespace only."""
    between = os.fork()
    if between == 0:
        linux.unshare(
            linux.CLONE_NEWNS | linux.CLONE_NEWPID | linux.CLONE_NEWUTS | linux.CLONE_NEWIPC | CLONE_NEWCGROUP
        )
        pid = os.fork()
        if pid == 0:
            try:
                _become_systemd(folder, memory, config)
            except BaseException as error:  # noqa: BLE001 - there is nobody above to raise it to
                print(f"no boot: {error!r}", file=sys.stderr, flush=True)
                os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os._exit(200 - status if status < 0 else status)
    status = os.waitstatus_to_exitcode(os.waitpid(between, 0)[1])
    return 200 - status if status > 200 else status


def _become_systemd(folder: Path, memory: Path, config: dict[str, Any]) -> NoReturn:
    root = memory / "root"
    os.chdir(memory)
    linux.mount("overlay", root, "overlay", 0, "lowerdir=tree:/,upperdir=upper,workdir=work")
    _devices(root / "dev")
    for name in ("run", "tmp"):
        mode = {"run": "mode=755", "tmp": "mode=1777"}[name]
        linux.mount("tmpfs", root / name, "tmpfs", MS_NOSUID | MS_NODEV, mode)
    linux.mount("sysfs", root / "sys", "sysfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC)
    linux.mount("cgroup2", root / "sys/fs/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    linux.mount("proc", root / "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    for name in ("proc/sys", "proc/sysrq-trigger"):
        if not (root / name).exists():
            continue
        linux.mount(str(root / name), root / name, None, MS_BIND)
        linux.mount("none", root / name, None, MS_BIND | MS_REMOUNT | MS_RDONLY)
    boot_id = folder / "boot_id"
    boot_id.write_text(f"{uuid.uuid4()}\n")
    linux.mount(str(boot_id), root / "proc/sys/kernel/random/boot_id", None, MS_BIND)
    (folder / "pid").write_text(str(Path("/proc/self").readlink()))  # as the outer namespace counts it
    _stage_2(root)
    linux.enter_root(root)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.sethostname(config["hostname"].encode(), len(config["hostname"]))
    for capability in _DROPPED:
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    os.setsid()
    environment = {"container": "nixa-test", "PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    os.execve("/usr/lib/systemd/systemd", ("systemd", "--show-status=no"), environment)  # noqa: S606 - pid 1 itself


def _stage_2(root: Path) -> None:
    """What NixOS's init does before it becomes systemd: the system that boots is the profile's."""
    profile = root / "nix/var/nix/profiles/system"
    if not profile.is_symlink():
        return
    generation = profile.readlink()  # system-N-link, beside it
    system = profile.with_name(generation.name).readlink()
    for name in ("booted-system", "current-system"):
        (root / "run" / name).symlink_to(system)


def _devices(dev: Path) -> None:
    linux.mount("tmpfs", dev, "tmpfs", MS_NOSUID, "mode=755")
    for name, (major, minor) in _DEVICES.items():
        os.mknod(dev / name, stat.S_IFCHR | 0o666, os.makedev(major, minor))
        (dev / name).chmod(0o666)
    for name in ("pts", "shm"):
        (dev / name).mkdir()
    options = "newinstance,ptmxmode=0666,mode=620,gid=5"
    linux.mount("devpts", dev / "pts", "devpts", MS_NOSUID | MS_NOEXEC, options)
    linux.mount("tmpfs", dev / "shm", "tmpfs", MS_NOSUID | MS_NODEV)
    (dev / "ptmx").symlink_to("pts/ptmx")
    (dev / "fd").symlink_to("/proc/self/fd")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        (dev / name).symlink_to(f"/proc/self/fd/{number}")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
