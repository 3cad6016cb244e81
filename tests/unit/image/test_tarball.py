"""The look inside: only an installer, for the right machine, that touches nothing but kexec/."""

from __future__ import annotations

import gzip
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from nixa_tasks.image import tarball
from nixa_tasks.image.tarball import Summary, TarballError, check_architecture, inspect
from tests.tarballs import GOOD, NOISE, PACK, Member, but, elf, tar, write


@pytest.mark.parametrize("suffix", PACK)
def test_an_installer_is_told_in_one_line(tmp_path: Path, suffix: str) -> None:
    summary = inspect(write(tmp_path, GOOD, suffix))
    assert (summary.architecture, summary.kernel, summary.initrd) == ("x86_64", 6, len(NOISE))
    assert summary.members == len(GOOD)
    assert "installer for x86_64" in summary.line()
    assert Summary.from_json(summary.to_json()) == summary


@pytest.mark.parametrize("suffix", [".tar.gz", ".tar.xz", ".tar.zst"])
@pytest.mark.parametrize("cut", [1, 9, 1000, 150_000])
def test_a_cut_stream_is_noticed(tmp_path: Path, suffix: str, cut: int) -> None:
    path = write(tmp_path, GOOD, suffix)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(TarballError, match=r"unpacked|can't be"):
        inspect(path)


@pytest.mark.parametrize("suffix", [".tar.gz", ".tar.xz"])
def test_a_flipped_bit_is_noticed_where_the_format_has_a_checksum(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path, GOOD, suffix)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(TarballError):
        inspect(path)


@pytest.mark.parametrize("missing", tarball.REQUIRED)
@pytest.mark.parametrize("how", ["missing", "empty", "link", "folder"])
def test_each_needed_file_must_be_a_file_with_something_in_it(tmp_path: Path, missing: str, how: str) -> None:
    rest = tuple(one for one in GOOD if one.name != missing)
    instead = {
        "missing": (),
        "empty": (Member(missing, b"", 0o755),),
        "link": (Member(missing, type=tarfile.SYMTYPE, link="ip"),),
        "folder": (Member(missing, type=tarfile.DIRTYPE),),
    }[how]
    with pytest.raises(TarballError, match=missing):
        inspect(write(tmp_path, rest + instead))


@pytest.mark.parametrize(
    "bad",
    [
        Member("/etc/passwd", b"x"),
        Member("../x", b"x"),
        Member("kexec/../../x", b"x"),
        Member("kexec/../x", b"x"),
        Member("etc/x", b"x"),
        Member("kexecx/y", b"x"),
        Member("outside", type=tarfile.DIRTYPE),
        Member("kexec/l", type=tarfile.SYMTYPE, link="/etc"),
        Member("kexec/l", type=tarfile.SYMTYPE, link="../../etc"),
        Member("kexec/l", type=tarfile.SYMTYPE, link=".."),
        Member("kexec/d/l", type=tarfile.SYMTYPE, link="../../x"),
        Member("kexec/h", type=tarfile.LNKTYPE, link="/etc/shadow"),
        Member("kexec/h", type=tarfile.LNKTYPE, link="kexec/none"),
        Member("kexec/dev", type=tarfile.BLKTYPE),
        Member("kexec/dev", type=tarfile.CHRTYPE),
        Member("kexec/pipe", type=tarfile.FIFOTYPE),
        Member("kexec/su", b"x", 0o4755),
        Member("kexec/sg", b"x", 0o2755),
        Member("kexec/a\nb", b"x"),
        Member("./kexec//run", b"#!/bin/sh\necho another", 0o755),
        Member("kexec/run/x", b"x"),
        Member("kexec", b"a file"),
    ],
    ids=lambda one: f"{one.name!a} {one.link}",
)
def test_nothing_outside_and_nothing_strange(tmp_path: Path, bad: Member) -> None:
    members = (*(one for one in GOOD if one.name != "kexec" or bad.name != "kexec"), bad)
    with pytest.raises(TarballError):
        inspect(write(tmp_path, members))


def test_a_file_behind_a_link_is_refused(tmp_path: Path) -> None:
    members = (
        Member("kexec/l", type=tarfile.SYMTYPE, link="."),
        *GOOD[1:],
        Member("kexec/l/run", b"#!/bin/sh\n", 0o755),
    )
    with pytest.raises(TarballError, match="behind a link"):
        inspect(write(tmp_path, members))


def test_links_that_stay_inside_are_fine(tmp_path: Path) -> None:
    links = (
        Member("kexec/l", type=tarfile.SYMTYPE, link="./ip"),
        Member("kexec/h", type=tarfile.LNKTYPE, link="kexec/ip"),
    )
    assert inspect(write(tmp_path, GOOD + links)).members == len(GOOD) + 2


@pytest.mark.parametrize(
    ("member", "said"),
    [
        (Member("kexec/run", b"echo no shebang", 0o755), "#!"),
        (Member("kexec/run", b"#!/bin/sh\n", 0o644), "not executable"),
        (Member("kexec/kexec", elf(), 0o644), "not executable"),
        (Member("kexec/kexec", b"#!/bin/sh\n", 0o755), "ELF"),
        (Member("kexec/kexec", b"\x7fELF", 0o755), "ELF"),
    ],
)
def test_programs_must_be_programs(tmp_path: Path, member: Member, said: str) -> None:
    with pytest.raises(TarballError, match=said):
        inspect(write(tmp_path, but(member)))


@pytest.mark.parametrize(
    ("program", "system"),
    [(elf(62), "x86_64-linux"), (elf(183), "aarch64-linux"), (elf(21, 2), "powerpc64le-linux")],
)
def test_the_architecture_is_that_of_the_kexec_program(tmp_path: Path, program: bytes, system: str) -> None:
    summary = inspect(write(tmp_path, but(Member("kexec/kexec", program, 0o755))))
    check_architecture(summary, system)
    with pytest.raises(TarballError, match="riscv64-linux"):
        check_architecture(summary, "riscv64-linux", image="i", host="web1")


@pytest.mark.parametrize("real", PACK)
@pytest.mark.parametrize("named", PACK)
def test_the_name_must_say_what_the_file_is(tmp_path: Path, real: str, named: str) -> None:
    path = write(tmp_path, GOOD, real).rename(tmp_path / f"renamed{named}")
    if real == named:
        inspect(path)
    else:
        with pytest.raises(TarballError, match="is named"):
            inspect(path)


def test_what_is_no_tarball(tmp_path: Path) -> None:
    for data in (b"", b"hello", NOISE, b"<!DOCTYPE html>", b"\x1f\x8b", gzip.compress(b"no tar in it")):
        path = tmp_path / "x.tar.gz"
        path.write_bytes(data)
        with pytest.raises(TarballError):
            inspect(path)


def test_a_bomb_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tarball, "MOST_BYTES", 1 << 20)
    bomb = but(Member("kexec/initrd", bytes(5 << 20)))
    with pytest.raises(TarballError, match="unpacks to more"):
        inspect(write(tmp_path, bomb))


def test_too_many_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tarball, "MOST_MEMBERS", 50)
    with pytest.raises(TarballError, match="more than 50"):
        inspect(write(tmp_path, GOOD + tuple(Member(f"kexec/{n}", b"x") for n in range(60))))


def test_an_old_summary_is_not_believed() -> None:
    assert Summary.from_json({"architecture": "x86_64"}) is None
    assert Summary.from_json(None) is None


def test_members_of_newer_tar_formats_are_read(tmp_path: Path) -> None:
    path = tmp_path / "image.tar"
    long = replace(GOOD[5], name="kexec/" + "long" * 60)
    path.write_bytes(tar((*GOOD, long), tarfile.PAX_FORMAT))
    assert inspect(path).members == len(GOOD) + 1
