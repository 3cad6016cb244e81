"""Files beside a download until it is verified: other bytes of the same pin, and wrong files."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path

from nixa_tasks.files import read_json, write_json
from nixa_tasks.image.cache.cache import Cache
from nixa_tasks.image.download.part import Origin, Part

_BELIEVED_FOR = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class WrongDownload:
    """A whole file that a source served and that is not the pinned one.

    `sha256` in hex, `size` in bytes, `at`: when, RFC 3339. `is_confirmed`: two whole transfers gave
    the same bytes. Until then they may have been damaged on the way.
    """

    url: str
    sha256: str
    size: int
    etag: str
    last_modified: str
    validator: str
    at: str
    is_confirmed: bool

    @property
    def origin(self) -> Origin:
        return Origin(self.url, self.etag, self.last_modified, self.validator, self.size)

    @classmethod
    def read(cls, path: Path) -> WrongDownload | None:
        """The record in a file; None where there is none, or where it is damaged."""
        value = read_json(path) or {}
        texts = [value.get(key) for key in ("url", "sha256", "etag", "last_modified", "validator", "at")]
        size, is_confirmed = value.get("size"), value.get("is_confirmed")
        if not all(isinstance(text, str) for text in texts) or type(size) is not int:
            return None
        url, sha256, etag, last_modified, validator, at = map(str, texts)
        return cls(url, sha256, size, etag, last_modified, validator, at, is_confirmed is True)


@dataclass(frozen=True, slots=True)
class SetAside:
    """The files of one hash beside its `.part`."""

    cache: Cache
    sha256: str

    def path(self, ending: str) -> Path:
        return self.cache.file(self.sha256, ending)

    def set_aside(self, part: Part) -> None:
        """The server has other bytes than those that are here. Which are right, only a whole file tells."""
        part.close()
        old, new = self.path(".aside"), part.path
        if old.exists() and _blocks(old) > _blocks(new):
            new.unlink()
            part.map_path.unlink(missing_ok=True)
            return
        new.replace(old)
        with contextlib.suppress(FileNotFoundError):
            part.map_path.replace(self.path(".aside.json"))

    def bring_back(self, part: Part) -> None:
        """The source failed: keep the longer of what was here before and what it gave."""
        part.close()
        aside = self.path(".aside")
        if aside.exists() and (not part.path.exists() or _blocks(aside) > _blocks(part.path)):
            aside.replace(part.path)
            part.map_path.unlink(missing_ok=True)
            with contextlib.suppress(FileNotFoundError):
                self.path(".aside.json").replace(part.map_path)
        elif part.path.exists() and part.path.stat().st_size == 0:
            part.path.unlink()
            part.map_path.unlink(missing_ok=True)

    def keep_wrong(self, part: Part, digest: str, url: str) -> WrongDownload:
        """Keep a wrong file, which may be what another pin wants, and note what its server said about it.

        It is believed to be what the source serves once a second whole transfer gave the same bytes.
        """
        part.close()
        origin = part.origin
        before = WrongDownload.read(self.path(".wrong.json"))
        is_confirmed = before is not None and (before.url, before.sha256) == (url, digest)
        wrong = WrongDownload(
            url,
            digest,
            part.path.stat().st_size,
            origin.etag,
            origin.last_modified,
            origin.validator,
            self.cache.clock.now().isoformat(timespec="seconds"),
            is_confirmed,
        )
        self.path(".wrong.json").unlink(missing_ok=True)  # never beside a file that it does not describe
        part.path.replace(self.path(".wrong"))
        part.map_path.unlink(missing_ok=True)
        write_json(self.path(".wrong.json"), asdict(wrong))
        return wrong

    def known_wrong(self, url: str) -> WrongDownload | None:
        """The file that this source is known to serve, within the last day: as long as its server says
        that it is unchanged, it need not be fetched to be called wrong again. It proves nothing for a pin."""
        wrong = WrongDownload.read(self.path(".wrong.json"))
        if wrong is None or not wrong.is_confirmed or wrong.url != url or not self.path(".wrong").exists():
            return None
        try:
            age = self.cache.clock.now() - datetime.fromisoformat(wrong.at)
        except (ValueError, TypeError):
            return None
        return wrong if timedelta(0) <= age < _BELIEVED_FOR else None

    def forget(self) -> None:
        """The right file is here: nothing beside it is of use any more."""
        for ending in (".part.json", ".aside", ".aside.json", ".wrong", ".wrong.json"):
            self.path(ending).unlink(missing_ok=True)


def _blocks(path: Path) -> int:
    return path.stat().st_blocks
