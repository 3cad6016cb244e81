"""The image to the host, and the jump into it.

Not a byte of it runs before the host itself has checked the very file that it unpacks: in one
script, as root, right before unpacking. An upload that was cut goes on where it ended, once what
is there has been compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nixa_tasks import process
from nixa_tasks.errors import CommandFailed, NixaError
from nixa_tasks.kexec.compression import Compression
from nixa_tasks.kexec.image import Obtained
from nixa_tasks.manifest.model import Deliver, UrlImage
from nixa_tasks.pipes import Sink
from nixa_tasks.target.ssh import Ssh, Unreachable

Progress = Callable[[int, int | None], None]

_CHUNK = 1 << 18
_TRIES = 6
_PAUSE_SECONDS = 2.0
_UPLOAD_SECONDS = 6 * 3600.0
_HASH_SECONDS = 600.0
_UNPACK_SECONDS = 1800.0
_SPARE = 16 << 20  # what kexec/run adds to the initrd, and its log
_WRONG_HASH, _NOT_UNPACKED, _NO_JUMP = 90, 91, 92
_SENTENCE = "machine will boot into nixos"  # what kexec/run says once it is past returning

_FOLDER = 'umask 077; mkdir -p "$HOME/.nixa-kexec" && cd "$HOME/.nixa-kexec" || exit 1'
_STATE = f"""{_FOLDER}
for old in *; do case $old in "$1"|"$1.part"|'*') ;; *) rm -rf "$old";; esac; done
if [ -f "$1" ]; then mv -f "$1" "$1.part"; fi
[ -f "$1.part" ] || : >"$1.part"
wc -c <"$1.part"; head -c "$2" "$1.part" | sha256sum; df -Pk . | tail -n 1; pwd -P
"""
_APPEND = f"""{_FOLDER}
exec cat >>"$1.part"
"""
_RESTART = f"""{_FOLDER}
: >"$1.part"
"""
_PULL = f"""{_FOLDER}
if command -v curl >/dev/null; then exec curl -fsSL --retry 3 --connect-timeout 20 -C - -o "$1.part" "$2"
elif command -v wget >/dev/null; then exec wget -q -c -T 60 -O "$1.part" "$2"
else echo "neither curl nor wget is there" >&2; exit 1; fi
"""
_BOOT = f"""
set -u; cd "$1" || exit 1; umask 077
echo "$3  $2.part" | sha256sum -c - || exit {_WRONG_HASH}
rm -rf tree; mkdir tree; cd tree || exit 1
tar $4 -xf "../$2.part" || exit {_NOT_UNPACKED}
[ -x kexec/run ] || exit {_NOT_UNPACKED}
TMPDIR=$PWD setsid sh -c '"$1" --kexec-extra-flags "$2" >../run.log 2>&1; echo $? >../run.status' sh "$PWD/kexec/run" "$5" &
wait $!
cat ../run.log
grep -q '{_SENTENCE}' ../run.log || exit {_NO_JUMP}
"""
_TAR = {
    Compression.GZIP: ("-z", "gzip"),
    Compression.XZ: ("-J", "xz"),
    Compression.ZSTD: ("--zstd", "zstd"),
    Compression.NONE: ("", "tar"),
}  # tar's option, and the program that it needs


@dataclass(frozen=True, slots=True)
class Delivered:
    """Where the image lies on the host."""

    obtained: Obtained
    folder: str


def deliver(
    ssh: Ssh,
    obtained: Obtained,
    *,
    tools: tuple[str, ...],
    progress: Progress,
    note: Callable[[str], None],
    log: Sink,
) -> Delivered:
    """Get the file to the host, going on from what is there. It is not trusted yet: `boot` checks it.

    Raises NixaError where there is no room or it can't be had, Unreachable after several tries.
    """
    check_tools(ssh, obtained, tools)
    folder = _have_room(ssh, obtained)
    if obtained.image.deliver is Deliver.PULL and isinstance(obtained.image, UrlImage):
        _pull(ssh, obtained, obtained.image, note=note, log=log)
    else:
        _upload(ssh, obtained, progress=progress, note=note)
    return Delivered(obtained, folder)


def check_tools(ssh: Ssh, obtained: Obtained, tools: tuple[str, ...]) -> None:
    needed = ["sha256sum", "tar", _tar(obtained)[1]]
    missing = [tool for tool in needed if tool not in tools]
    if missing:
        raise NixaError(
            f"the machine lacks {', '.join(missing)}, which the image needs",
            host=ssh.host.name,
            hint=f"install {' '.join(missing)} there, or pin an image with another compression",
        )


def _tar(obtained: Obtained) -> tuple[str, str]:
    return _TAR[Compression(obtained.summary.compression)]


def _have_room(ssh: Ssh, obtained: Obtained) -> str:
    done, _digest, free, folder = _look(ssh, obtained, 0)
    needed = obtained.path.stat().st_size + obtained.summary.unpacked + _SPARE
    if free < needed - done:
        raise NixaError(
            f"the image needs {needed >> 20} MiB in {folder}, and {free >> 20} MiB are free",
            host=ssh.host.name,
            hint="make room there",
        )
    return folder


def _look(ssh: Ssh, obtained: Obtained, count: int) -> tuple[int, str, int, str]:
    """What the host has of it: bytes, the hash of the first `count`, free bytes, the folder."""
    done = ssh.run(_STATE, obtained.sha256, str(count), deadline=_HASH_SECONDS, what="upload")
    try:
        size, digest, space, folder = done.stdout.splitlines()
        return int(size), digest.split()[0], int(space.split()[3]) * 1024, folder
    except (ValueError, IndexError) as error:
        raise NixaError(
            "the host's answer about its free space can't be read", host=ssh.host.name, tail=done.tail
        ) from error


def _upload(ssh: Ssh, obtained: Obtained, *, progress: Progress, note: Callable[[str], None]) -> None:
    size = obtained.path.stat().st_size
    for attempt in range(_TRIES):
        try:
            start = _good_prefix(ssh, obtained, size)
            if start:
                note(f"going on at {start >> 20} MiB: the host has that much of it")
            if start < size:
                ssh.run(
                    _APPEND,
                    obtained.sha256,
                    deadline=_UPLOAD_SECONDS,
                    stdin=_chunks(obtained.path, start, progress),
                    what="upload",
                )
            if _look(ssh, obtained, 0)[0] == size:
                progress(size, size)
                return
        except (Unreachable, CommandFailed) as error:
            if attempt + 1 == _TRIES or (
                isinstance(error, CommandFailed) and "space" in " ".join(error.tail).lower()
            ):
                raise
            note(f"the upload was cut ({error.what}); trying again")
            ssh.disconnect()
            process.sleep(_PAUSE_SECONDS * (attempt + 1))
    raise NixaError(
        "the upload did not become whole", host=ssh.host.name, hint=f"doit deploy:{ssh.host.name}"
    )


def _good_prefix(ssh: Ssh, obtained: Obtained, size: int) -> int:
    """How many bytes on the host are the file's first ones. What differs is thrown away."""
    there = _look(ssh, obtained, 0)[0]
    if there == 0:
        return 0
    if there <= size and _look(ssh, obtained, there)[1] == _hash(obtained.path, there):
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


def _chunks(path: Path, start: int, progress: Progress) -> Iterator[bytes]:
    total = path.stat().st_size
    with path.open("rb") as file:
        file.seek(start)
        while chunk := file.read(_CHUNK):
            yield chunk
            progress(file.tell(), total)


def _pull(
    ssh: Ssh, obtained: Obtained, declared: UrlImage, *, note: Callable[[str], None], log: Sink
) -> None:
    """The host fetches it itself, from the first source that gives the right file."""
    size = obtained.path.stat().st_size
    for url in (declared.url, *declared.mirrors):
        if not url.startswith(("http://", "https://")):
            continue
        try:
            note(f"the host fetches {url}")
            ssh.run(_PULL, obtained.sha256, url, deadline=_UPLOAD_SECONDS, sink=log, what="pull")
        except CommandFailed as error:
            note(f"{url}: {error.tail[-1] if error.tail else error.what}")
            continue
        if _good_prefix(ssh, obtained, size) == size:
            return
        note(f"{url}: gave another file than the pinned one")
    raise NixaError(
        "the host could not fetch the image from any source",
        host=ssh.host.name,
        hint='set deliver = "upload", or add a mirror that the host can reach',
    )


def boot(ssh: Ssh, delivered: Delivered, *, extra_flags: str, log: Sink) -> None:
    """Check, unpack and run it, as root. Returns once the host said that it will jump.

    Raises NixaError; nothing ran then, or `kexec/run` said why it can't.
    """
    obtained = delivered.obtained
    name = ssh.host.name
    try:
        ssh.run(
            _BOOT,
            delivered.folder,
            obtained.sha256,
            obtained.sha256,
            _tar(obtained)[0],
            extra_flags,
            root=True,
            deadline=_UNPACK_SECONDS,
            sink=log,
            what="kexec",
        )
    except CommandFailed as error:
        match error.status:
            case 90:
                what = "the image on the host is not the pinned one; nothing of it ran"
                hint = f"it was damaged on the way or on its disk; try again: doit deploy:{name}"
            case 91:
                what, hint = (
                    "the image could not be unpacked there; nothing of it ran",
                    "is the host's disk full?",
                )
            case 92:
                what = "kexec/run did not boot the installer"
                hint = "see what it says; `kexec_extra_flags` in hosts.toml go to kexec, and Secure Boot must be off"
            case _:
                raise
        raise NixaError(what, host=name, tail=error.tail, hint=hint) from error
