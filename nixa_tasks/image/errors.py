"""What can go wrong between a URL and a verified file, and the longer messages about it."""

from __future__ import annotations

from collections.abc import Sequence

from nixa_tasks.errors import NixaError
from nixa_tasks.manifest.digest import to_sri


class FetchError(NixaError):
    """No source gave the image. What was fetched of it is kept for the next try."""


class DiskFull(FetchError):
    """The cache's disk has no room: no other source would help."""


class SourceError(FetchError):
    """One source failed. `is_transient`: the same source may do better in a moment, after
    `retry_after` seconds where it said so. `status` is the HTTP status, where it is about one."""

    def __init__(
        self,
        what: str,
        *,
        url: str,
        is_transient: bool = False,
        retry_after: float | None = None,
        status: int | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(what, hint=hint)
        self.url = url
        self.is_transient = is_transient
        self.retry_after = retry_after
        self.status = status


class TooLarge(SourceError):
    """A source promises or sends more than an image may have: its own fault, whatever the disk has."""


class NoRoom(SourceError):
    """What a source promises does not fit on the cache's disk. Another source may promise less."""


class WrongFile(SourceError):
    """A source gave a whole file, and it is not the pinned one. `sha256` is its hash in hex."""

    def __init__(self, what: str, *, url: str, sha256: str, hint: str | None = None) -> None:
        super().__init__(what, url=url, hint=hint)
        self.sha256 = sha256


class ContentChanged(Exception):
    """What a server sends is not the file that the kept bytes are of. Internal to a fetch."""


class RangesBroken(Exception):
    """A server answered a request for a range with something else. Internal to a fetch."""


class NotModified(Exception):
    """A server still has the file that was found wrong before. Internal to a fetch."""


def wrong_file(
    url: str, image: str, *, expected: str, got: str, size: int, upstream: str, is_confirmed: bool = True
) -> WrongFile:
    """The source served a whole file of another hash. `upstream` is what its server says about the
    file. `is_confirmed`: it served the same bytes twice, so that they were not damaged on the way."""
    lines = [
        f"{url}: the file is not the pinned one",
        f"    expected  {to_sri(expected)}  ({expected})",
        f"    got       {to_sri(got)}  ({got})",
        f"    size      {size} bytes",
        f"    upstream  {upstream or 'says nothing about the file'}",
    ]
    hint = (
        "" if is_confirmed else f"it may have been damaged on the way: doit kexec:{image} fetches it again\n"
    )
    hint += (
        f"a release's file often changes under the same URL. If you trust the new one: doit pin:{image}\n"
        "If you want the pinned one: name a mirror that still has it (mirrors = [...])"
    )
    return WrongFile("\n".join(lines), url=url, sha256=got, hint=hint)


def all_failed(image: str, errors: Sequence[SourceError]) -> FetchError:
    """Every source failed: one error with each reason, and the most useful hint."""
    if errors and all(isinstance(error, NoRoom) for error in errors):
        return DiskFull(errors[0].what, hint=errors[0].hint)
    if len(errors) == 1:
        return errors[0]
    wrong = next((error for error in errors if isinstance(error, WrongFile)), None)
    reasons = "\n".join(error.what for error in errors)
    hint = wrong.hint if wrong else next((error.hint for error in errors if error.hint), None)
    return FetchError(
        f"image {image}: all {len(errors)} sources failed:\n{reasons}",
        hint=hint or "check the network, or name another mirror",
    )
