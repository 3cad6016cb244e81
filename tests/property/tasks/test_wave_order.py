"""Waves under doit's own runner, over random fleets, outcomes and numbers of threads."""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from doit.cmd_base import ModuleTaskLoader
from doit.doit_cmd import DoitMain
from hypothesis import given, settings
from hypothesis import strategies as st

from nixa_tasks.manifest.model import Fleet, Host, Manifest
from nixa_tasks.manifest.select import broken, in_order, wave_of
from nixa_tasks.tasks.waves import Held, close_gates, graph_of

NAMES = tuple(f"h{number}" for number in range(8))
HEALTHY = ("deployed", "up to date")


@dataclass
class Seen:
    """What a run did, in the order of time."""

    events: list[tuple[str, str]] = field(default_factory=list)
    held: dict[str, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, what: str, host: str) -> None:
        with self.lock:
            self.events.append((what, host))

    def at(self, what: str, host: str) -> int:
        return self.events.index((what, host)) if (what, host) in self.events else -1


@st.composite
def fleets(draw: st.DrawFn) -> tuple[Manifest, frozenset[str], dict[str, str]]:
    """A fleet in waves, the hosts that are asked for, and how each one's turn will end."""
    wave = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map(tuple)
    waves = draw(st.lists(wave, max_size=4).map(tuple))
    hosts = {name: Host(name, f"{name}.example.org") for name in NAMES}
    asked = draw(st.frozensets(st.sampled_from(NAMES), min_size=1))
    ends = st.sampled_from(("deployed", "deployed", "up to date", "failed", "broken flake"))
    outcomes = {name: draw(ends) for name in NAMES}
    return Manifest(Path("/x/hosts.toml"), Fleet("/x", waves=waves), {}, hosts), asked, outcomes


def deploy(manifest: Manifest, asked: frozenset[str], outcomes: dict[str, str], jobs: int) -> Seen:
    """Run the deploys as doit runs them, with the gates that nixa puts between them."""
    seen, kept = Seen(), Held()

    def turn(host: str) -> bool:
        seen.note("begin", host)
        time.sleep(0.001)
        seen.note("end", host)
        return outcomes[host] != "failed"

    class Listener:
        desc = "keeps what is held"

        def __init__(self, *_: object) -> None: ...
        def __getattr__(self, _name: str) -> Any:
            return lambda *_: None

        def initialize(self, tasks: dict[str, Any], selected: list[str]) -> None:
            close_gates(tasks, graph_of(tasks, selected), manifest)

        def skip_uptodate(self, task: Any) -> None:
            if task.meta.get("host"):
                seen.note("up to date", task.meta["host"])

        def add_failure(self, task: Any, fail: Any) -> None:
            unmet = fail.message.split() if type(fail).__name__ == "UnmetDependency" else []
            if kept.keep(task, ignored=False, unmet=unmet) and "host" in task.meta:
                seen.held[task.meta["host"]] = fail.message

    def task_deploy() -> Iterator[dict[str, Any]]:
        for host in NAMES:
            yield {
                "basename": "evaluate",
                "name": host,
                "actions": [lambda host=host: outcomes[host] != "broken flake"],
                "meta": {},
            }
            yield {
                "basename": "deploy",
                "name": host,
                "actions": [(turn, [host])],
                "task_dep": [f"evaluate:{host}"],
                "uptodate": [outcomes[host] == "up to date"],
                "meta": {"host": host},
            }

    with tempfile.TemporaryDirectory() as folder:
        config = {
            "dep_file": f"{folder}/db", "backend": "json", "reporter": Listener, "continue": True,
            "num_process": jobs, "par_type": "thread",
        }  # fmt: skip
        # doit calls nothing up to date that it has not once seen through.
        names = {f"deploy:{name}": {"_values_:": {}, "checker:": "MD5Checker", "deps:": []} for name in NAMES}
        Path(folder, "db").write_text(json.dumps(names))
        main = DoitMain(ModuleTaskLoader({"DOIT_CONFIG": config, "task_deploy": task_deploy}))
        main.run(["run", *(f"deploy:{name}" for name in NAMES if name in asked)])
    return seen


@settings(max_examples=80, deadline=None)
@given(fleets(), st.integers(0, 3))
def test_no_host_starts_before_every_host_of_the_wave_before_is_healthy(
    fleet: tuple[Manifest, frozenset[str], dict[str, str]], jobs: int
) -> None:
    manifest, asked, outcomes = fleet
    order = in_order(manifest, asked)
    seen = deploy(manifest, asked, outcomes, jobs)
    before: list[str] = []
    for wave in order:
        for host in wave.hosts:
            began = seen.at("begin", host)
            if all(outcomes[name] in HEALTHY for name in before):
                assert began >= 0 or outcomes[host] in ("up to date", "broken flake"), (
                    "nobody is held in vain"
                )
                assert host not in seen.held
                for name in before:
                    assert began < 0 or seen.at("end", name) < began
            else:
                assert began < 0, "a host behind a failed wave is not begun"
                assert (host in seen.held) is (outcomes[host] != "broken flake")
        before += wave.hosts
    assert {host for _, host in seen.events} <= asked, "who is not asked for is let be"


@given(fleets())
def test_every_host_asked_for_is_in_one_wave_and_that_is_its_first(
    fleet: tuple[Manifest, frozenset[str], dict[str, str]],
) -> None:
    manifest, asked, _ = fleet
    order = in_order(manifest, asked)
    assert sorted(host for wave in order for host in wave.hosts) == sorted(asked)
    numbers = [wave.number for wave in order]
    assert numbers == sorted(numbers, key=lambda number: (number is None, number or 0))
    assert len(set(numbers)) == len(numbers)
    for wave in order:
        assert wave.hosts
        for host in wave.hosts:
            named = [number for number, one in enumerate(manifest.fleet.waves, 1) if host in one]
            assert wave.number == (named[0] if named else None)


TAGGED = {name: replace(Host(name, name), tags=tags) for name, tags in {
    "web1": ("canary", "web"), "web2": ("web",), "db1": (),
}.items()}  # fmt: skip


def test_a_wave_is_chosen_as_by_on_and_a_host_counts_in_its_first() -> None:
    assert wave_of((("@canary",), ("@web", "d*")), TAGGED) == {"web1": 1, "web2": 2, "db1": 2}
    assert wave_of((("web*", "not @web and db1"),), TAGGED) == {"web1": 1, "web2": 1, "db1": 1}


@pytest.mark.parametrize(
    ("failed", "ignored", "said"),
    [
        ({"web1"}, set(), "wave 1 failed (web1)"),
        ({"web2", "web1"}, set(), "wave 1 failed (web1)"),
        ({"web2"}, set(), "wave 2 failed (web2)"),
        ({"web2"}, {"web1"}, "wave 1 is not complete (ignored, as you told doit: web1)"),
        ({"db1"}, set(), None),
        (set(), set(), None),
    ],
)
def test_the_first_wave_that_is_not_whole_is_the_one_that_holds(
    failed: set[str], ignored: set[str], said: str | None
) -> None:
    manifest = Manifest(Path("/x"), Fleet("/x", waves=(("@canary",), ("web2",))), {}, TAGGED)
    found = broken(in_order(manifest, TAGGED), failed, ignored)
    assert (found.said if found else None) == said
