"""The lab's web server: one folder, ranges and validators, and a log that tests can read.

A process of its own: `python -m nixa_tasks.lab.www DIR`. It writes `www.json` when it listens.
"""

from __future__ import annotations

import email.utils
import hashlib
import json
import os
import re
import signal
import socket
import sys
import threading
from datetime import UTC, datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from nixa_tasks.lab import linux
from nixa_tasks.lab.network import bridge_address
from nixa_tasks.lab.paths import LabPaths, read_json, write_json

_BLOCK = 1 << 18
_IDLE_SECONDS = 120.0
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


class Handler(BaseHTTPRequestHandler):
    """GET and HEAD of plain files."""

    protocol_version = "HTTP/1.1"
    timeout = _IDLE_SECONDS
    lab: LabPaths
    lock = threading.Lock()

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        path = self._file()
        if path is None:
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        with path.open("rb") as stream:
            facts = os.fstat(stream.fileno())
            tag = f'"{hashlib.sha256(f"{facts.st_size} {facts.st_mtime_ns}".encode()).hexdigest()[:32]}"'
            modified = email.utils.formatdate(facts.st_mtime, usegmt=True)
            first, last, is_part = 0, facts.st_size - 1, False
            wanted = self.headers.get("Range")
            if wanted is not None and self.headers.get("If-Range", tag) in {tag, modified}:
                chosen = parse_range(wanted, facts.st_size)
                if chosen == "unsatisfiable":
                    self._refuse(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, f"bytes */{facts.st_size}")
                    return
                if isinstance(chosen, tuple):
                    (first, last), is_part = chosen, True
            status = HTTPStatus.PARTIAL_CONTENT if is_part else HTTPStatus.OK
            if self.headers.get("If-None-Match") == tag and not is_part:
                self._head(HTTPStatus.NOT_MODIFIED, 0, tag, modified)
                self._log(HTTPStatus.NOT_MODIFIED, 0)
                return
            self._head(
                status,
                last - first + 1,
                tag,
                modified,
                f"bytes {first}-{last}/{facts.st_size}" if is_part else None,
            )
            sent = 0
            try:
                if body:
                    stream.seek(first)
                    sent = self._send(stream.fileno(), last - first + 1)
            finally:
                self._log(status, sent)

    def _send(self, source: int, size: int) -> int:
        sent = 0
        while sent < size:
            block = os.read(source, min(_BLOCK, size - sent))
            if not block:
                break
            try:
                self.wfile.write(block)
            except OSError:  # who asked has gone
                self.close_connection = True
                break
            sent += len(block)
        return sent

    def _head(self, status: HTTPStatus, size: int, tag: str, modified: str, part: str | None = None) -> None:
        self.send_response_only(status)
        self.send_header("Date", self.date_time_string())
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", tag)
        self.send_header("Last-Modified", modified)
        if part is not None:
            self.send_header("Content-Range", part)
        if status != HTTPStatus.NOT_MODIFIED:
            self.send_header("Content-Length", str(size))
        self.end_headers()

    def _refuse(self, status: HTTPStatus, part: str | None = None) -> None:
        self.send_response_only(status)
        self.send_header("Date", self.date_time_string())
        self.send_header("Content-Length", "0")
        if part is not None:
            self.send_header("Content-Range", part)
        self.end_headers()
        self._log(status, 0)

    def _file(self) -> Path | None:
        base = self.lab.www.resolve()
        path = (base / unquote(urlsplit(self.path).path).lstrip("/")).resolve()
        return path if path.is_relative_to(base) and path.is_file() else None

    def _log(self, status: HTTPStatus, sent: int) -> None:
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "client": self.client_address[0],
            "method": self.command,
            "path": self.path,
            "status": int(status),
            "range": self.headers.get("Range"),
            "bytes": sent,
        }
        with self.lock, self.lab.www_log.open("a") as stream:
            stream.write(json.dumps(line) + "\n")


def parse_range(text: str, size: int) -> tuple[int, int] | str | None:
    """`bytes=5-` for a file of `size` bytes → (first, last); "unsatisfiable"; None for what RFC 9110
    lets a server ignore (several ranges, rubbish)."""
    found = _RANGE.fullmatch(text.strip())
    if found is None or found[1] == found[2] == "":
        return None
    if found[1] == "":
        count = int(found[2])
        return (max(0, size - count), size - 1) if count and size else "unsatisfiable"
    first, last = int(found[1]), min(int(found[2] or size - 1), size - 1)
    if first >= size:
        return "unsatisfiable"
    return (first, last) if first <= last else None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def serve(lab: LabPaths, lock: int) -> int:
    """Listen on 127.0.0.1 and on the bridge, at the same port, until SIGTERM. Returns 0. `lock`: a
    descriptor that is closed as soon as the server is on record."""
    config = read_json(lab.config)
    wanted = int(config.get("port") or 0)
    handler = type("LabHandler", (Handler,), {"lab": lab})
    try:
        local = _Server(("127.0.0.1", wanted), handler)
    except OSError:
        local = _Server(("127.0.0.1", 0), handler)
    port = local.socket.getsockname()[1]
    servers = [local, _Server((bridge_address(config["subnet"]), port), handler)]
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    write_json(lab.www_state, {"pid": os.getpid(), "start": linux.start_time(os.getpid()), "port": port})
    os.close(lock)
    threads = [threading.Thread(target=server.serve_forever, daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return 0


if __name__ == "__main__":
    socket.setdefaulttimeout(None)
    sys.exit(serve(LabPaths(Path(sys.argv[1])), int(sys.argv[2])))
