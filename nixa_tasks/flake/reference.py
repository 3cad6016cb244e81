"""Where a flake lies: what `flake = …` in hosts.toml means, before Nix is asked."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from nixa_tasks.errors import NixaError

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_FORGE = re.compile(r"(?:github|gitlab|sourcehut):[^/?]+/[^/?]+/([^/?]+)")


class Kind(StrEnum):
    """`GIT`: the working tree of a local repository. `PLAIN`: a folder without git. `REMOTE`:
    everything that only Nix can look at."""

    GIT = "git"
    PLAIN = "plain"
    REMOTE = "remote"


@dataclass(frozen=True, slots=True)
class Reference:
    """A flake's place. `url`: what Nix is asked. `root`: the local tree, without symlinks.
    `subdir`: the flake's folder in it, "" for the tree itself. `is_fixed`: what it names can
    never change (a commit, or a path of the store). `is_asked_of_nix`: the reference asks for more
    than the tracked files (submodules, LFS), and only Nix looks at that."""

    kind: Kind
    url: str
    root: Path | None = None
    subdir: str = ""
    is_fixed: bool = False
    is_asked_of_nix: bool = False

    @property
    def local(self) -> Path:
        """The local tree of a reference of kind GIT or PLAIN."""
        if self.root is None:
            raise ValueError(f"{self.url} is not local")
        return self.root


def parse(flake: str) -> Reference:
    """The place that a reference names: a path, `path:…`, `git+file:…`, or anything Nix takes.

    Symlinks in local paths are resolved, since Nix 2.8 refuses them, and blanks are encoded,
    which every Nix takes in a git reference. Raises NixaError where a local flake is not there.
    """
    bare = flake.split("#", 1)[0]
    scheme = bare.split(":", 1)[0] if ":" in bare.split("/", 1)[0] else ""
    if scheme == "":
        return _local(Path(bare.split("?", 1)[0]).expanduser(), parameters(bare))
    if scheme == "path":
        return _plain(Path(_path_of(bare)), parameters(bare).get("dir", ""))
    if scheme == "git+file":
        given = parameters(bare)
        if "rev" in given or "ref" in given:
            return Reference(Kind.REMOTE, bare, is_fixed=_is_fixed(bare))
        return _git(Path(_path_of(bare)).resolve(), given)
    return Reference(Kind.REMOTE, bare, is_fixed=_is_fixed(bare))


def parameters(url: str) -> dict[str, str]:
    """What stands behind the `?` of a reference."""
    return dict(parse_qsl(url.partition("?")[2], keep_blank_values=True))


def _path_of(url: str) -> str:
    return unquote(urlsplit(url).path)


def _is_fixed(url: str) -> bool:
    given = parameters(url)
    forge = _FORGE.match(url)
    revision = given.get("rev") or (forge[1] if forge else "")
    return "narHash" in given or _COMMIT.fullmatch(revision) is not None


def _local(path: Path, given: dict[str, str]) -> Reference:
    """As Nix does for a path: the nearest folder upwards with a flake.nix, up to git's root."""
    start = path.resolve()
    if not start.is_dir():
        reason = "is not a folder" if start.exists() else "does not exist"
        hint = "see `flake` under [fleet] in hosts.toml; a name of the flake registry is written `flake:NAME`"
        raise NixaError(f"the flake {path} {reason}", hint=hint)
    if _in_store(start):
        return _plain(start, given.get("dir", ""))
    root = next((folder for folder in (start, *start.parents) if (folder / ".git").exists()), None)
    if "dir" in given:
        return _git(root, given) if root else _plain(start, given["dir"])
    candidates = (start, *(folder for folder in start.parents if root and folder.is_relative_to(root)))
    folder = next((one for one in candidates if (one / "flake.nix").exists()), None)
    if folder is None:
        raise NixaError(
            f"there is no flake.nix in {start}" + (f", nor above it up to {root}" if root else ""),
            hint="name the flake's folder as `flake` under [fleet] in hosts.toml",
        )
    if root is None:
        return _plain(folder, "")
    subdir = str(folder.relative_to(root))
    folder_in_it = {} if subdir == "." else {"dir": subdir}
    return _git(root, given | folder_in_it | ({"shallow": "1"} if _is_shallow(root) else {}))


def _is_shallow(root: Path) -> bool:
    """Whether the repository lacks older commits: Nix reads such a one only where it is asked to,
    and asks itself where the reference is a path."""
    git = root / ".git"
    try:
        if git.is_file():  # a worktree, or a submodule
            git = root / git.read_text().partition(":")[2].strip()
            common = git / "commondir"
            git = git / common.read_text().strip() if common.exists() else git
        return (git / "shallow").exists()
    except OSError:
        return False


def _git(root: Path, given: dict[str, str]) -> Reference:
    query = urlencode(given, quote_via=quote, safe="/")
    url = f"git+file://{quote(str(root))}" + (f"?{query}" if query else "")
    more = not given.keys() <= {"dir", "shallow"}
    return Reference(Kind.GIT, url, root, given.get("dir", ""), is_asked_of_nix=more)


def _plain(path: Path, subdir: str) -> Reference:
    root = path.resolve()
    if not (root / subdir / "flake.nix").exists():
        raise NixaError(
            f"there is no flake.nix in {root / subdir}",
            hint="name the flake's folder as `flake` under [fleet] in hosts.toml",
        )
    url = f"path:{quote(str(root))}" + (f"?dir={quote(subdir)}" if subdir else "")
    if _in_store(root):
        return Reference(Kind.REMOTE, url, is_fixed=True)
    return Reference(Kind.PLAIN, url, root, subdir)


def _in_store(path: Path) -> bool:
    return path.is_relative_to("/nix/store")
