"""Drawn histories of deploys, faults and people: nixa's real code keeps every invariant in each."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nixa_tasks.deploy.decide import Asked
from tests.simulation.history import Deploy, Fault, History, Strike, draw, play, shrink
from tests.simulation.known import KNOWN, SEEDS
from tests.simulation.machine import Content, Fate, System, store_path

_CHUNK = 250
_CALM = History(
    0, Content.NIXOS, tuple(System(store_path(f"g{n}", n)) for n in range(4)), 1, (Deploy(0.0, 0, 1),)
)


@pytest.mark.parametrize("first", range(SEEDS.start, SEEDS.stop, _CHUNK))
def test_every_history_keeps_the_invariants(first: int) -> None:
    seeds = range(first, min(first + _CHUNK, SEEDS.stop))
    broken = {seed: found.invariant for seed in seeds if (found := play(draw(seed)).violation) is not None}
    known = {seed: invariant for seed, invariant in KNOWN.items() if seed in seeds}
    assert broken == known, "python -m bench.histories --seed SEED tells the story of one"


@pytest.mark.parametrize("start", [Content.LINUX, Content.NIXOS])
def test_an_undisturbed_deploy_ends_well(start: Content) -> None:
    outcome = play(replace(_CALM, start=start))
    assert outcome.violation is None
    assert "done: " in outcome.story()


def test_a_first_contact_with_an_initrd_does_not_make_a_stranger_of_its_machine() -> None:
    restart = Strike(Fault.REBOOT, 0, at=1.0)
    history = replace(_CALM, is_encrypted=True, happenings=(restart, Deploy(50.0, 0, 1)))
    outcome = play(history)
    assert "waits in its initrd" in outcome.story().partition("refused")[0]
    assert outcome.violation is None, outcome.story()


def test_a_bad_switch_is_taken_back() -> None:
    for bad in (
        System(store_path("g1", 1), switches=Fate.FAILS),
        System(store_path("g1", 1), switches=Fate.HANGS),
        System(store_path("g1", 1), has_network=False),
        System(store_path("g1", 1), has_sshd=False),
        System(store_path("g1", 1), is_healthy=False),
    ):
        outcome = play(replace(_CALM, systems=(_CALM.systems[0], bad, *_CALM.systems[2:])))
        assert outcome.violation is None, outcome.story()
        assert "has the receipt rolled-back: g0" in outcome.story()


def test_a_history_goes_the_same_way_each_time() -> None:
    for seed in range(20):
        assert play(draw(seed)).said == play(draw(seed)).said


def test_a_failing_history_is_shrunk_to_what_makes_it_fail() -> None:
    """Here what fails is made up: a history whose machine loses its power."""
    needless = (Strike(Fault.SLOW, 0, at=1.0, amount=5.0), Deploy(5000.0, 0, 2))
    power = Strike(Fault.POWER, 0, at=10.0, amount=5.0)
    history = replace(_CALM, happenings=(*_CALM.happenings, needless[0], power, needless[1]))
    assert shrink(history, lambda one: "loses its power" in play(one).story()).happenings == (power,)


def test_a_history_is_told_as_a_story() -> None:
    history = replace(_CALM, happenings=(Deploy(0.0, 0, 1, Asked.ROLLBACK),))
    assert "is asked to rollback" in play(history).story()
    assert "controller 0 is asked to rollback" in history.described()
