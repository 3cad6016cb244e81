"""The program that stands for `kexec` in the lab's image: real ELF, and it really becomes another one."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

import pytest

from nixa_tasks.lab import elf
from nixa_tasks.lab.paths import system


def _install(folder: Path, program: str) -> Path:
    file = folder / "kexec"
    file.write_bytes(elf.program(program, system()))
    file.chmod(0o755)
    return file


@pytest.mark.parametrize(("name", "machine"), [("x86_64-linux", 62), ("aarch64-linux", 183)])
def test_the_header_names_the_architecture_and_one_segment_that_holds_the_file(
    name: str, machine: int
) -> None:
    data = elf.program("/run/lab/fw/kexec", name)

    assert data[:7] == b"\x7fELF\x02\x01\x01"
    kind, found = struct.unpack_from("<HH", data, 16)
    assert (kind, found) == (2, machine)
    entry, program_headers = struct.unpack_from("<QQ", data, 24)
    load, flags, offset, address, _, in_file, in_memory = struct.unpack_from(
        "<IIQQQQQ", data, program_headers
    )
    assert (load, flags, offset) == (1, 5, 0)
    assert in_file == in_memory == len(data)
    assert address < entry < address + len(data)


@pytest.mark.parametrize("name", ["x86_64-linux", "aarch64-linux"])
def test_the_code_points_at_its_path(name: str) -> None:
    data = elf.program("/a/program", name)

    (entry,) = struct.unpack_from("<Q", data, 24)
    (address,) = struct.unpack_from("<Q", data, 64 + 16)
    code = entry - address
    if name == "x86_64-linux":  # lea rdi, [rip+distance], seven bytes long
        at = data.index(b"\x48\x8d\x3d", code)
        path = at + 7 + struct.unpack_from("<i", data, at + 3)[0]
    else:  # adr x0, distance: bits 5 to 23 count four bytes each
        at = code + 16
        path = at + ((struct.unpack_from("<I", data, at)[0] >> 5) & 0x7FFFF) * 4
    assert data[path:] == b"/a/program\0"


def test_it_becomes_the_program_with_its_own_arguments_and_environment(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text('#!/bin/sh\nprintf "%s|" "$#" "$@" "$MARK"\nexit 7\n')
    target.chmod(0o755)

    done = subprocess.run(
        (_install(tmp_path, str(target)), "--load", "", "a b"),
        env={**os.environ, "MARK": "kept"}, capture_output=True, text=True, timeout=10, check=False,
    )  # fmt: skip

    assert (done.returncode, done.stdout) == (7, "3|--load||a b|kept|")


def test_it_ends_with_127_where_there_is_no_such_program(tmp_path: Path) -> None:
    program = _install(tmp_path, str(tmp_path / "missing"))

    assert subprocess.run((program, "-e"), timeout=10, check=False).returncode == 127


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(KeyError):
        elf.program("/run/lab/fw/kexec", "riscv64-linux")
