"""What the cache knows about one image: its files' names, and `<sha256>.json` beside them.

A finished file is `<sha256 in hex><suffix of the URL>`; everything else that belongs to the same
hash ends in one of `UNFINISHED`, so that no tool ever takes a partial file for an image. A damaged
entry reads as an empty one: it costs a hash of the file, never a wrong file.
"""

from __future__ import annotations

import contextlib
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from nixa_tasks.files import read_json
from nixa_tasks.manifest.digest import parse_sha256

SUFFIXES = (".tar.gz", ".tar.xz", ".tar.zst", ".tar.bz2", ".tgz", ".txz", ".tzst", ".tar")
UNFINISHED = (".part", ".part.json", ".aside", ".aside.json", ".copy", ".wrong", ".wrong.json", ".lock")

# What a killed process leaves: copies and folders under random names, and JSON that was being written.
_TEMPORARY = re.compile(
    r"\.[A-Za-z0-9_]{8}\.(tmp|store)|\.store|(\.part|\.wrong|\.aside)?\.json\.([A-Za-z0-9_]{8}|tmp)"
)
_MISSING_FOR = timedelta(days=30)
_PENDING_FOR = timedelta(hours=1)
_MOST_PINS = 200


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
    if name.startswith("."):
        digest, rest = name[1:65], name[65:]
        if not is_temporary(name):
            return None
    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        return None
    return digest if rest in (*SUFFIXES, *UNFINISHED, "", ".json") or _TEMPORARY.fullmatch(rest) else None


def is_temporary(name: str) -> bool:
    """Whether a file of this name is of use only to the process that makes it."""
    return _TEMPORARY.fullmatch(name.removeprefix(".")[64:]) is not None


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
class Pin:
    """That a manifest pins an image. `at`: when that was last known, RFC 3339. `is_pending`: the
    manifest is about to be written, and does not hold the hash yet."""

    at: str
    is_pending: bool = False


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
    pinned_by: Mapping[str, Pin] = field(default_factory=dict)
    files: Mapping[str, Signature] = field(default_factory=dict)
    summary: Mapping[str, object] | None = None

    def to_json(self) -> dict[str, object]:
        return {
            "url": self.url,
            "fetched_at": self.fetched_at,
            "size": self.size,
            "etag": self.etag,
            "last_modified": self.last_modified,
            "pinned_by": {
                _to_text(path): {"at": pin.at, "is_pending": pin.is_pending}
                for path, pin in self.pinned_by.items()
            },
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

    size, summary = value.get("size"), value.get("summary")
    return Entry(
        url=text("url"),
        fetched_at=text("fetched_at"),
        size=size if isinstance(size, int) else 0,
        etag=text("etag"),
        last_modified=text("last_modified"),
        pinned_by=_pins(value.get("pinned_by"), text("fetched_at")),
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


def _pins(value: object, fetched_at: str) -> dict[str, Pin]:
    if isinstance(value, list):  # as it was written before pins had times
        return {pin: Pin(fetched_at) for pin in value if isinstance(pin, str)}
    if not isinstance(value, dict):
        return {}
    return {
        _from_text(path): Pin(pin["at"], pin.get("is_pending") is True)
        for path, pin in value.items()
        if isinstance(pin, dict) and isinstance(pin.get("at"), str)
    }


def _to_text(path: str) -> str:
    """A path as JSON can hold it: one that is not UTF-8 as a `file:` URL."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return Path(path).as_uri()
    return path


def _from_text(text: str) -> str:
    return os.fsdecode(unquote_to_bytes(urlsplit(text).path)) if text.startswith("file:") else text


def with_pin(entry: Entry, manifest: str, pin: Pin) -> Entry:
    """The entry with one more pin; the oldest go where there are very many (of a CI system that has a
    new folder for each job)."""
    pins = {path: old for path, old in entry.pinned_by.items() if path != manifest} | {manifest: pin}
    newest = sorted(pins, key=lambda path: pins[path].at)[-_MOST_PINS:]
    return replace(entry, pinned_by={path: pins[path] for path in pins if path in newest})


def is_pinned(manifest: str, pin: Pin, sha256: str, now: datetime) -> bool:
    """Whether the pin still counts: the manifest holds the hash, in any spelling; or can't be read as
    it is now (a typing error must not cost 350 MB); or is missing since less than 30 days (a disk that
    is not mounted); or is about to be written."""
    age = _age(pin.at, now)
    try:
        content = tomllib.loads(Path(manifest).read_text())
    except (FileNotFoundError, NotADirectoryError):
        return age < _MISSING_FOR
    except (OSError, ValueError):
        return True
    return sha256 in _pinned_in(content) or (pin.is_pending and age < _PENDING_FOR)


def _pinned_in(content: Mapping[str, object]) -> set[str]:
    """The hashes that a manifest's images have, in hex."""
    images = content.get("kexec")
    found: set[str] = set()
    for image in images.values() if isinstance(images, dict) else ():
        text = image.get("sha256") if isinstance(image, dict) else None
        if isinstance(text, str):
            with contextlib.suppress(ValueError):
                found.add(parse_sha256(text))
    return found


def _age(at: str, now: datetime) -> timedelta:
    try:
        then = datetime.fromisoformat(at)
        return now - (then if then.tzinfo else then.replace(tzinfo=UTC))
    except ValueError:
        return timedelta.max
