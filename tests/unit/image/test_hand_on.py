"""A host that can't hand the image on fails nobody: the others get it elsewhere."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from nixa_tasks.host.ssh import Ssh
from nixa_tasks.image.delivery.neighbours import Member, Neighbours
from nixa_tasks.image.delivery.pull import hand_on
from nixa_tasks.image.obtain import Obtained
from nixa_tasks.image.tarball import Summary
from nixa_tasks.manifest.model import Host, UrlImage
from nixa_tasks.process.run import Argv, LocalProcesses
from tests.clocks import CLOCK


class _Saying(Ssh):
    """A host that answers whatever it is asked with one line."""

    __slots__ = ()
    line = ""

    def command(  # type: ignore[explicit-override]
        self, *remote: str, root: bool = False
    ) -> Argv:
        return ("sh", "-c", 'echo "$1"; exec cat >/dev/null', "sh", self.line)


LOCAL = LocalProcesses()


def _ignore(_text: str) -> None:
    pass


def _wait_for_one(member: Member, got: list[object]) -> None:
    with member.source(_ignore) as neighbour:
        got.append(neighbour)


@pytest.mark.parametrize(
    "line",
    ["serving ", "serving nonsense", "serving 0", "serving 70000", "serving 8080 1.2.3.4 5 not-an-address 6"],
)
def test_a_host_whose_answer_makes_no_sense_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.setattr(_Saying, "line", line)
    summary = Summary("x86_64", "gz", 1, 1, 1, 1, 1, "0" * 64)
    obtained = Obtained(UrlImage("i", "http://h/i.tar.gz", "0" * 64), tmp_path / "i", "0" * 64, summary)
    neighbours, notes, got = Neighbours(CLOCK), list[str](), list[object]()
    with neighbours.joined("0" * 64, "a") as first, neighbours.joined("0" * 64, "b") as second:
        with first.source(_ignore) as outside:
            assert outside is None
        waiting = threading.Thread(target=_wait_for_one, args=(second, got))
        waiting.start()
        while not first.is_wanted():
            time.sleep(0.01)
        hand_on(_Saying.to(Host("a", "a"), tmp_path, LOCAL, LOCAL.clock), obtained, first, note=notes.append)
        first.leave()
        waiting.join(10)
    assert got == [None], "the other one gets it from outside"
    assert "can't hand it on" in notes[0]
