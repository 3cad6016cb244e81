"""What a doit command asks for: which families of tasks, for which hosts.

doit tells a task loader the command and its words. A `dodo.py` is loaded by one of doit's own, which
keeps them to itself; so they are read from that loader's call. Where there is none to be found, or
where a `dodo.py` has tasks of its own that may depend on any of nixa's, every task is made.
"""

from __future__ import annotations

import fnmatch
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from enum import StrEnum
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

from doit.cmd_base import DoitCmdBase, TaskLoader2

from nixa_tasks.errors import UsageError

if TYPE_CHECKING:
    from nixa_tasks.manifest.model import Manifest

_MOST_NAMED = 10


class Scope(StrEnum):
    """What the tasks of a family are about."""

    HOST = "host"
    IMAGE = "image"
    FLEET = "fleet"


class Names(NamedTuple):
    """What a family takes on the command line.

    `needs`: the families whose tasks its own tasks depend on. `valued`: its options that are
    followed by a value. `has_hosts`: whether `NAME:HOST` is one of its tasks.
    """

    name: str
    scope: Scope
    needs: tuple[str, ...] = ()
    valued: frozenset[str] = frozenset()
    has_hosts: bool = True


class Command(NamedTuple):
    """A doit command: its name, the words behind its own options (for `run`: what is selected,
    `default_tasks` included), whether all tasks are nixa's, and doit's own options where they are known."""

    name: str
    words: tuple[str, ...]
    is_all_nixa: bool
    options: Mapping[str, Any] | None = None

    @property
    def is_bare_list(self) -> bool:
        """Whether it is `doit list` of families alone."""
        options = self.options
        if self.name != "list" or self.words or not self.is_all_nixa or options is None:
            return False
        return not any(options.get(name) for name in ("subtasks", "status", "list_deps", "template"))


class Request(NamedTuple):
    """The tasks to make. `families`: the names in each family (hosts, images; none for a family
    without any); None for everything that there is."""

    families: Mapping[str, tuple[str, ...]] | None = None
    command: str = "run"

    def has(self, family: str) -> bool:
        return self.families is None or family in self.families

    def names(self, family: str, known: Collection[str]) -> tuple[str, ...]:
        """The family's hosts or images, in the manifest's order."""
        if self.families is None:
            return tuple(known)
        chosen = frozenset(self.families[family])
        return tuple(known) if len(chosen) == len(known) else tuple(name for name in known if name in chosen)


def command_of_doit(is_nixas: Callable[[object], bool]) -> Command | None:
    """The command that doit loads tasks for at this moment; None outside of a loader's `load_tasks`."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "load_tasks":
            loader, cmd = frame.f_locals.get("self"), frame.f_locals.get("cmd")
            if isinstance(loader, TaskLoader2) and isinstance(cmd, DoitCmdBase):
                return command_for(cmd, loader, is_nixas, _options_of(frame, cmd))
        frame = frame.f_back
    return None


def _options_of(frame: FrameType | None, cmd: Any) -> Mapping[str, Any] | None:
    """The options that the command was given, of `Command.execute(opt_values, pos_args)`."""
    while frame is not None:
        code = frame.f_code
        if code.co_name == "execute" and code.co_argcount == 3 and frame.f_locals.get("self") is cmd:
            options = frame.f_locals.get(code.co_varnames[1])
            return options if isinstance(options, Mapping) else None
        frame = frame.f_back
    return None


def command_for(
    cmd: Any, loader: Any, is_nixas: Callable[[object], bool], options: Mapping[str, Any] | None
) -> Command:
    """The command that a task loader is asked to load tasks for."""
    words = tuple(cmd.sel_tasks or ()) if cmd.name in ("run", "strace") else _positional(cmd)
    namespace = getattr(loader, "namespace", None)
    is_all_nixa = isinstance(namespace, dict) and all(
        is_nixas(value) for name, value in namespace.items() if _is_creator(name, value)
    )
    return Command(cmd.name, words, is_all_nixa, options)


def _positional(cmd: Any) -> tuple[str, ...]:
    return () if cmd.sel_default_tasks else tuple(cmd.sel_tasks or ())


def _is_creator(name: str, value: object) -> bool:
    """Whether doit takes it for a task creator."""
    if name == "task_params":
        return False
    return (name.startswith("task_") and callable(value)) or hasattr(value, "create_doit_tasks")


def read(command: Command | None, manifest: Manifest, known: Mapping[str, Names]) -> Request:
    """The tasks that a command needs. Raises UsageError for a name that can't be one, a pattern that
    fits nothing, or an expression that can't be read."""
    if command is None:
        return Request()
    if not command.words or command.name == "list":
        return Request(command=command.name)
    families: dict[str, dict[str, None]] = {}
    is_whole = not command.is_all_nixa
    for word, expression in _split(command.words, known):
        name, colon, pattern = word.partition(":")
        family = known.get(name)
        if family is None:
            if command.is_all_nixa and "*" not in word and "/" not in word:
                raise _unknown(word, manifest, known)
            is_whole = True
            continue
        names = _chosen(word, family, pattern if colon else None, expression, manifest)
        families.setdefault(name, {}).update(dict.fromkeys(names))
        for other in family.needs:
            families.setdefault(other, {}).update(dict.fromkeys(names))
    if is_whole:
        return Request(command=command.name)
    return Request({name: tuple(names) for name, names in families.items()}, command.name)


def _split(words: Sequence[str], known: Mapping[str, Names]) -> Iterator[tuple[str, str | None]]:
    """Each word that names a task, with the expression behind its `--on`; options are passed over."""
    rest = list(words)
    while rest:
        word = rest.pop(0)
        family = known.get(word.partition(":")[0])
        expression: str | None = None
        while rest and rest[0].startswith("-"):
            option, equals, value = rest.pop(0).partition("=")
            if not equals and (option == "--on" or (family and option in family.valued)):
                value = rest.pop(0) if rest else ""
            if option == "--on":
                _check_on(word, value, family)
                expression = value
        yield word, expression


def _check_on(word: str, value: str, family: Names | None) -> None:
    """`--on` chooses among all hosts of a whole family; elsewhere it would be ignored."""
    if not value.strip():
        raise UsageError("--on: an expression must follow", hint="for example: doit deploy --on '@web'")
    if family is None or ":" in word or "--on" not in family.valued:
        name = family.name if family and "--on" in family.valued else "deploy"
        raise UsageError(
            f"--on can't follow {word}: it chooses among all hosts", hint=f"doit {name} --on '{value}'"
        )


def _chosen(
    word: str, family: Names, pattern: str | None, expression: str | None, manifest: Manifest
) -> Collection[str]:
    """The hosts or images that a word is about."""
    if family.scope is Scope.IMAGE:
        return manifest.images if pattern is None else _matching(word, pattern, manifest.images, "image")
    if not family.has_hosts:
        return ()
    if pattern is not None:
        return _matching(word, pattern, manifest.hosts, "host")
    hosts = choose(expression, manifest) if expression else manifest.hosts
    return () if family.scope is Scope.FLEET else hosts  # one table of all, and none of each


def choose(expression: str, manifest: Manifest) -> tuple[str, ...]:
    """The hosts that an expression behind `--on` chooses. Raises SelectionError."""
    from nixa_tasks.manifest.select import select

    return select(expression, manifest.hosts)


def _matching(word: str, pattern: str, names: Mapping[str, object], kind: str) -> Collection[str]:
    if "*" in pattern:
        found = fnmatch.filter(names, pattern)
        if not found:
            raise UsageError(f"{word}: no {kind} in hosts.toml matches {pattern!r}", hint=_known(names, kind))
        return found
    if pattern in names:
        return (pattern,)
    family = word.partition(":")[0]
    if "," in pattern and kind == "host":
        either = " or ".join(part.strip() for part in pattern.split(",") if part.strip())
        raise UsageError(
            f"{word}: there is no host {pattern!r} in hosts.toml", hint=f"doit {family} --on '{either}'"
        )
    near = _near(pattern, names)
    hint = f"did you mean {family}:{near}?" if near else _known(names, kind)
    raise UsageError(f"{word}: there is no {kind} {pattern!r} in hosts.toml", hint=hint)


def _unknown(word: str, manifest: Manifest, known: Mapping[str, Names]) -> UsageError:
    name, colon, rest = word.partition(":")
    if name in manifest.hosts:
        return UsageError(f"{word} is a host, not a task", hint=f"for example: doit deploy:{name}")
    near = _near(name, known)
    hint = f"did you mean {near}{colon}{rest}?" if near else "doit list shows every task"
    return UsageError(f"there is no task {word!r}", hint=hint)


def _near(word: str, names: Mapping[str, object]) -> str | None:
    from nixa_tasks.text import suggestion

    return suggestion(word, names)


def _known(names: Mapping[str, object], kind: str) -> str:
    some = list(names)[:_MOST_NAMED]
    if not some:
        return f"hosts.toml has no {kind} at all"
    return f"the {kind}s are: {', '.join(some)}" + (" …" if len(names) > len(some) else "")
