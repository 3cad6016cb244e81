"""The bytes of one file that are here so far, which they are, and their running hash.

While they come in order, the file's own length says how many are good, so nothing else has to be
written. As soon as a byte is written beyond the first gap, a map beside the file says which parts
are; it is written before, and after every `FLUSH` bytes, so that a process killed at any moment
loses at most that many.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from nixa_tasks.files import read_json
from nixa_tasks.image.errors import ContentChanged

FLUSH = 1 << 18
_NOTICE = 1 << 20  # the hash follows in steps of this size

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Origin:
    """Which file the bytes are of: what its server said. `validator` is what `If-Range` takes: a
    strong ETag or date, or "" where there is none. `size` in bytes; None where not told."""

    url: str = ""
    etag: str = ""
    last_modified: str = ""
    validator: str = ""
    size: int | None = None

    def contradicts(self, later: Origin) -> bool:
        """Whether a later answer is of another file: one of what both tell differs."""
        pairs = (
            (_opaque(self.etag), _opaque(later.etag)),
            (self.last_modified, later.last_modified),
            (self.size, later.size),
        )
        return any(a != b for a, b in pairs if a not in ("", None) and b not in ("", None))

    def is_same_as(self, later: Origin) -> bool:
        """Whether a later answer is of this file, as far as validators and size can tell."""
        has_validator = bool((self.etag and later.etag) or (self.last_modified and later.last_modified))
        return has_validator and self.size == later.size is not None and not self.contradicts(later)

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> Origin:
        texts = {
            one.name: found
            for one in fields(cls)
            if one.name != "size" and isinstance(found := value.get(one.name), str)
        }
        size = value.get("size")
        return cls(**texts, size=size if type(size) is int and size >= 0 else None)


def _opaque(etag: str) -> str:
    """An ETag without its mark of weakness: a change of that alone is no change of the file."""
    return etag.removeprefix("W/")


def add(spans: list[Span], new: Span) -> list[Span]:
    """Spans with one more, sorted and merged.

    >>> add([(0, 3), (7, 9)], (3, 5))
    [(0, 5), (7, 9)]
    """
    result: list[Span] = []
    for start, end in sorted([*spans, new]):
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        elif end > start:
            result.append((start, end))
    return result


def gaps(spans: list[Span], size: int) -> list[Span]:
    """What is missing below `size`.

    >>> gaps([(0, 5), (7, 9)], 10)
    [(5, 7), (9, 10)]
    """
    result: list[Span] = []
    at = 0
    for start, end in spans:
        if start > at:
            result.append((at, min(start, size)))
        at = max(at, end)
    if at < size:
        result.append((at, size))
    return [(start, end) for start, end in result if start < end]


class Part:
    """An open partial file, written by several threads. Raises OSError where the disk does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.map_path = path.with_name(path.name + ".json")
        self.changed = threading.Condition()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        self._closed = False
        self._unflushed = 0
        self._noticed = 0
        state = read_json(self.map_path)
        found = os.fstat(self._file)
        self.origin = Origin.from_json(state or {})
        spans = _spans((state or {}).get("spans"), found.st_size)
        if spans is None:  # in order, or a map that can't be read: a file with holes is then no good
            has_holes = state is None and found.st_blocks * 512 < found.st_size
            spans = [] if has_holes or not found.st_size else [(0, found.st_size)]
        self._is_mapped = len(spans) > 1 or spans not in ([], [(0, found.st_size)])
        self._spans = spans
        size = self.origin.size
        if size is not None and self.kept > 0 and spans[-1][1] > size:
            self.restart()
        self.source: str | None = "" if self._spans else None
        self.is_joined = bool(self._spans)

    # --- what is here

    @property
    def kept(self) -> int:
        return sum(end - start for start, end in self._spans)

    @property
    def prefix(self) -> int:
        """How many bytes are here without a gap, from the start."""
        spans = self._spans
        return spans[0][1] if spans and spans[0][0] == 0 else 0

    def missing(self) -> list[Span]:
        """The gaps; only where the size is known. No gap: it is whole."""
        with self.changed:
            return gaps(self._spans, self.origin.size or 0)

    @property
    def is_whole(self) -> bool:
        return self.origin.size is not None and self.prefix >= self.origin.size

    def read(self, view: memoryview, at: int) -> int:
        return os.preadv(self._file, [view], at)

    def cut(self, size: int) -> None:
        """Forget what came after the first `size` bytes, which came in order. Raises OSError."""
        with self.changed:
            if self._is_mapped or self.prefix < size or self._closed:
                return
            os.ftruncate(self._file, size)
            self._spans = [(0, size)] if size else []
            self.origin = replace(self.origin, size=None)
            self.flush()

    def comes_from(self, url: str) -> None:
        """Note which source the bytes to come are from: `source` stays that URL as long as every
        byte was written by this process and came from it."""
        if not self.kept:
            self.source = url
        elif self.source != url:
            self.source = ""

    # --- changing

    def merge(self, data: memoryview, at: int) -> None:
        """Write what is missing, and compare what is here already.

        Raises ContentChanged where it differs, ValueError after `close`.
        """
        end = at + len(data)
        with self.changed:
            if self._closed:
                raise ValueError("the part is closed")
            spans = self._spans
            if len(spans) <= 1 and at == (spans[0][1] if spans else 0) and (not spans or spans[0][0] == 0):
                holes = [(at, end)]  # the common case: it comes in order
            else:
                holes = [(max(a, at), min(b, end)) for a, b in gaps(spans, end) if b > at]
        self._compare(data, at, holes)
        for start, stop in holes:
            if not self._is_mapped and start != self.prefix:
                with self.changed:
                    self._is_mapped = True
                    self.flush()
            self._write(data[start - at : stop - at], start)
            with self.changed:
                self._spans = add(self._spans, (start, stop))
                self._unflushed += stop - start
                if self._is_mapped and self._unflushed >= FLUSH:
                    self.flush()
                if self.prefix - self._noticed >= _NOTICE:
                    self._noticed = self.prefix
                    self.changed.notify_all()

    def _write(self, data: memoryview, at: int) -> None:
        while data:
            count = os.pwrite(self._file, data, at)
            data, at = data[count:], at + count

    def _compare(self, data: memoryview, at: int, holes: list[Span]) -> None:
        for start, end in gaps([(a - at, b - at) for a, b in holes], len(data)):
            here = memoryview(bytearray(end - start))
            if self.read(here, at + start) != end - start or here != data[start:end]:
                raise ContentChanged

    def told(self, origin: Origin) -> None:
        """The server said what it sends."""
        with self.changed:
            if origin != self.origin and not self._closed:
                self.origin = origin
                self.flush()

    def flush(self) -> None:
        """Write the map, in one step. Not synced: what the kernel has survives the process."""
        state: dict[str, object] = asdict(self.origin)
        state["spans"] = [list(span) for span in self._spans] if self._is_mapped else None
        temporary = self.map_path.with_name(self.map_path.name + ".tmp")
        temporary.write_text(json.dumps(state))
        temporary.replace(self.map_path)
        self._unflushed = 0

    def restart(self) -> None:
        """Forget every byte."""
        with self.changed:
            os.ftruncate(self._file, 0)
            self._spans, self._is_mapped, self._noticed, self.source = [], False, 0, None
            self.is_joined = False
            self.origin = Origin()
            self.flush()

    def sync(self) -> None:
        os.fsync(self._file)

    def close(self) -> None:
        """Nothing is written from now on."""
        with self.changed:
            if not self._closed:
                self._closed = True
                with contextlib.suppress(OSError):  # a full disk: the old map is right, only older
                    if self.path.exists():
                        self.flush()
                os.close(self._file)
                self.changed.notify_all()

    @property
    def is_closed(self) -> bool:
        return self._closed


def _spans(value: object, length: int) -> list[Span] | None:
    """The spans of a map; None where it has none, or says more than the file can hold."""
    if not isinstance(value, list):
        return None
    result: list[Span] = []
    for pair in value:
        if not (isinstance(pair, list) and len(pair) == 2 and all(type(each) is int for each in pair)):
            return []
        start, end = pair
        if not 0 <= start < end <= length:
            return []
        result = add(result, (start, end))
    return result


SYNC = 16 << 20


class Follower:
    """Hashes a part as its bytes come, in a thread of its own, by reading back what was written:
    from the page cache, so it costs a copy, and what is hashed is what is on the disk."""

    def __init__(self, part: Part) -> None:
        import hashlib

        self._part = part
        self._digest = hashlib.sha256()
        self._done = 0
        self._error: OSError | None = None
        self._until: int | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._follow, name="sha256", daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        block = memoryview(bytearray(1 << 20))
        part, synced = self._part, 0
        try:
            while not self._stopped:
                with part.changed:
                    ready = min(part.prefix, self._until or part.prefix) - self._done
                    is_idle = ready < len(block) and self._until is None
                    if is_idle and self._done - synced < SYNC:
                        part.changed.wait(0.1)
                        continue
                    if ready <= 0 and not is_idle:
                        return
                if is_idle:  # a slow network leaves time for the disk, so that little is left at the end
                    part.sync()
                    synced = self._done
                    continue
                count = part.read(block[: min(ready, len(block))], self._done)
                if count == 0:
                    raise OSError(5, "the file became shorter")
                self._digest.update(block[:count])
                self._done += count
        except OSError as error:
            self._error = error

    def finish(self, size: int) -> str:
        """The SHA-256 in hex of the first `size` bytes, which are all here. Raises OSError."""
        with self._part.changed:
            self._until = size
            self._part.changed.notify_all()
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._digest.hexdigest()

    def stop(self) -> None:
        self._stopped = True
        with self._part.changed:
            self._part.changed.notify_all()
        self._thread.join()
