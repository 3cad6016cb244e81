"""What the pinned URL gives now: for `doit pin:IMAGE`, and `doit pin --check`."""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

from nixa_tasks.files import hash_file
from nixa_tasks.image import github
from nixa_tasks.image.cache.cache import Cache, Note, Progress
from nixa_tasks.image.cache.entry import Entry, suffix_of
from nixa_tasks.image.download.fetch import fetch, path_of
from nixa_tasks.image.download.http import Limits, Network, Wire
from nixa_tasks.image.errors import SourceError
from nixa_tasks.image.obtain import look_inside
from nixa_tasks.image.tarball import Summary
from nixa_tasks.manifest.digest import to_sri
from nixa_tasks.manifest.model import UrlImage
from nixa_tasks.process.clock import Clock

_CHECKING = Network(Limits(total=60.0))


@dataclass(frozen=True, slots=True)
class Found:
    """The file that is upstream now, and in the cache: `size` in bytes; `source` tells how that is
    known; `modified`: the server's date of it; `summary`: what is inside."""

    sha256: str
    size: int
    path: Path
    source: str
    modified: str = ""
    summary: Summary | None = None


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
    network: Network = Network(),  # noqa: B008 - frozen
) -> Found:
    """Find the current hash, have the file in the cache under it, and look inside.

    Where the URL is a GitHub release asset, the API's digest is asked first: a file that the cache
    has already is then not fetched, and one that is fetched is held to the digest. Elsewhere the hash
    is that of a whole transfer that was made for this; over plain http, of two that agree.
    Raises FetchError, TarballError, Interrupted, NixaError.
    """
    found = _find(image, cache, progress, note, network)
    summary = look_inside(cache, found.path, found.sha256)
    return replace(found, summary=summary, modified=found.modified or cache.entry(found.sha256).last_modified)


def _find(image: UrlImage, cache: Cache, progress: Progress, note: Note, network: Network) -> Found:
    wanted = github.asset(image.url)
    if wanted is not None:
        with network.connect(network.limits) as wire:
            said = github.ask(wire, wanted, network.github_api)
        if said.sha256 is not None:
            now = replace(image, sha256=said.sha256, mirrors=())
            path = fetch(now, cache, progress=progress, note=note, network=network)
            size = path.stat().st_size
            return Found(said.sha256, size, path, "GitHub's digest, and the file itself", said.updated_at)
        note("GitHub has no digest for this file; its bytes alone decide")
    if _is_unchanged(image, cache, network):
        path = fetch(image, cache, progress=progress, note=note, network=network)
        return Found(image.sha256, path.stat().st_size, path, "the server: unchanged since it was fetched")
    if urlsplit(image.url).scheme in ("", "file"):
        return _of_file(image, cache, progress, note)
    return _by_download(image, cache, progress, note, network)


def _is_unchanged(image: UrlImage, cache: Cache, network: Network) -> bool:
    """Whether the server says, by a strong ETag, that it still has the pinned file, which is in the
    cache. Only the file that was found right counts: an ETag says nothing about bytes that were not."""
    entry = cache.entry(image.sha256)
    if entry.url != image.url or not entry.etag.startswith('"') or cache.find(image) is None:
        return False
    if not urlsplit(image.url).scheme.startswith("http"):
        return False
    with (
        network.connect(network.limits) as wire,
        wire.get(image.url, {"If-None-Match": entry.etag}) as reply,
    ):
        return reply.status == 304


def _of_file(image: UrlImage, cache: Cache, progress: Progress, note: Note) -> Found:
    file = path_of(image.url)
    try:
        digest = hash_file(file, progress)
    except OSError as error:
        raise SourceError(f"{file} can't be read: {error.strerror}", url=image.url) from error
    path = fetch(replace(image, sha256=digest, mirrors=()), cache, progress=progress, note=note)
    return Found(digest, path.stat().st_size, path, "the file itself")


def _by_download(image: UrlImage, cache: Cache, progress: Progress, note: Note, network: Network) -> Found:
    from nixa_tasks.image.download.source import Download

    key = hashlib.sha256(b"upstream of " + image.url.encode()).hexdigest()
    unknown = replace(image, sha256=key, mirrors=())
    until = cache.clock.monotonic() + network.limits.total
    with cache.locked(key, note):
        whole = Download(image.url, unknown, cache, progress, note, network, until).fetch_whole()
        source = "the file itself, over https"
        if not whole.is_authentic:
            note("one transfer that nobody vouches for is no proof; fetching it a second time")
            first = whole.sha256
            whole = Download(image.url, unknown, cache, progress, note, network, until).fetch_whole()
            source = "the file itself, fetched twice"
            if whole.sha256 != first:
                whole.path.unlink()
                raise SourceError(
                    f"{image.url}: two downloads gave two different files "
                    f"({to_sri(first)} and {to_sri(whole.sha256)}); nothing is pinned",
                    url=image.url,
                    hint="try again: it may be changing right now; else somebody on the way changes it",
                )
        with cache.locked(whole.sha256, note):
            origin = whole.origin
            entry = Entry(url=image.url, etag=origin.etag, last_modified=origin.last_modified)
            path = cache.adopt(whole.path, whole.sha256, suffix_of(image.url), entry)
            cache.file(key, ".part.json").unlink(missing_ok=True)
    return Found(whole.sha256, path.stat().st_size, path, source)


def check(image: UrlImage, *, cache: Cache, network: Network = _CHECKING) -> Verdict:
    """How one pin stands: by GitHub's digest, else by what the server says of the file now and said
    of it when it was fetched. Never raises for a server that does not answer: that is UNKNOWN."""
    if urlsplit(image.url).scheme in ("", "file"):
        return Verdict(image.name, State.UNKNOWN, "a file of this machine: nothing is upstream")
    try:
        return within(network.limits.total, lambda: _ask(image, cache, network), cache.clock)
    except SourceError as error:
        return Verdict(image.name, State.UNKNOWN, f"can't tell: {error.what}")


def _ask(image: UrlImage, cache: Cache, network: Network) -> Verdict:
    with network.connect(network.limits) as wire:
        wanted = github.asset(image.url)
        if wanted is not None:
            said = github.ask(wire, wanted, network.github_api)
            if said.sha256 is not None:
                return _by_digest(image, said.sha256)
        return _by_looks(image, cache, wire)


def within(seconds: float, ask: Callable[[], Verdict], clock: Clock) -> Verdict:
    """The answer, if it comes in time: a server that drips keeps every timeout of a single read, so
    the question is left to itself after a while. Raises SourceError, Interrupted, and what `ask` raises."""
    answers: queue.SimpleQueue[Verdict | BaseException] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put(ask())
        except BaseException as error:  # noqa: BLE001 - carried to the caller, which raises it
            answers.put(error)

    threading.Thread(target=run, name="ask", daemon=True).start()
    until = clock.monotonic() + seconds
    while clock.monotonic() < until:
        try:
            answer = answers.get(timeout=0.05)
        except queue.Empty:
            clock.sleep(0.0)
            continue
        if isinstance(answer, BaseException):
            raise answer
        return answer
    raise SourceError(f"no answer within {seconds:g} s", url="", is_transient=True)


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
