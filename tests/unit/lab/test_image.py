"""The lab's kexec image has the real one's layout, and the same bytes every time."""

from __future__ import annotations

import io
import tarfile
import time
from pathlib import Path

import pytest

from nixa_tasks.lab import image, initrd
from nixa_tasks.lab.paths import FILES, system


def _members(path: Path) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(path) as archive:
        return {member.name: member for member in archive}


def _member(path: Path, name: str) -> bytes:
    with tarfile.open(path) as archive:
        stream = archive.extractfile(name)
        assert isinstance(stream, io.BufferedReader)
        return stream.read()


def test_it_is_the_same_bytes_at_another_time_and_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "a.tar.gz", tmp_path / "elsewhere" / "b.tar.gz"
    image.write(first, system=system(), megabytes=1)
    monkeypatch.setattr(time, "time", lambda: 2e9)
    image.write(second, system=system(), megabytes=1)

    assert first.read_bytes() == second.read_bytes()
    assert image.sri(first) == image.sri(second)


def test_it_has_the_real_layout(tmp_path: Path) -> None:
    path = tmp_path / "image.tar.gz"
    image.write(path, system="aarch64-linux", megabytes=1)
    found = _members(path)

    assert set(found) == {"kexec", *(f"kexec/{n}" for n in ("bzImage", "initrd", "kexec", "ip", "run"))}
    assert all(found[f"kexec/{name}"].mode & 0o111 for name in ("kexec", "ip", "run"))
    assert _member(path, "kexec/kexec")[:4] == b"\x7fELF"
    assert _member(path, "kexec/run") == (FILES / "run.sh").read_bytes()


def test_its_initrd_boots_an_installer(tmp_path: Path) -> None:
    path, ramdisk = tmp_path / "image.tar.gz", tmp_path / "initrd"
    image.write(path, system=system(), megabytes=1)
    ramdisk.write_bytes(_member(path, "kexec/initrd"))

    release = initrd.unpack(ramdisk)["etc/os-release"].decode()

    assert "ID=nixos\n" in release
    assert "VARIANT_ID=installer\n" in release


def test_its_size_can_be_chosen(tmp_path: Path) -> None:
    sizes = []
    for megabytes in (1, 5):
        path = tmp_path / f"{megabytes}.tar.gz"
        image.write(path, system=system(), megabytes=megabytes)
        sizes.append(path.stat().st_size)

    assert 3.9e6 < sizes[1] - sizes[0] < 4.5e6


def test_a_damaged_kernel_is_no_kernel() -> None:
    good = image.kernel()

    assert image.is_kernel(good)
    assert not image.is_kernel(good[:-1])
    assert not image.is_kernel(good[:500] + b"?" + good[501:])
    assert not image.is_kernel(b"")


def test_an_interrupted_write_leaves_the_old_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "image.tar.gz"
    image.write(path, system=system(), megabytes=1)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "addfile", full)
    with pytest.raises(OSError, match="No space"):
        image.write(path, system=system(), megabytes=2)

    assert path.read_bytes() == before
