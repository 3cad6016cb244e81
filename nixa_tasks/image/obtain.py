"""An image, wherever it comes from: the one function that a deploy calls."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

from nixa_tasks.errors import NixaError
from nixa_tasks.files import locked
from nixa_tasks.image import tarball
from nixa_tasks.image.cache.cache import Cache, Note, Progress
from nixa_tasks.image.cache.entry import Entry, Signature, suffix_of
from nixa_tasks.image.download.http import Network
from nixa_tasks.image.tarball import Summary
from nixa_tasks.manifest.model import Image, InstallableImage, UrlImage
from nixa_tasks.nix.command import Nix

_REMOVE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Obtained:
    """A verified local file, its SHA-256 in hex, and what is inside."""

    image: Image
    path: Path
    sha256: str
    summary: Summary

    def check_architecture(self, system: str, *, host: str | None = None) -> None:
        """Raises TarballError where it is not for `system` (`x86_64-linux`)."""
        tarball.check_architecture(self.summary, system, image=self.image.name, host=host)


def obtain(
    image: Image,
    *,
    cache: Cache,
    manifest: Path,
    gcroots: Path,
    progress: Progress,
    note: Note,
    nix: Nix,
    network: Network = Network(),  # noqa: B008 - frozen
) -> Obtained:
    """The image, from the cache, else the Nix store, else its URL, verified and looked into.

    `manifest`: who pins it. `gcroots`: the folder of this project's GC roots.
    Raises FetchError, TarballError, StoreError, Interrupted, NixaError.
    """
    match image:
        case UrlImage():
            try:
                cache.record_pin(image, manifest)
            except (
                NixaError
            ) as error:  # a cache that is only to be read serves as well, if the image is in it
                note(f"can't note who pins the image: {error.what}")
            path = cache.find(image, note)
            if path is None and image.store:
                path = _from_store(image, cache, nix, note)
            if path is None:
                from nixa_tasks.image.download.fetch import fetch

                path = fetch(image, cache, progress=progress, note=note, network=network)
            if image.store:
                _keep_in_store(image, path, cache, nix, gcroots, note)
            return Obtained(image, path, image.sha256, look_inside(cache, path, image.sha256))
        case InstallableImage():
            return _built(image, cache, nix, manifest.parent, gcroots, note)
        case _:
            assert_never(image)


def look_inside(cache: Cache, path: Path, sha256: str) -> Summary:
    """What is inside, from the cache's entry if it was looked at before. Raises TarballError."""
    kind = suffix_of(path.name)
    known = cache.entry(sha256).summary
    if known is not None and known.get("suffix") == kind:
        summary = Summary.from_json({key: value for key, value in known.items() if key != "suffix"})
        if summary is not None:
            return summary
    summary = tarball.inspect(path, lambda: cache.clock.sleep(0.0))
    with contextlib.suppress(NixaError):  # a cache that is only to be read: it is looked into each time
        cache.make()
        cache.record_summary(sha256, {**summary.to_json(), "suffix": kind})
    return summary


def damage_here(obtained: Obtained) -> str | None:
    """What to say where our own file is the damaged one, although it looks unchanged: a cached one has
    been removed then. None where it is right. Raises DeadlinePassed."""
    from nixa_tasks.files import hash_file

    path = obtained.path
    try:
        seen = Signature.of(path.stat())
        if hash_file(path) == obtained.sha256:
            return None
        if isinstance(obtained.image, UrlImage):
            with locked(path.with_name(f"{obtained.sha256}.lock"), timeout=_REMOVE_SECONDS):
                if Signature.of(path.stat()) == seen:  # else another run has replaced it meanwhile
                    path.unlink()
            return f"{path} here was damaged, and has been removed: look after this computer's disk"
    except OSError as error:
        return f"{path} here can't be read: {error.strerror}"
    return f"{path} here is damaged: nix-store --repair-path {path}"


def _keep_in_store(image: UrlImage, path: Path, cache: Cache, nix: Nix, gcroots: Path, note: Note) -> None:
    gcroot = gcroots / f"kexec-{image.name}"
    if _is_rooted(gcroot, image, nix):
        return
    from nixa_tasks.image.nix_store import add_to_store

    with cache.locked(image.sha256, note):
        folder = cache.temporary(image.sha256, ".store")
        note(f"in the Nix store as {add_to_store(nix, image, path, folder, gcroot)}")


def _is_rooted(gcroot: Path, image: UrlImage, nix: Nix) -> bool:
    """Whether a GC root made for this very image is there: its link names a path that exists."""
    from nixa_tasks.image.nix_store import store_path

    return gcroot.exists() and gcroot.readlink() == store_path(nix, image)


def _from_store(image: UrlImage, cache: Cache, nix: Nix, note: Note) -> Path | None:
    """Take it from the store into the cache, if it is there and right: nothing is downloaded."""
    from nixa_tasks.image.nix_store import find_in_store

    stored = find_in_store(nix, image)
    if stored is None:
        return None
    with cache.locked(image.sha256, note):
        try:
            with cache.copy_of(stored, image.sha256) as (copy, digest):
                if digest == image.sha256:
                    note(f"taken from the Nix store: {stored}")
                    return cache.adopt(copy, image.sha256, suffix_of(image.url), Entry(url=stored.as_uri()))
        except OSError as error:
            raise NixaError(f"{stored} can't be copied into the cache: {error.strerror or error}") from error
    note(f"{stored} is damaged (nix-store --verify-path {stored}); fetching the image instead")
    return None


def _built(
    image: InstallableImage, cache: Cache, nix: Nix, folder: Path, gcroots: Path, note: Note
) -> Obtained:
    """What Nix built. Its path is its identity, so it is hashed once for each path."""
    from nixa_tasks.files import hash_file, read_json, write_json
    from nixa_tasks.image.nix_store import realise

    path = realise(nix, image, gcroots / f"kexec-{image.name}", folder=folder)
    note(f"built by Nix: {path}")
    stamp = gcroots / f"kexec-{image.name}.sha256.json"
    seen = Signature.of(path.stat())
    known = read_json(stamp) or {}
    looks = [seen.size, seen.mtime, seen.ctime, seen.inode]
    if (
        known.get("path") == str(path)
        and known.get("looks") == looks
        and isinstance(known.get("sha256"), str)
    ):
        sha256 = known["sha256"]
    else:
        sha256 = hash_file(path)
        write_json(stamp, {"path": str(path), "looks": looks, "sha256": sha256})
    return Obtained(image, path, sha256, look_inside(cache, path, sha256))
