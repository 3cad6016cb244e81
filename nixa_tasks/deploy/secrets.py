"""What an installation brings that nobody else may read: extra files and disk keys.

A secret from a command lives in a 0600 file on a tmpfs for as long as the installation needs it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

from nixa_tasks.errors import CommandFailed, NixaError
from nixa_tasks.manifest.model import CommandSecret, FileSecret, Host, SecretSource
from nixa_tasks.process.run import Output, Place, Processes
from nixa_tasks.state import private_dir as private

_COMMAND_SECONDS = 120
_MAX_SECRET = 64 << 20


@dataclass(frozen=True, slots=True)
class Provided:
    """Local paths for nixos-anywhere. `extra_files` is a folder."""

    extra_files: Path | None
    keys: tuple[tuple[str, Path], ...]


@contextlib.contextmanager
def provided(host: Host, root: Path, folder: Path, processes: Processes) -> Iterator[Provided]:
    """The host's secrets as files for as long as the body runs. `root`: where commands run.

    Raises NixaError where one can't be read; its text is never part of an error.
    """
    with private.memory_folder(folder, processes) as place:
        keys = tuple(
            (remote, _key(host, source, root, place / f"key-{number}", processes))
            for number, (remote, source) in enumerate(host.disk_encryption_keys)
        )
        yield Provided(_extra_files(host, root, place, processes), keys)


def _key(host: Host, source: SecretSource, root: Path, place: Path, processes: Processes) -> Path:
    match source:
        case FileSecret(path=path):
            if not path.is_file():
                raise NixaError(f"disk_encryption_keys: {path} is not a file", host=host.name)
            return path
        case CommandSecret():
            _write(place, _output(host, source, root, processes))
            return place
        case _ as never:
            assert_never(never)


def _extra_files(host: Host, root: Path, place: Path, processes: Processes) -> Path | None:
    match host.extra_files:
        case None:
            return None
        case FileSecret(path=path):
            if not path.is_dir():
                raise NixaError(f"extra_files: {path} is not a folder", host=host.name)
            return path
        case CommandSecret() as source:
            archive, tree = place / "extra.tar", place / "extra"
            _write(archive, _output(host, source, root, processes))
            tree.mkdir(mode=0o700)
            processes.run(
                ("tar", "-C", str(tree), "-xpf", str(archive)),
                deadline=_COMMAND_SECONDS,
                host=host.name,
                what="extra_files (the command must print a tar archive)",
            )
            return tree
        case _ as never:
            assert_never(never)


def _write(path: Path, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(data)


def _output(host: Host, source: CommandSecret, root: Path, processes: Processes) -> bytes:
    """What the command prints, byte for byte. Neither it nor what it says on failure is logged."""
    try:
        done = processes.run(
            source.command,
            deadline=_COMMAND_SECONDS,
            place=Place(cwd=root),
            output=Output(sink_stdout=False, keep=_MAX_SECRET),
            host=host.name,
            what=f"the secret's command {source.command[0]!r}",
        )
    except CommandFailed as error:
        error.tail = ()
        error.hint = "run it by hand to see why"
        raise
    return done.raw
