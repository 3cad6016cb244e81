"""From a URL to a verified file in the cache: once, whoever asks.

One run downloads, the others wait for it. What is fetched is kept whatever happens, and the next
try goes on there. Bytes are thrown away only when a whole file proved that they are wrong: where
a server has other bytes than those that are kept, these are set aside until the new file turned
out right, and come back if it did not.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from nixa_tasks.image.cache.cache import Cache, Note, Progress
from nixa_tasks.image.cache.entry import Entry, suffix_of
from nixa_tasks.image.download.http import Limits
from nixa_tasks.image.errors import DiskFull, FetchError, SourceError, WrongFile, all_failed, wrong_file
from nixa_tasks.manifest.model import UrlImage

__all__ = ["DiskFull", "FetchError", "Limits", "SourceError", "WrongFile", "fetch"]


def fetch(
    image: UrlImage,
    cache: Cache,
    *,
    progress: Progress,
    note: Note,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    clock: Callable[[], float] = time.monotonic,
    api: str | None = None,
) -> Path:
    """The image's file in the cache; fetched from its URL or its mirrors, in order, if it is not there.

    Raises FetchError, Interrupted, NixaError (the cache folder).
    """
    found = cache.find(image, note)
    if found is not None:
        return found
    until = clock() + limits.total
    with cache.locked(image.sha256, note):
        found = cache.find(image, note)  # whoever held the lock may have fetched it
        if found is not None:
            return found
        try:
            return _from_sources(image, cache, progress, note, limits, until, api)
        except OSError as error:
            raise FetchError(
                f"{cache.folder} can't be written: {error.strerror or error}",
                hint="look at that disk, or choose another folder by [fleet] cache or NIXA_CACHE",
            ) from error


def _from_sources(
    image: UrlImage,
    cache: Cache,
    progress: Progress,
    note: Note,
    limits: Limits,
    until: float,
    api: str | None,
) -> Path:
    known = _from_wrong(image, cache, note)
    if known is not None:
        return known
    errors: list[SourceError] = []
    for url in dict.fromkeys((image.url, *image.mirrors)):
        if errors:
            note(f"{errors[-1].what}; trying {url}")
        try:
            if urlsplit(url).scheme in ("", "file"):
                return _from_file(url, image, cache, progress)
            from nixa_tasks.image.download.source import Download

            return Download(url, image, cache, progress, note, limits, until, api).run()
        except SourceError as error:
            errors.append(error)
    raise all_failed(image.name, errors)


def _from_wrong(image: UrlImage, cache: Cache, note: Note) -> Path | None:
    """A file that was fetched for another pin, and was wrong for that, may be the one wanted now:
    after `doit pin`, for one. Its hash decides."""
    from nixa_tasks.files import read_json
    from nixa_tasks.image.cache.files import hash_file

    for path in cache.folder.glob("*.wrong.json"):
        value = read_json(path) or {}
        file = path.with_suffix("")
        if value.get("sha256") != image.sha256 or not file.is_file() or hash_file(file) != image.sha256:
            continue
        note("it was fetched before, for another pin: nothing is fetched")
        path.unlink()
        url, etag, changed = (str(value.get(key) or "") for key in ("url", "etag", "last_modified"))
        entry = Entry(url=url, etag=etag, last_modified=changed)
        return cache.adopt(file, image.sha256, suffix_of(image.url), entry)
    return None


def _from_file(url: str, image: UrlImage, cache: Cache, progress: Progress) -> Path:
    """Hash a file of this machine, and put it into the cache: no bytes are copied where the file
    system can share them."""
    from nixa_tasks.image.cache.entry import Signature
    from nixa_tasks.image.cache.files import clone, hash_file

    path = Path(unquote(urlsplit(url).path)) if url.startswith("file:") else Path(url)
    copy = cache.file(image.sha256, ".copy")
    try:
        clone(path, copy)
        digest = hash_file(copy, progress)
        found = copy.stat()
    except OSError as error:
        copy.unlink(missing_ok=True)
        raise SourceError(
            f"{path} can't be taken: {error.strerror or error}", url=url, hint="carry the file there first"
        ) from error
    if digest != image.sha256:
        copy.unlink()
        raise wrong_file(
            str(path), image.name, expected=image.sha256, got=digest, size=found.st_size, upstream=""
        )
    if Signature.of(copy.stat()) != Signature.of(found):
        copy.unlink()
        raise SourceError(f"{path} changed while it was read", url=url, hint="try again when it is whole")
    return cache.adopt(copy, image.sha256, suffix_of(image.url), Entry(url=url))
