"""Files that are never half written, locks that a dead holder never keeps, hashes and copies."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nixa_tasks.errors import DeadlinePassed, NixaError
from nixa_tasks.process.clock import Clock, SystemClock

BLOCK = 1 << 20
_FICLONE = 0x40049409  # ioctl_ficlone(2)
_FIRST_PAUSE = 0.02
_LONGEST_PAUSE = 0.5
_ANNOUNCE_AFTER = 0.1  # seconds: a wait that nobody notices is not worth a line
_HINT = "make room on the disk, or give the folder to the user who runs nixa"


def now() -> str:
    """This moment, UTC, RFC 3339, whole seconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# --- writing


def replace_file(
    path: Path, data: bytes, mode: int, *, like: Path | None = None, durable: bool = True
) -> None:
    """Put `data` in the file's place in one step: a temporary file in the same folder, flushed, renamed.

    `like`: a file whose owner, group, and extended attributes (ACLs are among them) the new one gets,
    as far as the user may give them. `durable`: flushed to the disk first, so that the new file is whole
    even after a power cut.
    Raises OSError; then the file is as it was.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            if like is not None:
                _copy_ownership(like, file.fileno())
            os.fchmod(file.fileno(), mode)
            if like is not None:
                _copy_attributes(like, file.fileno())
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise


def _copy_ownership(source: Path, handle: int) -> None:
    """Owner and group, each by itself: a member of the group may give the group, but not the owner."""
    status = source.stat()
    for user, group in ((-1, status.st_gid), (status.st_uid, -1)):
        with contextlib.suppress(PermissionError):
            os.fchown(handle, user, group)


def _copy_attributes(source: Path, handle: int) -> None:
    try:
        names = os.listxattr(source)
    except OSError:  # a file system without them
        return
    for name in names:
        with contextlib.suppress(OSError):  # `trusted.*` and `security.*` are root's
            os.setxattr(handle, name, os.getxattr(source, name))


def write_bytes(path: Path, data: bytes, mode: int = 0o644, *, durable: bool = True) -> None:
    """Replace a file in one step, and make its folder.

    Raises NixaError where the folder can't be written (a full disk, no permission).
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, data, mode, durable=durable)
    except OSError as error:
        raise NixaError(f"{path} can't be written: {error.strerror}", hint=_HINT) from error


def write_json(path: Path, value: object, *, durable: bool = True) -> None:
    """Write `value` as JSON, in one step. Raises NixaError."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode(), durable=durable)


def write_json_if_changed(path: Path, value: object, *, durable: bool = True) -> bool:
    """Write only what differs from what is there, so that an equal value keeps the file as it is."""
    if path.exists() and read_json(path) == value:
        return False
    write_json(path, value, durable=durable)
    return True


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None where there is none, or where it is damaged: a stamp is a
    cache, and one that can't be read is one that is not there."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


# --- locks


@contextlib.contextmanager
def locked(
    path: Path,
    *,
    timeout: float,
    what: str = "",
    announce: Callable[[str], None] = lambda _text: None,
    tick: Callable[[], None] = lambda: None,
    clock: Clock | None = None,
) -> Iterator[None]:
    """Hold the lock file `path`, across threads and processes of this machine.

    While another holds it, wait up to `timeout` seconds, and announce once who it is. `what`: the
    name of the lock in messages; by default the file's. `tick` is called at every look.
    It is an flock, which the kernel drops with its holder; the file goes with its last holder.
    Raises DeadlinePassed, Interrupted, NixaError.
    """
    clock = clock or SystemClock()
    what = what or path.name
    started, announced, pause = clock.monotonic(), False, _FIRST_PAUSE
    while (handle := _try(path)) is None:
        waited = clock.monotonic() - started
        if waited > timeout:
            raise DeadlinePassed(
                f"{what} is still held by {holder(path)} after {timeout:g} s",
                hint="wait for that run, or stop it",
            )
        if not announced and waited > _ANNOUNCE_AFTER:
            announce(f"waiting for {what}, held by {holder(path)}")
            announced = True
        tick()
        clock.sleep(pause)
        pause = min(pause * 1.5, _LONGEST_PAUSE)
    try:
        with contextlib.suppress(OSError):  # on a full disk the lock holds without its label
            os.ftruncate(handle, 0)
            label = {"pid": os.getpid(), "host": socket.gethostname(), "since": now()}
            os.pwrite(handle, json.dumps(label).encode(), 0)
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()  # while it is held: whoever waits on this inode sees that it is gone
        os.close(handle)


def holder(path: Path) -> str:
    """Who holds the lock; `another run` where that can't be read."""
    try:
        who = json.loads(path.read_bytes())
        return f"process {who['pid']} on {who['host']} since {who['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another run"


def _try(path: Path) -> int | None:
    """The descriptor of the held lock; None where somebody else holds it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise NixaError(
            f"{path} can't be opened: {error.strerror}",
            hint="give the folder to the user who runs nixa, or choose another one",
        ) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(handle).st_ino == path.stat().st_ino:
            return handle
    except FileNotFoundError:
        pass  # its last holder removed it between our open and our lock: the next try makes a new one
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.EINTR):
            os.close(handle)
            raise NixaError(f"{path} can't be locked: {error.strerror}") from error
    os.close(handle)
    return None


# --- content


def hash_file(path: Path, progress: Callable[[int, int | None], None] | None = None) -> str:
    """SHA-256 of a file in lower-case hex. Raises OSError, and whatever `progress` raises."""
    import hashlib

    digest = hashlib.sha256()
    block = memoryview(bytearray(BLOCK))
    done = 0
    with path.open("rb", buffering=0) as file:
        total = os.fstat(file.fileno()).st_size
        while count := file.readinto(block):
            digest.update(block[:count])
            done += count
            if progress is not None:
                progress(done, total)
    return digest.hexdigest()


def copy_file(source: Path, target: Path) -> None:
    """Make `target` a new file with the same content: blocks shared where the file system can (btrfs,
    xfs), else a copy. Never a link: who writes to the source must not write to the copy.

    Raises OSError; no half file is left then.
    """
    try:
        try:
            _reflink(source, target)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.ENOENT):
                raise
            shutil.copyfile(source, target)
    except BaseException:
        with contextlib.suppress(OSError):
            target.unlink()
        raise


def link_file(source: Path, target: Path) -> None:
    """Give a file of the cache a second name, or copy it where there are no links. Raises OSError."""
    target.unlink(missing_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:
        copy_file(source, target)


def _reflink(source: Path, target: Path) -> None:
    with source.open("rb") as old, target.open("wb") as new:
        fcntl.ioctl(new.fileno(), _FICLONE, old.fileno())
        if os.fstat(new.fileno()).st_size != os.fstat(old.fileno()).st_size:
            raise OSError(errno.EIO, "short clone")
