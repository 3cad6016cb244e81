"""Installers' tarballs for tests: small, and with what nixa looks for."""

from __future__ import annotations

import gzip
import io
import lzma
import random
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import zstandard

NOISE = random.Random(0).randbytes(200_000)


def elf(machine: int = 62, order: int = 1) -> bytes:
    word = machine.to_bytes(2, "little" if order == 1 else "big")
    return b"\x7fELF\x02" + bytes([order]) + b"\x01" + bytes(9) + b"\x02\x00" + word + bytes(100)


@dataclass(frozen=True)
class Member:
    name: str
    data: bytes = b""
    mode: int = 0o644
    type: bytes = tarfile.REGTYPE
    link: str = ""


GOOD = (
    Member("kexec", mode=0o755, type=tarfile.DIRTYPE),
    Member("kexec/run", b"#!/bin/sh\n", 0o755),
    Member("kexec/bzImage", b"kernel"),
    Member("kexec/initrd", NOISE),
    Member("kexec/kexec", elf(), 0o755),
    Member("kexec/ip", elf(), 0o755),
)
PACK: dict[str, Callable[[bytes], bytes]] = {
    ".tar.gz": lambda data: gzip.compress(data, 1),
    ".tar.xz": lambda data: lzma.compress(data, preset=0),
    ".tar.zst": lambda data: zstandard.ZstdCompressor().compress(data),
    ".tar": lambda data: data,
}


def tar(members: tuple[Member, ...], kind: int = tarfile.GNU_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=kind) as archive:
        for one in members:
            info = tarfile.TarInfo(one.name)
            info.size, info.mode, info.type, info.linkname = len(one.data), one.mode, one.type, one.link
            archive.addfile(info, io.BytesIO(one.data))
    return out.getvalue()


def write(folder: Path, members: tuple[Member, ...], suffix: str = ".tar.gz") -> Path:
    path = folder / f"image{suffix}"
    path.write_bytes(PACK[suffix](tar(members)))
    return path


def but(*changed: Member) -> tuple[Member, ...]:
    """The good ones, with some of them replaced or added."""
    names = {one.name: one for one in changed}
    return tuple(names.pop(one.name, one) for one in GOOD) + tuple(names.values())


def installer(seed: int = 1, size: int = 400_000, machine: int = 62) -> bytes:
    """An installer of about `size` bytes that can't be compressed, as `.tar.gz`."""
    initrd = Member("kexec/initrd", random.Random(seed).randbytes(size))
    return gzip.compress(tar(but(initrd, Member("kexec/kexec", elf(machine), 0o755))), 0, mtime=0)
