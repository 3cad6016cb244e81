"""The image's file on the host: a partial one, of which every byte is compared before it counts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from nixa_tasks.errors import NixaError
from nixa_tasks.host.ssh import Ssh
from nixa_tasks.image.obtain import Obtained

FOLDER = 'umask 077; mkdir -p "$HOME/.nixa-kexec" && cd "$HOME/.nixa-kexec" || exit 1'
_HASH_SECONDS = 600.0
_CHUNK = 1 << 18
_STATE = f"""{FOLDER}
for old in *; do case $old in "$1"|"$1.part"|'*') ;; *) rm -rf "$old";; esac; done
if [ -f "$1" ]; then mv -f "$1" "$1.part"; fi
[ -f "$1.part" ] || : >"$1.part"
wc -c <"$1.part"; head -c "$2" "$1.part" | sha256sum; df -Pk . | tail -n 1; pwd -P
"""
_RESTART = f"""{FOLDER}
: >"$1.part"
"""


@dataclass(frozen=True, slots=True)
class Look:
    """What the host has of it: bytes, the SHA-256 of the first ones that were asked for, free bytes
    beside it, its folder."""

    size: int
    sha256: str
    free: int
    folder: str


def look(ssh: Ssh, obtained: Obtained, count: int = 0) -> Look:
    """Look, and hash the first `count` bytes. Raises NixaError."""
    done = ssh.run(_STATE, obtained.sha256, str(count), deadline=_HASH_SECONDS, what="upload")
    seen = parse(done.stdout)
    if seen is None:
        raise NixaError(
            "the host's answer about its free space can't be read", host=ssh.host.name, tail=done.tail
        )
    return seen


def parse(answer: str) -> Look | None:
    """What the host said of the file; None where it is not that. Never raises."""
    try:
        size, digest, space, folder = answer.splitlines()
        found = Look(int(size), digest.split()[0], int(space.split()[3]) * 1024, folder)
    except (ValueError, IndexError):
        return None
    return found if found.size >= 0 and found.free >= 0 and folder.startswith("/") else None


def good_prefix(ssh: Ssh, obtained: Obtained) -> int:
    """How many bytes on the host are the file's first ones. What differs is thrown away."""
    whole = obtained.path.stat().st_size
    there = look(ssh, obtained).size
    if there == 0:
        return 0
    if there <= whole:
        right = obtained.sha256 if there == whole else _hash(obtained.path, there)
        if look(ssh, obtained, there).sha256 == right:
            return there
    ssh.run(_RESTART, obtained.sha256, deadline=60, what="upload")
    return 0


def _hash(path: Path, count: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while count > 0 and (chunk := file.read(min(_CHUNK, count))):
            digest.update(chunk)
            count -= len(chunk)
    return digest.hexdigest()
