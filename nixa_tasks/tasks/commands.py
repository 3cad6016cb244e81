"""The doit commands of this process: each has a run of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from doit import Globals
from doit.exceptions import InvalidDodoFile

from nixa_tasks.errors import NixaError
from nixa_tasks.manifest.model import Manifest
from nixa_tasks.process.run import local
from nixa_tasks.state.layout import Layout
from nixa_tasks.tasks import manifest
from nixa_tasks.tasks.families import NAMES, is_nixas
from nixa_tasks.tasks.reporter import Reporter
from nixa_tasks.tasks.run import Run, begin
from nixa_tasks.tasks.selection import Command, command_of_doit, read


class Commands:
    """Gives each doit command that is run for the manifest of one folder its run.

    A `dodo.py` is loaded once in a process, while doit can be called any number of times: each
    time it has a dependency manager of its own, by which a new command is known.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._looks = _looks(folder)
        self._manifest = self._load()
        self._manager: object = None
        self._run: Run | None = None
        self._expected: Command | None = None

    def configuration(self) -> dict[str, Any]:
        """What `DOIT_CONFIG` says for this manifest."""
        return {
            "default_tasks": ["plan"],
            "dep_file": str(Layout(self._folder).doit_db),
            "backend": "nixa",
            "reporter": Reporter,
            "continue": True,
            "par_type": "thread",
            "num_process": self._manifest.fleet.jobs,
            "verbosity": 2,
        }

    def expect(self, command: Command) -> None:
        """Say which command comes next, where a loader was told it."""
        self._expected, self._run = command, None

    def run(self) -> Run:
        """The run of the command that doit loads tasks for. Raises InvalidDodoFile."""
        if self._run is None or Globals.dep_manager is not self._manager:
            self._manager = Globals.dep_manager
            self._run = self._begin()
        return self._run

    def _begin(self) -> Run:
        command, self._expected = self._expected or command_of_doit(is_nixas), None
        if _looks(self._folder) != self._looks:
            self._looks, self._manifest = _looks(self._folder), self._load()
        try:
            return begin(self._manifest, read(command, self._manifest, NAMES))
        except NixaError as error:
            raise InvalidDodoFile(error.render()) from None

    def _load(self) -> Manifest:
        try:
            found = manifest.find(self._folder, local())
        except NixaError as error:
            raise InvalidDodoFile(error.render()) from None
        return found


def _looks(folder: Path) -> tuple[int, int, int] | None:
    """By what a changed hosts.toml is known within one process."""
    try:
        status = (folder / manifest.MANIFEST).stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
