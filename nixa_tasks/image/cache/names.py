"""How the files of one image are called in the cache. Pure.

A finished file is `<sha256 in hex><suffix of the URL>`; everything else that belongs to the same
hash ends in a word of `UNFINISHED`, so that no tool ever takes a partial file for an image.
"""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

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
