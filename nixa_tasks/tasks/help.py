"""Help for people: of the command `nixa`, and of each family of tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nixa_tasks.tasks.actions import Params
from nixa_tasks.tasks.selection import Scope

_WIDTH = 26
_WITH_STAMPS = ("deploy", "evaluate", "build")
_SHOWN = ("list", "info", "forget", "ignore", "clean")


def overview(program: str, families: Sequence[tuple[str, str]]) -> str:
    """What the command is for, and each family with its line."""
    lines = [
        f"usage: {program} [-a] [-n JOBS] [-d FOLDER] TASK[:HOST] [--on EXPRESSION] …",
        "",
        "make for NixOS machines: the least work after which every host of hosts.toml runs what the flake says.",
        "",
        *(_columns(name, doc) for name, doc in families),
        "",
        f"  {program}                      plan: what would be done, and why",
        f"  {program} deploy:web1          one host; deploy:web* by a pattern; deploy for all of them",
        f"  {program} deploy --on '@web'   hosts by tags, names and patterns with and, or, not, ( )",
        f"  {program} TASK --help          what a task takes",
        "",
        "options before the task are doit's:",
        _columns("-a", "ask the hosts whatever the stamps say"),
        _columns("-n JOBS", "how many at the same time ([fleet] jobs)"),
        _columns("-d FOLDER", "where hosts.toml is; otherwise here, or in a folder above"),
        f"commands of doit's: {', '.join(_SHOWN)}; {program} help COMMAND",
    ]
    return "\n".join(lines) + "\n"


def of_family(
    program: str, name: str, doc: str, scope: Scope, examples: Sequence[str], own: Params, *, has_hosts: bool
) -> str:
    """What a family of tasks is for, how it is called, and the options of its single tasks."""
    one = {Scope.HOST: "HOST", Scope.IMAGE: "IMAGE", Scope.FLEET: "HOST" if has_hosts else ""}[scope]
    lines = [doc, ""]
    if one:
        lines.append(f"  {program} {name}:{one}")
    lines += [f"  {program} {example}" for example in examples]
    if name in _WITH_STAMPS:
        lines.append(f"  {program} -a {name}:{one}    whatever the stamps say")
    if own:
        lines += ["", f"options of {name}:{one}:", *(option_line(option) for option in own)]
    return "\n".join(lines)


def options(params: Params) -> str:
    """The options, one a line."""
    return "\n".join(map(option_line, params))


def option_line(option: Mapping[str, Any]) -> str:
    """`-o ARG, --output=ARG` and what it is for."""
    argument = "" if option["type"] is bool else option["name"].upper()
    short = f"-{option['short']} {argument}".rstrip() + ", " if "short" in option else ""
    long = f"--{option['long']}" + (f"={argument}" if argument else "")
    return _columns(short + long, option["help"])


def _columns(left: str, right: str) -> str:
    return f"  {left:<{_WIDTH - 2}}{right}"
