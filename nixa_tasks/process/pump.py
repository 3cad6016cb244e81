"""Bytes to and from a process that runs: whole lines out, chunks in, and not past a moment.

One loop for both directions, since a tool that is not read from stops reading.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import selectors
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, Protocol

Sink = Callable[[str], None]
TAIL_LINES = 12
_READ_SIZE = 1 << 16
_LONGEST_LINE = 1 << 16  # characters; more without an end is given as it is, lest it fill the memory
_LEFT_BEHIND_SECONDS = 0.5


class Piped(Protocol):
    """What is needed of a process: its pipes, and whether it has ended."""

    stdin: IO[bytes] | None
    stdout: IO[bytes] | None
    stderr: IO[bytes] | None

    def poll(self) -> int | None: ...


class Lines:
    """Bytes in, whole lines out; a partial last line is given at the end."""

    def __init__(self, emit: Sink) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""
        self._emit = emit

    def feed(self, data: bytes, final: bool = False) -> None:
        text = self._rest + self._decoder.decode(data, final)
        *lines, self._rest = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        for line in lines:
            self._emit(line)
        if (final and self._rest) or len(self._rest) > _LONGEST_LINE:
            self._emit(self._rest)
            self._rest = ""


def chunks_of(stdin: bytes | Iterator[bytes] | IO[bytes] | None) -> Iterator[bytes]:
    if stdin is None:
        return iter(())
    if isinstance(stdin, bytes):
        return iter((stdin,))
    return iter(stdin)


@dataclass(slots=True)
class Collected:
    """What a process printed so far. `limit` bounds both outputs together, `keep` what is kept of
    standard output; both in bytes."""

    sink: Sink | None = None
    sink_stdout: bool = True
    keep: int = 64 << 20
    limit: int | None = None
    stdout: bytearray = field(default_factory=bytearray)
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES))
    seen: int = 0

    def line(self, text: str) -> None:
        self.tail.append(text)
        if self.sink is not None:
            self.sink(text)


def pump(child: Piped, chunks: Iterator[bytes], until: float, collected: Collected) -> None:
    """Move bytes both ways until both outputs are closed.

    Raises TimeoutError past `until`, OverflowError where the two outputs exceed `collected.limit`.
    """
    out_lines = Lines(collected.line if collected.sink_stdout else lambda _line: None)
    err_lines = Lines(collected.line)
    pending = memoryview(b"")
    with selectors.DefaultSelector() as ready:
        for pipe, lines in ((child.stdout, out_lines), (child.stderr, err_lines)):
            if pipe is not None:
                os.set_blocking(pipe.fileno(), False)
                ready.register(pipe, selectors.EVENT_READ, lines)
        if child.stdin is not None:
            os.set_blocking(child.stdin.fileno(), False)
            ready.register(child.stdin, selectors.EVENT_WRITE)
        while any(key.events == selectors.EVENT_READ for key in ready.get_map().values()):
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError
            if child.poll() is not None and not ready.select(_LEFT_BEHIND_SECONDS):
                return  # it left a child of its own behind that holds the pipe: not ours to wait for
            for key, _ in ready.select(min(left, 0.5)):
                if key.fileobj is child.stdin:
                    pending = _feed(ready, child.stdin, pending, chunks)
                    continue
                data = os.read(key.fd, _READ_SIZE)
                key.data.feed(data, final=not data)
                if not data:
                    ready.unregister(key.fileobj)
                collected.seen += len(data)
                if collected.limit is not None and collected.seen > collected.limit:
                    raise OverflowError
                if data and key.data is out_lines:
                    collected.stdout += data[: max(0, collected.keep - len(collected.stdout))]


def _feed(
    ready: selectors.BaseSelector, pipe: IO[bytes], pending: memoryview, chunks: Iterator[bytes]
) -> memoryview:
    """Write once what fits; close the pipe at the end of the input, or when nobody reads it."""
    try:
        while not pending:
            pending = memoryview(next(chunks))
        return pending[os.write(pipe.fileno(), pending) :]
    except BlockingIOError:
        return pending
    except (StopIteration, BrokenPipeError):
        ready.unregister(pipe)
        with contextlib.suppress(OSError):
            pipe.close()
        return memoryview(b"")
