"""A file server for the benchmarks: ranges, a strong ETag, sendfile, and a count of what it sent.

`python -m bench.server FOLDER ADDRESS PORT [BYTES_A_SECOND [CONGESTION_CONTROL]]` prints its port,
serves until its standard input ends, and prints one JSON line for each request as that ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_BLOCK = 1 << 14


@dataclass(frozen=True, slots=True)
class Served:
    """One request: the first byte that was asked for, and how many bytes the kernel took of it."""

    path: str
    start: int
    sent: int


class Handler(BaseHTTPRequestHandler):
    """GET and HEAD of the files of a folder."""

    protocol_version = "HTTP/1.1"
    folder = Path()
    rate: float = 0.0
    congestion = ""

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        path = self.folder / Path(self.path).name
        if not path.is_file():
            self.send_error(404)
            return
        size = path.stat().st_size
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        end = min(int(asked[2]) + 1 if asked and asked[2] else size, size)
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(end - start))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{size}-{path.stat().st_mtime_ns}"')
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        self.end_headers()
        if not with_body:
            return
        self.wfile.flush()
        sent = 0
        try:
            with path.open("rb") as file:
                sent = self._send(file.fileno(), start, end)
        finally:
            sys.stdout.write(
                json.dumps(asdict(Served(self.path, start, sent))) + "\n"
            )  # whole, from any thread
            sys.stdout.flush()

    def _send(self, handle: int, start: int, end: int) -> int:
        at, began = start, time.monotonic()
        if self.congestion:  # the sender's: what loss does depends on it, and machines differ in theirs
            self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, self.congestion.encode())
        if self.rate:  # little in flight, so that what was sent is what was received
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BLOCK)
        block = _BLOCK if self.rate else 1 << 24
        with contextlib.suppress(OSError):
            while at < end:
                count = os.sendfile(self.connection.fileno(), handle, at, min(block, end - at))
                if not count:
                    break
                at += count
                if self.rate:
                    time.sleep(max(0.0, began + (at - start) / self.rate - time.monotonic()))
        if at < end:
            self.close_connection = True
        return at - start

    def log_message(self, format: str, *args: Any) -> None:  # type: ignore[explicit-override]  # noqa: A002 - its name there; `override` is in 3.12
        """Said in JSON instead."""


def main(folder: str, address: str, port: str, rate: str = "0", congestion: str = "") -> None:
    """Serve until the standard input ends."""
    Handler.folder, Handler.rate, Handler.congestion = Path(folder), float(rate), congestion
    server = ThreadingHTTPServer((address, int(port)), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_address[1], flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
