"""The command `nixa`: doit with a loader that needs no dodo.py, only a hosts.toml."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from doit import loader as doit_loader
from doit.cmd_base import NamespaceTaskLoader
from doit.doit_cmd import DoitMain
from doit.exceptions import InvalidDodoFile

from nixa_tasks.errors import EXIT_USAGE
from nixa_tasks.tasks.commands import Commands
from nixa_tasks.tasks.families import ALL, BY_NAME, Family, explain, is_nixas, overview
from nixa_tasks.tasks.manifest import MANIFEST
from nixa_tasks.tasks.run import Run
from nixa_tasks.tasks.selection import command_for

PROGRAM = "nixa"
_DODO = "dodo.py"
_FOLDER = {
    "section": "task loader",
    "name": "folder",
    "short": "d",
    "long": "dir",
    "type": str,
    "default": "",
    "help": "where hosts.toml is; otherwise here, or in a folder above",
}


class NixaLoader(NamespaceTaskLoader):  # type: ignore[misc]  # doit ships no types
    """Loads nixa's tasks for the hosts.toml of a folder, or those of the dodo.py beside it.

    doit tells a loader the command and its words, so that only the tasks are made that it needs.
    `folder`: where to look and nowhere else, for callers that are no command line; the process
    stays in its own folder then.
    """

    cmd_options = (_FOLDER,)

    def __init__(self, folder: Path | None = None, **config: object) -> None:
        super().__init__()
        self._folder = folder
        self._config = config
        self._commands: Commands | None = None
        self._options: Mapping[str, Any] | None = None

    @property
    def run(self) -> Run:
        """The run of the last command. Raises InvalidDodoFile."""
        if self._commands is None:
            raise InvalidDodoFile("no command was run yet")
        return self._commands.run

    def setup(self, opt_values: dict[str, Any]) -> None:
        """Find the manifest. Raises InvalidDodoFile where there is none."""
        self._options = opt_values
        if self._folder is not None:
            self.namespace = self._namespace(self._folder)
            return
        folder = find_folder(Path(opt_values.get("folder") or Path.cwd()).absolute())
        os.chdir(folder)
        if (folder / _DODO).exists():
            self.namespace = dict(inspect.getmembers(doit_loader.get_module(str(folder / _DODO))))
        else:
            self.namespace = self._namespace(folder)

    def _namespace(self, folder: Path) -> dict[str, Any]:
        self._commands = commands = Commands(folder)
        return {"DOIT_CONFIG": commands.configuration() | self._config, **commands.creators()}

    def load_tasks(self, cmd: Any, pos_args: Sequence[str]) -> Any:
        """The tasks that the command needs."""
        if self._commands is not None:
            self._commands.expect(command_for(cmd, self, is_nixas, self._options))
        return super().load_tasks(cmd, pos_args)


def find_folder(start: Path) -> Path:
    """The folder of the hosts.toml that is nearest: in `start`, or above it. Raises InvalidDodoFile."""
    for folder in (start, *start.parents):
        if (folder / MANIFEST).is_file():
            return folder
    raise InvalidDodoFile(f"there is no {MANIFEST} in {start}, nor in a folder above it")


class NixaMain(DoitMain):  # type: ignore[misc]
    """doit's command line under the name of nixa, with help for people."""

    BIN_NAME = PROGRAM

    def run(self, all_args: Sequence[str]) -> int:
        """Run one command line; the exit status."""
        words = list(all_args)
        family = _family_asked_about(words)
        if words[:1] in (["--help"], ["-h"]) or words == ["help"]:
            sys.stdout.write(overview(PROGRAM, [(one.name, one.doc) for one in ALL]))
            return 0
        if family is not None:
            sys.stdout.write(explain(family, PROGRAM, is_whole=True) + "\n")
            return 0
        if words[:1] == ["tabcompletion"] and "fish" in words:
            sys.stdout.write((Path(__file__).parent / "completion.fish").read_text())
            return 0
        if "" in words:
            sys.stderr.write("ERROR: an argument is empty\n    what to do: nixa deploy --on '@web'\n")
            return EXIT_USAGE
        status: int = super().run(words)
        return status


def _family_asked_about(words: list[str]) -> Family | None:
    """The family in `nixa help FAMILY`, `nixa FAMILY --help`, `nixa FAMILY:HOST -h`."""
    if len(words) == 2 and words[0] == "help":
        return BY_NAME.get(words[1])
    if words[-1:] in (["--help"], ["-h"]):
        return next((BY_NAME[name] for word in words if (name := word.partition(":")[0]) in BY_NAME), None)
    return None


def main() -> None:
    """The console script."""
    sys.exit(NixaMain(NixaLoader()).run(sys.argv[1:]))


if __name__ == "__main__":
    main()
