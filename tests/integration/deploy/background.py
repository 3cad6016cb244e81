"""A deploy in the background: waited for, disturbed, and looked at when it is over."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ORPHAN_SECONDS = 20.0


def wait_until(condition: Callable[[], bool], what: str, *, seconds: float = 60) -> None:
    """Until it holds; fails the test if it never does."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"not within {seconds:g} s: {what}"
        time.sleep(0.01)


@dataclass
class Background:
    """One run of doit. Its output goes to a file, so that what outlives it blocks nobody.

    `temporary`: the run's TMPDIR, which is its mark. It is in the environment of all that the run
    starts, and in the title of ssh's masters, whose environment can't be read any more.
    """

    child: subprocess.Popen[bytes]
    journal: Path
    start: int
    output: Path
    temporary: Path

    @classmethod
    def begin(cls, project: Path, environment: Mapping[str, str], *args: str, output: Path) -> Background:
        """Start `doit ARGS` in `project`."""
        journal = project / ".nixa/journal.jsonl"
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix="nixa-test-"))
        with output.open("wb") as stream:
            child = subprocess.Popen(
                (sys.executable, "-m", "doit", *args),
                cwd=project,
                env={**environment, "TMPDIR": str(temporary)},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return cls(child, journal, journal.stat().st_size if journal.exists() else 0, output, temporary)

    def events(self) -> list[dict[str, Any]]:
        """What this run has told its journal so far."""
        if not self.journal.exists():
            return []
        with self.journal.open("rb") as file:
            file.seek(self.start)
            return [json.loads(line) for line in file if line.endswith(b"\n")]

    def has_begun(self, step: str, host: str | None = None) -> bool:
        """Whether the step has begun: of that host, or of any."""
        begun = [one for one in self.events() if one["event"] == "begin" and one["step"] == step]
        return any(host in (None, one["host"]) for one in begun)

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
        """Its exit status, once it has ended and nothing that it started is left. `seconds` is the
        bound for the one, some more for the other."""
        try:
            status = self.child.wait(seconds)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
            raise AssertionError(f"no end within {seconds:g} s:\n{self.said}") from None
        until = time.monotonic() + _ORPHAN_SECONDS
        while found := self.processes():
            assert time.monotonic() < until, f"still there: {list(found.values())}"
            time.sleep(0.02)
        shutil.rmtree(self.temporary, ignore_errors=True)
        return status

    @property
    def said(self) -> str:
        return self.output.read_text(errors="replace")

    def processes(self) -> dict[int, str]:
        """Process id and command line of all that runs with this run's mark, doit's own included."""
        mark = str(self.temporary).encode()
        found = {}
        for place in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                line = (place / "cmdline").read_bytes()
                if mark in line or b"TMPDIR=" + mark in (place / "environ").read_bytes().split(b"\0"):
                    found[int(place.name)] = line.replace(b"\0", b" ").decode(errors="replace")
        return found
