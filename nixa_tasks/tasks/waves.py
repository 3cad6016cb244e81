"""Waves as doit runs them: a gate between two waves, and what is told of those who did not start.

A gate is a task without actions that depends on every deploy of a wave; the deploys of the next
one depend on the gate. They are put into doit's own graph once it has selected its tasks. So nobody waits in a thread that the wave before may need, an up-to-date
deploy counts as healthy, and doit itself starts nothing behind a failed one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from doit.task import Task as DoitTask

from nixa_tasks.fleet.reporter import FAILED, NOT_STARTED, Result
from nixa_tasks.manifest.model import Manifest
from nixa_tasks.manifest.select import Broken, broken, in_order, wave_of
from nixa_tasks.state.journal import Event, Kind
from nixa_tasks.tasks.run import Run

_DEPLOY = "deploy:"
_GATE = "_wave"  # doit does not list what begins so


@dataclass(frozen=True, slots=True)
class Graph:
    """What a selection leads to in doit's graph. `certain`: the tasks that it takes up in any case.
    `conditional`: those that are taken up only if a task runs which has them as `setup` (so does
    `getargs`), each with that task."""

    certain: tuple[str, ...]
    conditional: Mapping[str, str]

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.certain, *self.conditional)


def graph_of(tasks: Mapping[str, Any], selected: Iterable[str]) -> Graph:
    """Follow the tasks that doit selected to all that they depend on."""
    certain: dict[str, None] = {}
    _follow(tasks, selected, certain)
    conditional: dict[str, str] = {}
    waiting = list(certain)
    while waiting:
        owner = waiting.pop(0)
        found: dict[str, None] = {}
        _follow(tasks, tasks[owner].setup_tasks, found, but=certain.keys() | conditional.keys())
        conditional |= dict.fromkeys(found, owner)
        waiting += found
    return Graph(tuple(certain), conditional)


def _follow(
    tasks: Mapping[str, Any], names: Iterable[str], found: dict[str, None], but: Collection[str] = ()
) -> None:
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found or name in but or name not in tasks:
            continue
        found[name] = None
        waiting += (*tasks[name].task_dep, *tasks[name].calc_dep)


def hosts_in(tasks: Mapping[str, Any], names: Iterable[str]) -> set[str]:
    """The hosts that these tasks of nixa's are about."""
    found: set[str] = set()
    for name in names:
        meta = tasks[name].meta or {}
        found.update(meta.get("hosts", ()))
        if "host" in meta:
            found.add(meta["host"])
    return found


def deploys_in(names: Iterable[str]) -> set[str]:
    """The hosts whose deploy is among these tasks."""
    return {name.removeprefix(_DEPLOY) for name in names if name.startswith(_DEPLOY)}


def close_gates(tasks: MutableMapping[str, Any], graph: Graph, manifest: Manifest) -> None:
    """Put a gate behind each wave but the last, and have every deploy of a later one wait at it.

    A deploy that is only taken up if its owner runs is not waited for by itself, which would make it
    run: its owner is, unless that one waits for a later wave.
    """
    order = in_order(manifest, deploys_in(graph.names))
    if len(order) < 2:
        return
    certain = frozenset(graph.certain)
    ranks = {host: rank for rank, wave in enumerate(order) for host in wave.hosts}
    for rank, wave in enumerate(order[:-1]):
        deps = [name for host in wave.hosts if (name := f"{_DEPLOY}{host}") in certain]
        owners = {
            graph.conditional[f"{_DEPLOY}{host}"] for host in wave.hosts if f"{_DEPLOY}{host}" not in certain
        }
        deps += [owner for owner in sorted(owners) if not _leads_past(tasks, owner, rank, ranks)]
        gate = f"{_GATE}:{wave.number}"
        tasks[gate] = DoitTask(gate, None, task_dep=deps, meta={"gate": True})
    numbers = wave_of(manifest.fleet.waves, manifest.hosts)
    asked = [wave.number for wave in order[:-1]]
    for host in manifest.hosts:
        name, mine = f"{_DEPLOY}{host}", numbers.get(host)
        before = [number for number in asked if mine is None or (number is not None and number < mine)]
        if name in tasks and before:
            tasks[name].task_dep.append(f"{_GATE}:{before[-1]}")


def _leads_past(tasks: Mapping[str, Any], owner: str, rank: int, ranks: Mapping[str, int]) -> bool:
    """Whether the task itself waits for a deploy of a later wave."""
    graph = graph_of(tasks, (owner,))
    return any(ranks.get(host, rank) > rank for host in deploys_in(graph.names))


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
    return broken(in_order(run.manifest, {*run.deploys, *run.turns}), failed, ignored)
