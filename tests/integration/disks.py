"""Disks with something on them, written by the real tools, for what looks at disks before a wipe.

A disk is a sparse file behind a loop device. The tools are Debian's, unpacked by scripts/setup.sh
(`need_disk_tools`) or there already. A RAID member and a ZFS label are written byte for byte, as their
on-disk formats say, since a kernel without md and ZFS has no tool that could.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from nixa_tasks.lab import linux

TOOLS: Final = Path(__file__).parents[2] / ".venv" / "disk-tools" / "usr"
_MIB: Final = 1 << 20
_ESP_TYPE: Final = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
_LINUX_TYPE: Final = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"
_LVM: Final = (
    'devices { use_devicesfile=0 scan=["%s"] } backup { backup=0 archive=0 } global { locking_dir="%s" }'
)
OLD_LINUX: Final = {"etc/os-release": 'ID=debian\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n'}
NIXOS: Final = {
    "etc/NIXOS": "",
    "etc/os-release": 'ID=nixos\nPRETTY_NAME="NixOS 26.05"\n',
    "nix/var/nix/profiles/system": "-> system-1-link",
}
NIXOS_ENTRY: Final = {
    "loader/loader.conf": "default nixos-generation-1.conf\n",
    "loader/entries/nixos-generation-1.conf": (
        "title NixOS\nlinux /EFI/nixos/kernel.efi\noptions init=/nix/store/00000000000000000000000000000000-nixos/init\n"
    ),
}

Write = Callable[[Path], None]
"""Writes one thing onto a block device."""


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition of a GPT: what writes it, and whether it is the EFI system partition."""

    write: Write
    megabytes: int = 40
    esp: bool = False


@dataclass(slots=True)
class Disks:
    """The disks of one pretended machine: /dev/hda and so on (no computer has such), and their partitions."""

    folder: Path
    _nodes: dict[str, int] = field(default_factory=dict)
    _loops: dict[int, int] = field(default_factory=dict)  # the descriptor that holds it, by its minor number

    def add(self, content: Write | list[Partition] | None = None, megabytes: int = 160) -> str:
        """Another disk, written as a whole or in partitions; returns its name, such as `hda`."""
        name = f"hd{'abcdefgh'[len(self._loops)]}"
        image = self.folder / f"{name}.img"
        with image.open("wb") as file:
            file.truncate(megabytes * _MIB)
        if isinstance(content, list):
            _partition(image, content)
        descriptor, minor = linux.attach_loop(image)
        self._loops[minor] = descriptor
        device = self._node(name, linux.loop_device(minor))
        if isinstance(content, list):
            run(
                "partx", "--delete", f"/dev/loop{minor}", check=False
            )  # those of whoever had the device before
            run("partx", "--add", f"/dev/loop{minor}")
            for number, part in enumerate(content, 1):
                part.write(self._node(f"{name}{number}", _partition_device(minor, number)))
        elif content is not None:
            content(device)
        return name

    def _node(self, name: str, device: int) -> Path:
        node = self.folder / "dev" / name
        node.parent.mkdir(exist_ok=True)
        os.mknod(node, stat.S_IFBLK | 0o600, device)
        self._nodes[name] = device
        return node

    def run(self, script: Path) -> str:
        """What a shell script prints on a machine that has these disks and no others. Raises CalledProcessError."""
        enter = (
            'mount --make-rprivate / && mount -t tmpfs -o mode=755 none "$1/seen" && '
            'for name in null zero full urandom random tty; do cp -a "/dev/$name" "$1/seen/"; done && '
            'cp -a "$1"/dev/. "$1/seen/" && mount --move "$1/seen" /dev && exec sh "$2"'
        )
        (self.folder / "seen").mkdir(exist_ok=True)
        return run("unshare", "--mount", "sh", "-c", enter, "sh", str(self.folder), str(script))

    def close(self) -> None:
        for minor, descriptor in self._loops.items():
            run("partx", "--delete", f"/dev/loop{minor}", check=False)
            os.close(descriptor)


@contextlib.contextmanager
def disks(folder: Path) -> Iterator[Disks]:
    """A machine without disks, to which some can be added; gone afterwards."""
    made = Disks(folder)
    try:
        yield made
    finally:
        made.close()


# -- what can be on a disk or a partition -------------------------------------------------------


def ext4(files: Mapping[str, str], label: str = "root") -> Write:
    return lambda device: _from_folder(
        device,
        files,
        lambda folder: run("mkfs.ext4", "-q", "-F", "-L", label, "-d", str(folder), str(device)),
    )


def esp(files: Mapping[str, str]) -> Write:
    """FAT, written without mounting it: many kernels of containers have no FAT."""

    def write(device: Path) -> None:
        run("mkfs.fat", "-F", "32", "-n", "ESP", str(device))
        _from_folder(
            device, files,
            lambda folder: run("mcopy", "-s", "-i", str(device), *map(str, sorted(folder.iterdir())), "::"),
        )  # fmt: skip

    return write


def btrfs(subvolumes: Mapping[str, Mapping[str, str]], label: str = "pool") -> Write:
    """Each subvolume by its name, with its files."""

    def write(device: Path) -> None:
        run("mkfs.btrfs", "-q", "-f", "-L", label, str(device))
        place = device.parent.parent / "btrfs"
        place.mkdir(exist_ok=True)
        script = ['mount -t btrfs "$1" "$2"']
        script += [
            f'btrfs -q subvolume create "$2/{name}" && cp -a "$3/{name}/." "$2/{name}/"'
            for name in subvolumes
        ]
        files = {f"{name}/{path}": text for name, own in subvolumes.items() for path, text in own.items()}
        _from_folder(
            device, files,
            lambda folder: run("unshare", "--mount", "sh", "-euc", "\n".join([*script, 'umount "$2"']), "sh",
                               str(device), str(place), str(folder)),
        )  # fmt: skip

    return write


def luks(device: Path) -> None:
    run("cryptsetup", "luksFormat", "--type", "luks2", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000",
        "-q", str(device), "-", stdin="passphrase")  # fmt: skip


def lvm(group: str) -> Write:
    """A physical volume in a volume group. (Logical volumes need the kernel's device mapper.)"""

    def write(device: Path) -> None:
        config = _LVM % (device.parent, device.parent.parent)
        run("lvm", "pvcreate", "--config", config, "-ff", "-y", str(device))
        run("lvm", "vgcreate", "--config", config, group, str(device))

    return write


def raid_member(device: Path) -> None:
    """A superblock of version 1.2, as in <linux/raid/md_p.h>, 4096 bytes from the start."""
    super_block = bytearray(256)
    struct.pack_into(
        "<IIII16s32sQIIQ", super_block, 0, 0xA92B4EFC, 1, 0, 0, bytes(range(16)), b"web1:0", 0, 1, 0, 65536
    )
    struct.pack_into("<III", super_block, 88, 0, 1, 0)  # chunk size is before; raid disks after
    struct.pack_into(
        "<QQQ", super_block, 128, 2048, 65536, 8
    )  # data offset and size, our own offset in sectors
    total = sum(struct.unpack_from("<64I", super_block))
    struct.pack_into("<I", super_block, 216, ((total & 0xFFFFFFFF) + (total >> 32)) & 0xFFFFFFFF)
    with device.open("r+b") as file:
        file.seek(4096)
        file.write(super_block)


def zfs_member(device: Path) -> None:
    """The name-value list and the uberblocks of the first two of the four labels of the pool `tank`."""
    uberblock = struct.pack("<QQQQQ", 0x00BAB10C, 5000, 42, 0, 1_700_000_000).ljust(1024, b"\0")
    numbers = {"version": 5000, "state": 0, "txg": 42, "pool_guid": 7, "guid": 8}
    pairs = _zfs_pair("name", struct.pack(">III", 9, 1, 4) + b"tank")
    for name, number in numbers.items():
        pairs += _zfs_pair(name, struct.pack(">IIQ", 8, 1, number))
    names = struct.pack(">BBHII", 1, 1, 0, 0, 1) + pairs + bytes(8)
    with device.open("r+b") as file:
        for label in (0, 256 * 1024):
            file.seek(label + 16 * 1024)
            file.write(names)
            file.seek(label + 128 * 1024)
            file.write(uberblock * 16)


def _zfs_pair(name: str, value: bytes) -> bytes:
    """One pair of a name-value list in XDR; `value` begins with its type and its number of elements."""
    padded = name.encode().ljust((len(name) + 3) & ~3, b"\0")
    size = 12 + len(padded) + len(value)
    return struct.pack(">III", size, size, len(name)) + padded + value


# -- how ----------------------------------------------------------------------------------------


def run(*argv: str, stdin: str = "", check: bool = True) -> str:
    """Run a tool of ours or of this computer; its output."""
    libraries = sorted({str(path.parent) for path in TOOLS.glob("lib/**/*.so*")})
    environment = {
        **os.environ,
        "PATH": f"{TOOLS / 'bin'}:{TOOLS / 'sbin'}:{os.environ['PATH']}:/usr/sbin:/sbin",
        "LD_LIBRARY_PATH": ":".join(libraries),
        "MTOOLS_SKIP_CHECK": "1",
        "LVM_SUPPRESS_FD_WARNINGS": "1",
    }
    done = subprocess.run(
        argv, input=stdin, env=environment, capture_output=True, text=True, timeout=60, check=False
    )  # fmt: skip
    assert not check or done.returncode == 0, f"{argv}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def _from_folder(device: Path, files: Mapping[str, str], use: Callable[[Path], object]) -> None:
    folder = device.parent.parent / f"content-{device.name}"
    for path, text in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if text.startswith("-> "):
            target.symlink_to(text[3:])
        else:
            target.write_text(text)
    folder.mkdir(exist_ok=True)
    use(folder)
    shutil.rmtree(folder)


def _partition(image: Path, parts: list[Partition]) -> None:
    lines = [f"size={part.megabytes}MiB, type={_ESP_TYPE if part.esp else _LINUX_TYPE}" for part in parts]
    run("sfdisk", "--quiet", str(image), stdin="label: gpt\n" + "\n".join(lines) + "\n")


def _partition_device(minor: int, number: int) -> int:
    path = Path(f"/sys/block/loop{minor}/loop{minor}p{number}/dev")
    until = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < until, f"{path} did not appear"
        time.sleep(0.05)
    major, _, own = path.read_text().strip().partition(":")
    return os.makedev(int(major), int(own))
