"""What one host's deploy works with, as one value that is handed down."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nixa_tasks.flake.evaluate import Output
from nixa_tasks.manifest.model import Host, Manifest
from nixa_tasks.state.journal import Journal
from nixa_tasks.state.layout import Layout
from nixa_tasks.state.runlog import RunLog
from nixa_tasks.target.reach import Reached


@dataclass(frozen=True, slots=True)
class Work:
    """One host's deploy: the host, what it should run, and how it was reached.

    `flake` is the locked reference that the output was evaluated from; `folder` is this run's
    private folder.
    """

    manifest: Manifest
    host: Host
    output: Output
    flake: str | None
    reached: Reached
    layout: Layout
    journal: Journal
    log: RunLog
    folder: Path

    @property
    def wanted(self) -> str:
        return self.output.toplevel_out

    @property
    def drv(self) -> str:
        return self.output.toplevel_drv
