"""The program with which a host hands its image on, sent as it stands here: `FILE TOKEN`.

Any Python 3 of the last ten years runs it, and nothing else of nixa is there. It serves one file,
under a name that only this run knows, and ends when its standard input falls silent: the ssh
session that holds it is gone then. What it serves is public, and whoever takes it checks it.
"""

import http.server
import os
import select
import shutil
import socket
import socketserver
import sys
import threading

SILENCE_SECONDS = 30


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True

    def server_bind(self) -> None:  # type: ignore[explicit-override]
        """On IPv4 too; and without http.server's look for the machine's own name, which may take long."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        socketserver.TCPServer.server_bind(self)


class Handler(http.server.BaseHTTPRequestHandler):
    timeout = 60
    file = ""
    token = ""

    def do_GET(self) -> None:
        if self.path != "/" + self.token:
            self.send_error(404)
            return
        with open(self.file, "rb") as file:  # noqa: PTH123 - the oldest way
            size = os.fstat(file.fileno()).st_size
            asked = self.headers.get("Range", "")
            first = asked[len("bytes=") : -1]
            is_range = asked.startswith("bytes=") and asked.endswith("-") and first.isdigit()
            begin = int(first) if is_range else 0
            if begin >= size:
                self.send_error(416)
                return
            self.send_response(206 if is_range else 200)
            self.send_header("Content-Length", str(size - begin))
            if is_range:
                self.send_header("Content-Range", f"bytes {begin}-{size - 1}/{size}")
            self.end_headers()
            file.seek(begin)
            shutil.copyfileobj(file, self.wfile, 1 << 18)

    def log_message(self, format: str, *args: object) -> None:  # type: ignore[explicit-override]  # noqa: A002
        pass


def opened() -> Server:
    """On every address of the machine, those of IPv6 too where there are any."""
    for family, address in ((socket.AF_INET6, "::"), (socket.AF_INET, "")):
        Server.address_family = family
        try:
            return Server((address, 0), Handler)
        except OSError:
            continue
    sys.exit("no port can be opened")


def main() -> None:
    Handler.file, Handler.token = sys.argv[1:3]
    server = opened()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdout.write(f"serving {server.server_address[1]} {os.environ.get('SSH_CONNECTION', '')}\n")
    sys.stdout.flush()
    while select.select([0], [], [], SILENCE_SECONDS)[0] and os.read(0, 4096):
        pass


if __name__ == "__main__":
    main()
