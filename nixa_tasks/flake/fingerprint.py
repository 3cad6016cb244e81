"""What the flake's content is now, as one short value: the gate before every evaluation.

A local git tree is asked of git itself, which takes milliseconds: the hash of the tree that its
tracked files make as they are, committed or not. Untracked files don't count, as with Nix, and
neither does a commit that changes no file, unless the flake reads its own revision.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

from nixa_tasks.errors import CommandFailed, NixaError
from nixa_tasks.flake import reference
from nixa_tasks.flake.reference import Kind, Reference
from nixa_tasks.nix.command import Nix, command, environment
from nixa_tasks.process.run import Completed, Place, Processes
from nixa_tasks.state.layout import Layout

_GIT_SECONDS = 120.0
_METADATA_SECONDS = 600.0
_OWN_FILES = frozenset({".nixa", ".deploy_cache", ".git", ".direnv", "__pycache__"})
# A flake that reads one of these has another output at every commit.
_NAMES = r"(rev|shortRev|dirtyRev|dirtyShortRev|revCount|lastModified|lastModifiedDate|sourceInfo)\b"
_REVISION = rf"\bself\.{_NAMES}|\binherit\s*\(\s*(inputs\.)?self\s*\)[^;]*\b{_NAMES}"


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """`value`: equal as long as nothing that an evaluation reads has changed. `reference`: what Nix
    is asked for. `revision`: for people and receipts, such as a commit, with `-dirty` where it is.
    `files`: a folder without git, which is not given to Nix as it is; `subdir`: the flake in it.
    `excluded`: paths in it that do not count. `reads_revision`: every commit is new content to it."""

    value: str
    reference: str
    revision: str
    files: Path | None = None
    subdir: str = ""
    excluded: tuple[Path, ...] = ()
    reads_revision: bool = False


def fingerprint(nix: Nix, flake: str, layout: Layout, *, excluded: tuple[Path, ...] = ()) -> Fingerprint:
    """The fingerprint of a flake reference, local or remote.

    `layout`: nixa's own state, and `excluded`: absolute paths (the cache of images), which do not
    count where they lie inside a flake that is not in git.
    Raises nix_errors.NixFailed, NixaError.
    """
    place = reference.parse(flake)
    match place.kind:
        case Kind.GIT:
            assert place.root is not None  # noqa: S101 - the kind says so
            if "submodules" in place.url:
                return _remote(nix, place)  # their files count, and only Nix looks at them
            return _git_tree(_Git(nix.processes, place.root), place)
        case Kind.PLAIN:
            assert place.root is not None  # noqa: S101
            kept = (layout.state, *excluded)
            value = _tree_hash(place.root, kept) + (f":{place.subdir}" if place.subdir else "")
            return Fingerprint(value, place.url, "not in git", place.root, place.subdir, kept)
        case Kind.REMOTE:
            return _remote(nix, place)
        case _:
            assert_never(place.kind)


class _Git:
    """The git of one repository. `root`: its working tree."""

    def __init__(self, processes: Processes, root: Path) -> None:
        self._processes = processes
        self.root = root

    def ask(self, *args: str, env: Mapping[str, str] | None = None) -> str:
        """What the command prints. Raises CommandFailed, NixaError."""
        if shutil.which("git") is None:
            raise NixaError("git not found, and Nix needs it to read the flake", hint="install git")
        try:
            return self._run(args, env, check=True).stdout.strip()
        except CommandFailed as error:
            if any("dubious ownership" in line for line in error.tail):
                raise NixaError(
                    f"the git tree {self.root} belongs to another user, so git and Nix refuse it",
                    hint="run doit as the tree's owner, or trust the tree once:\n"
                    f"git config --global --add safe.directory {self.root}",
                ) from error
            error.hint = f"see what `git -C {self.root} status` says"
            raise

    def query(self, *args: str) -> str | None:
        """What the command prints; None where it fails, or where there is no git."""
        if shutil.which("git") is None:
            return None
        done = self._run(args, None, check=False)
        return done.stdout.strip() if done.is_ok else None

    def _run(self, args: tuple[str, ...], env: Mapping[str, str] | None, *, check: bool) -> Completed:
        argv = ("git", "-c", "core.fsmonitor=false", "-c", "core.safecrlf=false", *args)
        place = Place(self.root, environment(env))
        return self._processes.run(argv, deadline=_GIT_SECONDS, place=place, check=check, what="git")


def _git_tree(git: _Git, place: Reference) -> Fingerprint:
    head = git.query("rev-parse", "--verify", "-q", "HEAD")
    tree = _working_tree(git)
    dirty = tree != git.query("rev-parse", "--verify", "-q", "HEAD^{tree}")
    revision = (head or "no commit") + ("-dirty" if dirty else "")
    value = f"git:{tree}:{place.subdir or '.'}"
    reads_revision = git.query("grep", "-qP", _REVISION, "--", "*.nix") is not None
    if reads_revision:
        value += f":{revision}"
    return Fingerprint(value, place.url, revision, reads_revision=reads_revision)


def _working_tree(git: _Git) -> str:
    """The tree that the tracked files make, as they are; the repository itself stays as it is."""
    index = git.ask("rev-parse", "--git-path", "index")
    objects = git.ask("rev-parse", "--git-path", "objects")
    with tempfile.TemporaryDirectory(prefix="nixa-index-") as place:
        own = Path(place) / "index"
        if (git.root / index).exists():
            shutil.copy2(git.root / index, own)
        env = {
            "GIT_INDEX_FILE": str(own),
            "GIT_OBJECT_DIRECTORY": place,
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": str((git.root / objects).resolve()),
        }
        git.ask("add", "-u", ".", env=env)
        return git.ask("write-tree", env=env)


def _tree_hash(folder: Path, excluded: tuple[Path, ...]) -> str:
    """A hash over names, modes and contents below `folder`, but for nixa's own files."""
    total = hashlib.sha256()
    for path in files_of(folder, excluded):
        name = os.fsencode(path.relative_to(folder))
        if path.is_symlink():
            total.update(b"l" + name + b"\0" + os.fsencode(path.readlink()) + b"\0")
        else:
            executable = b"x" if os.access(path, os.X_OK) else b"f"
            with path.open("rb") as file:
                total.update(executable + name + b"\0" + hashlib.file_digest(file, "sha256").digest())
    return f"path:{total.hexdigest()}"


def files_of(folder: Path, excluded: tuple[Path, ...]) -> Iterator[Path]:
    """The files and links of a flake without git, in a fixed order, but for what nixa, doit and
    Python write there, and for the links that `nix build` leaves."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path = Path(entry.path)
        if entry.name in _OWN_FILES or entry.name.startswith(".doit.db") or path in excluded:
            continue
        if entry.is_symlink():
            if not str(path.readlink()).startswith("/nix/store/"):
                yield path
        elif entry.is_dir():
            yield from files_of(path, excluded)
        elif entry.is_file():
            yield path


def _remote(nix: Nix, place: Reference) -> Fingerprint:
    """Asked of Nix: a lock such as a commit and a hash; `reference` is then the locked one.

    A reference that names a commit is its own lock, and nobody is asked.
    """
    if place.is_fixed:
        return Fingerprint(f"fixed:{place.url}", place.url, place.url)
    # --refresh: else Nix answers from a cache that may be an hour old.
    argv = command("flake", "metadata", "--json", "--no-update-lock-file", "--refresh", place.url)
    done = nix.run(argv, deadline=_METADATA_SECONDS, what=f"flake {place.url}")
    try:
        said = json.loads(done.stdout)
        locked = said["locked"]
        is_clean = locked.get("rev") or locked.get("type") != "git"
        url = str(said.get("url") or said["resolvedUrl"]) if is_clean else place.url
    except (ValueError, KeyError, TypeError) as error:
        raise NixaError(f"nix flake metadata {place.url}: Nix printed unexpected JSON: {error!r}") from error
    return Fingerprint(
        "nix:" + json.dumps(locked, sort_keys=True), url, str(locked.get("rev") or "unversioned")
    )
