"""What the cache knows about one image: `<sha256>.json` beside it.

A damaged entry reads as an empty one: it costs a hash of the file, never a wrong file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nixa_tasks.files import read_json


@dataclass(frozen=True, slots=True)
class Signature:
    """How a file looked when it was found right. Times are nanoseconds; `ctime` can't be set by
    hand, so a file written behind our back never looks untouched."""

    size: int
    mtime: int
    ctime: int
    inode: int

    @classmethod
    def of(cls, found: os.stat_result) -> Signature:
        return cls(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


@dataclass(frozen=True, slots=True)
class Entry:
    """Where an image came from, when, its size, who pinned it, and how its files looked.

    `etag` and `last_modified` are what the server said of it; `summary` is what the look inside
    found (`tarball.Summary` as JSON).
    """

    url: str = ""
    fetched_at: str = ""
    size: int = 0
    etag: str = ""
    last_modified: str = ""
    pinned_by: tuple[str, ...] = ()
    files: Mapping[str, Signature] = field(default_factory=dict)
    summary: Mapping[str, object] | None = None

    def to_json(self) -> dict[str, object]:
        return {
            "url": self.url,
            "fetched_at": self.fetched_at,
            "size": self.size,
            "etag": self.etag,
            "last_modified": self.last_modified,
            "pinned_by": list(self.pinned_by),
            "files": {
                name: [each.size, each.mtime, each.ctime, each.inode] for name, each in self.files.items()
            },
            "summary": self.summary,
        }


def read_entry(path: Path) -> Entry:
    """The entry in a file; what is missing or of a wrong type in it is left empty."""
    value = read_json(path) or {}

    def text(key: str) -> str:
        found = value.get(key)
        return found if isinstance(found, str) else ""

    size, pins, summary = value.get("size"), value.get("pinned_by"), value.get("summary")
    return Entry(
        url=text("url"),
        fetched_at=text("fetched_at"),
        size=size if isinstance(size, int) else 0,
        etag=text("etag"),
        last_modified=text("last_modified"),
        pinned_by=tuple(pin for pin in pins if isinstance(pin, str)) if isinstance(pins, list) else (),
        files=_signatures(value.get("files")),
        summary=summary if isinstance(summary, dict) else None,
    )


def _signatures(value: object) -> dict[str, Signature]:
    if not isinstance(value, dict):
        return {}
    return {
        name: Signature(*numbers)
        for name, numbers in value.items()
        if isinstance(numbers, list) and len(numbers) == 4 and all(type(each) is int for each in numbers)
    }
