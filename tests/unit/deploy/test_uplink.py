"""copy_jobs bounds large transfers over all threads."""

from __future__ import annotations

import threading

import pytest

from nixa_tasks.deploy.turn import Uplink
from nixa_tasks.process.clock import SystemClock


@pytest.mark.parametrize("jobs", [1, 3])
def test_never_more_than_copy_jobs_transfers_run_and_all_get_their_turn(jobs: int) -> None:
    uplink, lock = Uplink(jobs, SystemClock(threading.Event())), threading.Lock()
    running: list[int] = [0]
    most: list[int] = []
    said: list[str] = []
    together = threading.Barrier(jobs)  # so many do run at the same time, or this breaks

    def send(number: int) -> None:
        with uplink.slot(said.append):
            with lock:
                running[0] += 1
                most.append(running[0])
            if number < jobs:
                together.wait(10)
            with lock:
                running[0] -= 1

    first = [threading.Thread(target=send, args=(number,)) for number in range(jobs)]
    rest = [threading.Thread(target=send, args=(jobs,)) for _ in range(5)]
    for threads in (first, rest):
        for thread in threads:
            thread.start()
        for thread in threads if threads is first else ():
            thread.join(20)
    for thread in rest:
        thread.join(20)
    assert len(most) == jobs + 5
    assert max(most) == jobs


def test_a_wait_is_said_once_and_a_failure_gives_the_turn_back() -> None:
    uplink, said = Uplink(1, SystemClock(threading.Event())), list[str]()
    inside, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with pytest.raises(ValueError, match="broken"), uplink.slot(said.append):
            inside.set()
            go_on.wait(10)
            raise ValueError("broken")

    holder = threading.Thread(target=hold)
    holder.start()
    assert inside.wait(10)
    threading.Timer(0.5, go_on.set).start()
    with uplink.slot(said.append):
        assert go_on.is_set()
    holder.join()
    assert said == ["waiting to be sent to: copy_jobs = 1"]
