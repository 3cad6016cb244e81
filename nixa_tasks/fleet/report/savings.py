"""How many bytes the image cache spared: by what the journal says was needed, and what travelled. Pure.

Every installation needs the image here, to send it, and there, to boot it. Without the cache it
would be downloaded for each, and without what a host keeps of a cut upload it would be sent whole
each time. An image that is not downloaded at all (a local file, or built by Nix) saves none here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from nixa_tasks.fleet.report.events import Record

_DELIVERIES = frozenset({"upload", "install"})


@dataclass(frozen=True, slots=True)
class Image:
    """One file's account; all but `needed` are bytes. `needed`: how many installations booted it."""

    sha256: str
    name: str = ""
    size: int = 0
    needed: int = 0
    downloaded: int = 0
    uploaded: int = 0
    is_remote: bool = False

    @property
    def saved_download(self) -> int:
        return max(0, self.needed * self.size - self.downloaded) if self.is_remote else 0

    @property
    def saved_upload(self) -> int:
        return max(0, self.needed * self.size - self.uploaded)


def account(records: Iterable[Record]) -> tuple[Image, ...]:
    """Each image that was moved or needed, the one that saved most first."""
    images: dict[str, Image] = {}
    for record in records:
        if record.sha256:
            old = images.get(record.sha256, Image(record.sha256))
            images[record.sha256] = _added(old, record)
    return tuple(sorted(images.values(), key=lambda one: -one.saved_download - one.saved_upload))


def _added(image: Image, record: Record) -> Image:
    image = replace(image, size=max(image.size, record.size or 0))
    if record.step in _DELIVERIES:
        return replace(
            image,
            needed=image.needed + (record.outcome == "done"),
            uploaded=image.uploaded + record.moved,
            downloaded=image.downloaded + record.upstream,
            is_remote=image.is_remote or record.upstream > 0,
        )
    return replace(image, name=record.host, downloaded=image.downloaded + record.moved, is_remote=True)
