"""The image to the host, and the jump into it.

Not a byte of it runs before the host itself has checked the very file that it unpacks: in one
script, as root, right before unpacking, and once more the very bytes that `tar` was given. An
upload that was cut goes on where it ended, once what is there has been compared.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING

from nixa_tasks.errors import CommandFailed, NixaError
from nixa_tasks.host.ssh import Ssh, Unreachable
from nixa_tasks.image.compression import Compression
from nixa_tasks.image.delivery.neighbours import Neighbours
from nixa_tasks.image.delivery.on_host import FOLDER, good_prefix, look
from nixa_tasks.image.delivery.pull import hand_on, pull
from nixa_tasks.image.obtain import Obtained, damage_here
from nixa_tasks.manifest.model import Deliver
from nixa_tasks.process.pump import Sink
from nixa_tasks.process.run import Output

if TYPE_CHECKING:
    from tenacity import RetryCallState

Progress = Callable[[int, int | None], None]

_CHUNK = 1 << 18
_TRIES = 6
_PAUSE_SECONDS = 2.0
_UPLOAD_SECONDS = 6 * 3600.0
_UNPACK_SECONDS = 1800.0
_FULL_KIB = 256  # fewer free KiB after a failed write: the disk was full
_SPARE = 16 << 20  # what kexec/run adds to the initrd, and its log


class Exit(IntEnum):
    """How the scripts here end on the host, where not with 0 or a tool's own status."""

    WRONG_HASH = 90
    NOT_UNPACKED = 91
    NO_JUMP = 92
    NO_SPACE = 93
    WRONG_TREE = 94


_SENTENCE = "machine will boot into nixos"  # what kexec/run says once it is past returning

_APPEND = f"""{FOLDER}
cat >>"$1.part" && exit 0
set -- $(df -Pk . | tail -n 1)
[ "$4" -ge {_FULL_KIB} ] || exit {Exit.NO_SPACE}
exit 1
"""
# The list of what lies here, as `tarball._Seen.tree_sha256` makes it of the archive.
LISTING = """list() { for f in "$1"/* "$1"/.[!.]* "$1"/..?*; do
  if [ -L "$f" ]; then printf 'l %s %s\\n' "$(readlink "$f")" "${f#./}"
  elif [ -d "$f" ]; then printf 'd %s\\n' "${f#./}"; list "$f"
  elif [ -f "$f" ]; then printf 'f %s %s\\n' "$(($(wc -c <"$f")))" "${f#./}"
  elif [ -e "$f" ]; then printf '? %s\\n' "${f#./}"
  fi
done; }
listing() { list .; for f in kexec/run kexec/kexec; do s=$(sha256sum <"$f"); printf 'h %s %s\\n' "${s%% *}" "$f"; done; }"""
_BOOT = f"""
set -u; cd "$1" || exit 1; umask 077; top=$PWD
end() {{ cd "$top" && rm -rf tree again again.sum; exit "$1"; }}  # root's files, which the login can't remove
echo "$3  $2.part" | sha256sum -c - || exit {Exit.WRONG_HASH}
rm -rf tree again; mkdir tree; mkfifo again; cd tree || exit 1
sha256sum <../again >../again.sum &
(trap '' PIPE; exec tee ../again <"../$2.part" 2>/dev/null) | tar $4 -xf - || end {Exit.NOT_UNPACKED}
wait $!
read -r sum _ <../again.sum
[ "$sum" = "$3" ] || {{ echo "it changed while it was unpacked"; end {Exit.WRONG_HASH}; }}
[ -x kexec/run ] || end {Exit.NOT_UNPACKED}
{LISTING}
sum=$(listing | LC_ALL=C sort | sha256sum)
[ "${{sum%% *}}" = "$6" ] || {{ echo "it unpacked to this:"; listing | LC_ALL=C sort | head -n 60; end {Exit.WRONG_TREE}; }}
TMPDIR=$PWD setsid sh -c '"$1" --kexec-extra-flags "$2" >../run.log 2>&1; echo $? >../run.status' sh "$PWD/kexec/run" "$5" &
wait $!
cat ../run.log
grep -q '{_SENTENCE}' ../run.log || end {Exit.NO_JUMP}
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


@dataclass(frozen=True, slots=True)
class Reporting:
    """Who hears of a delivery: the bytes that are there of how many; how many bytes the host itself
    got from upstream; remarks; and what the host's own tools print."""

    progress: Progress
    downloaded: Callable[[int], None]
    note: Callable[[str], None]
    log: Sink


def deliver(
    ssh: Ssh,
    obtained: Obtained,
    *,
    tools: tuple[str, ...],
    neighbours: Neighbours,
    turn: Callable[[], AbstractContextManager[None]],
    report: Reporting,
) -> Delivered:
    """Get the file to the host, continuing with what is there; where the image is to be pulled, hand it
    on to the hosts that wait for it. An upload waits for its `turn`. The file is not trusted yet:
    `boot` checks it.

    Raises NixaError where there is no room, Unreachable after several tries.
    """
    check_tools(ssh, obtained, tools)
    with held_open(obtained) as held:
        folder = _have_room(ssh, held)
        if obtained.image.deliver is Deliver.UPLOAD:
            with turn():
                _upload(ssh, held, progress=report.progress, note=report.note)
            return Delivered(obtained, folder)
        with neighbours.joined(obtained.sha256, ssh.host.name) as member:
            if not pull(ssh, held, member, downloaded=report.downloaded, note=report.note, log=report.log):
                report.note("the host can't fetch it from anywhere: uploading it")
                with turn():
                    _upload(ssh, held, progress=report.progress, note=report.note)
            hand_on(ssh, held, member, note=report.note)
    return Delivered(obtained, folder)


@contextlib.contextmanager
def held_open(obtained: Obtained) -> Iterator[Obtained]:
    """The same image by an open descriptor, so that it stays readable for as long as the body runs,
    also where `doit clean:kexec` removes it from the cache meanwhile. Raises NixaError."""
    try:
        file = obtained.path.open("rb")
    except OSError as error:
        raise NixaError(
            f"{obtained.path} can't be read: {error.strerror}",
            hint=f"doit kexec:{obtained.image.name} fetches it again",
        ) from error
    with file:
        yield replace(obtained, path=Path(f"/proc/{os.getpid()}/fd/{file.fileno()}"))


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
    seen = look(ssh, obtained)
    needed = obtained.path.stat().st_size + obtained.summary.unpacked + _SPARE
    if seen.free < needed - seen.size:
        raise NixaError(
            f"the image needs {needed >> 20} MiB in {seen.folder}, and {seen.free >> 20} MiB are free",
            host=ssh.host.name,
            hint="make room there",
        )
    return seen.folder


def _upload(ssh: Ssh, obtained: Obtained, *, progress: Progress, note: Callable[[str], None]) -> None:
    """Append what is missing, with retries. Raises NixaError, Unreachable, CommandFailed."""
    from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_incrementing

    def is_worth_another_try(error: BaseException) -> bool:
        if isinstance(error, CommandFailed):
            return error.status != Exit.NO_SPACE
        return isinstance(error, (Unreachable, _Incomplete))

    def before_retry(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        note(f"the upload was cut ({error}); trying again")
        ssh.disconnect()

    for attempt in Retrying(
        retry=retry_if_exception(is_worth_another_try),
        stop=stop_after_attempt(_TRIES),
        wait=wait_incrementing(start=_PAUSE_SECONDS, increment=_PAUSE_SECONDS),
        sleep=ssh.clock.sleep,
        before_sleep=before_retry,
        reraise=True,
    ):
        with attempt:
            _upload_once(ssh, obtained, progress, note)


class _Incomplete(NixaError):
    """The connection ended without an error, and bytes are missing on the host."""


def _upload_once(ssh: Ssh, obtained: Obtained, progress: Progress, note: Callable[[str], None]) -> None:
    size = obtained.path.stat().st_size
    start = good_prefix(ssh, obtained)
    if start:
        note(f"going on at {start >> 20} MiB: the host has that much of it")
    progress(start, size)
    if start < size:
        ssh.run(
            _APPEND,
            obtained.sha256,
            deadline=_UPLOAD_SECONDS,
            stdin=_chunks(obtained.path, start, progress),
            what="upload",
        )
    there = look(ssh, obtained).size
    if there != size:
        raise _Incomplete(
            f"upload incomplete after {_TRIES} attempts: {there} of {size} bytes are on the host",
            host=ssh.host.name,
            hint=f"try again, it continues where it ended: doit deploy:{ssh.host.name}",
        )
    progress(size, size)


def _chunks(path: Path, start: int, progress: Progress) -> Iterator[bytes]:
    total = path.stat().st_size
    with path.open("rb") as file:
        file.seek(start)
        while chunk := file.read(_CHUNK):
            yield chunk
            progress(file.tell(), total)


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
            obtained.summary.tree_sha256,
            root=True,
            deadline=_UNPACK_SECONDS,
            output=Output(sink=log),
            what="kexec",
        )
    except CommandFailed as error:
        match error.status:
            case Exit.WRONG_HASH:
                what = "the image on the host is not the pinned one; nothing of it ran"
                hint = damage_here(obtained) or "it was damaged on the way or on the host's disk"
                hint += f"\ntry again: doit deploy:{name}"
            case Exit.NOT_UNPACKED:
                what, hint = (
                    "the host could not unpack the image; nothing of it ran",
                    "is the host's disk full?",
                )
            case Exit.WRONG_TREE:
                what = "the host unpacked something else than what is in the image; nothing of it ran"
                hint = "its tar reads the archive in another way: see what it unpacked, and pin another image"
            case Exit.NO_JUMP:
                what = "kexec/run did not boot the installer"
                hint = "see what it says; `kexec_extra_flags` in hosts.toml go to kexec, and Secure Boot must be off"
            case _:
                raise
        raise NixaError(what, host=name, tail=error.tail, hint=hint) from error
