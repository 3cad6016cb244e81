"""doit's database, written as each task ends.

doit's own backends write once, at the end, so that a killed run forgets what it finished. This one
has the interface that `doit.dependency.Dependency` calls, and the table of doit's own SQLite backend.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import sqlite3

# The last thing that doit stores for a finished task, and what it stores for an ignored one.
_LAST_KEYS = frozenset({"deps:", "ignore:"})
_BUSY_SECONDS = 20.0
_IN_MEMORY = ":memory:"


class NixaDB:
    """A cache that two runs may share: losing it costs time, never data. A damaged file is begun
    anew, and where none can be written what is learnt is forgotten with the process."""

    desc = "SQLite, written as each task ends"

    def __init__(self, name: str, codec: Any, *, module_name: str | None = None) -> None:
        """`codec` turns a task's values into text and back. The file is opened when first needed."""
        self.name = name
        self._codec = codec
        self._open: sqlite3.Connection | None = None
        self._tasks: dict[str, dict[str, Any]] = {}
        self._dirty: set[str] = set()

    def get(self, task_id: str, dependency: str) -> Any:
        """The stored value; None where there is none."""
        return self._task(task_id).get(dependency)

    def set(self, task_id: str, dependency: str, value: object) -> None:
        """Store a value; the last one of a task is also written out."""
        self._task(task_id)[dependency] = value
        self._dirty.add(task_id)
        if dependency in _LAST_KEYS:
            self._write(task_id)

    def in_(self, task_id: str) -> bool:
        """Whether anything is stored for the task."""
        return bool(self._task(task_id))

    def remove(self, task_id: str) -> None:
        """Forget a task."""
        self._tasks[task_id] = {}
        self._dirty.discard(task_id)
        self._database.execute("delete from doit where task_id = ?", (task_id,))

    def remove_all(self) -> None:
        """Forget every task."""
        self._tasks.clear()
        self._dirty.clear()
        self._database.execute("delete from doit")

    def dump(self) -> None:
        """Write what is not written yet, and close the file."""
        for task_id in tuple(self._dirty):
            self._write(task_id)
        if self._open is not None:
            self._open.close()
            self._open = None

    def _task(self, task_id: str) -> dict[str, Any]:
        found = self._tasks.get(task_id)
        if found is None:
            query = "select task_data from doit where task_id = ?"
            row = self._database.execute(query, (task_id,)).fetchone()
            found = self._tasks[task_id] = self._codec.decode(_text(row[0])) if row else {}
        return found

    def _write(self, task_id: str) -> None:
        import sqlite3

        encoded = self._codec.encode(self._tasks[task_id])
        # A file that can be read but not written, or a full disk: what is learnt is forgotten.
        with contextlib.suppress(sqlite3.OperationalError):
            self._database.execute("insert or replace into doit values (?, ?)", (task_id, encoded))
        self._dirty.discard(task_id)

    @property
    def _database(self) -> sqlite3.Connection:
        if self._open is None:
            import sqlite3

            try:
                self._open = _connect(self.name)
            except sqlite3.OperationalError:  # no such folder, or one that can't be written
                self._open = _connect(_IN_MEMORY)
            except sqlite3.DatabaseError:
                with contextlib.suppress(OSError):
                    Path(self.name).unlink()
                self._open = _connect(self.name)
        return self._open


def _connect(name: str) -> sqlite3.Connection:
    """A connection that writes each statement by itself: no lock is ever held between two."""
    import sqlite3

    connection = sqlite3.connect(name, timeout=_BUSY_SECONDS, isolation_level=None)
    try:
        connection.execute("pragma synchronous = off")
        create = "create table if not exists doit (task_id text not null primary key, task_data json)"
        connection.execute(create)
    except sqlite3.DatabaseError:
        connection.close()
        raise
    return connection


def _text(data: str | bytes) -> str:
    return data if isinstance(data, str) else data.decode()
