"""A tar archive, read strictly and in little memory: what every tar unpacks alike, or nothing.

GNU tar, busybox and bsdtar disagree about odd archives: a lone zero block, a folder with a size, old
headers, sparse files. Such an archive is refused, so that what was looked at is what is unpacked.
The format: POSIX.1-2001, pax, "ustar interchange format"; GNU tar manual, "Basic Tar Format".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

_BLOCK = 512
_CHUNK = 1 << 18
_LONGEST_NAME = 4096  # bytes, as PATH_MAX
_LONGEST_HEADER = 1 << 16  # bytes of a pax header
_GNU, _POSIX = b"ustar  \0", b"ustar\00000"

Read = Callable[[int], bytes]


class Malformed(Exception):
    """Not an archive that every tar unpacks alike."""


class Type(Enum):
    """What a member is, by its type flag."""

    FILE = b"0"
    HARD_LINK = b"1"
    SYMLINK = b"2"
    FOLDER = b"5"


_OTHERS = {
    b"3": "a device", b"4": "a device", b"6": "a pipe", b"7": "a contiguous file", b"S": "a sparse file",
    b"M": "a part of a file", b"D": "a GNU dump folder", b"V": "a volume's name",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Member:
    """One member. Names as the archive has them, undecodable bytes as surrogates; `size` in bytes."""

    name: str
    type: Type
    size: int
    mode: int
    target: str


class Archive:
    """An archive that is read once from start to end. `read` gives up to so many bytes of it."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._left = 0
        self._padding = 0

    def members(self) -> Iterator[Member]:
        """Each member; its content is read between this one and the next. Raises Malformed."""
        long: dict[str, str] = {}
        while True:
            self._skip()
            block = self._exactly(_BLOCK)
            if not any(block):
                if long:
                    raise Malformed("it ends after a long name")
                self._expect_zeros()
                return
            flag, member = _parse(block)
            if flag in (b"L", b"K", b"x"):
                self._add(long, flag, member.size)
                continue
            self._left, self._padding = member.size, -member.size % _BLOCK
            yield _with_names(member, long)
            long = {}

    def content(self) -> Iterator[bytes]:
        """The content of the member at hand, in pieces. Raises Malformed."""
        while self._left:
            piece = self._read(min(_CHUNK, self._left))
            if not piece:
                raise Malformed("it ends too early")
            self._left -= len(piece)
            yield piece

    def _skip(self) -> None:
        for _piece in self.content():
            pass
        if self._padding and any(self._exactly(self._padding)):
            raise Malformed("there is something between two members")
        self._padding = 0

    def _add(self, long: dict[str, str], flag: bytes, size: int) -> None:
        """Read a long name (GNU) or a pax header."""
        if size > (_LONGEST_HEADER if flag == b"x" else _LONGEST_NAME):
            raise Malformed("a name in it is too long")
        data = self._exactly(size + -size % _BLOCK)[:size]
        more = _pax(data) if flag == b"x" else {"path" if flag == b"L" else "linkpath": _name(data)}
        if any(key in long for key in more):
            raise Malformed("a member of it has two names")
        long.update(more)

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self._read(count - len(data))
            if not piece:
                raise Malformed("it ends too early")
            data += piece
        return data

    def _expect_zeros(self) -> None:
        """One tar ends at a zero block, another one goes on behind it."""
        while piece := self._read(_CHUNK):
            if any(piece):
                raise Malformed("there is something behind its end")


def _parse(block: bytes) -> tuple[bytes, Member]:
    """A header block. The second value counts for the flags that are members, and for its size."""
    if block[257:265] not in (_GNU, _POSIX):
        raise Malformed("a header in it is not of the kind ustar or GNU")
    if _number(block[148:156]) != sum(block[:148]) + 8 * ord(" ") + sum(block[156:]):
        raise Malformed("a header in it has a wrong checksum")
    flag = block[156:157].replace(b"\0", b"0")
    name = _text(block[:100])
    if block[257:265] == _POSIX and block[345]:
        name = f"{_text(block[345:500])}/{name}"
    size = _number(block[124:136])
    if flag in (b"L", b"K", b"x"):
        return flag, Member(name, Type.FILE, size, 0, "")
    if flag == b"g":
        raise Malformed("it has a global pax header")
    try:
        kind = Type(flag)
    except ValueError:
        raise Malformed(f"{name!a} is {_OTHERS.get(flag, 'of an unknown kind')}") from None
    if kind is not Type.FILE and size:
        raise Malformed(f"{name!a} is no file, and has a size")
    if kind is Type.FILE and name.endswith("/"):
        raise Malformed(f"{name!a} is a file with the name of a folder")
    return flag, Member(name, kind, size, _number(block[100:108]), _text(block[157:257]))


def _with_names(member: Member, long: dict[str, str]) -> Member:
    return Member(
        long.get("path", member.name),
        member.type,
        member.size,
        member.mode,
        long.get("linkpath", member.target),
    )


def _number(field: bytes) -> int:
    """Octal digits, or binary where the highest bit of the first byte is set (GNU)."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if not digits:
        return 0
    if digits.strip(b"01234567"):
        raise Malformed("a number in it makes no sense")
    return int(digits, 8)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _name(data: bytes) -> str:
    """A long name, with the one zero behind it."""
    name = data.removesuffix(b"\0")
    if b"\0" in name:
        raise Malformed("a name in it holds a zero")
    return name.decode("utf-8", "surrogateescape")


def _pax(data: bytes) -> dict[str, str]:
    """The names in a pax header. What else changes the meaning of a member is refused."""
    found: dict[str, str] = {}
    while data:
        digits, blank, _rest = data.partition(b" ")
        if not (blank and digits.isdigit() and len(digits) < 6):
            raise Malformed("a pax header in it makes no sense")
        record, data = data[: int(digits)], data[int(digits) :]
        key, equals, value = record[len(digits) + 1 :].partition(b"=")
        if not equals or not value.endswith(b"\n") or len(record) != int(digits):
            raise Malformed("a pax header in it makes no sense")
        if key in (b"path", b"linkpath"):
            name = key.decode()
            if name in found:
                raise Malformed("a member of it has two names")
            found[name] = _name(value[:-1])
        elif key in (b"size", b"hdrcharset") or key.startswith((b"GNU.sparse", b"SCHILY.filetype")):
            raise Malformed(f"a pax header in it sets {key.decode('ascii', 'replace')}")
    return found
