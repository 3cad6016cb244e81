"""The one way to run a process.

Every process gets a session of its own (sessions.py), a deadline, and a sink for its lines that is
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

from nixa_tasks.errors import CommandFailed, DeadlinePassed, Interrupted, NixaError
from nixa_tasks.process.clock import SystemClock
from nixa_tasks.process.pump import Collected, Sink, chunks_of, pump
from nixa_tasks.process.sessions import Sessions, end, signal_group

Argv = tuple[str, ...]
Stdin = bytes | Iterator[bytes] | IO[bytes]

_LONGEST_LINE = 4096  # bytes, of a command that is held
_MOST_HELD_OUTPUT = 1 << 20  # bytes


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


@dataclass(frozen=True, slots=True)
class Place:
    """Where a command runs: its folder, and its whole environment (None: as ours)."""

    cwd: Path | None = None
    env: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """What becomes of a command's output.

    `sink` gets every line of standard error, and of standard output if `sink_stdout`. Standard
    output is kept up to `keep` bytes; a command that prints more than `limit` bytes is ended.
    """

    sink: Sink | None = None
    sink_stdout: bool = True
    keep: int = 64 << 20
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What a held command reads: `first` at once, then `beat` every `every` seconds."""

    beat: bytes
    every: float
    first: bytes = b""


_HERE, _KEPT = Place(), Output()


class Processes(Protocol):
    """Runs commands; all that nixa starts is started through this."""

    def run(
        self,
        argv: Argv,
        *,
        deadline: float,
        stdin: Stdin | None = None,
        place: Place = _HERE,
        output: Output = _KEPT,
        check: bool = True,
        host: str | None = None,
        what: str | None = None,
    ) -> Completed:
        """Run a command to its end, within `deadline` seconds.

        `stdin` is bytes, an iterator of chunks (written as the process takes them), or an open file;
        `what` names the step in an error.

        Raises CommandFailed (with `check`), DeadlinePassed, Interrupted, and NixaError where the
        program can't be started or exceeds `output.limit`.
        """
        ...

    def hold(
        self,
        argv: Argv,
        *,
        is_ready: Callable[[str], bool],
        deadline: float,
        heartbeat: Heartbeat,
        place: Place = _HERE,
        host: str | None = None,
        what: str,
    ) -> contextlib.AbstractContextManager[None]:
        """Keep a command running for as long as the body runs: a lock that a live process holds.

        The body starts once `is_ready` accepts a line of the output, within `deadline` seconds. The
        heartbeat tells the other end that the holder lives. Raises CommandFailed where it ends
        first, DeadlinePassed, Interrupted.
        """
        ...

    def is_stopping(self) -> bool:
        """Whether everything is being stopped: long waits look at it and give up."""
        ...

    def remove_at_death(self, folder: Path) -> None:
        """Have this run's private folder removed, and the shared connections in it ended, also where
        this process is killed."""
        ...


def paste(argv: Argv) -> str:
    """The command as a person can paste it into a shell."""
    return shlex.join(argv)


class LocalProcesses:
    """Processes of this machine, each in a session of its own."""

    def __init__(self) -> None:
        self._sessions = Sessions()
        self.clock = SystemClock(self._sessions.stopped)

    def remove_at_death(self, folder: Path) -> None:
        self._sessions.cleanup.add_folder(folder)

    def is_stopping(self) -> bool:
        return self._sessions.stopped.is_set()

    def stop_all(self) -> None:
        """End all that was started, first asking, then by force; from now on nothing can be started."""
        self._sessions.stop_all()

    def run(
        self,
        argv: Argv,
        *,
        deadline: float,
        stdin: Stdin | None = None,
        place: Place = _HERE,
        output: Output = _KEPT,
        check: bool = True,
        host: str | None = None,
        what: str | None = None,
    ) -> Completed:
        """See Processes.run."""
        what = what or Path(argv[0]).name
        started = time.monotonic()
        child = self._start(argv, place, _pipe_for(stdin), subprocess.PIPE, host, what)
        collected = Collected(
            sink=output.sink, sink_stdout=output.sink_stdout, keep=output.keep, limit=output.limit
        )
        try:
            chunks = iter(()) if _is_file(stdin) else chunks_of(stdin)
            pump(child, chunks, started + deadline, collected)
            status = child.wait(max(0.1, started + deadline - time.monotonic()))
        except (TimeoutError, subprocess.TimeoutExpired):
            end(child)
            tail = tuple(collected.tail)
            raise DeadlinePassed(f"{what}: timed out after {deadline:g} s", host=host, tail=tail) from None
        except OverflowError:
            end(child)
            tail = tuple(collected.tail)
            most = f"{output.limit or 0:,} bytes"
            raise NixaError(
                f"{what}: ended, since it printed more than {most}", host=host, tail=tail
            ) from None
        except BaseException:
            end(child)
            raise
        finally:
            self._finish(child)
        done = Completed(
            argv, status, bytes(collected.stdout), tuple(collected.tail), time.monotonic() - started
        )
        if status != 0 and self.is_stopping():
            raise Interrupted(f"{what}: stopped", host=host)
        if check and status != 0:
            ended = f"signal {-status}" if status < 0 else f"status {status}"
            raise CommandFailed(
                f"{what}: ended with {ended}", argv=argv, status=status, host=host, tail=done.tail
            )
        return done

    @contextlib.contextmanager
    def hold(
        self,
        argv: Argv,
        *,
        is_ready: Callable[[str], bool],
        deadline: float,
        heartbeat: Heartbeat,
        place: Place = _HERE,
        host: str | None = None,
        what: str,
    ) -> Iterator[None]:
        """See Processes.hold."""
        child = self._start(argv, place, subprocess.PIPE, subprocess.STDOUT, host, what)
        held = _Held(child, is_ready, heartbeat)
        held.start()
        try:
            until = time.monotonic() + deadline
            while not held.ready.wait(0.02):
                if held.over.is_set():
                    if self.is_stopping():  # it was ended, and did not fail
                        raise Interrupted(f"{what}: stopped", host=host)
                    raise CommandFailed(
                        f"{what}: ended too soon",
                        argv=argv,
                        status=child.wait(),
                        host=host,
                        tail=tuple(held.tail),
                    )
                if time.monotonic() > until:
                    raise DeadlinePassed(
                        f"{what}: timed out after {deadline:g} s", host=host, tail=tuple(held.tail)
                    )
                self.clock.sleep(0.0)
            yield
        finally:
            held.over.set()
            end(child)
            self._finish(child)

    def _start(
        self, argv: Argv, place: Place, stdin: int | IO[bytes], stderr: int, host: str | None, what: str
    ) -> subprocess.Popen[bytes]:
        try:
            return self._sessions.start(
                argv, place.env, cwd=place.cwd, stdin=stdin, stdout=subprocess.PIPE, stderr=stderr
            )
        except FileNotFoundError as error:
            missing = error.filename if error.filename != str(place.cwd) else argv[0]
            raise NixaError(
                f"{what}: {missing} not found", host=host, hint=f"install {missing}, or put it on PATH"
            ) from error
        except OSError as error:
            raise NixaError(f"{what}: can't start {argv[0]}: {error.strerror}", host=host) from error

    def _finish(self, child: subprocess.Popen[bytes]) -> None:
        for pipe in (child.stdin, child.stdout, child.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError, ValueError):
                    pipe.close()
        self._sessions.forget(child)


def _is_file(stdin: Stdin | None) -> bool:
    return stdin is not None and not isinstance(stdin, bytes) and hasattr(stdin, "fileno")


def _pipe_for(stdin: Stdin | None) -> int | IO[bytes]:
    if stdin is None:
        return subprocess.DEVNULL
    return stdin if _is_file(stdin) else subprocess.PIPE  # type: ignore[return-value]  # a file, by _is_file


@dataclass(slots=True)
class _Held:
    """The two threads of a held command: one reads what it prints, one keeps its heart beating."""

    child: subprocess.Popen[bytes]
    is_ready: Callable[[str], bool]
    heartbeat: Heartbeat
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=12))
    ready: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        for work in (self._listen, self._beat):
            threading.Thread(target=work, daemon=True).start()

    def _listen(self) -> None:
        seen = 0
        while self.child.stdout is not None and (line := self.child.stdout.readline(_LONGEST_LINE)):
            seen += len(line)
            if seen > _MOST_HELD_OUTPUT:
                signal_group(self.child.pid, signal.SIGKILL)
                break
            text = line.decode("utf-8", "replace").rstrip("\r\n")
            self.tail.append(text)
            if self.is_ready(text):
                self.ready.set()
        self.over.set()

    def _beat(self) -> None:
        data, pause = self.heartbeat.first, 0.0
        with contextlib.suppress(OSError, ValueError):
            while self.child.stdin is not None and not self.over.wait(pause):
                self.child.stdin.write(data)
                self.child.stdin.flush()
                data, pause = self.heartbeat.beat, self.heartbeat.every
