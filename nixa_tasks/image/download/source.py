"""All attempts at one source: resume, retry, verify; never a bad file, never a lost good byte."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from nixa_tasks.image import github
from nixa_tasks.image.cache.cache import Cache, Note, Progress
from nixa_tasks.image.cache.entry import Entry, suffix_of
from nixa_tasks.image.download.http import Limits, Network, Wire, plan
from nixa_tasks.image.download.part import Follower, Origin, Part
from nixa_tasks.image.download.set_aside import SetAside, WrongDownload
from nixa_tasks.image.download.transfer import Room, Transfer
from nixa_tasks.image.errors import (
    ContentChanged,
    NoRoom,
    NotModified,
    RangesBroken,
    SourceError,
    TooLarge,
    WrongFile,
    wrong_file,
)
from nixa_tasks.manifest.model import UrlImage

if TYPE_CHECKING:
    from tenacity import RetryCallState


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole file of unknown right, in the cache under `path` until it has its own name: its hash in
    hex, and what its server said. `is_authentic`: it came over https, in one piece or in pieces that a
    strong validator says are of one file."""

    path: Path
    sha256: str
    origin: Origin
    is_authentic: bool


@dataclass(slots=True)
class Download:
    """One source of one image. `until` is the total deadline, by the cache's monotonic clock."""

    url: str
    image: UrlImage
    cache: Cache
    progress: Progress
    note: Note
    network: Network
    until: float
    _serves_ranges: bool = True
    _last: Transfer | None = None
    _unframed_end: int | None = None
    _is_fetched_anew: bool = False

    @property
    def limits(self) -> Limits:
        return self.network.limits

    def run(self, *, is_last: bool = True) -> Path:
        """The verified file. `is_last`: no other source comes after this one.

        Raises SourceError, DiskFull, FetchError, Interrupted, OSError.
        """
        changes, source = 0, None
        with self.network.connect(self.limits) as wire, contextlib.ExitStack() as stack:
            while True:
                part = Part(self.cache.file(self.image.sha256, ".part"))
                part.source = source if source is not None and part.kept else part.source
                stack.callback(part.close)
                follower = Follower(part)
                stack.callback(follower.stop)
                before = part.kept
                try:
                    self._fill(wire, part)
                    done = self._verify(wire, part, follower)
                except ContentChanged:
                    done, changes = None, changes + 1
                    self._aside.set_aside(part)
                    self.note(f"{self.url}: has another file than what is here of it; fetching all of that")
                    if changes > self.limits.tries:
                        self._aside.bring_back(part)
                        raise SourceError(f"{self.url}: changes all the time", url=self.url) from None
                except SourceError as error:
                    if isinstance(error, TooLarge) or (isinstance(error, NoRoom) and not is_last):
                        part.cut(before)  # fetched for nothing, and in the way of the next source
                    self._aside.bring_back(part)
                    raise
                if done is not None:
                    return done
                source = part.source if part.kept else None
                stack.close()

    def fetch_whole(self) -> Whole:
        """Whatever the source has now, from its first byte on. Raises as `run` does."""
        with self.network.connect(self.limits) as wire, contextlib.ExitStack() as stack:
            part = Part(self.cache.file(self.image.sha256, ".part"))
            stack.callback(part.close)
            part.restart()  # bytes of another run may be of another network
            follower = Follower(part)
            stack.callback(follower.stop)
            try:
                self._fill(wire, part)
            except ContentChanged:
                part.restart()
                raise SourceError(
                    f"{self.url}: changed while it was fetched", url=self.url, hint="try again"
                ) from None
            except TooLarge:
                part.restart()
                raise
            is_whole = not self._may_be_cut(part.prefix)
            digest = follower.finish(part.prefix)
            part.sync()
            is_authentic = self.url.startswith("https:") and not part.is_joined and is_whole
            return Whole(part.path, digest, part.origin, is_authentic)

    @property
    def _aside(self) -> SetAside:
        return SetAside(self.cache, self.image.sha256)

    # --- until it is whole

    def _fill(self, wire: Wire, part: Part) -> None:
        """Attempts with back-off, until the part is whole. A try that brought bytes is not counted."""
        from tenacity import Retrying, retry_if_exception

        failures = 0
        before = part.kept

        def is_worth_it(error: BaseException) -> bool:
            nonlocal failures, before
            failures = 1 if part.kept > before else failures + 1
            before = part.kept
            return isinstance(error, SourceError) and error.is_transient

        def pause(state: RetryCallState) -> float:
            return _pause(self.limits, failures, _error(state))

        def say(state: RetryCallState) -> None:
            error = _error(state)
            seconds = state.next_action.sleep if state.next_action else 0.0
            self.note(f"{error.what if error else self.url}; trying again in {seconds:.1f} s")

        for attempt in Retrying(
            retry=retry_if_exception(is_worth_it),
            stop=lambda _state: failures >= self.limits.tries or self.cache.clock.monotonic() > self.until,
            wait=pause,
            sleep=self.cache.clock.sleep,
            before_sleep=say,
            reraise=True,
        ):
            with attempt:
                self._attempt(wire, part)

    def _attempt(self, wire: Wire, part: Part) -> None:
        if part.is_whole:
            return
        part.comes_from(self.url)
        known = self._aside.known_wrong(self.url)
        asked = plan(
            part,
            self.url,
            serves_ranges=self._serves_ranges,
            unless=None if part.kept or known is None else known.origin,
        )
        if asked.is_ranged:
            self.note(f"going on at {part.kept >> 20} MiB")
        room = Room(self.cache.folder, self.limits.largest, self.limits.reserve)
        transfer = Transfer(
            wire, self.url, part, self.limits, self.until, self.progress, room, self.cache.clock
        )
        self._last = transfer
        try:
            transfer.run(asked)
        except RangesBroken:
            self._serves_ranges = False
            raise SourceError(f"{self.url}: serves no ranges", url=self.url, is_transient=True) from None
        except NotModified:
            if known is None:
                raise
            raise self._wrong_file(wire, known, encoding="") from None
        except SourceError as error:
            if error.status != 416:
                raise
            part.told(replace(part.origin, size=part.prefix))
        if not part.is_whole:
            raise SourceError(f"{self.url}: something is missing still", url=self.url, is_transient=True)

    # --- whether it is right

    def _verify(self, wire: Wire, part: Part, follower: Follower) -> Path | None:
        """The finished file; None where it has to be fetched again. Raises WrongFile."""
        size = part.prefix
        self.progress(size, size)
        digest = follower.finish(size)
        if digest == self.image.sha256:
            part.sync()
            part.close()
            return self._finish(part, digest)
        if self._may_be_cut(size):
            self.note(f"{self.url}: the answer told no length and may have been cut; asking for more")
            part.told(replace(part.origin, size=None))
            return None
        if part.source != self.url or (part.is_joined and not self._is_fetched_anew):
            # Pieces of several files, perhaps: only a file of one piece is a proof.
            self.note(f"{self.url}: the pieces together are not the pinned file; fetching all of it")
            self._is_fetched_anew = True
            follower.stop()
            part.restart()
            return None
        encoding = self._last.server.encoding if self._last else ""
        raise self._wrong_file(wire, self._aside.keep_wrong(part, digest, self.url), encoding)

    def _may_be_cut(self, size: int) -> bool:
        """Whether the end of the body may have been a cut: it told no length, and ended here for the
        first time."""
        if self._last is None or self._last.server.is_framed or self._unframed_end == size:
            return False
        self._unframed_end = size
        return True

    def _finish(self, part: Part, digest: str) -> Path:
        origin = part.origin
        entry = Entry(url=self.url, etag=origin.etag, last_modified=origin.last_modified)
        path = self.cache.adopt(part.path, digest, suffix_of(self.image.url), entry)
        self._aside.forget()
        return path

    def _wrong_file(self, wire: Wire, wrong: WrongDownload, encoding: str) -> WrongFile:
        facts = [f"Last-Modified {wrong.last_modified}"] if wrong.last_modified else []
        facts += [f"ETag {wrong.etag}"] if wrong.etag else []
        facts += [github_says] if (github_says := self._github_says(wire)) else []
        if encoding and encoding != "identity":
            facts.append(f"Content-Encoding {encoding}, although none was asked for")
        return wrong_file(
            self.url,
            self.image.name,
            expected=self.image.sha256,
            got=wrong.sha256,
            size=wrong.size,
            upstream=", ".join(facts),
            is_confirmed=wrong.is_confirmed,
        )

    def _github_says(self, wire: Wire) -> str:
        """What GitHub says of the file, where it is one of its releases'; "" otherwise."""
        wanted = github.asset(self.url)
        if wanted is None:
            return ""
        try:
            said = github.ask(wire, wanted, self.network.github_api)
        except SourceError:
            return ""
        digest = f", digest sha256:{said.sha256}" if said.sha256 else ""
        return f"GitHub updated_at {said.updated_at or 'unknown'}{digest}"


def _error(state: RetryCallState) -> SourceError | None:
    error = state.outcome.exception() if state.outcome else None
    return error if isinstance(error, SourceError) else None


def _pause(limits: Limits, failures: int, error: SourceError | None) -> float:
    """Seconds before the next try: doubled each time, with jitter, at least what the server asked."""
    import random

    longest = min(limits.pause * 2.0 ** max(0, failures - 1), limits.longest_pause)
    asked = min(error.retry_after or 0.0, limits.retry_after) if error else 0.0
    return max(asked, random.uniform(longest / 2, longest))  # noqa: S311 - only spreads load
