"""What nixa saw in an archive is what GNU tar, busybox and bsdtar unpack, or the host refuses it."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nixa_tasks.image.delivery.upload import LISTING
from nixa_tasks.image.tarball import TarballError, inspect
from tests.tarballs import GOOD, Member, but, tar

TARS = {
    name: (*argv,)
    for name, argv in {
        "GNU tar": ("tar", "-xf", "-"),
        "busybox": ("busybox", "tar", "-xf", "-"),
        "bsdtar": ("bsdtar", "-xf", "-"),
    }.items()
    if shutil.which(argv[0])
}
NAMES = st.sampled_from(
    ["kexec/a", "kexec/a/b", "kexec/l", "kexec/l/x", "kexec/b c", "kexec/-n", "kexec/.h", "kexec/..x", "./kexec/d",
     "kexec/run", "kexec/bzImage", "kexec/\xe4", "../x", "/tmp/nixa-x", "other", "kexec/a/../../x", "kexec//e",
     "kexec/" + "long" * 40, "kexec/*"]
)  # fmt: skip
TARGETS = st.sampled_from(
    ["a", "b", "../kexec/a", "..", "../..", "a/..", "l/../..", "/etc", "./run", "kexec/run", "nowhere"]
)
KINDS = st.sampled_from(
    [tarfile.REGTYPE, tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.AREGTYPE]
)
MEMBERS = st.builds(
    lambda name, kind, target, data, mode: Member(
        name,
        data if kind in (tarfile.REGTYPE, tarfile.AREGTYPE) else b"",
        mode,
        kind,
        target if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else "",
    ),
    NAMES,
    KINDS,
    TARGETS,
    st.binary(max_size=20),
    st.sampled_from([0o644, 0o755, 0o4755]),
)
SMALL = but(Member("kexec/initrd", b"initrd"))
FORMATS = st.sampled_from([tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])


def archive(members: tuple[Member, ...], kind: int, hole: int | None, flips: list[tuple[int, int]]) -> bytes:
    """The members, with a lone zero block before one of them, and bytes changed."""
    try:
        parts = [tar((one,), kind).rstrip(b"\0") for one in members]
    except ValueError:  # a name that this format can't hold
        return tar(members, tarfile.GNU_FORMAT)
    blocks = [part + bytes(-len(part) % 512) for part in parts]
    if hole is not None:
        blocks.insert(hole % len(blocks), bytes(512))
    data = bytearray(b"".join(blocks) + bytes(1024))
    for at, value in flips:
        data[at % len(data)] ^= value
    return bytes(data)


def unpack(argv: tuple[str, ...], data: bytes, folder: Path) -> tuple[int, str]:
    """How it ended, and the hash of the list that the host's script makes; nothing lies beside the tree."""
    tree = folder / "tree"
    tree.mkdir(parents=True)
    done = subprocess.run(argv, input=data, cwd=tree, capture_output=True, check=False)
    listed = subprocess.run(
        ["sh", "-c", f"{LISTING}\nlisting | LC_ALL=C sort | sha256sum"],
        cwd=tree,
        capture_output=True,
        check=False,
    )
    return done.returncode, listed.stdout.decode().split()[0]


def check(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "image.tar"
        path.write_bytes(data)
        try:
            summary = inspect(path)
        except TarballError:
            return
        for tool, argv in TARS.items():
            folder = Path(name) / tool
            status, seen = unpack(argv, data, folder)
            assert [one.name for one in folder.iterdir()] == ["tree"], f"{tool} wrote beside it"
            if tool == "GNU tar":
                assert (status, seen) == (0, summary.tree_sha256)
            elif seen == summary.tree_sha256:
                assert sorted(one.name for one in (folder / "tree").iterdir()) == ["kexec"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(MEMBERS, max_size=4),
    FORMATS,
    st.none() | st.integers(0, 12),
    st.lists(st.tuples(st.integers(0, 9000), st.integers(1, 255)), max_size=1),
)
def test_what_was_seen_is_what_is_unpacked(
    more: list[Member], kind: int, hole: int | None, flips: list[tuple[int, int]]
) -> None:
    check(archive((*SMALL, *more), kind, hole, flips))


@pytest.mark.parametrize("tool", TARS)
def test_an_installer_is_the_same_for_every_tar(tmp_path: Path, tool: str) -> None:
    links = (
        Member("kexec/l", type=tarfile.SYMTYPE, link="./ip"),
        Member("kexec/h", type=tarfile.LNKTYPE, link="kexec/ip"),
        Member("kexec/sub/with blanks/f", b"x"),
        Member("kexec/-n", b"x"),
        Member("kexec/.hidden", b"x"),
        Member("kexec/%s\\n*", b"x"),
    )
    data = tar(GOOD + links)
    (tmp_path / "image.tar").write_bytes(data)
    summary = inspect(tmp_path / "image.tar")
    assert unpack(TARS[tool], data, tmp_path / "out") == (0, summary.tree_sha256)


def test_the_hosts_list_tells_a_tree_that_differs(tmp_path: Path) -> None:
    data = tar(GOOD)
    (tmp_path / "image.tar").write_bytes(data)
    summary = inspect(tmp_path / "image.tar")
    changed = {
        "run": tar(but(Member("kexec/run", b"#!/bin/ls\n", 0o755))),
        "size": tar(but(Member("kexec/initrd", b"another"))),
        "more": tar((*GOOD, Member("kexec/more", b""))),
        "outside": tar((*GOOD, Member("beside", b""))),
        "link": tar((*GOOD[:-1], Member("kexec/ip", type=tarfile.SYMTYPE, link="run"))),
        "less": tar(GOOD[:-1]),
    }
    for name, other in changed.items():
        assert unpack(TARS["GNU tar"], other, tmp_path / name)[1] != summary.tree_sha256, name


def test_a_second_archive_behind_a_lone_zero_block_is_refused(tmp_path: Path) -> None:
    first = io.BytesIO(tar(GOOD)).getvalue().rstrip(b"\0")
    first += bytes(-len(first) % 512)
    evil = tar((Member("kexec/run", b"#!/bin/evil\n", 0o755),))
    path = tmp_path / "image.tar"
    path.write_bytes(first + bytes(512) + evil)
    with pytest.raises(TarballError, match="behind its end"):
        inspect(path)
