"""Processes that are timed, and servers that live as long as a measurement."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEADLINE = 600.0


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. `is_reached` None: it could not be measured."""

    what: str
    goal: str
    got: str
    is_reached: bool | None

    def line(self) -> str:
        """As a row of a Markdown table."""
        return f"| {self.what} | {self.goal} | {self.got} | {_WORDS[self.is_reached]} |"


_WORDS = {True: "yes", False: "**no**", None: "not measured"}


def within(namespace: str | None, argv: Sequence[str]) -> tuple[str, ...]:
    """The command inside a network namespace."""
    return (*(("ip", "netns", "exec", namespace) if namespace else ()), *argv)


def seconds(argv: Sequence[str], env: Mapping[str, str] | None = None, cwd: Path | None = None) -> float:
    """How long a command takes. Raises CalledProcessError."""
    begun = time.monotonic()
    subprocess.run(
        argv, check=True, timeout=DEADLINE, cwd=cwd, env={**os.environ, **(env or {})},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return time.monotonic() - begun


def one_fetch(
    url: str, sha256: str, cache: Path, limit: float, namespace: str | None = None
) -> dict[str, Any]:
    """What `bench.one_fetch` printed. Raises CalledProcessError."""
    argv = (sys.executable, "-m", "bench.one_fetch", url, sha256, str(cache), str(limit))
    done = subprocess.run(
        within(namespace, argv),
        check=True,
        timeout=DEADLINE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def interleaved(runs: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Every run once a round, so that what disturbs the machine disturbs them all; one round first
    that does not count."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        wait_until_idle()
        for name, run in runs.items():
            value = run()
            if number:
                found[name].append(value)
    return found


def wait_until_idle(most: float = 60.0) -> None:
    """Wait until the processors have had nothing to do for a second, at most so many seconds: a
    program with two threads suffers more from a busy neighbour than one with one."""
    until = time.monotonic() + most
    quiet = 0
    while quiet < 4 and time.monotonic() < until:
        before = _ticks()
        time.sleep(0.25)
        busy, total = (new - old for new, old in zip(_ticks(), before, strict=True))
        quiet = quiet + 1 if busy < 0.1 * total else 0


def _ticks() -> tuple[int, int]:
    """Processor time that was used, and all of it, since boot (proc_stat(5))."""
    line = Path("/proc/stat").read_text().split("\n", 1)[0]
    numbers = [int(word) for word in line.split()[1:9]]
    return sum(numbers) - numbers[3] - numbers[4], sum(numbers)


def medians(found: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The median of each."""
    return {name: statistics.median(values) for name, values in found.items()}


@dataclass(slots=True)
class Server:
    """A `bench.server` that runs; `stop` gives its log."""

    child: subprocess.Popen[bytes]
    address: str
    port: int
    log: tuple[dict[str, Any], ...] = ()

    def url(self, name: str) -> str:
        return f"http://{self.address}:{self.port}/{name}"

    def stop(self) -> tuple[dict[str, Any], ...]:
        """End it; one entry for each request."""
        if not self.log:
            out, _err = self.child.communicate(timeout=30)
            self.log = tuple(json.loads(line) for line in out.splitlines())
        return self.log


@contextlib.contextmanager
def serving(
    folder: Path,
    *,
    address: str = "127.0.0.1",
    rate: float = 0.0,
    congestion: str = "",
    namespace: str | None = None,
) -> Iterator[Server]:
    """Serve a folder for as long as the body runs."""
    argv = (sys.executable, "-m", "bench.server", str(folder), address, "0", str(rate), congestion)
    child = subprocess.Popen(within(namespace, argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    server = Server(child, address, int(child.stdout.readline()))
    try:
        yield server
    finally:
        server.stop()


def has(*tools: str) -> bool:
    """Whether all of these are on PATH."""
    return all(shutil.which(tool) for tool in tools)
