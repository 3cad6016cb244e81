"""When a download gets more connections, and when it gives them up again."""

from __future__ import annotations

from collections.abc import Callable

from nixa_tasks.image.download.connections import Connections, limit, observe
from nixa_tasks.image.download.http import Limits

LIMITS = Limits()
SIZE = 350_000_000


def simulate(rate: Callable[[int], float], seconds: float) -> list[int]:
    """The widths over time, where `rate` says what a number of connections gives in all."""
    connections, done, widths = Connections(), 0.0, []
    for tick in range(int(seconds * 10)):
        connections = observe(connections, tick / 10, int(done), SIZE - int(done), LIMITS)
        done += rate(connections.width) / 10
        widths.append(connections.width)
    return widths


def test_a_fast_connection_stays_alone() -> None:
    assert set(simulate(lambda _width: 25e6, 10)) == {1}


def test_under_loss_all_are_opened_within_seconds() -> None:
    widths = simulate(lambda width: width * 0.35e6, 10)
    assert widths[-1] == LIMITS.connections
    assert widths.index(LIMITS.connections) <= 60


def test_on_a_slow_clean_link_they_are_given_up_and_left_alone() -> None:
    widths = simulate(lambda _width: 1e6, 60)
    assert widths[-1] == 1
    assert sum(width > 1 for width in widths) < 100


def test_what_is_nearly_done_is_left_alone() -> None:
    connections = Connections()
    for tick in range(100):
        connections = observe(connections, tick / 10, tick * 30_000, 500_000, LIMITS)
    assert connections.width == 1


def test_a_refused_connection_is_not_asked_for_again() -> None:
    connections = limit(Connections(width=16, previous=4), 3)
    for tick in range(100):
        connections = observe(connections, tick / 10, tick * 30_000, SIZE, LIMITS)
    assert connections.width <= 3
