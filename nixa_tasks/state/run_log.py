"""One log file a host and run: everything that the tools printed, as they print it."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import TextIO

from nixa_tasks.errors import NixaError
from nixa_tasks.process.clock import Clock

_MOST_FILES = 50


class RunLog:
    """A sink for lines. Each line is flushed, so that a hang leaves a log. Tools may say anything, so
    nobody else may read it."""

    def __init__(self, folder: Path, what: str, run: str, clock: Clock) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for old in sorted(folder.glob("*.log"))[: -_MOST_FILES + 1]:
                old.unlink(missing_ok=True)
        except OSError as error:
            raise NixaError(
                f"the log folder {folder} can't be written: {error.strerror}",
                hint="nothing is done to a host without a log: make room, or give the folder to the user who runs nixa",
            ) from error
        stamp = clock.now().strftime("%Y%m%dT%H%M%SZ")
        self.path = folder / f"{stamp}-{what}-{run}.log"
        self._clock, self._started = clock, clock.monotonic()
        self._lock = threading.Lock()
        self._file: TextIO | None = None

    def __call__(self, line: str) -> None:
        with self._lock, contextlib.suppress(OSError):  # a full disk must not fail a deploy half-way
            if self._file is None:
                self.path.touch(0o600)
                self._file = self.path.open("a", encoding="utf-8", errors="replace", buffering=1)
            self._file.write(f"{self._clock.monotonic() - self._started:9.3f}  {line}\n")

    def close(self) -> None:
        with self._lock:
            if self._file is not None:
                with contextlib.suppress(OSError):
                    self._file.close()
                self._file = None
