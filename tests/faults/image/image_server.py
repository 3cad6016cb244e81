"""An HTTP server that misbehaves on purpose, and says what it sent."""

from __future__ import annotations

import contextlib
import hashlib
import random
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from nixa_tasks.image.cache.cache import Cache
from nixa_tasks.image.download.fetch import Limits, Network, fetch
from nixa_tasks.manifest.model import UrlImage

QUICK = Limits(
    connect=2.0,
    stall=0.4,
    low_time=1.0,
    low_rate=10_000.0,
    total=20.0,
    tries=3,
    pause=0.01,
    longest_pause=0.02,
    retry_after=0.3,
    redirects=5,
)


def content(size: int = 1_000_003, seed: int = 1) -> bytes:
    """Bytes as incompressible as a real image's."""
    return random.Random(seed).randbytes(size)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class Asked:
    """One request, and how many bytes of body went out for it."""

    method: str
    path: str
    headers: dict[str, str]
    status: int = 0
    served: int = 0


@dataclass
class Behaviour:
    """What the server does. Everything here may be changed while it runs."""

    body: bytes = b""
    etag: str | None = '"v1"'
    last_modified: str | None = None
    content_type: str = "application/gzip"
    serves_ranges: bool = True
    range_lie: int = 0
    length_lie: int = 0
    tells_length: bool = True
    chunked: bool = False
    rate: float | None = None
    cuts: list[int] = field(default_factory=list)
    stalls: list[int] = field(default_factory=list)
    statuses: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    redirects: dict[str, str] = field(default_factory=dict)
    answers: dict[str, bytes] = field(default_factory=dict)
    extra: dict[str, str] = field(default_factory=dict)
    before_body: Callable[[Asked], None] = lambda _asked: None
    refuses_after: int | None = None
    ignores_if_range: bool = False
    is_endless: bool = False
    other_nodes: list[tuple[bytes, str]] = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ImageServer

    def log_message(self, *args: object) -> None:  # type: ignore[explicit-override] # not in 3.11
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        with contextlib.suppress(OSError):
            self._answer()

    def _answer(self) -> None:
        do, asked = self.server.do, Asked(self.command, self.path, dict(self.headers.items()))
        with self.server.lock:
            self.server.asked.append(asked)
            number = len(self.server.asked)
            status = do.statuses.pop(0) if do.statuses else None
        if status is not None:
            self._short(asked, *status)
        elif do.refuses_after is not None and number > do.refuses_after:
            self._short(asked, 429, {})
        elif self.path in do.redirects:
            self._short(asked, 302, {"Location": do.redirects[self.path]})
        elif self.path in do.answers:
            self._send(asked, 200, do.answers[self.path], 0, {})
        elif do.etag is not None and self.headers.get("If-None-Match") == do.etag:
            self._short(asked, 304, {"ETag": do.etag})
        else:
            self._file(asked, do)

    def _short(self, asked: Asked, status: int, headers: dict[str, str]) -> None:
        asked.status = status
        self.send_response(status)
        for name, value in {"Content-Length": "0", **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def _file(self, asked: Asked, do: Behaviour) -> None:
        if do.other_nodes:  # the next request comes to another node of the same network
            do.body, do.etag = do.other_nodes.pop(0)
        body, size = do.body, len(do.body)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        unchanged = self.headers.get("If-Range") in (None, do.etag, do.last_modified)
        if wanted is None or not do.serves_ranges or not (unchanged or do.ignores_if_range):
            self._send(asked, 200, body, 0, {})
            return
        start = int(wanted[1])
        end = min(size, int(wanted[2]) + 1) if wanted[2] else size
        if start >= size:
            self._short(asked, 416, {"Content-Range": f"bytes */{size}"})
            return
        told = f"bytes {start + do.range_lie}-{end - 1 + do.range_lie}/{size}"
        self._send(asked, 206, body[start:end], start, {"Content-Range": told})

    def _send(self, asked: Asked, status: int, body: bytes, start: int, more: dict[str, str]) -> None:
        do = self.server.do
        asked.status = status
        self.send_response(status)
        headers = {"Content-Type": do.content_type, **more}
        if do.chunked:
            headers["Transfer-Encoding"] = "chunked"
        elif do.tells_length:
            headers["Content-Length"] = str(len(body) + do.length_lie)
        else:
            headers["Connection"] = "close"
        if do.serves_ranges:
            headers["Accept-Ranges"] = "bytes"
        if do.etag is not None:
            headers["ETag"] = do.etag
        if do.last_modified is not None:
            headers["Last-Modified"] = do.last_modified
        for name, value in {**headers, **do.extra}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        do.before_body(asked)
        self._pour(asked, body, start, do)
        while do.is_endless:
            piece = bytes(64 << 10)
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n" if do.chunked else piece)
        if do.length_lie or not do.tells_length:
            self.close_connection = True

    def _pour(self, asked: Asked, body: bytes, start: int, do: Behaviour) -> None:
        at = 0
        while at < len(body):
            step = 64 << 10 if do.rate is None else max(1, int(do.rate / 20))
            end = min(len(body), at + step)
            with self.server.lock:
                cut = min((c - start for c in do.cuts if at < c - start <= end), default=None)
                stall = min((c - start for c in do.stalls if at < c - start <= end), default=None)
            end = min(end, *(one for one in (cut, stall) if one is not None), end)
            piece = body[at:end]
            if do.chunked:
                piece = f"{len(piece):x}\r\n".encode() + piece + b"\r\n"
            self.wfile.write(piece)
            asked.served += end - at
            at = end
            if do.rate is not None:
                time.sleep(1 / 20)
            if cut == at:
                with self.server.lock:
                    do.cuts.remove(cut + start)
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_WR)
                self.close_connection = True
                return
            if stall == at:
                with self.server.lock:
                    do.stalls.remove(stall + start)
                self.server.released.wait(10)
                self.close_connection = True
                return
        if do.chunked and not do.is_endless:
            self.wfile.write(b"0\r\n\r\n")


class ImageServer(ThreadingHTTPServer):
    """Use as a context manager; `do` is what it does, `asked` what it was asked."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, body: bytes, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.do = Behaviour(body=body)
        self.asked: list[Asked] = []
        self.lock = threading.Lock()
        self.released = threading.Event()
        self.scheme = "https" if tls else "http"
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_side=True)

    def handle_error(self, *args: object) -> None:  # type: ignore[explicit-override] # not in 3.11
        pass

    @property
    def base(self) -> str:
        host = "localhost" if self.scheme == "https" else "127.0.0.1"
        return f"{self.scheme}://{host}:{self.server_port}"

    @property
    def url(self) -> str:
        return f"{self.base}/image.tar.gz"

    @property
    def served(self) -> int:
        """Bytes of body that went out, in all."""
        return sum(one.served for one in self.asked)

    @property
    def gets(self) -> list[Asked]:
        return [one for one in self.asked if one.method == "GET"]


@contextlib.contextmanager
def serving(body: bytes, tls: ssl.SSLContext | None = None) -> Iterator[ImageServer]:
    with ImageServer(body, tls) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.released.set()
            server.shutdown()
            thread.join(5)


@dataclass
class Try:
    """A fetch into a cache of its own."""

    cache: Cache
    notes: list[str] = field(default_factory=list)
    steps: list[tuple[int, int | None]] = field(default_factory=list)

    def fetch(self, image: UrlImage, limits: Limits = QUICK) -> Path:
        return fetch(
            image,
            self.cache,
            progress=lambda done, total: self.steps.append((done, total)),
            note=self.notes.append,
            network=Network(limits),
        )

    def finished(self) -> list[Path]:
        """What a tool that looks for an image would find."""
        folder = self.cache.folder
        return sorted(folder.glob("*.tar*")) if folder.exists() else []


def image_of(server: ImageServer, body: bytes, *mirrors: str) -> UrlImage:
    return UrlImage("x86_64-linux", server.url, sha256(body), mirrors=mirrors)
