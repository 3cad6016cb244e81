"""The doit commands of this process: each has a run of its own."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from doit import Globals
from doit.exceptions import InvalidDodoFile

from nixa_tasks.errors import NixaError
from nixa_tasks.tasks import families, settled
from nixa_tasks.tasks.actions import Meta, Task
from nixa_tasks.tasks.families import Family, is_nixas
from nixa_tasks.tasks.reporter import Reporter
from nixa_tasks.tasks.selection import Command, Request, Scope, command_of_doit

if TYPE_CHECKING:
    from nixa_tasks.manifest.model import Manifest
    from nixa_tasks.tasks.run import Run

_DEPLOY = "deploy"
Made = Iterator[Any] | None


class Commands:
    """Gives each doit command that is run for the manifest of one folder its tasks and its run.

    A `dodo.py` is loaded once in a process, while doit can be called any number of times: each
    time it has a dependency manager of its own, by which a new command is known.

    A command that has nothing to do by the index of what is settled gets no run: nothing is read for it
    but that index.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._state = folder / ".nixa"
        self._looks: settled.Looks = None
        self._manifest: Manifest | None = None
        self._manager: object = None
        self._run: Run | None = None
        self._brief: dict[str, list[Task]] | None = None
        self._expected: Command | None = None
        self._index = settled.read(self._state)
        if self._index is None:
            self._load()

    def configuration(self) -> dict[str, Any]:
        """What `DOIT_CONFIG` says for this manifest."""
        return {
            "default_tasks": ["plan"],
            "dep_file": str(self._state / "doit.db"),
            "backend": "nixa",
            "reporter": Reporter,
            "continue": True,
            "par_type": "thread",
            "num_process": self._index.jobs if self._index else self._load().fleet.jobs,
            "verbosity": 2,
        }

    def creators(self) -> dict[str, Callable[[], Made]]:
        """All task creators, for a dodo module's namespace."""
        return families.creators(self.tasks)

    def expect(self, command: Command) -> None:
        """Say which command comes next, where a loader was told it."""
        self._expected, self._manager = command, self

    def tasks(self, family: Family) -> Made:
        """The family's tasks for the command that doit loads tasks for. Raises InvalidDodoFile."""
        if self._manager is not Globals.dep_manager or self._manager is None:
            self._manager, self._run, self._brief = Globals.dep_manager, None, None
            self._begin()
        if self._brief is not None:
            made = self._brief.get(family.name)
            return None if made is None else (task for task in made)  # doit wants a generator
        return families.tasks(family, self.run) if self.run.request.has(family.name) else None

    @property
    def run(self) -> Run:
        """The run of the last command. Raises InvalidDodoFile."""
        if self._run is None:
            raise InvalidDodoFile("no command was run yet, or one that had nothing to do")
        return self._run

    @property
    def has_run(self) -> bool:
        return self._run is not None

    def _begin(self) -> None:
        command, self._expected = self._expected or command_of_doit(is_nixas), None
        index, self._index = self._index or settled.read(self._state), None
        named = _plain_deploys(command, self._state)
        if index is not None and command is not None and command.is_bare_list:
            self._brief = _listed()
            return
        asked: tuple[str, ...] = ()
        fine: frozenset[str] = frozenset()
        if index is not None and named is not None:
            asked = tuple(host for host in index.hosts if _is_asked(named, host))
            fine = index.settled(asked)
            if (
                asked
                and len(fine) == len(asked)
                and all(word == _DEPLOY or word[7:] in fine for word in named)
            ):
                self._brief = _unchanged(self._state, named, asked)
                return
        self._run = self._begin_run(command, named, fine)

    def _begin_run(self, command: Command | None, named: tuple[str, ...] | None, fine: frozenset[str]) -> Run:
        from nixa_tasks.tasks.run import begin
        from nixa_tasks.tasks.selection import read

        try:
            manifest = self._load()
            request = read(command, manifest, families.NAMES)
            if not named or request.families is None or not fine:
                run = begin(manifest, request)
            else:
                explicit = {word[7:] for word in named if word != _DEPLOY}
                due = tuple(
                    host for host in request.families[_DEPLOY] if host not in fine or host in explicit
                )
                run = begin(manifest, Request({_DEPLOY: due, "evaluate": due}, request.command))
                run.settled = tuple(host for host in request.families[_DEPLOY] if host not in due)
        except NixaError as error:
            raise InvalidDodoFile(error.render()) from None
        run.is_plain_deploy = named is not None
        return run

    def _load(self) -> Manifest:
        from nixa_tasks.process.run import LocalProcesses
        from nixa_tasks.tasks import manifest

        looks = settled.looks(self._folder / manifest.MANIFEST)
        if self._manifest is None or looks != self._looks:
            try:
                self._looks, self._manifest = looks, manifest.find(self._folder, LocalProcesses())
            except NixaError as error:
                raise InvalidDodoFile(error.render()) from None
        return self._manifest


def _plain_deploys(command: Command | None, state: Path) -> tuple[str, ...] | None:
    """The words of a command that deploys and nothing else, by doit's and nixa's own rules; None for
    any other. A pattern is none: doit itself looks for the tasks that it fits."""
    if command is None or command.name != "run" or not command.is_all_nixa or not command.words:
        return None
    options = command.options
    is_usual = (
        options is not None
        and not options.get("always")
        and options.get("backend") == "nixa"
        and options.get("check_file_uptodate") == "md5"
        and options.get("dep_file") == str(state / "doit.db")
        and options.get("reporter") is Reporter
    )
    is_plain = all(
        word == _DEPLOY or (word.startswith("deploy:") and "*" not in word) for word in command.words
    )
    return command.words if is_usual and is_plain else None


def _is_asked(words: tuple[str, ...], host: str) -> bool:
    return any(word == _DEPLOY or fnmatch.fnmatchcase(host, word[7:]) for word in words)


def _unchanged(state: Path, words: tuple[str, ...], hosts: tuple[str, ...]) -> dict[str, list[Task]]:
    """The tasks of a command that has nothing to do: those that it names, each up to date."""
    tasks: list[Task] = [
        {"basename": _DEPLOY, "name": None, "meta": Meta(None, settled=hosts if _DEPLOY in words else ())}
    ]
    named = (word[7:] for word in dict.fromkeys(words) if word != _DEPLOY)
    tasks += [
        {
            "basename": _DEPLOY,
            "name": host,
            "actions": [],
            "uptodate": [True],
            "file_dep": [f"{state}/hosts/{host}/output.json"],  # as doit has it on record
            "meta": Meta(None, work=True),
        }
        for host in named
    ]
    return {_DEPLOY: tasks}


def _listed() -> dict[str, list[Task]]:
    """What `doit list` shows of each family: its name and its line."""
    brief: dict[str, list[Task]] = {}
    for family in families.ALL:
        name = {} if family.scope is Scope.FLEET and family.name != "clean" else {"name": None}
        brief[family.name] = [{"basename": family.name, **name, "doc": family.doc, "actions": []}]
    return brief
