"""A local git tree as Nix would read it: the hash of its tracked files, and what may change it.

git answers in milliseconds what Nix answers in a tenth of a second, but only for a tree whose files
on the disk are, byte for byte, those that a commit of them would hold. `is_regular` says whether
that is so; of any other tree Nix itself is asked (fingerprint.py).
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from nixa_tasks.errors import CommandFailed, NixaError
from nixa_tasks.nix.command import environment
from nixa_tasks.process.run import Completed, Place, Processes

_GIT_SECONDS = 120.0
# Settings under which git and Nix may see other bytes, names or modes than those on the disk.
_SETTINGS = re.compile(
    r"core\.(autocrlf|attributesfile|ignorecase|worktree|precomposeunicode|sparsecheckoutcone"
    r"|sparsecheckout|filemode|symlinks)"
)
_HARMLESS = {"core.filemode": "true", "core.symlinks": "true"}
# What `self` says of a flake's revision. A flake that reads one has another output at every commit.
_NAMES = "rev|shortRev|dirtyRev|dirtyShortRev|revCount|lastModified|lastModifiedDate|sourceInfo"
_SELECTED = re.compile(rf"([\w'-]*)\s*(?:\.|\?)\s*\"?(?:{_NAMES})\b(?!')")
_INHERITED = re.compile(r"\binherit\s*\(\s*(?:inputs\s*\.\s*)?self\s*\)|\bwith\s+(?:inputs\s*\.\s*)?self\b")
_OF_SOMETHING_ELSE = frozenset(
    {"src", "source", "finalAttrs", "final", "prev", "old", "oldAttrs", "fetchGit"}
)


# What a *.nix file says that may make it read a file which it does not name: the whole tree, or a listing.
_READS_THE_TREE = (
    r"(^|[][:space:](=:{\"[])\.\.?(/\.\.?)+([][:space:];)}\"]|$)"  # ./. and ../..
    r"|\$\{[[:space:]]*(inputs\.)?self[[:space:]]*\}|self[[:space:]]*\+|=[[:space:]]*(inputs\.)?self[[:space:]]*;"
    r"|(toString|import|\()[[:space:]]*(inputs\.)?self([^.A-Za-z]|$)|self\.(outPath|narHash|sourceInfo)"
    r"|readDir|readFileType|fromTOML|getFlake|builtins\.path|fileset|filterSource|cleanSource|lib\.(filesystem|sources)"
    r"|includeAllModules"
)


class GitTree:
    """The working tree at `root`, without symlinks, of a git repository."""

    def __init__(self, processes: Processes, root: Path) -> None:
        self._processes = processes
        self.root = root

    def head(self) -> tuple[str | None, str | None]:
        """The commit that is checked out, and its tree; None where there is no commit yet."""
        said = (self._query("rev-parse", "-q", "HEAD", "HEAD^{tree}") or "").split()
        return (said[0], said[1]) if len(said) == 2 else (None, None)

    def tree_hash(self, unread: str | None = None) -> tuple[str, str]:
        """The hash of the tree that the tracked files make as they are now, committed or not, and the
        same without the file `unread`.

        The repository itself is left as it is. Raises CommandFailed, NixaError.
        """
        index, objects = self._ask("rev-parse", "--git-path", "index", "--git-path", "objects").split("\n")
        with tempfile.TemporaryDirectory(prefix="nixa-index-") as place:
            own = Path(place) / "index"
            if (self.root / index).exists():
                shutil.copy2(self.root / index, own)
            env = {
                "GIT_INDEX_FILE": str(own),
                "GIT_OBJECT_DIRECTORY": place,
                "GIT_ALTERNATE_OBJECT_DIRECTORIES": str((self.root / objects).resolve()),
            }
            self._ask("add", "-u", ".", env=env)
            whole = self._ask("write-tree", env=env)
            if unread is None:
                return whole, whole
            self._ask("rm", "--cached", "--quiet", "--ignore-unmatch", "--", unread, env=env)
            return whole, self._ask("write-tree", env=env)

    def is_regular(self) -> bool:
        """Whether git's hash of the tree tells Nix's: no submodule, no attribute or setting that
        converts files, no entry that git was asked not to look at. Raises CommandFailed, NixaError."""
        return not (
            self._has_irregular_entries() or self._has_settings() or any(map(_is_filled, self._attributes()))
        )

    def reads_revision(self, inputs: Iterable[str]) -> bool:
        """Whether a tracked *.nix file seems to read the flake's own revision. `inputs`: names of
        other flakes, whose revisions flake.lock pins. In doubt, yes: that costs an evaluation."""
        pattern = rf"(^|[^A-Za-z0-9_])({_NAMES})([^A-Za-z0-9_]|$)"
        done = self._run(("grep", "-hE", "-e", pattern, "--", "*.nix"), None, check=False)
        if done.status > 1:  # it could not search
            return True
        others = {*inputs, *_OF_SOMETHING_ELSE}
        lines = (line.partition("#")[0] for line in done.stdout.splitlines())
        found = [line for line in lines if re.search(rf"\b(?:{_NAMES})\b", line)]
        if any(match[1] not in others for line in found for match in _SELECTED.finditer(line)):
            return True
        return bool(found) and self._inherits_from_self()

    def may_read(self, name: str) -> bool:
        """Whether an evaluation may read the tracked file `name` at the top of the tree: a *.nix file names
        it, or takes the whole tree. In doubt, yes: that costs an evaluation."""
        pattern = f"{re.escape(name)}|{_READS_THE_TREE}"
        done = self._run(("grep", "-qE", "-e", pattern, "--", "*.nix"), None, check=False)
        return done.status != 1

    def _inherits_from_self(self) -> bool:
        pattern = r"(inherit[[:space:]]*\(|with)[[:space:]]*(inputs[[:space:]]*\.[[:space:]]*)?self"
        done = self._run(("grep", "-hE", "-e", pattern, "--", "*.nix"), None, check=False)
        return done.status > 1 or _INHERITED.search(done.stdout) is not None

    def _has_irregular_entries(self) -> bool:
        """Submodules, conflicts, entries that are not to be looked at or not checked out, files of
        attributes, and files that are gone, whose empty folders only Nix 2.8 reads. A line of
        `ls-files -v -s` is `H 100644 HASH 0<tab>PATH`."""
        for line in self._ask("ls-files", "-v", "-s").split("\n"):
            tag, _, rest = line.partition(" ")
            name = rest.rpartition("\t")[2]
            if tag not in {"H", ""} or rest.startswith("160000") or name.endswith(".gitattributes"):
                return True
        return self._ask("diff-files", "--name-only", "--diff-filter=D") != ""

    def _has_settings(self) -> bool:
        for line in (self._query("config", "--list", "-z") or "").split("\0"):
            name, _, value = line.partition("\n")
            if _SETTINGS.fullmatch(name) and value.lower() != _HARMLESS.get(name, "false"):
                return True
        return False

    def _attributes(self) -> tuple[Path, ...]:
        """Files that give attributes to every tree of this repository, user or machine."""
        own = self.root / self._ask("rev-parse", "--git-path", "info/attributes")
        config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
        return (own, config / "git/attributes", Path("/etc/gitattributes"))

    def _ask(self, *args: str, env: Mapping[str, str] | None = None) -> str:
        """What the command prints. Raises CommandFailed, NixaError."""
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

    def _query(self, *args: str) -> str | None:
        """What the command prints; None where it fails."""
        done = self._run(args, None, check=False)
        return done.stdout.strip() if done.is_ok else None

    def _run(self, args: tuple[str, ...], env: Mapping[str, str] | None, *, check: bool) -> Completed:
        if shutil.which("git") is None:
            raise NixaError("git not found, and Nix needs it to read the flake", hint="install git")
        argv = ("git", "-c", "core.fsmonitor=false", "-c", "core.safecrlf=false", *args)
        place = Place(self.root, environment({"LC_ALL": "C", **(env or {})}))
        return self._processes.run(argv, deadline=_GIT_SECONDS, place=place, check=check, what="git")


def _is_filled(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except OSError:
        return False
