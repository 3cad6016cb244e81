"""Which hosts a command line is about: only their tasks are made, however large the fleet is.

doit does not tell a task creator what was selected, so the words are read from the command line.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from nixa_tasks.errors import UsageError
from nixa_tasks.manifest.model import Manifest

HOST_FAMILIES = ("deploy", "evaluate", "build", "reach", "trust", "rollback", "reinstall", "history")
IMAGE_FAMILIES = ("kexec", "checksum", "pin")
SELECTABLE = ("deploy", "evaluate", "build", "reach", "plan", "status")
_DOIT_COMMANDS = frozenset(
    "auto clean completion dumpdb forget help ignore info list reset-dep run strace".split()
)


@dataclass(frozen=True, slots=True)
class Selection:
    """The hosts whose tasks are to be made. `is_run`: tasks will be run, not just listed."""

    hosts: tuple[str, ...]
    is_run: bool


def select(words: Sequence[str], manifest: Manifest) -> Selection:
    """Read doit's command line. Raises UsageError for a name or pattern that matches nothing."""
    command = next((word for word in words if not word.startswith("-")), "run")
    if command in _DOIT_COMMANDS - {"run"}:
        return Selection(tuple(manifest.hosts), is_run=False)
    chosen: dict[str, None] = {}
    is_whole = False
    named = [word for word in words if not word.startswith("-")]
    for word in named:
        family, colon, pattern = word.partition(":")
        if family in HOST_FAMILIES and colon:
            chosen |= dict.fromkeys(_matching(word, pattern, manifest.hosts, "host"))
        elif family in IMAGE_FAMILIES and colon:
            _matching(word, pattern, manifest.images, "image")
        elif family in HOST_FAMILIES or "*" in word:
            is_whole = True
    _check_on(words)
    return Selection(tuple(manifest.hosts) if is_whole else tuple(chosen), is_run=True)


def _matching(word: str, pattern: str, names: Mapping[str, object], kind: str) -> Collection[str]:
    if "*" in pattern:
        found = fnmatch.filter(names, pattern)
        if not found:
            raise UsageError(f"{word}: no {kind} in hosts.toml matches {pattern!r}")
        return found
    if pattern not in names:
        near = difflib.get_close_matches(pattern, names, n=1)
        hint = f"did you mean {word.partition(':')[0]}:{near[0]}?" if near else _known(names, kind)
        raise UsageError(f"{word}: there is no {kind} {pattern!r} in hosts.toml", hint=hint)
    return (pattern,)


def _known(names: Mapping[str, object], kind: str) -> str:
    some = list(names)[:10]
    if not some:
        return f"hosts.toml has no {kind} at all"
    return f"the {kind}s are: {', '.join(some)}" + (" …" if len(names) > len(some) else "")


def _check_on(words: Sequence[str]) -> None:
    """`--on` chooses among all hosts of a whole family; behind a single host it would be ignored."""
    for index, word in enumerate(words):
        if word == "--on" or word.startswith("--on="):
            if word == "--on" and index + 1 == len(words):
                raise UsageError(
                    "--on: an expression must follow", hint="for example: doit deploy --on '@web'"
                )
            value = word.partition("=")[2] if "=" in word else words[index + 1]
            if not value.strip():
                raise UsageError("--on: the expression is empty", hint="for example: doit deploy --on '@web'")
            before = [earlier for earlier in words[:index] if not earlier.startswith("-")]
            if before and before[-1] not in SELECTABLE:
                raise UsageError(
                    f"--on can't stand behind {before[-1]}: it chooses among all hosts",
                    hint=f"doit {before[-1].partition(':')[0]} --on {value!r}",
                )
