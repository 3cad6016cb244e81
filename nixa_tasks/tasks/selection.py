"""Which hosts a command line is about: only their tasks are made, however large the fleet is.

doit does not tell a task creator what was selected, so the words are read from the command line.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from nixa_tasks.errors import UsageError
from nixa_tasks.manifest.model import Manifest
from nixa_tasks.text import suggestion

HOST_FAMILIES = ("deploy", "evaluate", "build", "reach", "trust", "rollback", "reinstall", "history",
                 "hardware")  # fmt: skip
IMAGE_FAMILIES = ("kexec", "checksum", "pin")
FLEET_FAMILIES = ("plan", "status", "report")
SELECTABLE = ("deploy", "evaluate", "build", "reach", "plan", "status")
_DOIT_COMMANDS = frozenset(
    (
        "auto",
        "clean",
        "completion",
        "dumpdb",
        "forget",
        "help",
        "ignore",
        "info",
        "list",
        "reset-dep",
        "strace",
    )
)
# doit's options that are followed by a value of their own.
_WITH_VALUE = frozenset(
    ("-f", "--file", "-d", "--dir", "-n", "--process", "-P", "--parallel-type", "-r", "--reporter", "-o",
     "--output-file", "-v", "--verbosity", "--db-file", "--backend", "--check_file_uptodate", "--yes-wipe",
     "--failure-verbosity", "--codec", "--output")
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Selection:
    """The hosts whose tasks are to be made, and those of them whose deploy is asked for."""

    hosts: tuple[str, ...]
    deploys: tuple[str, ...] = ()


def select(words: Sequence[str], manifest: Manifest) -> Selection:
    """Read doit's command line. Raises UsageError for a name, a pattern or an expression that can't
    be served."""
    named, expression = _read(words)
    if named[:1] == ["run"]:
        del named[0]
    if named and named[0] in _DOIT_COMMANDS:
        return Selection(tuple(manifest.hosts), _deploys(named[1:], manifest.hosts))
    if expression is not None:
        from nixa_tasks.manifest.select import select as select_hosts

        hosts = select_hosts(expression, manifest.hosts)
        return Selection(hosts, _deploys(named, hosts))
    chosen: dict[str, None] = {}
    is_whole = not named
    for word in named:
        family, colon, pattern = word.partition(":")
        if family in HOST_FAMILIES and colon:
            chosen |= dict.fromkeys(_matching(word, pattern, manifest.hosts, "host"))
        elif family in IMAGE_FAMILIES and colon:
            _matching(word, pattern, manifest.images, "image")
        elif family in HOST_FAMILIES or family in FLEET_FAMILIES or "*" in word or "/" in word:
            is_whole = True
    hosts = tuple(manifest.hosts) if is_whole else tuple(chosen)
    return Selection(hosts, _deploys(named, hosts))


def _deploys(named: Sequence[str], hosts: Iterable[str]) -> tuple[str, ...]:
    """The hosts whose deploy the words ask for, by doit's own rule for `*`."""
    return tuple(
        host
        for host in hosts
        if any(word == "deploy" or fnmatch.fnmatch(f"deploy:{host}", word) for word in named)
    )


def _read(words: Sequence[str]) -> tuple[list[str], str | None]:
    """The words that name tasks, and the expression behind `--on` where there is one."""
    named: list[str] = []
    expression: str | None = None
    rest = iter(words)
    for word in rest:
        if word == "--on" or word.startswith("--on="):
            value = word.partition("=")[2] if "=" in word else next(rest, "")
            _check_on(value, named)
            expression = value
        elif word in _WITH_VALUE:
            next(rest, None)
        elif not word.startswith("-"):
            named.append(word)
    return named, expression


def _check_on(value: str, before: Sequence[str]) -> None:
    """`--on` chooses among all hosts of a whole family; elsewhere it would be ignored."""
    if not value.strip():
        raise UsageError("--on: an expression must follow", hint="for example: doit deploy --on '@web'")
    last = before[-1] if before else "nothing"
    if last not in SELECTABLE:
        family = last.partition(":")[0] if last.partition(":")[0] in SELECTABLE else "deploy"
        raise UsageError(
            f"--on can't stand behind {last}: it chooses among all hosts",
            hint=f"doit {family} --on '{value}'",
        )


def _matching(word: str, pattern: str, names: Mapping[str, object], kind: str) -> Collection[str]:
    if "*" in pattern:
        found = fnmatch.filter(names, pattern)
        if not found:
            raise UsageError(f"{word}: no {kind} in hosts.toml matches {pattern!r}", hint=_known(names, kind))
        return found
    if pattern not in names:
        near = suggestion(pattern, names)
        hint = f"did you mean {word.partition(':')[0]}:{near}?" if near else _known(names, kind)
        raise UsageError(f"{word}: there is no {kind} {pattern!r} in hosts.toml", hint=hint)
    return (pattern,)


def _known(names: Mapping[str, object], kind: str) -> str:
    some = list(names)[:10]
    if not some:
        return f"hosts.toml has no {kind} at all"
    return f"the {kind}s are: {', '.join(some)}" + (" …" if len(names) > len(some) else "")
