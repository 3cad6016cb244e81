"""A deploy in the background: waited for, disturbed, and looked at when it is over."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MARK = "NIXA_TEST_MARK"


def wait_until(condition: Callable[[], bool], what: str, *, seconds: float = 60) -> None:
    """Until it holds; fails the test if it never does."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"not within {seconds:g} s: {what}"
        time.sleep(0.01)


@dataclass
class Background:
    """One run of doit. Its output goes to a file, so that what outlives it blocks nobody."""

    child: subprocess.Popen[bytes]
    journal: Path
    start: int
    output: Path
    mark: str

    @classmethod
    def begin(cls, project: Path, environment: Mapping[str, str], *args: str, output: Path) -> Background:
        """Start `doit ARGS` in `project`; `output` is also the mark of all that it starts."""
        journal = project / ".nixa/journal.jsonl"
        output.parent.mkdir(parents=True, exist_ok=True)
        with output.open("wb") as stream:
            child = subprocess.Popen(
                (sys.executable, "-m", "doit", *args),
                cwd=project,
                env={**environment, _MARK: str(output)},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return cls(child, journal, journal.stat().st_size if journal.exists() else 0, output, str(output))

    def events(self) -> list[dict[str, Any]]:
        """What this run has told its journal so far."""
        if not self.journal.exists():
            return []
        with self.journal.open("rb") as file:
            file.seek(self.start)
            return [json.loads(line) for line in file if line.endswith(b"\n")]

    def has_begun(self, step: str) -> bool:
        return any(one["event"] == "begin" and one["step"] == step for one in self.events())

    def await_step(self, step: str, *, seconds: float = 60) -> None:
        """Until the step has begun; fails if the run ends before."""

        def begun() -> bool:
            is_over = self.child.poll() is not None
            if self.has_begun(step):
                return True
            assert not is_over, f"it ended before {step}:\n{self.said}"
            return False

        wait_until(begun, step, seconds=seconds)

    def signal(self, number: int) -> None:
        """To doit's own process alone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.child.pid, number)

    def end(self, *, seconds: float = 120) -> int:
        """Its exit status, once it has ended; `seconds` is the bound."""
        try:
            return self.child.wait(seconds)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
            raise AssertionError(f"no end within {seconds:g} s:\n{self.said}") from None

    @property
    def said(self) -> str:
        return self.output.read_text(errors="replace")

    def processes(self) -> dict[int, str]:
        """Process id and command line of all that runs with this run's mark, doit's own included."""
        mark = f"{_MARK}={self.mark}".encode()
        found = {}
        for place in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (place / "environ").read_bytes().split(b"\0"):
                    line = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    found[int(place.name)] = line
        return found
