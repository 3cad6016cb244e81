"""Streams of compressed files: what they are by their first bytes, and their content, to the end.

Every reader tells a truncated or damaged stream by an exception, which not every library's
own reader does.
"""

from __future__ import annotations

import gzip
import lzma
import zlib
from collections.abc import Iterator
from enum import StrEnum
from typing import BinaryIO, assert_never

_BLOCK = 1 << 18
_LARGEST_WINDOW = 1 << 26  # bytes, of zstd
_MOST_MEMORY = 80 << 20  # bytes, of xz: the dictionary of `xz -9` is 64 MiB
_TOO_MUCH = (
    "it needs more memory to unpack than nixa gives it; compress it with a smaller window (xz -9, zstd -19)"
)


class Compression(StrEnum):
    """How a tarball is compressed."""

    GZIP = "gz"
    XZ = "xz"
    ZSTD = "zst"
    NONE = "none"


class Damaged(Exception):
    """A stream that ends too early, or is no stream of its kind."""


_OF_SUFFIX = {
    ".tar.gz": Compression.GZIP,
    ".tgz": Compression.GZIP,
    ".tar.xz": Compression.XZ,
    ".txz": Compression.XZ,
    ".tar.zst": Compression.ZSTD,
    ".tzst": Compression.ZSTD,
    ".tar": Compression.NONE,
}


def of_name(name: str) -> Compression | None:
    """What a file's name says; None where it says nothing.

    >>> of_name("installer.tar.zst")
    <Compression.ZSTD: 'zst'>
    """
    return next((kind for suffix, kind in _OF_SUFFIX.items() if name.lower().endswith(suffix)), None)


def of_bytes(head: bytes) -> Compression | None:
    """What the first 512 bytes say; None for none of these."""
    if head.startswith(b"\x1f\x8b"):
        return Compression.GZIP
    if head.startswith(b"\xfd7zXZ\x00"):
        return Compression.XZ
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        return Compression.ZSTD
    return Compression.NONE if head[257:262] == b"ustar" else None


class Content:
    """The decompressed content, read once from start to end; never more than `most` bytes of it."""

    def __init__(self, file: BinaryIO, kind: Compression, most: int) -> None:
        self._pieces = _pieces(file, kind)
        self._rest = b""
        self._most = most
        self.count = 0

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; none at the end. Raises Damaged."""
        if not self._rest:
            try:
                self._rest = next(self._pieces, b"")
            except EOFError as error:
                raise Damaged("it ends too early") from error
            except (OSError, zlib.error, lzma.LZMAError, ValueError) as error:
                raise Damaged(str(error)) from error
        piece, self._rest = self._rest[:size], self._rest[size:]
        self.count += len(piece)
        if self.count > self._most:
            raise Damaged(f"it unpacks to more than {self._most >> 30} GiB")
        return piece


def _pieces(file: BinaryIO, kind: Compression) -> Iterator[bytes]:
    match kind:
        case Compression.GZIP:
            with gzip.GzipFile(fileobj=file, mode="rb") as stream:
                yield from iter(lambda: stream.read(_BLOCK), b"")
        case Compression.XZ:
            yield from _xz(file)
        case Compression.ZSTD:
            yield from _zstd(file)
        case Compression.NONE:
            yield from iter(lambda: file.read(_BLOCK), b"")
        case _:
            assert_never(kind)


def _xz(file: BinaryIO) -> Iterator[bytes]:
    """Stream after stream, each with a bounded dictionary and bounded pieces."""
    data = file.read(_BLOCK)
    while data:
        stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MOST_MEMORY)
        while not stream.eof:
            try:
                piece = stream.decompress(data, _BLOCK)
            except lzma.LZMAError as error:
                if "emory" in str(error):  # liblzma has no error of its own for Python here
                    raise ValueError(_TOO_MUCH) from error
                raise
            if piece:
                yield piece
            data = file.read(_BLOCK) if stream.needs_input and not stream.eof else b""
            if not data and stream.needs_input and not stream.eof:
                raise EOFError
        data = stream.unused_data or file.read(_BLOCK)
        while data and not data.strip(b"\0"):  # padding between streams
            data = file.read(_BLOCK)
        data = data.lstrip(b"\0")


def _zstd(file: BinaryIO) -> Iterator[bytes]:
    """Frame after frame, each with a bounded window and bounded pieces. The library's reader does not
    tell a cut file, so its frames are walked first."""
    import zstandard

    _walk_frames(file)
    file.seek(0)
    try:
        decompressor = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW)
        with decompressor.stream_reader(file, read_across_frames=True, closefd=False) as stream:
            yield from iter(lambda: stream.read(_BLOCK), b"")
    except zstandard.ZstdError as error:
        raise ValueError(_TOO_MUCH if "too much memory" in str(error) else str(error)) from error


def _walk_frames(file: BinaryIO) -> None:
    """Whether every frame of a zstd file is whole, by its blocks' lengths (RFC 8878, 3.1).
    Raises EOFError, ValueError."""

    def take(count: int) -> bytes:
        data = file.read(count)
        if len(data) < count:
            raise EOFError
        return data

    end = file.seek(0, 2)
    file.seek(0)
    while file.tell() < end:
        magic = int.from_bytes(take(4), "little")
        if magic >> 4 == 0x184D2A5:  # a frame to be skipped
            file.seek(int.from_bytes(take(4), "little"), 1)
            continue
        if magic != 0xFD2FB528:
            raise ValueError("there is something behind its end")
        flags = take(1)[0]
        is_single, has_checksum = flags & 0x20, flags & 0x04
        take((0 if is_single else 1) + (0, 1, 2, 4)[flags & 3] + (1 if is_single else 0, 2, 4, 8)[flags >> 6])
        is_last = False
        while not is_last:
            header = int.from_bytes(take(3), "little")
            is_last = bool(header & 1)
            is_repeated = header >> 1 & 3 == 1
            file.seek(1 if is_repeated else header >> 3, 1)
        if has_checksum:
            take(4)
    if file.tell() > end:
        raise EOFError
