"""Initial ram disks are read as a kernel reads them, and what a kernel would not boot is refused."""

from __future__ import annotations

import gzip
import lzma
import subprocess
from pathlib import Path

import pytest

from nixa_tasks.lab import initrd
from nixa_tasks.lab.initrd import BrokenInitrd


def _file(folder: Path, data: bytes) -> Path:
    path = folder / "initrd"
    path.write_bytes(data)
    return path


def _made_by_cpio(folder: Path, files: dict[str, bytes]) -> bytes:
    """What `find . | cpio -o -H newc`, as in kexec/run, makes of these files."""
    tree = folder / "tree"
    for name, content in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(content)
    return subprocess.run(
        ("sh", "-c", "find . | cpio --quiet -o -H newc"),
        cwd=tree, capture_output=True, timeout=20, check=True,
    ).stdout  # fmt: skip


def test_what_the_real_cpio_wrote_is_read(tmp_path: Path) -> None:
    files = {"ssh/authorized_keys": b"ssh-ed25519 AAAA\n", "addrs.json": b"[]", "empty": b"", "odd": b"12345"}

    assert initrd.unpack(_file(tmp_path, _made_by_cpio(tmp_path, files))) == files


def test_what_is_packed_here_is_read_by_the_real_cpio(tmp_path: Path) -> None:
    data = initrd.pack({"init": (b"#!/bin/sh\n", 0o755), "etc/a/b": b"content", "odd": b"123"})
    out = tmp_path / "out"
    out.mkdir()

    subprocess.run(("cpio", "--quiet", "-id"), input=data, cwd=out, timeout=20, check=True)

    assert (out / "etc/a/b").read_bytes() == b"content"
    assert (out / "odd").read_bytes() == b"123"
    assert (out / "init").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("padding", [b"", b"\0" * 4, b"\0" * 509])
@pytest.mark.parametrize("squeeze", [bytes, gzip.compress, lzma.compress], ids=["plain", "gzip", "xz"])
def test_archives_behind_one_another_are_all_read_and_the_later_one_wins(
    tmp_path: Path, squeeze: type[bytes], padding: bytes
) -> None:
    first = squeeze(initrd.pack({"etc/os-release": b"ID=nixos\n", "both": b"first"}))
    second = gzip.compress(initrd.pack({"both": b"second", "ssh/authorized_keys": b"key\n"}))

    found = initrd.unpack(_file(tmp_path, first + padding + second))

    assert found == {"etc/os-release": b"ID=nixos\n", "both": b"second", "ssh/authorized_keys": b"key\n"}


def test_a_large_file_is_passed_over_and_what_follows_is_found(tmp_path: Path) -> None:
    data = initrd.pack({"padding": bytes(3 << 20), "after": b"here"})

    assert initrd.unpack(_file(tmp_path, gzip.compress(data)))["after"] == b"here"


def test_the_same_files_give_the_same_bytes() -> None:
    files = {"a/b": b"1", "c": b"2"}

    assert initrd.compress(initrd.pack(files)) == initrd.compress(initrd.pack(dict(files)))
    assert initrd.compress(b"x")[4:8] == bytes(4), "a time in the gzip header"


_GOOD = gzip.compress(initrd.pack({"init": b"#!/bin/sh\n" * 50, "ssh/authorized_keys": b"key\n" * 99}))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(bytes(512), id="zeros"),
        pytest.param(b"<!DOCTYPE html>" * 20, id="a web page"),
        pytest.param(_GOOD[:-1], id="its last byte missing"),
        pytest.param(_GOOD[: len(_GOOD) // 2], id="half of it"),
        pytest.param(_GOOD[:40] + bytes([_GOOD[40] ^ 0xFF]) + _GOOD[41:], id="one byte changed"),
        pytest.param(_GOOD[:-8] + b"\0\0\0\0" + _GOOD[-4:], id="a wrong checksum"),
        pytest.param(_GOOD + b"rubbish", id="rubbish behind it"),
        pytest.param(initrd.pack({"a": b"123456"})[:-130], id="a plain archive without its end"),
        pytest.param(b"070701" + b"zz" * 60, id="a header without numbers"),
    ],
)
def test_what_no_kernel_would_boot_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(BrokenInitrd):
        initrd.unpack(_file(tmp_path, data))
