"""How the lab talks to a machine's supervisor: one JSON line there, one back.

An abstract socket: no path that could be too long for the kernel, nothing left on disk. Only root
is answered.
"""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

from nixa_tasks.lab.errors import LabError

DEADLINE = 30.0
_MAX = 1 << 20


def address(lab_id: str, name: str) -> str:
    """The abstract name of a supervisor's socket."""
    return f"\0nixa-lab-{lab_id}-{name}"


def listen(lab_id: str, name: str) -> socket.socket:
    """The supervisor's end. Raises OSError if another one serves this machine."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(address(lab_id, name))
    server.listen(16)
    return server


def receive(connection: socket.socket) -> dict[str, Any] | None:
    """A request of root's; None for anything else."""
    connection.settimeout(DEADLINE)
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    if struct.unpack("3i", credentials)[1] != 0:
        return None
    return _line(connection)


def ask(lab_id: str, name: str, request: dict[str, Any], *, deadline: float = DEADLINE) -> dict[str, Any]:
    """Send a request and return the answer. Raises LabError where nobody answers, or for its refusal."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
            line.settimeout(deadline)
            line.connect(address(lab_id, name))
            line.sendall(json.dumps(request).encode() + b"\n")
            answer = _line(line)
    except OSError as error:
        raise LabError(
            f"the machine's supervisor does not answer: {error}", host=name,
            hint="`python -m nixa_tasks.lab up` starts what is missing",
        ) from error  # fmt: skip
    if answer is None:
        raise LabError("the machine's supervisor ended", host=name)
    if "error" in answer:
        raise LabError(str(answer["error"]), host=name)
    return answer


def _line(connection: socket.socket) -> dict[str, Any] | None:
    data = b""
    while not data.endswith(b"\n") and len(data) < _MAX:
        chunk = connection.recv(65536)
        if not chunk:
            return None
        data += chunk
    value = json.loads(data)
    return value if isinstance(value, dict) else None
