"""Files beside a download until it is verified: other bytes of the same pin, and wrong files."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from nixa_tasks.files import read_json, write_json
from nixa_tasks.image.cache.cache import Cache
from nixa_tasks.image.download.part import Origin, Part


@dataclass(frozen=True, slots=True)
class SetAside:
    """The files of one hash beside its `.part`."""

    cache: Cache
    sha256: str

    def path(self, ending: str) -> Path:
        return self.cache.file(self.sha256, ending)

    def set_aside(self, part: Part) -> None:
        """The server has other bytes than the kept ones: which are right, only a whole file tells."""
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
        """The source failed: keep the longer of what was kept before and what it gave."""
        part.close()
        aside = self.path(".aside")
        if aside.exists() and (not part.path.exists() or _blocks(aside) > _blocks(part.path)):
            aside.replace(part.path)
            with contextlib.suppress(FileNotFoundError):
                self.path(".aside.json").replace(part.map_path)
        elif part.path.exists() and part.path.stat().st_size == 0:
            part.path.unlink()
            part.map_path.unlink(missing_ok=True)

    def keep_wrong(self, part: Part, digest: str, size: int, url: str) -> None:
        """Keep the wrong file as long as its server says that it has not changed: the next try needs
        not fetch it to say so, and `pin` needs not fetch it at all."""
        part.close()
        origin = part.origin
        part.path.replace(self.path(".wrong"))
        part.map_path.unlink(missing_ok=True)
        write_json(
            self.path(".wrong.json"),
            {
                "url": url,
                "sha256": digest,
                "size": size,
                "etag": origin.etag,
                "last_modified": origin.last_modified,
            },
        )

    def wrong(self) -> tuple[str, int, Origin]:
        """Hash, size and origin of the wrong file, as they were noted."""
        known = read_json(self.path(".wrong.json")) or {}
        size = known.get("size")
        origin = Origin(
            etag=str(known.get("etag") or ""), last_modified=str(known.get("last_modified") or "")
        )
        return str(known.get("sha256")), size if isinstance(size, int) else 0, origin

    def wrong_etag(self, url: str) -> str:
        """The strong ETag of the file that this URL gave before and that was wrong; "" where there is
        none, or it is no longer here."""
        known = read_json(self.path(".wrong.json")) or {}
        etag, sha256 = known.get("etag"), known.get("sha256")
        is_here = known.get("url") == url and isinstance(sha256, str) and len(sha256) == 64
        if is_here and self.path(".wrong").exists() and isinstance(etag, str) and etag.startswith('"'):
            return etag
        return ""

    def forget(self) -> None:
        """The right file is here: nothing beside it is of use any more."""
        for ending in (".part.json", ".aside", ".aside.json", ".wrong", ".wrong.json"):
            self.path(ending).unlink(missing_ok=True)


def _blocks(path: Path) -> int:
    return path.stat().st_blocks
