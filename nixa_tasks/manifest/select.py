"""Choosing hosts by an expression: `@web and not (web3 or db*)`.

    expression = term { "or" term }
    term       = factor { "and" factor }
    factor     = "not" factor | "(" expression ")" | NAME | "@" TAG

NAME and TAG may be globs (`*`, `?`, `[…]`). A tag, a name or a glob that fits no host is an error,
since it is nearly always a slip of the pen, and a slip must not choose other machines.

Waves are lists of such choices: which host comes when, and what a wave waits for. The tasks' gates
(`tasks/waves.py`), `plan` and the tests read this same order.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import assert_never

from nixa_tasks.errors import UsageError
from nixa_tasks.manifest.model import Host, Manifest
from nixa_tasks.text import printable, shown, suggestion

MOST_NESTING = 100

_TOKEN = re.compile(r"[()]|[^\s()]+")
_GLOB = re.compile(r"[*?\[]")
_OPERATORS = ("and", "or")


class SelectionError(UsageError):
    """An expression that chooses nothing or is none. `position` counts characters from 0;
    `reason` is the message in one line. Exit status 3."""

    def __init__(self, expression: str, position: int, reason: str) -> None:
        # A character of several columns, or of none, would move the caret: one for one.
        line = "".join(char if char.isascii() and char.isprintable() else "?" for char in expression)
        start = max(0, position - 60)
        super().__init__(
            f"invalid host selection: {reason}",
            tail=(line[start : start + 100], " " * (position - start) + "^"),
            hint="select by name, glob (web*) or tag (@web) with and, or, not, ( )",
        )
        self.expression = expression
        self.position = position
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Atom:
    """One word: a name, a tag (`@…`), or a glob of either. `position` counts from 0."""

    text: str
    position: int


@dataclass(frozen=True, slots=True)
class Not:
    part: Expression


@dataclass(frozen=True, slots=True)
class And:
    parts: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Or:
    parts: tuple[Expression, ...]


Expression = Atom | Not | And | Or


def select(expression: str, hosts: Mapping[str, Host]) -> tuple[str, ...]:
    """The names of the chosen hosts, in the manifest's order; at least one. Raises SelectionError."""
    chosen = _Evaluation(expression, hosts).chosen(parse(expression))
    if not chosen:
        raise SelectionError(expression, 0, f"{shown(expression)} matches no host")
    return tuple(name for name in hosts if name in chosen)


def parse(expression: str) -> Expression:
    """The expression as a tree. Raises SelectionError with the position of what does not fit."""
    parser = _Parser(expression)
    tree = parser.expression(0)
    if parser.word is not None:
        raise parser.error(
            "a `)` without its `(`"
            if parser.word == ")"
            else f"`and` or `or` is missing before {shown(parser.word)}"
        )
    return tree


class _Parser:
    """Recursive descent over the words; `word` is the next one, None at the end."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._tokens = [(found[0], found.start()) for found in _TOKEN.finditer(text)]
        self._at = 0

    @property
    def word(self) -> str | None:
        return self._tokens[self._at][0] if self._at < len(self._tokens) else None

    @property
    def position(self) -> int:
        return self._tokens[self._at][1] if self._at < len(self._tokens) else len(self.text)

    def error(self, reason: str) -> SelectionError:
        return SelectionError(self.text, self.position, reason)

    def expression(self, depth: int) -> Expression:
        if depth > MOST_NESTING:
            raise self.error(f"nested more than {MOST_NESTING} deep")
        parts = [self._term(depth)]
        while self.word == "or":
            self._at += 1
            parts.append(self._term(depth))
        return parts[0] if len(parts) == 1 else Or(tuple(parts))

    def _term(self, depth: int) -> Expression:
        parts = [self._factor(depth)]
        while self.word == "and":
            self._at += 1
            parts.append(self._factor(depth))
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def _factor(self, depth: int) -> Expression:
        negated = False
        while self.word == "not":
            self._at += 1
            negated = not negated
        word, position = self.word, self.position
        if word is None or word == ")" or word in _OPERATORS:
            before = "at the end" if word is None else f"before {shown(word)}"
            raise self.error(f"a host, a tag or `(` is missing {before}")
        self._at += 1
        part: Expression
        if word == "(":
            part = self.expression(depth + 1)
            if self.word != ")":
                what = "the `)` is missing" if self.word is None else "`and`, `or` or `)` is missing"
                raise self.error(f"{what} for the `(` at character {position + 1}")
            self._at += 1
        else:
            part = Atom(word, position)
        return Not(part) if negated else part


class _Evaluation:
    """One expression over one fleet."""

    def __init__(self, expression: str, hosts: Mapping[str, Host]) -> None:
        self._expression = expression
        self._hosts = hosts
        self._tags: dict[str, set[str]] = {}
        for name, host in hosts.items():
            for tag in host.tags:
                self._tags.setdefault(tag, set()).add(name)

    def chosen(self, tree: Expression) -> set[str]:
        match tree:
            case Atom():
                return self._atom(tree)
            case Not(part):
                return set(self._hosts) - self.chosen(part)
            case And(parts):
                return set.intersection(*[self.chosen(part) for part in parts])
            case Or(parts):
                return set.union(*[self.chosen(part) for part in parts])
            case _:
                assert_never(tree)

    def _atom(self, atom: Atom) -> set[str]:
        is_tag = atom.text.startswith("@")
        pattern = atom.text.removeprefix("@") if is_tag else atom.text
        known = list(self._tags) if is_tag else list(self._hosts)
        if _GLOB.search(pattern):
            found = fnmatch.filter(known, pattern)
        else:
            found = [pattern] if pattern in (self._tags if is_tag else self._hosts) else []
        if not found:
            raise SelectionError(self._expression, atom.position, self._unknown(atom.text))
        return set().union(*(self._tags[tag] for tag in found)) if is_tag else set(found)

    def _unknown(self, text: str) -> str:
        what = "no tag is" if text.startswith("@") else "no host is"
        if _GLOB.search(text):
            kind = "tag" if text.startswith("@") else "host"
            return f"no {kind} matches {shown(text)}"
        if not text.startswith("@") and text in self._tags:
            return f"no host is called {shown(text)}: did you mean the tag `@{printable(text)}`?"
        words = [f"@{tag}" for tag in self._tags] + [*self._hosts, *_OPERATORS, "not"]
        meant = suggestion(text, words)
        return f"{what} called {shown(text)}" + (f": did you mean {shown(meant)}?" if meant else "")


@dataclass(frozen=True, slots=True)
class Wave:
    """Hosts that start together. `number` counts from 1 as in hosts.toml; None for the hosts that
    no wave names, which come last."""

    number: int | None
    hosts: tuple[str, ...]


def wave_of(waves: Sequence[Sequence[str]], hosts: Mapping[str, Host]) -> dict[str, int]:
    """The first wave that chooses each host, from 1; hosts that none chooses are not in it.

    Raises SelectionError for a selection that fits no host; a manifest with one is refused.
    """
    found: dict[str, int] = {}
    for number, wave in enumerate(waves, start=1):
        for expression in wave:
            for name in select(expression, hosts):
                found.setdefault(name, number)
    return found


def in_order(manifest: Manifest, asked: Collection[str]) -> tuple[Wave, ...]:
    """The hosts asked for, wave by wave, as they are to start. Nobody waits for a wave of which no
    host was asked for; without `waves` there is one group of all."""
    numbers = wave_of(manifest.fleet.waves, manifest.hosts)
    groups: dict[int | None, list[str]] = {}
    for name in manifest.hosts:
        if name in asked:
            groups.setdefault(numbers.get(name), []).append(name)
    ordered = sorted(groups, key=lambda number: (number is None, number))
    return tuple(Wave(number, tuple(groups[number])) for number in ordered)


@dataclass(frozen=True, slots=True)
class Broken:
    """The wave that holds all later ones, and those of its hosts that did not end healthy."""

    wave: Wave
    failed: tuple[str, ...]
    ignored: tuple[str, ...] = ()

    @property
    def said(self) -> str:
        """What is the matter, in words that go on a sentence."""
        if self.failed:
            return f"wave {self.wave.number} failed ({_some(self.failed)})"
        return f"wave {self.wave.number} is not complete (ignored, as you told doit: {_some(self.ignored)})"


def broken(
    order: Sequence[Wave], failed: Collection[str], ignored: Collection[str] = frozenset()
) -> Broken | None:
    """The first wave of which a host failed, or was not deployed at all. None where every wave is
    whole, so far."""
    for wave in order:
        bad = tuple(name for name in wave.hosts if name in failed)
        missing = tuple(name for name in wave.hosts if name in ignored)
        if wave.number is not None and (bad or missing):
            return Broken(wave, bad, missing)
    return None


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
