"""A static program of a few dozen instructions' bytes: what stands for `kexec` in the lab's image.

It becomes another program, with its own arguments and environment, and ends with 127 where that
one does not exist. Written as bytes, so that the lab needs no compiler.
"""

from __future__ import annotations

import struct

_BASE = 0x400000
_HEADERS = 64 + 56
_MACHINES = {"x86_64-linux": 62, "aarch64-linux": 183}

# execve(PATH, argv, envp); exit(127). At the start the stack holds argc, argv, 0, envp.
_X86_64_BEFORE_PATH = bytes.fromhex(
    "488d742408"  # lea rsi, [rsp+8]
    "488b0c24"  # mov rcx, [rsp]
    "488d54ce08"  # lea rdx, [rsi+rcx*8+8]
    "488d3d13000000"  # lea rdi, [rip+19]: the path behind the code
    "b83b000000"  # mov eax, 59 (execve)
    "0f05"  # syscall
    "bf7f000000"  # mov edi, 127
    "b83c000000"  # mov eax, 60 (exit)
    "0f05"  # syscall
)
_AARCH64_BEFORE_PATH = struct.pack(
    "<10I",
    0xF94003E3,  # ldr x3, [sp]
    0x910023E1,  # add x1, sp, #8
    0x8B030C22,  # add x2, x1, x3, lsl #3
    0x91002042,  # add x2, x2, #8
    0x100000C0,  # adr x0, .+24: the path behind the code
    0xD2801BA8,  # mov x8, #221 (execve)
    0xD4000001,  # svc #0
    0xD2800FE0,  # mov x0, #127
    0xD2800BA8,  # mov x8, #93 (exit)
    0xD4000001,  # svc #0
)
_CODE = {"x86_64-linux": _X86_64_BEFORE_PATH, "aarch64-linux": _AARCH64_BEFORE_PATH}


def program(path: str, system: str) -> bytes:
    """A whole ELF file for `system` that becomes `path`. Raises KeyError for an unknown system."""
    body = _CODE[system] + path.encode() + b"\0"
    size = _HEADERS + len(body)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01", 2, _MACHINES[system], 1, _BASE + _HEADERS, 64, 0, 0, 64, 56, 1, 0, 0, 0,
    )  # fmt: skip
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000)
    return header + segment + body
