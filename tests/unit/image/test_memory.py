"""The look inside takes little memory, whatever comes."""

from __future__ import annotations

import gzip
import lzma
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from tests.tarballs import Member, but, tar

MOST = 100 << 20

_CHILD = """
import resource, sys
from pathlib import Path
from nixa_tasks.image.tarball import TarballError, inspect
import zstandard, lzma, gzip
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    print(inspect(Path(sys.argv[1])).line())
except TarballError as error:
    print(error.render())
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def header(kind: bytes, size: int) -> bytes:
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


def zeros(size: int) -> bytes:
    return tar(but(Member("kexec/initrd", bytes(size))))


def with_window(data: bytes, log: int) -> bytes:
    parameters = zstandard.ZstdCompressionParameters(compression_level=1, window_log=log)
    return zstandard.ZstdCompressor(compression_params=parameters).compress(data)


CASES: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "a zstd window of 128 MiB": (".tar.zst", lambda: with_window(zeros(150 << 20), 27), "more memory"),
    "zstd, small and then large": (".tar.zst", lambda: with_window(zeros(300 << 20), 20), "installer for"),
    "an xz dictionary of 64 MiB": (".tar.xz", lambda: lzma.compress(zeros(1 << 20), preset=9), "installer for"),
    "an xz dictionary of 512 MiB": (
        ".tar.xz",
        lambda: lzma.compress(
            zeros(1 << 20), filters=[{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 512 << 20}]
        ),
        "more memory",
    ),
    "a gzip bomb": (".tar.gz", lambda: gzip.compress(zeros(200 << 20), 1), "installer for"),
    "a pax header of a gigabyte": (
        ".tar.gz",
        lambda: gzip.compress(header(tarfile.XHDTYPE, 1 << 30) + bytes(100 << 20), 1),
        "too long",
    ),
    "a name of a gigabyte": (
        ".tar.gz",
        lambda: gzip.compress(header(tarfile.GNUTYPE_LONGNAME, 1 << 30) + bytes(100 << 20), 1),
        "too long",
    ),
    "a sparse map": (".tar", lambda: header(tarfile.GNUTYPE_SPARSE, 1 << 20) + bytes(2 << 20), "sparse"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_any_image_is_looked_into_with_at_most_100_mb(tmp_path: Path, case: str) -> None:
    suffix, make, said = CASES[case]
    path = tmp_path / f"image{suffix}"
    path.write_bytes(make())
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(path)], capture_output=True, text=True, check=True, timeout=120
    )
    *lines, used = done.stdout.splitlines()
    assert said in "\n".join(lines)
    assert int(used) < MOST
