"""The one way to run a process.

Every process gets a session of its own (process/sessions.py), a deadline, and a sink for its lines that is
fed as they come, so that a hang leaves a log.
"""

from __future__ import annotations

import contextlib
import shlex
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from nixa_tasks.errors import CommandFailed, DeadlinePassed, Interrupted, NixaError
from nixa_tasks.process.pump import Sink, chunks_of, pump
from nixa_tasks.process.sessions import Sessions, end, signal_group

Argv = tuple[str, ...]

TAIL_LINES = 12
_LONGEST_LINE = 4096  # bytes, of a command that is held
_MOST_SAID = 1 << 20


@dataclass(frozen=True, slots=True)
class Completed:
    """How a process ended. `status` is negative for a signal; `raw` is its standard output."""

    argv: Argv
    status: int
    raw: bytes
    tail: tuple[str, ...]
    seconds: float

    @property
    def stdout(self) -> str:
        return self.raw.decode("utf-8", "replace")

    @property
    def is_ok(self) -> bool:
        return self.status == 0


def paste(argv: Argv) -> str:
    """The command as a person can paste it into a shell."""
    return shlex.join(argv)


_sessions = Sessions()


def remove_at_death(folder: Path) -> None:
    """Have this run's private folder removed, and the shared connections in it ended, also where this
    process is killed."""
    _sessions.will.add_folder(folder)


def is_stopping() -> bool:
    """Whether `stop_all` was called: long waits look at it and give up."""
    return _sessions.stopped.is_set()


def stop_all() -> None:
    """End all that was started, first asking, then by force; from now on nothing can be started."""
    _sessions.stop_all()


def sleep(seconds: float) -> None:
    """Wait, but not past a stop. Raises Interrupted."""
    if _sessions.stopped.wait(seconds):
        raise Interrupted("stopped")


def run(
    argv: Argv,
    *,
    deadline: float,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: bytes | Iterator[bytes] | IO[bytes] | None = None,
    sink: Sink | None = None,
    sink_stdout: bool = True,
    check: bool = True,
    host: str | None = None,
    what: str | None = None,
    max_stdout: int = 64 << 20,
    limit: int | None = None,
) -> Completed:
    """Run a command to its end, within `deadline` seconds.

    `stdin` is bytes, an iterator of chunks (written as the process takes them), or an open file.
    `sink` gets every line of standard error, and of standard output unless `sink_stdout` is
    false. Standard output is kept up to `max_stdout` bytes; a command that prints more than `limit`
    bytes in all is ended. `what` names the step in an error.

    Raises CommandFailed (with `check`), DeadlinePassed, Interrupted, and NixaError where the
    program can't be started.
    """
    what = what or Path(argv[0]).name
    started = time.monotonic()
    is_file = stdin is not None and not isinstance(stdin, bytes) and hasattr(stdin, "fileno")
    try:
        child = _sessions.start(
            argv,
            env,
            cwd=cwd,
            stdin=stdin if is_file else subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    except FileNotFoundError as error:
        missing = error.filename if error.filename != str(cwd) else argv[0]
        raise NixaError(
            f"{what}: {missing} is not there", host=host, hint=f"install {missing}, or put it on PATH"
        ) from error
    except OSError as error:
        raise NixaError(f"{what}: {argv[0]} can't be started: {error.strerror}", host=host) from error
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    kept = bytearray()
    try:
        pump(
            child,
            chunks_of(stdin) if not is_file else iter(()),
            started + deadline,
            kept,
            max_stdout,
            tail,
            sink,
            sink_stdout,
            limit,
        )
        status = child.wait(max(0.1, started + deadline - time.monotonic()))
    except (TimeoutError, subprocess.TimeoutExpired):
        end(child)
        raise DeadlinePassed(f"{what}: no end after {deadline:g} s", host=host, tail=tuple(tail)) from None
    except OverflowError:
        end(child)
        raise NixaError(
            f"{what}: cut off, since it printed more than {limit or 0:,} bytes", host=host, tail=tuple(tail)
        ) from None
    except BaseException:
        end(child)
        raise
    finally:
        for pipe in (child.stdin, child.stdout, child.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        _sessions.forget(child)
    done = Completed(argv, status, bytes(kept), tuple(tail), time.monotonic() - started)
    if status != 0 and is_stopping():
        raise Interrupted(f"{what}: stopped", host=host)
    if check and status != 0:
        said = f"signal {-status}" if status < 0 else f"status {status}"
        raise CommandFailed(
            f"{what}: ended with {said}", argv=argv, status=status, host=host, tail=tuple(tail)
        )
    return done


@contextlib.contextmanager
def hold(
    argv: Argv,
    *,
    is_ready: Callable[[str], bool],
    deadline: float,
    beat: bytes,
    every: float,
    first: bytes = b"",
    host: str | None = None,
    what: str,
    env: Mapping[str, str] | None = None,
) -> Iterator[None]:
    """Keep a command running for as long as the body runs: a lock that a live process holds.

    The body starts once `is_ready` says so of a line of the output, within `deadline` seconds.
    `first` is written to its input at once, and `beat` every `every` seconds, so that the other end
    can tell a holder that died without a word. Raises CommandFailed where it ends first, DeadlinePassed, Interrupted.
    """
    child = _sessions.start(
        argv,
        env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    ready, over = threading.Event(), threading.Event()

    def listen() -> None:
        said = 0
        while child.stdout is not None and (line := child.stdout.readline(_LONGEST_LINE)):
            said += len(line)
            if said > _MOST_SAID:
                signal_group(child.pid, signal.SIGKILL)
                break
            text = line.decode("utf-8", "replace").rstrip("\r\n")
            tail.append(text)
            if is_ready(text):
                ready.set()
        over.set()

    def keep_alive() -> None:
        data, pause = first, 0.0
        with contextlib.suppress(OSError, ValueError):
            while child.stdin is not None and not over.wait(pause):
                child.stdin.write(data)
                child.stdin.flush()
                data, pause = beat, every

    threads = [threading.Thread(target=listen, daemon=True), threading.Thread(target=keep_alive, daemon=True)]
    for thread in threads:
        thread.start()
    try:
        until = time.monotonic() + deadline
        while not ready.wait(0.02):
            if over.is_set():
                raise CommandFailed(
                    f"{what}: ended too soon", argv=argv, status=child.wait(), host=host, tail=tuple(tail)
                )
            if time.monotonic() > until:
                raise DeadlinePassed(f"{what}: not there after {deadline:g} s", host=host, tail=tuple(tail))
            sleep(0.0)
        yield
    finally:
        over.set()
        end(child)
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError, ValueError):
                    pipe.close()
        _sessions.forget(child)
