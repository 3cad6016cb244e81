"""nixa for scripts: load a manifest, plan, deploy, read receipts.

    from nixa_tasks import api

    fleet = api.Fleet("path/to/flake")       # the folder of hosts.toml
    for row in fleet.plan("@web"):
        print(row.host, row.action, row.reason)
    done = fleet.deploy("@web and not web3")
    print(done.status, done.results["web1"].outcome)
    print(fleet.receipts()["web1"])

Everything here does what the command line does, with its locks, stamps and waves. Errors that a person
can act on are `nixa_tasks.errors.NixaError`; a manifest with mistakes is a `ManifestError`, which is one.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from doit.doit_cmd import DoitMain

from nixa_tasks.fleet.reporter import Result
from nixa_tasks.manifest.model import Manifest
from nixa_tasks.process.run import LocalProcesses
from nixa_tasks.state.receipt import Receipt
from nixa_tasks.tasks import fleet, manifest
from nixa_tasks.tasks.loader import NixaLoader
from nixa_tasks.tasks.run import Run, begin
from nixa_tasks.tasks.selection import Request, choose

if TYPE_CHECKING:
    from nixa_tasks.fleet.plan import Planned

__all__ = ["Deployed", "Fleet", "Manifest", "Receipt", "Result"]


@dataclass(frozen=True, slots=True)
class Deployed:
    """How a deploy ended. `status`: as the command's exit status, 0 where all is well. `results`:
    each host that had its turn, or whose turn did not come; one that was up to date is not in it."""

    status: int
    results: Mapping[str, Result]


class Fleet:
    """The hosts of one hosts.toml. Raises ManifestError where that has mistakes."""

    def __init__(self, folder: str | os.PathLike[str] = ".") -> None:
        self._folder = Path(folder).absolute()
        self.manifest: Manifest = manifest.find(self._folder, LocalProcesses())

    def hosts(self, on: str = "") -> tuple[str, ...]:
        """The hosts that an expression chooses, as behind `--on`; all without one. Raises
        SelectionError."""
        return choose(on, self.manifest) if on else tuple(self.manifest.hosts)

    def plan(self, on: str = "") -> list[Planned]:
        """What a deploy would do to each host, and why. Evaluates the flake and asks the hosts that
        are not settled; changes none."""
        with self._run(self.hosts(on)) as run:
            return fleet.planned(run, run.asked)

    def deploy(self, on: str = "", *, output: TextIO | None = None) -> Deployed:
        """Bring the hosts to what the flake says. `output`: where the lines of the run go (nowhere).
        Raises SelectionError."""
        self.hosts(on)
        loader = NixaLoader(self._folder, outfile=output or io.StringIO())
        try:
            status = DoitMain(loader, config_filenames=()).run(["deploy", *(("--on", on) if on else ())])
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        return Deployed(status, dict(loader.run.results.hosts))

    def receipts(self) -> dict[str, Receipt | None]:
        """The receipt of each host's last deploy, as remembered here; None for one without."""
        with self._run(()) as run:
            return {host: run.receipt(host) for host in self.manifest.hosts}

    @contextlib.contextmanager
    def _run(self, asked: tuple[str, ...]) -> Iterator[Run]:
        run = begin(self.manifest, Request())
        run.asked = asked
        try:
            yield run
        finally:
            run.close()
