"""Images and the Nix store: found in it, added to it (`store = true`), or built by Nix.

A URL image's path in the store is the one that `fetchurl` with the same name and hash has: a
fixed output, flat, by SHA-256 (Nix manual, "Store path specification").
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from nixa_tasks.errors import NixaError
from nixa_tasks.image.cache.entry import suffix_of
from nixa_tasks.manifest.model import InstallableImage, UrlImage
from nixa_tasks.nix.command import Nix, command, store_command

_ASK_SECONDS = 30.0
_ADD_SECONDS = 600.0
_BUILD_SECONDS = 6 * 3600.0


class StoreError(NixaError):
    """The store can't hold, provide or build an image."""


def store_name(url: str) -> str:
    """The name that `fetchurl` would take from the URL. Raises StoreError where Nix allows no such
    name.

    >>> store_name("https://example.org/a/installer.tar.gz")
    'installer.tar.gz'
    """
    name = unquote(urlsplit(url).path).rsplit("/", 1)[-1]
    if not re.fullmatch(r"[0-9A-Za-z+\-_?=][0-9A-Za-z+\-._?=]{0,210}", name):
        raise StoreError(
            f"{name!a} can't be a name in the Nix store", hint="pin another URL, or leave out store = true"
        )
    return name


def is_there() -> bool:
    """Whether this machine has Nix."""
    return shutil.which(store_command()[0]) is not None


def store_path(nix: Nix, image: UrlImage) -> Path:
    """Where the store has it, or would. Raises NixaError."""
    argv = store_command("--print-fixed-path", "sha256", image.sha256, store_name(image.url))
    done = nix.run(argv, deadline=_ASK_SECONDS, what="store path of the image")
    return Path(done.stdout.strip())


def find_in_store(nix: Nix, image: UrlImage) -> Path | None:
    """The image's file in the store, if it is a valid path there. Nothing is downloaded."""
    path = store_path(nix, image)
    argv = store_command("--check-validity", str(path))
    done = nix.run(argv, deadline=_ASK_SECONDS, what="look into the store", check=False)
    return path if done.is_ok and path.is_file() else None


def add_to_store(nix: Nix, image: UrlImage, file: Path, folder: Path, gcroot: Path) -> Path:
    """Put the verified file into the store under its name, with a GC root that keeps it. `folder`: a new one
    beside the file, for a link with that name; it is gone afterwards.

    Raises NixaError; also where the path is not the one that `fetchurl` would have.
    """
    wanted = store_path(nix, image)
    path = find_in_store(nix, image)
    if path is None:
        named = folder / store_name(image.url)
        try:
            folder.mkdir()
            named.hardlink_to(file)  # Nix takes the name from the file
            argv = store_command("--add-fixed", "sha256", str(named))
            done = nix.run(argv, deadline=_ADD_SECONDS, what="add the image to the store")
        except OSError as error:
            raise StoreError(f"{named} can't be created: {error.strerror}") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        path = Path(done.stdout.strip())
    if path != wanted:
        raise StoreError(f"the store put the image at {path}, where {wanted} was expected")
    _root(nix, path, gcroot)
    return path


def _root(nix: Nix, path: Path, gcroot: Path) -> None:
    gcroot.parent.mkdir(parents=True, exist_ok=True)
    argv = store_command("--realise", str(path), "--add-root", str(gcroot), "--indirect")
    nix.run(argv, deadline=_ASK_SECONDS, what="GC root of the image")


def realise(
    nix: Nix,
    image: InstallableImage,
    gcroot: Path,
    *,
    folder: Path,
    sink: Callable[[str], None] | None = None,
) -> Path:
    """Build or substitute the image; the tarball in its output. A relative flake, as `.#attr`, is
    taken from `folder`.

    Raises NixaError, with Nix's own message.
    """
    gcroot.parent.mkdir(parents=True, exist_ok=True)
    argv = command("build", "--json", "--out-link", str(gcroot), image.installable)
    done = nix.run(argv, deadline=_BUILD_SECONDS, what=f"build image {image.name}", cwd=folder, sink=sink)
    return tarball_in(outputs_of(done.stdout, image.installable), image.name)


def outputs_of(text: str, installable: str) -> tuple[Path, ...]:
    """The paths in what `nix build --json` printed. Raises StoreError."""
    try:
        results = json.loads(text)
        return tuple(Path(path) for result in results for path in result["outputs"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"what Nix printed about {installable} can't be parsed") from error


def tarball_in(outputs: tuple[Path, ...], image: str) -> Path:
    """The one tarball among the outputs: a file, or the only one in a folder. Raises StoreError."""
    found = sorted({file for output in outputs for file in _tarballs(output)})
    if len(found) != 1:
        there = ", ".join(map(str, found or outputs))
        raise StoreError(
            f"image {image}: {'no' if not found else 'more than one'} tarball in what Nix built ({there})",
            hint="name an installable whose output is, or holds, exactly one kexec tarball",
        )
    return found[0]


def _tarballs(output: Path) -> list[Path]:
    real = output.resolve()
    if real.is_file():
        return [output] if suffix_of(output.name) else []
    return [
        Path(folder) / name
        for folder, _folders, files in os.walk(output, followlinks=True)
        for name in files
        if suffix_of(name) and len(Path(folder).relative_to(output).parts) <= 3
    ]
