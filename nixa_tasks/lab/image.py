"""The lab's kexec image: the layout of the real tarball, and always the same bytes."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import tarfile
from pathlib import Path

from nixa_tasks.lab import elf, initrd
from nixa_tasks.lab.paths import FILES

KERNEL_MAGIC = b"MZlab-kernel\n"
DEFAULT_MB = 4
_KERNEL_BYTES = 1 << 20
_DIGEST = 32
_BLOCK = 1 << 20

INSTALLER_OS_RELEASE = b"""\
NAME=NixOS
ID=nixos
PRETTY_NAME="NixOS installer of the nixa lab"
VARIANT="Lab installer"
VARIANT_ID=installer
VERSION_ID="26.05"
"""


def noise(seed: bytes, size: int) -> bytes:
    """`size` bytes that don't compress, the same for the same seed."""
    return hashlib.shake_256(seed).digest(size)


def kernel() -> bytes:
    """What stands for the kernel: a magic number, noise, and the digest of both."""
    body = KERNEL_MAGIC + noise(b"bzImage", _KERNEL_BYTES)
    return body + hashlib.sha256(body).digest()


def is_kernel(data: bytes) -> bool:
    """Whether a machine can boot this: whole and undamaged."""
    body, digest = data[:-_DIGEST], data[-_DIGEST:]
    return data.startswith(KERNEL_MAGIC) and hashlib.sha256(body).digest() == digest


def write(path: Path, *, system: str, megabytes: int = DEFAULT_MB) -> None:
    """Write the tarball in one step. `megabytes` is about how large its initrd gets."""
    ramdisk = initrd.compress(
        initrd.pack({
            "init": (b"#!/bin/sh\n", 0o755),
            "etc/os-release": INSTALLER_OS_RELEASE,
            **{f"padding/{number:04}": noise(b"padding %d" % number, _BLOCK) for number in range(megabytes)},
        })
    )  # fmt: skip
    members = {
        "kexec/bzImage": (kernel(), 0o644),
        "kexec/initrd": (ramdisk, 0o644),
        "kexec/kexec": (elf.program("/run/lab/fw/kexec", system), 0o755),
        "kexec/ip": (b'#!/bin/sh\nexec ip "$@"\n', 0o755),
        "kexec/run": ((FILES / "run.sh").read_bytes(), 0o755),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    with (
        new.open("wb") as raw,
        gzip.GzipFile("", "wb", compresslevel=0, fileobj=raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        folder = tarfile.TarInfo("kexec")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(folder)
        for name, (content, mode) in members.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            archive.addfile(entry, io.BytesIO(content))
    new.rename(path)


def sri(path: Path) -> str:
    """The file's hash as `sha256-…`."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").digest()
    return "sha256-" + base64.b64encode(digest).decode()
