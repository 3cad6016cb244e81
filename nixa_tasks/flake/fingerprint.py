"""What the flake's content is now, as one short value: the gate before every evaluation.

A local git tree is asked of git itself, which takes milliseconds: untracked files don't count, as
with Nix, and neither does a commit that changes no file, unless the flake reads its own revision.
Where git can't know what Nix would read, Nix is asked.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, assert_never

from nixa_tasks.errors import NixaError
from nixa_tasks.files import read_json
from nixa_tasks.flake import reference
from nixa_tasks.flake.git_tree import GitTree
from nixa_tasks.flake.reference import Kind, Reference, parameters
from nixa_tasks.nix.command import Nix, command
from nixa_tasks.nix.errors import NixFailed, Reason
from nixa_tasks.process.pump import Sink
from nixa_tasks.state.layout import Layout

_METADATA_SECONDS = 600.0
_OWN_FOLDERS = frozenset({".nixa", ".deploy_cache", ".git", ".direnv", "__pycache__"})
# A folder that holds one of these is a cache (bford.info/cachedir) or a Python environment.
_MARKS = ("CACHEDIR.TAG", "pyvenv.cfg")


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """`value`: equal as long as nothing that an evaluation reads has changed. `reference`: what Nix
    is asked for. `revision`: for people and receipts, such as a commit, with `-dirty` where it is.
    `files`: a folder without git, which is not given to Nix as it is; `subdir`: the flake in it.
    `excluded`: paths in it that do not count. `reads_revision`: every commit is new content to it.
    `is_fixed`: `reference` can never mean anything else. `is_impure`: no value tells whether an
    evaluation would read something new, so that there is one in every run."""

    value: str
    reference: str
    revision: str
    files: Path | None = None
    subdir: str = ""
    excluded: tuple[Path, ...] = ()
    reads_revision: bool = False
    is_fixed: bool = False
    is_impure: bool = False

    @property
    def is_dirty(self) -> bool:
        """Whether what is evaluated is no commit: a git tree with uncommitted changes."""
        return self.revision.endswith("-dirty")


def fingerprint(
    nix: Nix,
    flake: str,
    layout: Layout,
    *,
    excluded: tuple[Path, ...] = (),
    impure: bool = False,
    manifest: Path | None = None,
) -> Fingerprint:
    """The fingerprint of a flake reference, local or remote.

    `layout`: nixa's own state, and `excluded`: absolute paths (the cache of images), which do not
    count where they lie inside a flake that is not in git. `manifest`: hosts.toml, which does not
    count at the top of a git tree whose *.nix files can't have read it.
    Raises nix.errors.NixFailed, NixaError.
    """
    seen = _fingerprint(nix, reference.parse(flake), (layout.state, *excluded), manifest)
    return replace(seen, is_impure=True) if impure else seen


def _fingerprint(
    nix: Nix, place: Reference, excluded: tuple[Path, ...], manifest: Path | None
) -> Fingerprint:
    match place.kind:
        case Kind.GIT:
            return _git(nix, place, manifest)
        case Kind.PLAIN:
            root = place.local
            total = _tree_hash(root, excluded)
            value = f"path:{total}" + (f":{place.subdir}" if place.subdir else "")
            value += _path_inputs(root / place.subdir)
            return Fingerprint(value, place.url, "not in git", root, place.subdir, excluded)
        case Kind.REMOTE if place.is_fixed:
            return Fingerprint(f"fixed:{place.url}", place.url, place.url, is_fixed=True)
        case Kind.REMOTE:
            return _remote(nix, place)
        case _:
            assert_never(place.kind)


def _git(nix: Nix, place: Reference, manifest: Path | None) -> Fingerprint:
    tree = GitTree(nix.processes, place.local)
    flake = place.local / place.subdir
    commit, committed = tree.head()
    reads_revision = tree.reads_revision(_inputs(flake))
    if place.is_asked_of_nix or not tree.is_regular():
        metadata = ask(nix, place.url)
        content, is_dirty = metadata.content, not metadata.locked.get("rev")
    else:
        is_unread = (
            manifest is not None
            and manifest.resolve().parent == place.local
            and not tree.may_read(manifest.name)
        )
        whole, content = tree.tree_hash(manifest.name if manifest is not None and is_unread else None)
        is_dirty = whole != committed
    revision = (commit or "no commit") + ("-dirty" if is_dirty else "")
    value = f"git:{content}:{place.subdir or '.'}" + _path_inputs(flake)
    if reads_revision:
        value += f":{revision}"
    return Fingerprint(value, place.url, revision, subdir=place.subdir, reads_revision=reads_revision)


def _remote(nix: Nix, place: Reference) -> Fingerprint:
    """Asked of Nix: a lock such as a commit and a hash; `reference` is then the locked one."""
    metadata = ask(nix, place.url, refresh=True)
    locked = json.dumps(metadata.locked, sort_keys=True)
    return Fingerprint(
        f"nix:{locked}",
        metadata.locked_url or place.url,
        str(metadata.locked.get("rev") or "unversioned"),
        is_fixed=metadata.locked_url is not None,
    )


@dataclass(frozen=True, slots=True)
class Metadata:
    """What `nix flake metadata` says. `path`: the flake's tree in the store. `locked`: attributes
    of the locked reference. `locked_url`: the reference that is locked; None where it would not mean
    what the user's does: that of a dirty git tree locks nothing, and 2.8 loses `submodules=1`."""

    path: str
    locked: dict[str, Any]
    locked_url: str | None

    @property
    def content(self) -> str:
        """Equal for equal trees: Nix's hash of the files."""
        return str(self.locked.get("narHash") or self.path)


def ask(nix: Nix, url: str, *, refresh: bool = False, sink: Sink | None = None) -> Metadata:
    """Have Nix read a flake. `refresh`: ask the remote now, else Nix's answer may be an hour old.

    Raises nix.errors.NixFailed, NixaError, DeadlinePassed, Interrupted.
    """
    options = ("--refresh",) if refresh else ()
    argv = command("flake", "metadata", "--json", "--no-update-lock-file", *options, url)
    try:
        done = nix.run(argv, deadline=_METADATA_SECONDS, sink=sink, what=f"flake {url}")
    except NixFailed as error:
        if error.reason is Reason.UNTRACKED:
            subdir = parameters(url).get("dir", "")
            # 2.8 names only the first folder on the way that is missing.
            is_on_the_way = f"{subdir}/".startswith(f"{error.subject}/")
            missing = f"{subdir}/flake.nix" if is_on_the_way else error.subject
            error.hint = f"git does not track it: `git add {missing}` (a commit is not needed)"
        raise
    try:
        said = json.loads(done.stdout)
        locked: dict[str, Any] = dict(said["locked"])
        locked_url = str(said.get("url") or said["resolvedUrl"])
        is_locked = locked.get("rev") or locked.get("type") != "git"
        is_whole = parameters(url).keys() <= parameters(locked_url).keys()
        return Metadata(str(said["path"]), locked, locked_url if is_locked and is_whole else None)
    except (ValueError, KeyError, TypeError) as error:
        raise NixaError(f"flake {url}: Nix printed unexpected JSON: {error!r}") from error


def _lock_nodes(flake: Path) -> dict[str, Any]:
    nodes = (read_json(flake / "flake.lock") or {}).get("nodes")
    return nodes if isinstance(nodes, dict) else {}


def _inputs(flake: Path) -> tuple[str, ...]:
    """The names of the flake's own inputs, as flake.lock has them."""
    root = _lock_nodes(flake).get("root")
    inputs = root.get("inputs") if isinstance(root, dict) else None
    return tuple(inputs) if isinstance(inputs, dict) else ()


def _path_inputs(flake: Path) -> str:
    """A hash over the inputs that are folders of this machine: they change while flake.lock stays."""
    parts = []
    for node in _lock_nodes(flake).values():
        locked = node.get("locked") if isinstance(node, dict) else None
        if isinstance(locked, dict) and locked.get("type") == "path":
            path = Path(str(locked.get("path")))
            if path.is_absolute() and not path.is_relative_to("/nix/store"):
                parts.append(f"{path}={_tree_hash(path, (), everything=True) if path.is_dir() else 'none'}")
    return f":{hashlib.sha256('|'.join(sorted(parts)).encode()).hexdigest()}" if parts else ""


def _tree_hash(folder: Path, excluded: tuple[Path, ...], *, everything: bool = False) -> str:
    """A hash over names, modes and contents below `folder`, but for nixa's own files unless
    `everything`. Raises NixaError where a file can't be read."""
    total = hashlib.sha256()
    try:
        for path in all_files_of(folder) if everything else files_of(folder, excluded):
            name = os.fsencode(path.relative_to(folder))
            if path.is_symlink():
                total.update(b"l" + name + b"\0" + os.fsencode(path.readlink()) + b"\0")
            else:
                executable = b"x" if path.stat().st_mode & 0o100 else b"f"
                with path.open("rb") as file:
                    total.update(executable + name + b"\0" + hashlib.file_digest(file, "sha256").digest())
    except OSError as error:
        raise NixaError(
            f"the flake can't be read: {error.filename}: {error.strerror}",
            hint="give the user who runs doit the right to read it",
        ) from error
    return total.hexdigest()


def all_files_of(folder: Path) -> Iterator[Path]:
    """Every file and link below a folder, in a fixed order."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir(follow_symlinks=False):
            yield from all_files_of(Path(entry.path))
        elif entry.is_symlink() or entry.is_file():
            yield Path(entry.path)


def files_of(folder: Path, excluded: tuple[Path, ...]) -> Iterator[Path]:
    """The files and links of a flake without git, in a fixed order, but for what nixa, doit and
    Python write there, for caches, and for the links that `nix build` leaves."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path = Path(entry.path)
        if entry.name in _OWN_FOLDERS or entry.name.startswith(".doit.db") or path in excluded:
            continue
        if entry.is_symlink():
            if not str(path.readlink()).startswith("/nix/store/"):
                yield path
        elif entry.is_dir():
            if not any((path / mark).exists() for mark in _MARKS):
                yield from files_of(path, excluded)
        elif entry.is_file():
            yield path
