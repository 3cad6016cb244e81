"""From a URL to a verified file in the cache: once, whoever asks.

One run downloads, the others wait for it. What is fetched is kept whatever happens, and the next
try continues there. Bytes are thrown away only when a whole file proved that they are wrong: where
a server has other bytes than those that are here, these are set aside until the new file turned
out right, and come back if it did not.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from nixa_tasks.image.cache.cache import Cache, Note, Progress
from nixa_tasks.image.cache.entry import Entry, suffix_of
from nixa_tasks.image.download.http import Limits, Network
from nixa_tasks.image.errors import DiskFull, FetchError, SourceError, WrongFile, all_failed, wrong_file
from nixa_tasks.manifest.model import UrlImage

__all__ = ["DiskFull", "FetchError", "Limits", "Network", "SourceError", "WrongFile", "fetch"]


def fetch(
    image: UrlImage,
    cache: Cache,
    *,
    progress: Progress,
    note: Note,
    network: Network = Network(),  # noqa: B008 - frozen
) -> Path:
    """The image's file in the cache; fetched from its URL or its mirrors, in order, if it is not there.

    Raises FetchError, Interrupted, NixaError (the cache folder).
    """
    found = cache.find(image, note)
    if found is not None:
        return found
    until = cache.clock.monotonic() + network.limits.total
    with cache.locked(image.sha256, note):
        found = cache.find(image, note)  # whoever held the lock may have fetched it
        if found is not None:
            return found
        cache.discard_damaged(image.sha256)
        try:
            return _from_sources(image, cache, progress, note, network, until)
        except OSError as error:
            raise FetchError(
                f"{cache.folder} can't be written: {error.strerror or error}",
                hint="check that disk, or choose another folder by [fleet] cache or NIXA_CACHE",
            ) from error


def _from_sources(
    image: UrlImage, cache: Cache, progress: Progress, note: Note, network: Network, until: float
) -> Path:
    known = _from_wrong(image, cache, note)
    if known is not None:
        return known
    errors: list[SourceError] = []
    urls = tuple(dict.fromkeys((image.url, *image.mirrors)))
    for url in urls:
        if errors:
            note(f"{errors[-1].what}; trying {url}")
        try:
            if urlsplit(url).scheme in ("", "file"):
                return from_file(url, image, cache, progress)
            from nixa_tasks.image.download.source import Download

            download = Download(url, image, cache, progress, note, network, until)
            return download.run(is_last=url == urls[-1])
        except SourceError as error:
            errors.append(error)
    raise all_failed(image.name, errors)


def _from_wrong(image: UrlImage, cache: Cache, note: Note) -> Path | None:
    """A file that was fetched for another pin, and was wrong for that, may be the one wanted now:
    after `doit pin`, for one. Its hash decides."""
    from nixa_tasks.image.download.set_aside import WrongDownload

    for path in cache.folder.glob("*.wrong.json"):
        wrong = WrongDownload.read(path)
        file = path.with_suffix("")
        if wrong is None or wrong.sha256 != image.sha256 or not file.is_file():
            continue
        with cache.copy_of(file, image.sha256) as (copy, digest):
            if digest == image.sha256:
                note("it was fetched before, for another pin: nothing is fetched")
                path.unlink(missing_ok=True)
                file.unlink(missing_ok=True)
                entry = Entry(url=wrong.url, etag=wrong.etag, last_modified=wrong.last_modified)
                return cache.adopt(copy, image.sha256, suffix_of(image.url), entry)
    return None


def path_of(url: str) -> Path:
    """The path of a `file:` URL, or of a path."""
    return Path(unquote(urlsplit(url).path)) if url.startswith("file:") else Path(url)


def from_file(url: str, image: UrlImage, cache: Cache, progress: Progress) -> Path:
    """Copy a file of this machine into the cache, and hash the copy: blocks are shared where the file
    system can, and whatever somebody does to the original changes nothing here."""
    path = path_of(url)
    try:
        with cache.copy_of(path, image.sha256, progress) as (copy, digest):
            if digest == image.sha256:
                return cache.adopt(copy, image.sha256, suffix_of(image.url), Entry(url=url))
            size = copy.stat().st_size
    except OSError as error:
        raise SourceError(
            f"{path} can't be read: {error.strerror or error}", url=url, hint="copy the file there first"
        ) from error
    raise wrong_file(str(path), image.name, expected=image.sha256, got=digest, size=size, upstream="")
