"""What the cache knows about one image: its files' names, and `<sha256>.json` beside them.

A finished file is `<sha256 in hex><suffix of the URL>`; everything else that belongs to the same
hash ends in one of `UNFINISHED`, so that no tool ever takes a partial file for an image. A damaged
entry reads as an empty one: it costs a hash of the file, never a wrong file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from nixa_tasks.files import read_json
from nixa_tasks.manifest.digest import to_base32, to_sri

SUFFIXES = (".tar.gz", ".tar.xz", ".tar.zst", ".tar.bz2", ".tgz", ".txz", ".tzst", ".tar")
UNFINISHED = (".part", ".part.json", ".aside", ".aside.json", ".copy", ".wrong", ".wrong.json", ".lock")


def suffix_of(url: str) -> str:
    """The suffix that says how the file is compressed; "" where the URL says nothing known.

    >>> suffix_of("https://example.org/a/installer.tar.gz?token=1")
    '.tar.gz'
    >>> suffix_of("https://example.org/download")
    ''
    """
    path = unquote(urlsplit(url).path).lower()
    return next((suffix for suffix in SUFFIXES if path.endswith(suffix)), "")


def finished(sha256: str, url: str) -> str:
    """The name of the verified file.

    >>> finished("ab" * 32, "https://example.org/x.tar.xz")[-12:]
    'babab.tar.xz'
    """
    return sha256 + suffix_of(url)


def every_finished(sha256: str) -> tuple[str, ...]:
    """All names that a verified file of this hash may have."""
    return tuple(sha256 + suffix for suffix in (*SUFFIXES, ""))


def hash_in(name: str) -> str | None:
    """The hash that a file in the cache belongs to; None for a file that is not the cache's."""
    digest, rest = name[:64], name[64:]
    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        return None
    return digest if rest in (*SUFFIXES, *UNFINISHED, "", ".json") else None


def is_finished(name: str) -> bool:
    """Whether a file of this name is an image, rather than a part or a note about one."""
    return hash_in(name) is not None and name[64:] in (*SUFFIXES, "")


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


def is_pinned_by(manifest: str, sha256: str) -> bool:
    """Whether a manifest still holds the hash, in any spelling. The text is searched, not parsed:
    a typing error in the file must not cost 350 MB."""
    try:
        text = Path(manifest).read_text(errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True  # it is there, and not ours to read: keep what it may pin
    return to_sri(sha256) in text or sha256 in text.lower() or to_base32(sha256) in text
