"""What a run gathers for its end."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nixa_tasks.errors import NixaError
    from nixa_tasks.fleet.reporter import Result


class Results:
    """Filled by actions in many threads.

    `hosts`: how each host's turn ended. `unchanged`: the names of tasks that were up to date. `shown`: the
    host and the text, for standard output. `crashed`: the traceback of a fault of nixa's own. `status`: the
    highest exit status so far. `active`: how many actions are under way.
    """

    def __init__(self) -> None:
        self.hosts: dict[str, Result] = {}
        self.errors: list[NixaError] = []
        self.unchanged: list[str] = []
        self.shown: list[tuple[str, str]] = []
        self.crashed: str | None = None
        self.status = 0
        self.active = 0
        self.lock = threading.Lock()

    def fail(self, error: NixaError) -> None:
        with self.lock:
            self.errors.append(error)
            self.status = max(self.status, error.exit_status)

    def raise_status(self, status: int) -> None:
        with self.lock:
            self.status = max(self.status, status)

    def record(self, result: Result) -> None:
        with self.lock:
            self.hosts[result.name] = result

    def show(self, text: str, *, host: str = "", status: int = 0) -> None:
        """Text for standard output, printed alone once everything has ended, in the hosts' order."""
        with self.lock:
            self.shown.append((host, text))
            self.status = max(self.status, status)
