"""What the pinned URL gives now: for `doit pin:IMAGE`, and `doit pin --check`."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

from nixa_tasks.files import read_json
from nixa_tasks.image import github
from nixa_tasks.image.cache.cache import Cache, Note, Progress
from nixa_tasks.image.download.fetch import fetch
from nixa_tasks.image.download.http import Limits, Wire
from nixa_tasks.image.errors import SourceError
from nixa_tasks.manifest.digest import to_sri
from nixa_tasks.manifest.model import UrlImage


@dataclass(frozen=True, slots=True)
class Found:
    """The file that is upstream now, and in the cache: `size` in bytes; `source` says who said so."""

    sha256: str
    size: int
    path: Path
    source: str


class State(StrEnum):
    """How a pin stands to what is upstream."""

    CURRENT = "current"
    OUT_OF_DATE = "out of date"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What `doit pin --check` says of one image. `text` tells why."""

    image: str
    state: State
    text: str

    @property
    def is_outdated(self) -> bool:
        return self.state is State.OUT_OF_DATE


def look(
    image: UrlImage,
    *,
    cache: Cache,
    progress: Progress,
    note: Note,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    api: str | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Found:
    """Find the current hash, and have the file in the cache under it. Raises FetchError.

    Where the URL is a GitHub release asset, the API's digest is asked first: a file that the cache
    has already is then not fetched, and one that is fetched is held to the digest.
    """
    wanted = github.asset(image.url)
    if wanted is not None:
        with Wire(limits) as wire:
            said = github.ask(wire, wanted, api)
        if said.sha256 is not None:
            now = replace(image, sha256=said.sha256, mirrors=())
            path = fetch(now, cache, progress=progress, note=note, limits=limits, clock=clock, api=api)
            return Found(said.sha256, path.stat().st_size, path, "GitHub's digest, and the file itself")
        note("GitHub has no digest for this file; its bytes alone decide")
    known = _unchanged(image, cache, limits)
    if known is not None:
        path = fetch(
            replace(image, sha256=known), cache, progress=progress, note=note, limits=limits, clock=clock
        )
        return Found(known, path.stat().st_size, path, "the server: unchanged since it was fetched")
    return _by_download(image, cache, progress, note, limits, clock() + limits.total)


def _unchanged(image: UrlImage, cache: Cache, limits: Limits) -> str | None:
    """The hash of the file that was fetched from the URL before, right or wrong for its pin, if the
    server says by its ETag that it still has that one."""
    known = {}
    entry, wrong = cache.entry(image.sha256), read_json(cache.file(image.sha256, ".wrong.json")) or {}
    if entry.url == image.url and cache.find(image) is not None:
        known[entry.etag] = image.sha256
    if wrong.get("url") == image.url and cache.file(image.sha256, ".wrong").is_file():
        known[str(wrong.get("etag"))] = str(wrong.get("sha256"))
    with Wire(limits) as wire:
        for etag, sha256 in known.items():
            if etag.startswith('"') and urlsplit(image.url).scheme.startswith("http"):
                with wire.get(image.url, {"If-None-Match": etag}) as reply:
                    if reply.status == 304:
                        return sha256
    return None


def _by_download(
    image: UrlImage, cache: Cache, progress: Progress, note: Note, limits: Limits, until: float
) -> Found:
    from nixa_tasks.image.cache.files import hash_file
    from nixa_tasks.image.download.source import Download

    if urlsplit(image.url).scheme in ("", "file"):
        file = Path(urlsplit(image.url).path)
        try:
            digest = hash_file(file)
        except OSError as error:
            raise SourceError(f"{file} can't be read: {error.strerror}", url=image.url) from error
        now = replace(image, sha256=digest, mirrors=())
        path = fetch(now, cache, progress=progress, note=note, limits=limits)
        return Found(digest, path.stat().st_size, path, "the file itself")
    key = hashlib.sha256(b"upstream of " + image.url.encode()).hexdigest()
    unknown = replace(image, sha256=key, mirrors=())
    with cache.locked(key, note):
        path, digest = Download(image.url, unknown, cache, progress, note, limits, until).run_unpinned()
    return Found(digest, path.stat().st_size, path, "the file itself")


def check(image: UrlImage, *, cache: Cache, limits: Limits | None = None, api: str | None = None) -> Verdict:
    """How one pin stands: by GitHub's digest, else by what the server says of the file now and said
    of it when it was fetched. Never raises for a server that does not answer: that is UNKNOWN."""
    limits = limits or Limits(total=60.0)
    if urlsplit(image.url).scheme in ("", "file"):
        return Verdict(image.name, State.UNKNOWN, "a file of this machine: nothing is upstream")
    try:
        with Wire(limits) as wire:
            wanted = github.asset(image.url)
            if wanted is not None:
                said = github.ask(wire, wanted, api)
                if said.sha256 is not None:
                    return _by_digest(image, said.sha256)
            return _by_looks(image, cache, wire)
    except SourceError as error:
        return Verdict(image.name, State.UNKNOWN, f"can't tell: {error.what}")


def _by_digest(image: UrlImage, sha256: str) -> Verdict:
    if sha256 == image.sha256:
        return Verdict(image.name, State.CURRENT, f"the pin is right: {to_sri(sha256)}")
    return Verdict(
        image.name,
        State.OUT_OF_DATE,
        f"out of date: pinned {to_sri(image.sha256)}, upstream {to_sri(sha256)}; doit pin:{image.name}",
    )


def _by_looks(image: UrlImage, cache: Cache, wire: Wire) -> Verdict:
    now = wire.head(image.url)
    entry = cache.entry(image.sha256)
    if entry.size and now.size is not None and now.size != entry.size:
        text = f"out of date: the pinned file has {entry.size} bytes, upstream's {now.size}"
        return Verdict(image.name, State.OUT_OF_DATE, f"{text}; doit pin:{image.name}")
    if entry.url != image.url or not entry.size:
        return Verdict(image.name, State.UNKNOWN, "can't tell: it was never fetched from there")
    if entry.etag and now.etag:
        if entry.etag == now.etag:
            return Verdict(image.name, State.CURRENT, f"the pin is right: unchanged (ETag {now.etag})")
        text = f"can't tell: its ETag was {entry.etag} and is {now.etag}; doit pin:{image.name} looks"
        return Verdict(image.name, State.UNKNOWN, text)
    if entry.last_modified and entry.last_modified == now.last_modified:
        text = f"the pin is right: unchanged since {now.last_modified}"
        return Verdict(image.name, State.CURRENT, text)
    return Verdict(image.name, State.UNKNOWN, "can't tell: the server says too little of the file")
