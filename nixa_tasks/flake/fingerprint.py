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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from nixa_tasks import nix, process
from nixa_tasks.errors import CommandFailed, NixaError
from nixa_tasks.state.layout import Layout

_GIT_SECONDS = 120.0
_METADATA_SECONDS = 600.0
_OWN_FILES = frozenset({".nixa", ".deploy_cache", ".git", ".direnv", "result"})
# A flake that reads one of these has another output at every commit.
_REVISION = (
    r"\bself\.(rev|shortRev|dirtyRev|dirtyShortRev|revCount|lastModified|lastModifiedDate|sourceInfo)\b"
)


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """`value`: equal as long as nothing that an evaluation reads has changed. `reference`: what Nix
    evaluates. `revision`: for people and receipts, such as a commit, with `-dirty` where it is."""

    value: str
    reference: str
    revision: str


def fingerprint(flake: str, layout: Layout) -> Fingerprint:
    """The fingerprint of a flake reference, local or remote.

    `layout`: nixa's own state, which does not count where it lies inside the flake.
    Raises nix_errors.NixFailed, NixaError.
    """
    local = _local(flake)
    if local is None:
        return _remote(flake)
    folder, subdir = local
    if not (folder / subdir / "flake.nix").is_file():
        raise NixaError(
            f"there is no flake.nix in {folder / subdir}",
            hint="set `flake` in [fleet] of hosts.toml to the folder that holds it",
        )
    top = _git(("rev-parse", "--show-toplevel", "--show-prefix"), folder, check=False)
    if top is None or flake.startswith("path:"):
        return Fingerprint(_tree_hash(folder, layout), f"path:{folder / subdir}", "not in git")
    root, _, prefix = top.partition("\n")
    return _git_tree(Path(root), Path(prefix.strip()) / subdir)


def _local(flake: str) -> tuple[Path, str] | None:
    """The folder of a local reference, links resolved since Nix refuses them, and its `?dir=`."""
    bare = flake
    for scheme in ("git+file:", "path:"):
        bare = bare.removeprefix(scheme)
    if not bare.startswith("/"):
        return None
    parts = urlsplit(bare)
    if any(name != "dir" for name in parse_qs(parts.query)):
        return None  # a `rev` or a `ref` that is not what lies in the folder: Nix knows
    subdir = parse_qs(parts.query).get("dir", [""])[0]
    return Path(parts.path).resolve(), subdir


def _git_tree(root: Path, subdir: Path) -> Fingerprint:
    head = _git(("rev-parse", "--verify", "-q", "HEAD"), root, check=False)
    tree = _working_tree(root)
    committed = _git(("rev-parse", "--verify", "-q", "HEAD^{tree}"), root, check=False)
    dirty = tree != committed
    revision = (head or "no commit") + ("-dirty" if dirty else "")
    value = f"git:{tree}:{subdir}"
    if _reads_its_revision(root):
        value += f":{revision}"
    directory = f"?dir={subdir}" if str(subdir) != "." else ""
    return Fingerprint(value, f"git+file://{root}{directory}", revision)


def _working_tree(root: Path) -> str:
    """The tree that the tracked files make, as they are; the repository itself stays as it is."""
    index = _git(("rev-parse", "--git-path", "index"), root) or ""
    objects = _git(("rev-parse", "--git-path", "objects"), root) or ""
    with tempfile.TemporaryDirectory(prefix="nixa-index-") as place:
        own = Path(place) / "index"
        if (root / index).exists():
            shutil.copy2(root / index, own)
        env = {
            "GIT_INDEX_FILE": str(own),
            "GIT_OBJECT_DIRECTORY": place,
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": str((root / objects).resolve()),
        }
        _git(("add", "-u", "."), root, env=env)
        return _git(("write-tree",), root, env=env) or ""


def _reads_its_revision(root: Path) -> bool:
    return _git(("grep", "-qP", _REVISION, "--", "*.nix"), root, check=False) is not None


def _git(
    args: tuple[str, ...], folder: Path, *, check: bool = True, env: Mapping[str, str] | None = None
) -> str | None:
    """What git says, or None where it fails and need not succeed."""
    if shutil.which("git") is None:
        if check:
            raise NixaError("git is not there, and Nix needs it to read the flake", hint="install git")
        return None
    argv = ("git", "-c", "core.fsmonitor=false", "-c", "core.safecrlf=false", *args)
    try:
        done = process.run(
            argv, deadline=_GIT_SECONDS, cwd=folder, env=nix.environment(env), check=check, what="git"
        )
    except CommandFailed as error:
        error.hint = f"see what `git -C {folder} status` says"
        raise
    return done.stdout.strip() if done.is_ok else None


def _tree_hash(folder: Path, layout: Layout) -> str:
    """A hash over names, modes and contents below `folder`, but for nixa's own files."""
    total = hashlib.sha256()
    for path in _files(folder, layout.state):
        name = os.fsencode(path.relative_to(folder))
        if path.is_symlink():
            total.update(b"l" + name + b"\0" + os.fsencode(path.readlink()) + b"\0")
        else:
            executable = b"x" if os.access(path, os.X_OK) else b"f"
            with path.open("rb") as file:
                total.update(executable + name + b"\0" + hashlib.file_digest(file, "sha256").digest())
    return f"path:{total.hexdigest()}"


def _files(folder: Path, state: Path) -> Iterator[Path]:
    keep: Callable[[str], bool] = lambda name: name not in _OWN_FILES and not name.startswith(".doit.db")  # noqa: E731
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if keep(name) and Path(where, name) != state)
        links = [name for name in folders if Path(where, name).is_symlink()]
        yield from (Path(where, name) for name in sorted([*filter(keep, names), *links]))


def _remote(flake: str) -> Fingerprint:
    """Asked of Nix: a lock such as a commit and a hash; `reference` is then the locked one."""
    argv = nix.command("flake", "metadata", "--json", "--no-write-lock-file", flake)
    done = nix.run(argv, deadline=_METADATA_SECONDS, what=f"flake {flake}")
    try:
        said = json.loads(done.stdout)
        locked = said["locked"]
        reference = str(said.get("url") or said["resolvedUrl"])
    except (ValueError, KeyError, TypeError) as error:
        raise NixaError(f"nix flake metadata {flake}: its answer can't be read: {error!r}") from error
    return Fingerprint(
        "nix:" + json.dumps(locked, sort_keys=True), reference, str(locked.get("rev") or "unversioned")
    )
