"""Nobody has to be able to read what a run shows."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from nixa_tasks.fleet.reporter import Lines
from nixa_tasks.process.clock import SystemClock
from nixa_tasks.state.journal import Event, Journal
from nixa_tasks.text import write


def closed_pipe() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize("sink", ["closed pipe", "/dev/full"])
def test_a_stream_that_can_not_be_written_leads_nowhere(sink: str) -> None:
    handle = closed_pipe() if sink == "closed pipe" else os.open(sink, os.O_WRONLY)
    with os.fdopen(handle, "w") as stream:
        for _ in range(3):
            write(stream, "a line\n")
        assert Path(f"/proc/self/fd/{handle}").readlink() == Path(os.devnull)


def test_a_step_goes_on_whatever_becomes_of_those_who_show_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl", SystemClock(threading.Event()))

    def broken(_event: Event) -> None:
        raise OSError("the terminal is gone")

    journal.subscribe(broken)
    with os.fdopen(closed_pipe(), "w") as stream:
        journal.subscribe(Lines(stream))
        with journal.step("web1", "switch"):
            journal.note("web1", "switch", "something")
    assert (tmp_path / "journal.jsonl").read_text().count("\n") == 3
