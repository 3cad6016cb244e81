"""What the QEMU machine boots: an initial ram disk made of this computer's own programs.

One kernel (Debian's, for clouds, unpacked by ./check) and one set of files serve three systems. The
old Linux and the installed one boot from what QEMU is given, as from a boot loader; the installer
boots from the tarball alone, by a kexec.
"""

from __future__ import annotations

import functools
import lzma
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import zstandard

from nixa_tasks.lab import image, requirements
from nixa_tasks.lab.paths import FILES, LabPaths

KERNEL = Path(sys.prefix) / "kernel"  # where scripts/setup.sh unpacks it
HERE = Path(__file__).parent / "files"
_LIBRARIES = "usr/lib/x86_64-linux-gnu"
_MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "virtio_rng")
_PROGRAMS = (
    "dash", "nix", "/usr/sbin/sshd", "ssh-keygen", "ip", "mkfs.ext4", "wipefs", "mount", "umount",
    "mountpoint", "setsid", "flock",
)  # fmt: skip
_PARTS_OF_SSHD = ("/usr/lib/openssh/sshd-session", "/usr/lib/openssh/sshd-auth")  # of its newer versions
_NAMES_OF_NIX = ("nix-store", "nix-env", "nix-daemon", "nix-build", "nix-instantiate")
_PASSWD = "root:x:0:0:root:/root:/bin/sh\nsshd:x:101:65534::/run/sshd:/usr/sbin/nologin\nnobody:x:65534:65534::/:/usr/sbin/nologin\n"
_OLD_RELEASE = 'PRETTY_NAME="Debian GNU/Linux 12 (in QEMU)"\nID=debian\nVERSION_ID="12"\n'
_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Guest:
    """Kernel and initial ram disk of the first boot, and the tarball of the installer."""

    kernel: Path
    initrd: Path
    tarball: Path


def make(folder: Path, lab: LabPaths, host_key: Path) -> Guest:
    """Make it all in `folder`. `host_key`: the old Linux's private key, its public one beside it."""
    folder.mkdir()
    tree = folder / "tree"
    _files(tree, lab)
    base = _packed(tree, folder / "base.cpio.zst")
    _extra(tree_of_old := folder / "old", lab, host_key)
    _extra_installer(tree_of_installer := folder / "installer")
    initrd = _joined(folder / "initrd", base, _packed(tree_of_old, folder / "old.cpio.zst"))
    ramdisk = _joined(
        folder / "installer.initrd", base, _packed(tree_of_installer, folder / "installer.cpio.zst")
    )
    kernel = _one(KERNEL.glob("boot/vmlinuz-*"))
    tarball = _tarball(folder / "installer.tar.gz", kernel, ramdisk)
    shutil.rmtree(tree)
    return Guest(kernel, initrd, tarball)


def _files(tree: Path, lab: LabPaths) -> None:
    """What is the same in all three systems."""
    for name in ("usr/bin", "usr/sbin", _LIBRARIES, "usr/lib64", "proc", "sys", "dev", "run", "tmp", "mnt"):
        (tree / name).mkdir(parents=True, exist_ok=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (tree / name).symlink_to(f"usr/{name}")
    for name in ("etc/ssh", "etc/nix", "root", "var/lib", "lab/modules"):
        (tree / name).mkdir(parents=True)
    (tree / "root").chmod(0o700)
    (tree / "tmp").chmod(0o1777)
    parts = [name for name in _PARTS_OF_SSHD if Path(name).exists()]
    for name in (*_PROGRAMS, *parts):
        _program(tree, name)
    for library in _libraries(_kexec()):  # kexec itself comes with the tarball
        _copy(tree, library)
    (tree / "usr/bin/sh").symlink_to("dash")
    for name in _NAMES_OF_NIX:
        (tree / "usr/bin" / name).symlink_to("nix")
    _busybox(tree)
    _modules(tree / "lab/modules")
    shutil.copytree(lab.firmware, tree / "lab/firmware")
    shutil.copy(HERE / "sshd_config", tree / "lab/sshd_config")
    _write(tree / "init", (HERE / "init").read_text(), 0o755)
    _write(tree / "usr/sbin/reboot", "#!/bin/sh\nsync\nexec busybox reboot -f\n", 0o755)
    _write(tree / "etc/passwd", _PASSWD)
    _write(tree / "etc/group", "root:x:0:\nnogroup:x:65534:\n")
    _write(tree / "etc/shadow", "root:*:19000:0:99999:7:::\n", 0o640)
    _write(tree / "etc/nix/nix.conf", lab.nix_conf.read_text())
    shutil.copy("/etc/mke2fs.conf", tree / "etc/mke2fs.conf")


def _extra(tree: Path, lab: LabPaths, host_key: Path) -> None:
    """What only the old Linux has: its host key and who may log in."""
    keys = tree / "lab/old/etc/ssh"
    keys.mkdir(parents=True)
    for half in (host_key, host_key.with_name(f"{host_key.name}.pub")):
        shutil.copy(half, keys / half.name)
    _write(tree / "lab/old/etc/os-release", _OLD_RELEASE)
    _write(tree / "lab/authorized_keys", lab.identity.with_suffix(".pub").read_text())
    (tree / "lab/old/run/lab").mkdir(parents=True)
    _write(tree / "lab/old/run/lab/kexec-delay", "2\n")


def _extra_installer(tree: Path) -> None:
    (tree / "etc").mkdir(parents=True)
    (tree / "etc/os-release").write_bytes(image.INSTALLER_OS_RELEASE)
    _write(tree / "etc/NIXOS", "")


def _tarball(path: Path, kernel: Path, ramdisk: Path) -> Path:
    """The installer's image in the layout of the real one, with the lab's kexec/run."""
    members = {
        "kexec/bzImage": (kernel, 0o644),
        "kexec/initrd": (ramdisk, 0o644),
        "kexec/kexec": (_kexec(), 0o755),
        "kexec/ip": (Path(_found("ip")), 0o755),
        "kexec/run": (FILES / "run.sh", 0o755),
    }
    with tarfile.open(path, "w:gz", compresslevel=0) as archive:
        for name, (file, mode) in members.items():
            entry = archive.gettarinfo(file.resolve(), name)
            entry.mode, entry.uid, entry.gid = mode, 0, 0
            with file.open("rb") as stream:
                archive.addfile(entry, stream)
    return path


def _kexec() -> Path:
    """The unpacked kexec, else the one that is installed."""
    unpacked = [*KERNEL.glob("sbin/kexec"), *KERNEL.glob("usr/sbin/kexec")]
    return unpacked[0] if unpacked else Path(_found("kexec"))


def _found(name: str) -> str:
    path = shutil.which(name, path=requirements.path())
    assert path is not None, f"{name} is not installed here"
    return path


def _program(tree: Path, name: str) -> None:
    path = _found(name)
    for needed in (Path(path), *_libraries(Path(path))):
        _copy(tree, needed)


def _copy(tree: Path, file: Path) -> None:
    """To its own place in the tree, with /lib and its like inside of /usr."""
    place = Path(os.path.realpath(file.parent)) / file.name
    if place.is_relative_to(KERNEL.resolve()):
        place = Path("/") / place.relative_to(KERNEL.resolve())
    target = tree / str(place)[1:]
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        shutil.copy(file.resolve(), target)


@functools.cache
def _libraries(program: Path) -> tuple[Path, ...]:
    """The libraries and the loader of a program, as the loader itself finds them."""
    unpacked = os.pathsep.join(str(KERNEL / name) for name in (_LIBRARIES, _LIBRARIES.removeprefix("usr/")))
    said = subprocess.run(
        ("ldd", str(program)), env={**os.environ, "LD_LIBRARY_PATH": unpacked, "LC_ALL": "C"},
        capture_output=True, text=True, timeout=_SECONDS, check=True,
    ).stdout  # fmt: skip
    assert "not found" not in said, said
    return tuple(Path(found) for found in re.findall(r"(/\S+) \(0x", said))


def _busybox(tree: Path) -> None:
    """A link for everything that busybox can do and no real program is there for."""
    busybox = requirements.busybox()
    assert busybox is not None, "busybox-static is not installed here"
    shutil.copy(busybox, tree / "usr/bin/busybox")
    said = subprocess.run(
        (str(busybox), "--list"), capture_output=True, text=True, timeout=_SECONDS, check=True
    )
    for name in said.stdout.split():
        if not any(os.path.lexists(tree / folder / name) for folder in ("usr/bin", "usr/sbin")):
            (tree / "usr/bin" / name).symlink_to("busybox")


def _modules(folder: Path) -> None:
    """The drivers, with what they depend on before them, and their order."""
    known = {
        path.name.partition(".ko")[0].replace("-", "_"): path
        for path in [*KERNEL.glob("lib/modules/**/*.ko*"), *KERNEL.glob("usr/lib/modules/**/*.ko*")]
    }
    order: list[str] = []

    def add(name: str) -> None:
        if name in order or name not in known:  # what is not there is built into the kernel
            return
        data = known[name].read_bytes()
        match known[name].suffix:
            case ".xz":
                data = lzma.decompress(data)
            case ".zst":  # Ubuntu's
                data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
        depends = re.search(rb"\0depends=([^\0]*)\0", data)
        for other in depends[1].decode().split(",") if depends else []:
            add(other.replace("-", "_"))
        (folder / name).write_bytes(data)
        order.append(name)

    for name in _MODULES:
        add(name)
    _write(folder / "order", "".join(f"{name}\n" for name in order))


def _packed(tree: Path, target: Path) -> Path:
    """A compressed cpio archive of a folder, owned by root."""
    command = 'cd "$1" && find . | cpio --quiet -o -H newc -R 0:0 | zstd -q -3 -f -o "$2"'
    subprocess.run(("sh", "-euc", command, "sh", str(tree), str(target)), timeout=_SECONDS, check=True)
    return target


def _joined(target: Path, *parts: Path) -> Path:
    """One initial ram disk of several archives: the kernel unpacks one after the other."""
    with target.open("wb") as out:
        for part in parts:
            data = part.read_bytes()
            out.write(data + bytes(-len(data) % 4))
    return target


def _one(found: Iterable[Path]) -> Path:
    (path,) = found
    return path


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
