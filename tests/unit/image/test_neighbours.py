"""Who takes the image from whom: nobody waits for ever, and one copy comes from outside if it can."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from nixa_tasks.image.delivery.neighbours import Member, Neighbours
from tests.clocks import CLOCK

_DEADLINE = 20.0


def _ignore(_text: str) -> None:
    pass


class _Run:
    """Hosts that get, hand on and go, with what they did."""

    def __init__(
        self, hosts: int, *, fails: frozenset[int] = frozenset(), mute: frozenset[int] = frozenset()
    ):
        self.neighbours = Neighbours(CLOCK)
        self.hosts, self.fails, self.mute = hosts, fails, mute
        self.outside: list[int] = []
        self.taken: list[tuple[int, str]] = []
        self.serving: dict[str, int] = {}
        self.most_at_once = 0
        self.lock = threading.Lock()
        self.all_there = threading.Barrier(hosts)

    def host(self, number: int) -> None:
        self.all_there.wait(_DEADLINE)
        with self.neighbours.joined("sha", f"h{number}") as member:
            self._get(number, member)
            if member.is_wanted() and number not in self.mute:
                member.serve((f"http://h{number}/",))

    def _get(self, number: int, member: Member) -> None:
        with member.source(_ignore) as neighbour:
            if neighbour is None:
                self.outside.append(number)
                time.sleep(0.2)
                if number in self.fails:
                    raise ConnectionError
                return
            with self.lock:
                self.serving[neighbour.name] = self.serving.get(neighbour.name, 0) + 1
                self.most_at_once = max(self.most_at_once, self.serving[neighbour.name])
            time.sleep(0.05)
            with self.lock:
                self.serving[neighbour.name] -= 1
            self.taken.append((number, neighbour.name))

    def go(self) -> int:
        """How many failed; every one has ended."""
        with ThreadPoolExecutor(self.hosts) as pool:
            ends = [pool.submit(self.host, number) for number in range(self.hosts)]
            return sum(end.exception(timeout=_DEADLINE) is not None for end in ends)


def test_one_gets_it_from_outside_and_the_rest_from_neighbours() -> None:
    run = _Run(9)
    assert run.go() == 0
    assert len(run.outside) == 1
    assert len(run.taken) == 8
    assert len({name for _host, name in run.taken}) > 1
    assert run.most_at_once == 1


def test_the_next_one_goes_where_the_first_fails() -> None:
    run = _Run(5, fails=frozenset(range(4)))
    failed = run.go()
    assert failed == len(run.outside) - (4 in run.outside)
    assert failed + len(run.taken) + (4 in run.outside) == 5


def test_hosts_that_can_hand_nothing_on_make_nobody_wait_for_ever() -> None:
    run = _Run(4, mute=frozenset(range(4)))
    assert run.go() == 0
    assert sorted(run.outside) == [0, 1, 2, 3]


def test_a_host_that_reaches_no_neighbour_gets_it_from_outside() -> None:
    neighbours = Neighbours(CLOCK)
    with neighbours.joined("sha", "a") as first, neighbours.joined("sha", "b") as second:
        with first.source(_ignore) as outside:
            assert outside is None
        waiting = threading.Thread(target=_take_in_vain, args=(second,))
        waiting.start()
        while not first.is_wanted():
            time.sleep(0.01)
        first.serve(("http://a/",))
        waiting.join(_DEADLINE)
        assert not waiting.is_alive()


def _take_in_vain(member: Member) -> None:
    with member.source(_ignore) as neighbour:
        assert neighbour is not None
    with member.source(_ignore) as nobody:
        assert nobody is None


def test_images_are_not_mixed_up() -> None:
    neighbours = Neighbours(CLOCK)
    with (
        neighbours.joined("one", "a") as first,
        neighbours.joined("two", "b") as second,
        first.source(_ignore) as one,
        second.source(_ignore) as two,
    ):
        assert one is None
        assert two is None
