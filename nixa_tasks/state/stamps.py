"""JSON files that are never half written."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nixa_tasks.errors import NixaError


def now() -> str:
    """This moment, UTC, RFC 3339, whole seconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def write_bytes(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Replace a file in one step: temporary file in the same folder, flushed, renamed.

    Raises NixaError where the folder can't be written (a full disk, no permission).
    """
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
        temporary = None
    except OSError as error:
        raise NixaError(
            f"{path} can't be written: {error.strerror}",
            hint="make room on the disk, or give the folder to the user who runs nixa",
        ) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()


def write_json(path: Path, value: object) -> None:
    """Write `value` as JSON, in one step. Raises NixaError."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def write_json_if_changed(path: Path, value: object) -> bool:
    """Write only what differs from what is there, so that an equal value keeps the file as it is."""
    if path.exists() and read_json(path) == value:
        return False
    write_json(path, value)
    return True


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None where there is none, or where it is damaged: a stamp is a
    cache, and one that can't be read is one that is not there."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
