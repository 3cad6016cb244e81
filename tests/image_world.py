"""A small world for the image cache: servers in memory that misbehave, and a process that may be killed
at any step. No socket, no time, no other process: thousands of histories a minute."""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nixa_tasks.image.download.http import Limits, Network, Reply
from nixa_tasks.image.download.part import Origin
from nixa_tasks.image.errors import SourceError
from tests.clocks import FakeClock

LIMITS = Limits(
    connect=9.0,
    stall=9.0,
    low_rate=0.0,
    total=1e9,
    tries=3,
    pause=0.0,
    longest_pause=0.0,
    largest=100_000,
    reserve=0,
)


class Killed(BaseException):
    """The process is gone: from here on nothing that it does counts."""


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class Server:
    """One address. `nodes` answer in turn; `faults` happen to one request each."""

    url: str
    nodes: list[bytes]
    etags: str = "content"  # or "constant", "none"
    serves_ranges: bool = True
    ignores_if_range: bool = False
    faults: list[tuple[str, int]] = field(default_factory=list)
    served: list[bytes] = field(default_factory=list)
    asked: int = 0
    bytes_out: int = 0

    def is_good_for(self, digest: str) -> bool:
        """Whether it has that file, and nothing is the matter with it."""
        return not self.faults and {sha256(node) for node in self.nodes} == {digest}

    def etag(self, body: bytes) -> str:
        return {"content": f'"{sha256(body)[:16]}"', "constant": '"the same"', "none": ""}[self.etags]


class World:
    """Servers, a cache folder, a clock, and when the process is killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.snapshot = folder.with_name("snapshot")
        self.clock = FakeClock()
        self.servers: dict[str, Server] = {}
        self.kill_at: int | None = None
        self.is_dead = False
        self._steps = 0
        self._lock = threading.Lock()
        self.network = Network(LIMITS, connect=lambda _limits: FakeWire(self))

    def step(self) -> None:
        """One of the moments at which the process may be killed."""
        if self.kill_at is None or self.is_dead:
            return
        with self._lock:
            self._steps += 1
            if self._steps <= self.kill_at:
                return
            self.is_dead = True  # first, since copying opens files as well
            shutil.copytree(self.folder, self.snapshot, symlinks=True)
        raise Killed

    @contextlib.contextmanager
    def process(self, kill_at: int | None) -> Iterator[None]:
        """What runs in the body is one process of nixa's, killed after so many steps."""
        self.kill_at, self.is_dead, self._steps = kill_at, False, 0
        WATCHED.world = self
        try:
            yield
        except Killed:
            pass
        finally:
            WATCHED.world, self.kill_at = None, None
            if self.is_dead:
                shutil.rmtree(self.folder)
                self.snapshot.rename(self.folder)


class _Watched:
    """Whose file operations are steps: one audit hook for the whole process, since none can be removed."""

    def __init__(self) -> None:
        self.world: World | None = None
        self._is_hooked = False

    def hook(self) -> None:
        if not self._is_hooked:
            self._is_hooked = True
            sys.addaudithook(self._audit)

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        world = self.world
        if world is None or event not in ("open", "os.rename", "os.remove", "os.truncate", "os.link"):
            return
        if str(args[0]).startswith(str(world.folder)):
            world.step()


WATCHED = _Watched()


class _Body:
    def __init__(self, world: World, server: Server, data: bytes, fault: str) -> None:
        self._world, self._server, self._data, self._fault = world, server, memoryview(data), fault

    def read_into(self, view: memoryview) -> int:
        self._world.step()
        if self._fault == "endless" and not self._data:
            self._data = memoryview(bytes(30_000))
        if not self._data and self._fault == "cut":
            raise SourceError(f"{self._server.url}: cut", url=self._server.url, is_transient=True)
        count = min(len(view), len(self._data), 700)
        view[:count] = self._data[:count]
        self._data = self._data[count:]
        self._server.bytes_out += count
        return count

    def abort(self) -> None:
        self._data, self._fault = memoryview(b""), "cut"


class FakeWire:
    """A Wire to the world's servers."""

    def __init__(self, world: World) -> None:
        self._world = world

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    @contextlib.contextmanager
    def get(self, asked_url: str, headers: Mapping[str, str], *, at: str | None = None) -> Iterator[Reply]:
        self._world.step()
        server = self._world.servers[asked_url]
        body = server.nodes[server.asked % len(server.nodes)]
        server.asked += 1
        fault, number = server.faults.pop(0) if server.faults else ("", 0)
        if fault == "refuse":
            raise SourceError(f"{asked_url}: 404", url=asked_url, status=404)
        if fault == "busy":
            raise SourceError(f"{asked_url}: 503", url=asked_url, status=503, is_transient=True)
        yield self._reply(server, body, headers, fault, number)

    def _reply(
        self, server: Server, body: bytes, headers: Mapping[str, str], fault: str, number: int
    ) -> Reply:
        etag = server.etag(body)
        answer = {"etag": etag, "content-type": "application/gzip"}
        if etag and headers.get("If-None-Match") == etag:
            return Reply(server.url, server.url, 304, answer, _Body(self._world, server, b"", ""))
        start, status = 0, 200
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("Range", ""))
        is_same = headers.get("If-Range") in (None, etag) or server.ignores_if_range
        if server.serves_ranges:
            answer["accept-ranges"] = "bytes"
        if wanted and server.serves_ranges and is_same:
            start = int(wanted[1])
            if start >= len(body):
                answer["content-range"] = f"bytes */{len(body)}"
                return Reply(server.url, server.url, 416, answer, _Body(self._world, server, b"", ""))
            status = 206
            answer["content-range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        data = body[start:]
        server.served.append(body)
        if fault == "damage" and server.url.startswith("http:"):
            at = number % len(data)
            data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        if fault == "cut":
            sent = data[: number % len(data)]
        else:
            sent, fault = data, fault if fault == "endless" else ""
        answer["content-length"] = str(10**15 if number % 7 == 6 and fault == "cut" else len(data))
        if fault == "endless":
            del answer["content-length"]
            answer["transfer-encoding"] = "chunked"
            answer.pop("content-range", None)
            status = 200
        return Reply(server.url, server.url, status, answer, _Body(self._world, server, sent, fault))

    def head(self, url: str) -> Origin:
        body = self._world.servers[url].nodes[0]
        return Origin(url, self._world.servers[url].etag(body), "", "", len(body))

    def json(self, url: str, headers: Mapping[str, str]) -> dict[str, Any]:
        raise SourceError(f"{url}: no API here", url=url)
