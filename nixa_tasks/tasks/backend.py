"""doit's database, written as each task ends.

doit's own SQLite backend writes once, at the end, so that a killed run forgets what it finished;
and its `delete` for a failed task keeps the file locked until then, which fails a second run.
"""

from __future__ import annotations

from typing import Any

from doit.dependency import SqliteDB

# The last thing that doit stores for a finished task, and what it stores for an ignored one.
_LAST_KEYS = frozenset({"deps:", "ignore:"})


class NixaDB(SqliteDB):  # type: ignore[misc]  # doit ships no types
    """A cache that two runs may share: losing it costs time, never data."""

    desc = "SQLite, written as each task ends"

    def __init__(self, name: str, codec: Any, *, module_name: str | None = None) -> None:
        super().__init__(name, codec, module_name=module_name)
        self._conn.isolation_level = None  # each statement by itself: no lock is ever held between two
        self._conn.execute("pragma synchronous = off")
        self._conn.execute("pragma busy_timeout = 20000")

    def set(self, task_id: str, dependency: str, value: object) -> None:
        """Store a value; the last one of a task is also written out."""
        super().set(task_id, dependency, value)
        if dependency in _LAST_KEYS:
            self._write(task_id)

    def _write(self, task_id: str) -> None:
        encoded = self.codec.encode(self._cache[task_id])
        self._conn.execute("insert or replace into doit values (?, ?)", (task_id, encoded))
        self._dirty.discard(task_id)
