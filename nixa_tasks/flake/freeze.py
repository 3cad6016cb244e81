"""A reference to the flake's content that stays as it is while it is evaluated.

The working tree may be edited at any moment, and a folder without git holds nixa's own state: Nix
is given neither. It evaluates a commit, or a copy in the store with the revision and date that
belong to it, so that `self.rev` and `self.outPath` are what they would be. Where a copy can't mean
all that the user's reference means, the reference itself is handed on.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from nixa_tasks.errors import Interrupted, NixaError
from nixa_tasks.flake.fingerprint import Fingerprint, Metadata, ask, files_of
from nixa_tasks.nix.command import Nix, is_store_path, store_command
from nixa_tasks.process.pump import Sink

# What a `path:` reference can say of a git tree that was copied.
_FACTS = ("rev", "revCount", "lastModified", "narHash")
_SAID_BY_A_COPY = frozenset({"type", "url", "ref", "dir", "shallow", *_FACTS})
_ONLY_OF_A_DIRTY_TREE = frozenset({"dirtyRev", "dirtyShortRev"})
_DIR_IN_PATH = (2, 14)  # the first Nix that takes `path:…?dir=…`


@dataclass(frozen=True, slots=True)
class Frozen:
    """What Nix evaluates. Where it is not `is_fixed`, an edit may have come in between: compare
    fingerprints from before and after the evaluation."""

    reference: str
    is_fixed: bool


def freeze(nix: Nix, seen: Fingerprint, *, deadline: float, sink: Sink | None = None) -> Frozen:
    """A reference to the flake's content as it is now.

    `deadline`: seconds, for the copy. Raises nix.errors.NixFailed, NixaError, DeadlinePassed,
    Interrupted.
    """
    if seen.is_fixed:
        return Frozen(seen.reference, True)
    if seen.files is not None:
        return Frozen(_with_facts(_add(nix, seen, seen.files, deadline, sink), {"dir": seen.subdir}), True)
    metadata = ask(nix, seen.reference, sink=sink)
    if metadata.locked_url is not None:
        return Frozen(metadata.locked_url, True)
    if _is_said_by_a_copy(nix, metadata, seen):
        facts = {name: metadata.locked.get(name) for name in (*_FACTS, "dir")}
        return Frozen(_with_facts(metadata.path, facts), True)
    return Frozen(seen.reference, False)


def _is_said_by_a_copy(nix: Nix, metadata: Metadata, seen: Fingerprint) -> bool:
    """Whether a `path:` reference to the copy means what the user's reference does."""
    said = {name for name, value in metadata.locked.items() if value}
    if not seen.reads_revision:
        said -= _ONLY_OF_A_DIRTY_TREE
    if not said <= _SAID_BY_A_COPY or not is_store_path(metadata.path):
        return False
    return "dir" not in said or nix.version() >= _DIR_IN_PATH


def _with_facts(path: str, facts: dict[str, object]) -> str:
    """Nix takes the facts about a copy's origin along with a `path:`; 2.8 insists on the hash
    where a date is given."""
    query = "&".join(f"{name}={quote(str(value), safe='/')}" for name, value in facts.items() if value)
    return f"path:{path}" + (f"?{query}" if query else "")


def _add(nix: Nix, seen: Fingerprint, root: Path, deadline: float, sink: Sink | None) -> str:
    with tempfile.TemporaryDirectory(prefix="nixa-flake-") as folder:
        source = Path(folder) / "source"  # Nix names the copy of a flake so
        source.mkdir()
        for path in files_of(root, seen.excluded):
            if nix.processes.is_stopping():
                raise Interrupted("stopped")
            _copy(path, source / path.relative_to(root))
        argv = store_command("--add", str(source))
        done = nix.run(argv, deadline=deadline, sink=sink, what="copy the flake into the store")
    added = done.stdout.strip()
    if not is_store_path(added):
        raise NixaError("copy the flake into the store: Nix printed no path", tail=done.tail)
    return added


def _copy(path: Path, to: Path) -> None:
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, to, follow_symlinks=False)
    except OSError as error:
        raise NixaError(
            f"copy the flake into the store: {path}: {error.strerror}",
            hint="see that the file can be read, and that the temporary folder has room",
        ) from error
