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
            with lzma.LZMAFile(file) as stream:
                yield from iter(lambda: stream.read(_BLOCK), b"")
        case Compression.ZSTD:
            yield from _zstd(file)
        case Compression.NONE:
            yield from iter(lambda: file.read(_BLOCK), b"")
        case _:
            assert_never(kind)


def _zstd(file: BinaryIO) -> Iterator[bytes]:
    """Frame after frame. The window is bounded as by `zstd -d`, so that a header can't ask for all
    memory."""
    import zstandard

    try:
        frame = None
        while block := file.read(_BLOCK):
            while block:
                if frame is None:
                    frame = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
                piece = frame.decompress(block)
                if piece:
                    yield piece
                if not frame.eof:
                    break
                block, frame = frame.unused_data, None
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error
    if frame is not None:
        raise EOFError
