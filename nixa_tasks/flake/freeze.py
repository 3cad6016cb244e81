"""A copy of the flake in the store, which stays as it is while it is evaluated.

The working tree may be edited at any moment, and a folder without git holds nixa's own state: Nix
is given neither. It evaluates a copy, with the revision and date that belong to it, so that
`self.rev` and `self.outPath` are what they would be.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from nixa_tasks.errors import Interrupted, NixaError
from nixa_tasks.flake.fingerprint import Fingerprint, files_of
from nixa_tasks.nix.command import Nix, command, is_store_path, store_command
from nixa_tasks.nix.errors import NixFailed, Reason
from nixa_tasks.process.pump import Sink


def freeze(nix: Nix, seen: Fingerprint, *, deadline: float, sink: Sink | None = None) -> str:
    """A reference to the flake's content as it is now, that can't change any more.

    `deadline`: seconds. Raises nix_errors.NixFailed, NixaError, DeadlinePassed, Interrupted.
    """
    if seen.files is not None:
        return _reference(_add(nix, seen, seen.files, deadline, sink), {"dir": seen.subdir})
    argv = command("flake", "metadata", "--json", "--no-update-lock-file", seen.reference)
    try:
        done = nix.run(argv, deadline=deadline, sink=sink, what="read the flake")
    except NixFailed as error:
        if error.reason is Reason.UNTRACKED:
            error.hint = f"git does not track it: `git add {error.subject}` (a commit is not needed)"
        raise
    try:
        said = json.loads(done.stdout)
        locked, path = said["locked"], said["path"]
        facts = {name: locked.get(name) for name in ("dir", "rev", "revCount", "lastModified", "narHash")}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NixaError(f"read the flake: Nix printed unexpected JSON: {error!r}") from error
    return _reference(path, facts)


def _reference(path: str, facts: Mapping[str, object]) -> str:
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
