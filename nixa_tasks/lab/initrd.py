"""Initial ram disks as a kernel reads them: cpio archives, packed or plain, one behind the other."""

from __future__ import annotations

import gzip
import lzma
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

_MAGIC = (b"070701", b"070702")
_HEADER = 110
_TRAILER = "TRAILER!!!"
_KEPT = 1 << 20  # larger files are padding: checked, not kept
_CHUNK = 1 << 20


class BrokenInitrd(Exception):
    """A kernel would not boot from this; the text says why."""


class _Decompressor(Protocol):
    """What zlib and lzma have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


def pack(files: Mapping[str, bytes | tuple[bytes, int]]) -> bytes:
    """A cpio archive (newc) of `files`: path → content, or (content, mode). The same bytes for the
    same files; folders are made as needed."""
    parts: list[bytes] = []
    folders: set[str] = set()
    for number, (path, value) in enumerate(files.items(), 1):
        content, mode = value if isinstance(value, tuple) else (value, 0o644)
        for folder in reversed(Path(path).parents[:-1]):
            if str(folder) not in folders:
                folders.add(str(folder))
                parts.append(_entry(str(folder), b"", 0o040755, 1000 + len(folders)))
        parts.append(_entry(path, content, 0o100000 | mode, number))
    parts.append(_entry(_TRAILER, b"", 0, 0))
    return b"".join(parts)


def compress(data: bytes) -> bytes:
    """gzip with stored blocks: the same bytes whatever zlib is installed."""
    return gzip.compress(data, compresslevel=0, mtime=0)


def _entry(path: str, content: bytes, mode: int, inode: int) -> bytes:
    name = path.encode() + b"\0"
    fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(header + name) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def unpack(path: Path) -> dict[str, bytes]:
    """The small files of a whole initrd; a later archive's file replaces an earlier one's.

    Raises BrokenInitrd for what a kernel would not take: a cut or damaged archive, rubbish.
    """
    found: dict[str, bytes] = {}
    with path.open("rb") as stream:
        data = b""
        while True:
            data = data.lstrip(b"\0")
            if data:
                archive, data = _segment(data, stream)
                found.update(archive)
                continue
            data = stream.read(_CHUNK)
            if not data:
                break
    if not found:
        raise BrokenInitrd("there is no file in it")
    return found


@dataclass(slots=True)
class _Source:
    """Bytes of one archive, as they are asked for."""

    chunks: Iterator[bytes]
    held: bytes = b""

    def take(self, size: int) -> bytes:
        parts, missing = [self.held], size - len(self.held)
        while missing > 0:
            chunk = next(self.chunks, b"")
            if not chunk:
                raise BrokenInitrd("it ends in the middle of a file")
            parts.append(chunk)
            missing -= len(chunk)
        data = b"".join(parts)
        self.held = data[size:]
        return data[:size]

    def skip(self, size: int) -> None:
        while size > 0:
            size -= len(self.take(min(size, _CHUNK)))


class _Stream(Protocol):
    def read(self, size: int = ..., /) -> bytes: ...


class _Inflated:
    """The plain bytes of a packed segment, and what follows it."""

    def __init__(self, engine: _Decompressor, first: bytes, stream: _Stream) -> None:
        self._engine, self._data, self._stream = engine, first, stream

    def __iter__(self) -> Iterator[bytes]:
        while not self._engine.eof:
            data = self._data or self._stream.read(_CHUNK)
            self._data = b""
            if not data:
                raise BrokenInitrd("a packed part of it is cut off")
            try:
                plain = self._engine.decompress(data)
            except (zlib.error, lzma.LZMAError) as error:
                raise BrokenInitrd(f"a packed part of it is damaged: {error}") from error
            if plain:
                yield plain

    def finish(self) -> bytes:
        """Read to the checksum at its end; returns what follows."""
        for _ in self:
            pass
        return self._engine.unused_data


def _segment(data: bytes, stream: _Stream) -> tuple[dict[str, bytes], bytes]:
    """One archive's files, and the bytes already read behind it."""
    while len(data) < 6 and (more := stream.read(_CHUNK)):
        data += more
    if data.startswith(b"\x1f\x8b"):
        inflated = _Inflated(zlib.decompressobj(31), data, stream)
    elif data.startswith(b"\xfd7zXZ"):
        inflated = _Inflated(lzma.LZMADecompressor(), data, stream)
    elif data.startswith(_MAGIC):
        source = _Source(iter(lambda: stream.read(_CHUNK), b""), data)
        return _archive(source), source.held
    else:
        raise BrokenInitrd(f"it holds what is no archive: {data[:6]!r}")
    files = _archive(_Source(iter(inflated)))
    return files, inflated.finish()


def _archive(source: _Source) -> dict[str, bytes]:
    """The files of a cpio archive, up to its trailer."""
    found: dict[str, bytes] = {}
    while True:
        header = source.take(_HEADER)
        if not header.startswith(_MAGIC):
            raise BrokenInitrd(f"it holds what is no cpio header: {header[:6]!r}")
        try:
            size, name_size = int(header[54:62], 16), int(header[94:102], 16)
            mode = int(header[14:22], 16)
        except ValueError as error:
            raise BrokenInitrd("it holds a cpio header without numbers") from error
        name = source.take(name_size + -(_HEADER + name_size) % 4)[: name_size - 1].decode("utf-8", "replace")
        if name == _TRAILER:
            return found
        if mode & 0o170000 == 0o100000 and size <= _KEPT:
            found[name.removeprefix("./")] = source.take(size)
        else:
            source.skip(size)
        source.skip(-size % 4)
