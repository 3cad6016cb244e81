"""What can go wrong on the way from a URL to a verified file."""

from __future__ import annotations

from nixa_tasks.errors import NixaError


class FetchError(NixaError):
    """An image can't be had; what was fetched of it is kept for the next try."""


class DiskFull(FetchError):
    """No room for it here: no other source would help."""


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
