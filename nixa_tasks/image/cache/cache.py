"""The cache of kexec images: content-addressed, shared by all projects of a user.

A file is in it under its finished name only after its SHA-256 was found right; a file that
changed since (by size, times or inode) is hashed again before it is used.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from nixa_tasks.errors import NixaError
from nixa_tasks.files import locked, now, write_json
from nixa_tasks.image.cache import entry as names
from nixa_tasks.image.cache.entry import Entry, Signature, is_pinned_by, read_entry
from nixa_tasks.image.cache.files import hash_file
from nixa_tasks.manifest.digest import to_sri
from nixa_tasks.manifest.model import Image, UrlImage

_LOCK_SECONDS = 6 * 3600.0  # another run may be fetching over a slow line

Note = Callable[[str], None]
Progress = Callable[[int, int | None], None]


def _quiet(_text: str) -> None:
    """Nobody listens."""


def cache_dir(fleet_cache: Path | None) -> Path:
    """Where images are kept: $NIXA_CACHE, else `[fleet] cache`, else the user's cache directory."""
    if chosen := os.environ.get("NIXA_CACHE"):
        return Path(chosen).expanduser().absolute()
    if fleet_cache is not None:
        return fleet_cache
    import platformdirs

    return Path(platformdirs.user_cache_dir("nixa", appauthor=False))


@dataclass(frozen=True, slots=True)
class Removable:
    """What `gc` removes, or would: `size` is the bytes that it frees."""

    path: Path
    size: int
    why: str


class Cache:
    """One folder of images."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, image: UrlImage) -> Path:
        """Where the finished file lies, or will."""
        return self.folder / names.finished(image.sha256, image.url)

    def file(self, sha256: str, ending: str) -> Path:
        """A file that belongs to a hash: a part, a note."""
        return self.folder / f"{sha256}{ending}"

    def entry(self, sha256: str) -> Entry:
        return read_entry(self.file(sha256, ".json"))

    # --- looking

    def find(self, image: UrlImage, note: Note = _quiet) -> Path | None:
        """The image's verified file, if it is here.

        Costs a stat and a small read. Only a file that looks other than when it was found right
        is read through: if it is right after all (restored by a CI system with new times) its
        new looks are noted, else it is removed, and `note` is told.
        """
        path = self.path(image)
        if self._is_right(path, image.sha256, note):
            return path
        for name in names.every_finished(image.sha256):
            other = self.folder / name
            if other != path and self._is_right(other, image.sha256, note):
                self._link(other, path, image.sha256)
                return path
        return None

    def verify(self, image: UrlImage, progress: Progress | None = None) -> Path | None:
        """Read every byte of the cached file again; None where there is none.

        Raises NixaError where it is wrong: it has been removed then.
        """
        path = self.path(image)
        self.find(image)
        try:
            found = path.stat()
            digest = hash_file(path, progress)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise NixaError(f"{path} can't be read: {error.strerror}") from error
        if digest != image.sha256:
            self._discard(path)
            raise NixaError(
                f"image {image.name}: {path} was damaged, and has been removed: "
                f"expected {to_sri(image.sha256)}, got {to_sri(digest)}",
                hint=f"doit kexec:{image.name} fetches it again",
            )
        self.stamp(image.sha256, path, Signature.of(found))
        return path

    def _is_right(self, path: Path, sha256: str, note: Note) -> bool:
        try:
            found = path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise NixaError(f"{path} can't be read: {error.strerror}") from error
        seen = Signature.of(found)
        if self.entry(sha256).files.get(path.name) == seen:
            return True
        if path.is_symlink() or not path.is_file():
            raise NixaError(f"{path} is in the way: it is not a file", hint=f"remove {path}")
        try:
            digest = hash_file(path)
        except OSError as error:
            note(f"{path} can't be read ({error.strerror}), so it is fetched again")
            self._discard(path)
            return False
        if digest != sha256:
            self._remove_damaged(path, digest, note)
            return False
        with contextlib.suppress(NixaError):  # a read-only cache serves as well, only slower
            self.stamp(sha256, path, seen)
        return True

    def _remove_damaged(self, path: Path, digest: str, note: Note) -> None:
        note(f"{path} was damaged (its sha256 is {digest}), and has been removed")
        self._discard(path)

    @staticmethod
    def _discard(path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise NixaError(f"{path} can't be removed: {error.strerror}", hint=f"remove {path}") from error

    # --- changing

    def _edit(self, sha256: str, change: Callable[[Entry], Entry]) -> None:
        """Change an entry; two processes never lose one another's change."""
        path = self.file(sha256, ".json")
        with locked(self.folder / "entries.lock", timeout=_LOCK_SECONDS):
            old = read_entry(path)
            new = change(old)
            if new != old or not path.exists():
                write_json(path, new.to_json())

    def make(self) -> None:
        """Create the folder. Raises NixaError."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise NixaError(
                f"the cache folder {self.folder} can't be made: {error.strerror}",
                hint="choose another one by [fleet] cache or NIXA_CACHE",
            ) from error

    def stamp(self, sha256: str, path: Path, seen: Signature, origin: Entry | None = None) -> None:
        """Note that a file was read and found right. `origin` tells where it came from."""

        def change(entry: Entry) -> Entry:
            files = {
                name: signature
                for name, signature in entry.files.items()
                if name == path.name or (self.folder / name).exists()
            }
            changed = replace(entry, size=seen.size, files=files | {path.name: seen})
            if origin is None:
                return changed
            return replace(
                changed,
                url=origin.url,
                fetched_at=now(),
                etag=origin.etag,
                last_modified=origin.last_modified,
            )

        self._edit(sha256, change)

    def adopt(self, file: Path, sha256: str, suffix: str, origin: Entry) -> Path:
        """Take a file of this folder, just found right, under its finished name."""
        path = self.folder / f"{sha256}{suffix}"
        file.replace(path)
        with contextlib.suppress(NixaError):  # a full disk: the file is right, and hashed once more later
            self.stamp(sha256, path, Signature.of(path.stat()), origin)
        return path

    def record_summary(self, sha256: str, summary: dict[str, object]) -> None:
        """Keep what the look inside found, so that it is done once an image."""
        self._edit(sha256, lambda entry: replace(entry, summary=summary))

    def record_pin(self, image: UrlImage, manifest: Path) -> None:
        """Note that a manifest pins the image, so that `gc` on its behalf knows to keep it."""
        name = str(manifest.absolute())
        if name not in self.entry(image.sha256).pinned_by:
            self.make()
            # Each once, whoever else is writing just now.
            self._edit(
                image.sha256,
                lambda entry: replace(entry, pinned_by=tuple(dict.fromkeys((*entry.pinned_by, name)))),
            )

    def _link(self, old: Path, new: Path, sha256: str) -> None:
        """The same file under another suffix: a hard link, or a copy where there are none."""
        from nixa_tasks.image.cache.files import clone

        temporary = self.file(sha256, ".copy")
        try:
            with locked(
                self.folder / "entries.lock", timeout=_LOCK_SECONDS
            ):  # two processes may want it at once
                clone(old, temporary, is_link_first=True)
                temporary.replace(new)
        except OSError as error:
            raise NixaError(f"{new} can't be made from {old.name}: {error.strerror or error}") from error
        for path in (old, new):  # linking changed the ctime of both
            self.stamp(sha256, path, Signature.of(path.stat()))

    # --- removing

    @contextlib.contextmanager
    def locked(
        self, sha256: str, note: Note = _quiet, tick: Callable[[], None] = lambda: None
    ) -> Iterator[None]:
        """Be the only one who fetches, replaces or removes the files of a hash."""
        self.make()
        with locked(self.file(sha256, ".lock"), timeout=_LOCK_SECONDS, announce=note, tick=tick):
            yield

    def clean(self, images: Iterable[Image]) -> int:
        """Remove these images, finished and partial; the bytes that this freed."""
        freed = 0
        for sha256 in dict.fromkeys(image.sha256 for image in images if isinstance(image, UrlImage)):
            if self._files(sha256):
                with self.locked(sha256):
                    files = self._files(sha256)
                    freed += _bytes(path for path in files if not path.name.endswith(".json"))
                    for path in files:
                        self._discard(path)
        return freed

    def _files(self, sha256: str) -> list[Path]:
        return [
            path
            for path in self._all()
            if names.hash_in(path.name) == sha256 and not path.name.endswith(".lock")
        ]

    def _all(self) -> list[Path]:
        try:
            return sorted(self.folder.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise NixaError(f"{self.folder} can't be read: {error.strerror}") from error

    def gc(self, dry_run: bool, keep: Iterable[Image] = ()) -> list[Removable]:
        """Remove what no manifest on this machine pins any more, and tell what it was.

        An entry names the manifests that pinned it; one that is gone, or whose text no longer
        holds the hash, does not count. `keep` is what the caller's own manifest pins.
        """
        kept = {image.sha256 for image in keep if isinstance(image, UrlImage)}
        found: list[Removable] = []
        for sha256 in dict.fromkeys(filter(None, (names.hash_in(path.name) for path in self._all()))):
            files = self._files(sha256)
            if (
                sha256 in kept
                or not files
                or any(is_pinned_by(pin, sha256) for pin in self.entry(sha256).pinned_by)
            ):
                continue
            images = [path for path in files if not path.name.endswith(".json")]
            pins = ", ".join(self.entry(sha256).pinned_by)
            why = f"no longer pinned by {pins}" if pins else "pinned by no manifest"
            found += [Removable(path, _bytes([path]), why) for path in images]
            if not dry_run:
                with self.locked(sha256):
                    for path in files:
                        self._discard(path)
        return found


def _bytes(files: Iterable[Path]) -> int:
    """Bytes on the disk that go with these files: hard links count once, holes not at all."""
    seen: dict[int, int] = {}
    for path in files:
        with contextlib.suppress(FileNotFoundError):
            found = path.lstat()
            seen[found.st_ino] = min(found.st_size, found.st_blocks * 512)
    return sum(seen.values())
