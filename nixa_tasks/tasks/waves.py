"""Waves as doit runs them: a gate between two waves, and what is told of those who did not start.

A gate is a task without actions that depends on every deploy of a wave; the deploys of the next
one depend on the gate. So nobody waits in a thread that the wave before may need, an up-to-date
deploy counts as healthy, and doit itself starts nothing behind a failed one.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from nixa_tasks.fleet.reporter import FAILED, NOT_STARTED, Result
from nixa_tasks.manifest.waves import Broken, Wave, broken, in_order
from nixa_tasks.state.journal import Event, Kind
from nixa_tasks.tasks.run import Run

_GATE = "_wave"  # doit does not list what begins so


def gate_tasks(order: Sequence[Wave]) -> Iterator[dict[str, Any]]:
    """A gate behind each wave but the last."""
    for wave in order[:-1]:
        yield {
            "basename": _GATE,
            "name": str(wave.number),
            "doc": f"every host of wave {wave.number} is healthy",
            "actions": None,
            "task_dep": [f"deploy:{host}" for host in wave.hosts],
            "meta": {"gate": True},
        }


def gates(order: Sequence[Wave]) -> dict[str, str]:
    """The gate that each host's deploy waits at."""
    return {
        host: f"{_GATE}:{before.number}" for before, wave in itertools.pairwise(order) for host in wave.hosts
    }


@dataclass(slots=True)
class Held:
    """Who did not start, as doit reports it. Used by doit's main thread alone."""

    ignored: set[str] = field(default_factory=set)
    closed: set[str] = field(default_factory=set)

    def keep(self, task: Any, *, ignored: bool, unmet: Collection[str] = ()) -> bool:
        """Note a task that doit did not run or that failed. True where that is for a wave: a gate
        that stays shut, or a deploy that only such a gate kept from running."""
        meta = task.meta or {}
        if meta.get("gate"):
            self.closed.add(task.name)
            return True
        if not self.closed.isdisjoint(task.task_dep) and (ignored or self.closed.issuperset(unmet)):
            return True
        if ignored and meta.get("host") and task.name == f"deploy:{meta['host']}":
            self.ignored.add(meta["host"])
        return False

    def not_started(self, run: Run, host: str) -> Result:
        """Say that the host's turn did not come, and why."""
        found = now_broken(run, self.ignored)
        why = found.said if found else "the wave before did not end well"
        text = f"{NOT_STARTED}: {why}"
        run.journal.emit(Event(Kind.NOTE, host, "deploy", text, outcome=NOT_STARTED))
        return Result(host, NOT_STARTED, why)


def now_broken(run: Run, ignored: set[str]) -> Broken | None:
    """The wave of this run that holds the later ones."""
    failed = {name for name, result in run.results.hosts.items() if result.outcome == FAILED}
    return broken(in_order(run.manifest, run.deploys), failed, ignored)
