"""What one host's deploy works with, as one value that is handed down."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from nixa_tasks.deploy.uplink import Uplink
from nixa_tasks.flake.evaluate import Output
from nixa_tasks.host.reach import Access, Reached
from nixa_tasks.manifest.model import Host, Manifest
from nixa_tasks.state.journal import Journal
from nixa_tasks.state.layout import Layout
from nixa_tasks.state.run_log import RunLog


@dataclass(frozen=True, slots=True)
class Work:
    """One host's deploy: the host, what it should run, and how it was reached.

    `flake` is the locked reference that the output was evaluated from; `uplink` gives the turns for large transfers.
    """

    manifest: Manifest
    host: Host
    output: Output
    flake: str | None
    reached: Reached
    layout: Layout
    journal: Journal
    log: RunLog
    access: Access
    uplink: Uplink

    @property
    def wanted(self) -> str:
        return self.output.toplevel_out

    @property
    def drv(self) -> str:
        return self.output.toplevel_drv

    @contextmanager
    def sending(self, step: str) -> Iterator[None]:
        """A step that sends something large: it begins when it is this host's turn."""
        with self.turn(step), self.journal.step(self.host.name, step):
            yield

    def turn(self, step: str) -> AbstractContextManager[None]:
        """This host's turn to be sent something large."""
        return self.uplink.turn(lambda text: self.journal.note(self.host.name, step, text))
