"""Waves: which host comes when, and what a wave waits for. Pure.

The tasks' gates (`tasks/waves.py`), `plan` and the tests read this same order.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from nixa_tasks.manifest.model import Host, Manifest
from nixa_tasks.manifest.select import select


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
