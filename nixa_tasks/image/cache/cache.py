"""The cache of kexec images: content-addressed, shared by all projects of a user.

A file is in it under its finished name only after its SHA-256 was found right; a file that
changed since (by size, times or inode) is hashed again before it is used. Whoever gives a file its
finished name, or takes it away, holds the lock of its hash; whoever edits an entry or adds a second
name holds the lock of the entries.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from nixa_tasks.errors import DeadlinePassed, NixaError
from nixa_tasks.files import copy_file, hash_file, holder, link_file, locked, now, write_json
from nixa_tasks.image.cache import entry as names
from nixa_tasks.image.cache.entry import Entry, Pin, Signature, is_pinned, read_entry, with_pin
from nixa_tasks.manifest.digest import to_sri
from nixa_tasks.manifest.model import Image, UrlImage
from nixa_tasks.process.clock import Clock

_LOCK_SECONDS = 6 * 3600.0  # another run may be fetching over a slow line
_ENTRIES_SECONDS = 60.0
_CLEAN_SECONDS = 10.0

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

    def __init__(self, folder: Path, clock: Clock) -> None:
        self.folder = folder
        self.clock = clock

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
        new looks are noted, else it is removed (by whoever holds the lock), and `note` is told.
        Raises NixaError.
        """
        self._refuse_shared()
        path = self.path(image)
        is_damaged = False
        for other in (path, *(self.folder / name for name in names.every_finished(image.sha256))):
            found = self._is_right(other, image.sha256, note)
            if found and other != path:
                self._link(other, path, image.sha256)
            if found:
                return path
            is_damaged = is_damaged or (found is False and other == path)
        if is_damaged:
            with (
                contextlib.suppress(DeadlinePassed),  # whoever holds it looks for itself
                locked(self.file(image.sha256, ".lock"), timeout=0.0, clock=self.clock),
            ):
                self.discard_damaged(image.sha256)
        return None

    def verify(self, image: UrlImage, progress: Progress | None = None, note: Note = _quiet) -> Path | None:
        """Read every byte of the cached file again; None where there is none.

        Raises NixaError where it is wrong: it has been removed then.
        """
        path = self.path(image)
        self.find(image)
        if not path.exists():
            return None
        with self.locked(image.sha256, note):
            try:
                found = path.stat()
                digest = self._hash(path, progress)
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

    def _is_right(self, path: Path, sha256: str, note: Note) -> bool | None:
        """Whether the file has its hash; None where there is none. Raises NixaError."""
        try:
            found = path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise NixaError(f"{path} can't be read: {error.strerror}") from error
        seen = Signature.of(found)
        if self.entry(sha256).files.get(path.name) == seen:
            return True
        if not stat.S_ISREG(found.st_mode):
            raise NixaError(f"{path} is in the way: it is not a file", hint=f"remove {path}")
        try:
            digest = self._hash(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            note(f"{path} can't be read ({error.strerror}), so it is fetched again")
            return False
        if digest != sha256:
            note(f"{path} was damaged (its sha256 is {digest}), and is removed")
            return False
        with contextlib.suppress(NixaError):  # a read-only cache serves as well, only slower
            self.stamp(sha256, path, seen)
        return True

    def _hash(self, path: Path, progress: Progress | None = None) -> str:
        """Raises OSError, and Interrupted when nixa is stopped."""

        def step(done: int, total: int | None) -> None:
            self.clock.sleep(0.0)
            if progress is not None:
                progress(done, total)

        return hash_file(path, step)

    def discard_damaged(self, sha256: str) -> None:
        """Remove what lies under a finished name and is not right. The caller holds the hash's lock;
        a file that somebody put there meanwhile stays. Raises NixaError."""
        for name in names.every_finished(sha256):
            path = self.folder / name
            try:
                seen = Signature.of(path.lstat())
            except FileNotFoundError:
                continue
            if self._is_right(path, sha256, _quiet) is False:
                with self._entries_locked(), contextlib.suppress(FileNotFoundError):
                    if Signature.of(path.lstat()) == seen:
                        self._discard(path)

    @staticmethod
    def _discard(path: Path) -> None:
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise NixaError(f"{path} can't be removed: {error.strerror}", hint=f"remove {path}") from error

    # --- changing

    def _entries_locked(self) -> contextlib.AbstractContextManager[None]:
        return locked(self.folder / "entries.lock", timeout=_ENTRIES_SECONDS, clock=self.clock)

    def _edit(self, sha256: str, change: Callable[[Entry], Entry]) -> None:
        """Change an entry; two processes never lose one another's change."""
        path = self.file(sha256, ".json")
        with self._entries_locked():
            old = read_entry(path)
            new = change(old)
            if new != old or not path.exists():
                write_json(path, new.to_json())

    def make(self) -> None:
        """Create the folder. Raises NixaError, also where others could change what is in it."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o755)
        except OSError as error:
            raise NixaError(
                f"the cache folder {self.folder} can't be created: {error.strerror}",
                hint="choose another one by [fleet] cache or NIXA_CACHE",
            ) from error
        self._refuse_shared()

    def _refuse_shared(self) -> None:
        """What is believed of a file is written beside it: nobody else may write there."""
        try:
            found = self.folder.stat()
        except OSError:
            return
        if _others_can_write(found):
            raise NixaError(
                f"others can write to the cache folder {self.folder}, and so make nixa believe a wrong image",
                hint=f"chmod go-w {self.folder}\nor choose another folder by [fleet] cache or NIXA_CACHE",
            )

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

    @contextlib.contextmanager
    def copy_of(
        self, source: Path, sha256: str, progress: Progress | None = None
    ) -> Iterator[tuple[Path, str]]:
        """A copy of a file in this folder, that nobody else writes to, and its hash. It is gone
        afterwards, unless it was adopted. Raises OSError, NixaError."""
        copy = self.temporary(sha256, ".tmp")
        try:
            copy_file(source, copy)
            yield copy, self._hash(copy, progress)
        finally:
            copy.unlink(missing_ok=True)

    def temporary(self, sha256: str, ending: str) -> Path:
        """A name for something that goes before the process does: random, so that nobody guesses it;
        `gc` and `clean` know it by its form. Raises NixaError."""
        self.make()
        return self.file(sha256, f".{secrets.token_hex(4)}{ending}")

    def adopt(self, file: Path, sha256: str, suffix: str, origin: Entry) -> Path:
        """Take a file of this folder, just found right, under its finished name. The caller holds the
        hash's lock, and nobody else writes to the file."""
        path = self.folder / f"{sha256}{suffix}"
        file.replace(path)
        with contextlib.suppress(NixaError):  # a full disk: the file is right, and hashed once more later
            self.stamp(sha256, path, Signature.of(path.stat()), origin)
        return path

    def record_summary(self, sha256: str, summary: dict[str, object]) -> None:
        """Keep what the look inside found, so that it is done once an image."""
        self._edit(sha256, lambda entry: replace(entry, summary=summary))

    def record_pin(self, image: UrlImage, manifest: Path, *, is_pending: bool = False) -> None:
        """Note that a manifest pins the image, or is about to, so that `gc` for another one keeps it.
        Once a day is enough. Raises NixaError."""
        name = str(manifest.absolute())
        at = self.clock.now()
        known = self.entry(image.sha256).pinned_by.get(name)
        is_fresh = known is not None and known.at[:10] == at.isoformat()[:10]
        if is_fresh and known is not None and known.is_pending == is_pending:
            return
        self.make()
        pin = Pin(at.isoformat(timespec="seconds"), is_pending)
        self._edit(image.sha256, lambda entry: with_pin(entry, name, pin))

    def _link(self, old: Path, new: Path, sha256: str) -> None:
        """The same file under another suffix: a hard link, or a copy where there are none."""
        temporary = self.temporary(sha256, ".tmp")
        try:
            with self._entries_locked():  # two processes may want it at once
                link_file(old, temporary)
                temporary.replace(new)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise NixaError(f"{new} can't be made from {old.name}: {error.strerror or error}") from error
        for path in (old, new):  # linking changed the ctime of both
            self.stamp(sha256, path, Signature.of(path.stat()))

    # --- removing

    @contextlib.contextmanager
    def locked(self, sha256: str, note: Note = _quiet, timeout: float = _LOCK_SECONDS) -> Iterator[None]:
        """Be the only one who fetches, replaces or removes the files of a hash."""
        self.make()
        with locked(
            self.file(sha256, ".lock"), timeout=timeout, what="the image", announce=note, clock=self.clock
        ):
            yield

    def clean(self, images: Iterable[Image]) -> int:
        """Remove these images, finished and partial; the bytes that this freed. Raises NixaError, where
        one is in use for longer than a moment too."""
        freed = 0
        for sha256 in dict.fromkeys(image.sha256 for image in images if isinstance(image, UrlImage)):
            if self._files(sha256):
                with self.locked(sha256, timeout=_CLEAN_SECONDS), self._entries_locked():
                    freed += self._remove(self._files(sha256))
        return freed

    def _remove(self, files: Iterable[Path]) -> int:
        """Remove files; the bytes that this freed: where something stays, it is not counted."""
        there = list(files)
        before = _bytes(path for path in there if not path.name.endswith(".json"))
        for path in there:
            self._discard(path)
        return before

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

    def gc(self, dry_run: bool, keep: Iterable[Image] = (), note: Note = _quiet) -> list[Removable]:
        """Remove what no manifest on this machine pins any more, and tell what it was.

        An entry names the manifests that pinned it; see `is_pinned`. `keep` is what the caller's own
        manifest pins. What somebody is using just now is left alone, and `note` is told. What killed
        processes left behind goes, whoever pins the image.
        """
        kept = {image.sha256 for image in keep if isinstance(image, UrlImage)}
        found: list[Removable] = []
        for sha256 in dict.fromkeys(filter(None, (names.hash_in(path.name) for path in self._all()))):
            if dry_run:
                found += self._unneeded(sha256, kept)[1]
                continue
            try:
                with self.locked(sha256, timeout=0.0), self._entries_locked():
                    files, removable = self._unneeded(sha256, kept)
                    self._remove(files)
                    found += removable
            except DeadlinePassed:
                note(f"{sha256[:12]}… is in use by {holder(self.file(sha256, '.lock'))}, and stays")
        return found

    def _unneeded(self, sha256: str, kept: set[str]) -> tuple[list[Path], list[Removable]]:
        """The files of a hash that nobody needs, and what to say of them. Of one that is pinned, these
        are what killed processes left."""
        files, pins = self._files(sha256), self.entry(sha256).pinned_by
        moment = self.clock.now()
        if sha256 in kept or any(is_pinned(path, pin, sha256, moment) for path, pin in pins.items()):
            files = [path for path in files if names.is_temporary(path.name)]
            why = "left by a run that was killed"
        else:
            why = f"no longer pinned by {', '.join(pins)}" if pins else "pinned by no manifest"
        said = [Removable(path, _bytes([path]), why) for path in files if not path.name.endswith(".json")]
        return files, said


def _bytes(files: Iterable[Path]) -> int:
    """Bytes on the disk that go with these files: hard links count once, and only where every link
    goes; holes not at all."""
    seen: dict[int, int] = {}
    for path in files:
        with contextlib.suppress(FileNotFoundError):
            for one in (path, *(path.rglob("*") if path.is_dir() and not path.is_symlink() else ())):
                found = one.lstat()
                if not stat.S_ISDIR(found.st_mode):
                    seen[found.st_ino] = min(found.st_size, found.st_blocks * 512)
    return sum(seen.values())


def _others_can_write(found: os.stat_result) -> bool:
    """Whether somebody but the owner and root may write: anybody, or a group with more members."""
    if found.st_mode & stat.S_IWOTH:
        return True
    if not found.st_mode & stat.S_IWGRP:
        return False
    try:
        owner, group = pwd.getpwuid(found.st_uid).pw_name, grp.getgrgid(found.st_gid)
    except KeyError:
        return True
    return group.gr_name != owner or bool(set(group.gr_mem) - {owner})
