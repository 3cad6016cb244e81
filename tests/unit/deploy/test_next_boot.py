"""What is said where nobody knows how setting up the next boot ended."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nixa_tasks.deploy import next_boot
from nixa_tasks.deploy.receipts import line
from nixa_tasks.deploy.switch import Change, RolledBack
from nixa_tasks.deploy.turn import Turn
from nixa_tasks.errors import NixaError
from nixa_tasks.flake.output import Output
from nixa_tasks.host.probe import Facts, Os
from nixa_tasks.host.reach import Reached
from nixa_tasks.manifest.model import Host, Mode
from nixa_tasks.process.run import Argv, Completed
from nixa_tasks.state.layout import Layout
from nixa_tasks.state.receipt import How, Outcome, Receipt

OLD, NEW = (f"/nix/store/{letter * 32}-nixos-system-web1" for letter in "ab")
BEFORE = Receipt("t", "k", OLD, OLD, None, How.SWITCH, None, None, "t", 1.0, "o", Outcome.DONE)
HOST = Host("web1", "192.0.2.1", mode=Mode.BOOT, confirm_timeout=1)
OUTPUT = Output("web1", "x86_64-linux", "/nix/store/new.drv", NEW)


class Answering:
    """A host whose guard ends as it is told to; None: it can't be asked."""

    def __init__(self, outcome: str | None) -> None:
        self.outcome = outcome

    def run(self, argv: Argv, **_options: Any) -> Completed:
        script = argv[-1]
        if "outcome=gone" in script:
            status = 0 if self.outcome else 255
            return Completed(argv, status, f"outcome={self.outcome}\n".encode(), (), 0.1)
        return Completed(argv, 0, line(BEFORE).encode() if "receipt.json" in script else b"", (), 0.1)

    @contextlib.contextmanager
    def hold(self, *_args: Any, **_options: Any) -> Iterator[None]:
        yield

    def is_stopping(self) -> bool:
        return False

    def remove_at_death(self, folder: Path) -> None:
        pass


class Hurrying:
    """A clock that does not wait."""

    def __init__(self, clock: Any) -> None:
        self.seconds, self.now = 0.0, clock.now

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


def set_up(turn_of: Callable[..., tuple[Turn, Reached]], outcome: str | None) -> Receipt:
    facts = Facts(os=Os.NIXOS, system=OLD, profile=OLD)
    turn, reached = turn_of(HOST, OUTPUT, facts, Answering(outcome))
    reached = replace(reached, ssh=replace(reached.ssh, clock=Hurrying(reached.ssh.clock)))
    return next_boot.boot_into(Change(turn, reached, NEW, How.BOOT))


@pytest.mark.parametrize(("outcome", "says"), [("gone", "restarted"), (None, "can't be asked")])
def test_it_is_not_said_to_boot_what_it_did_where_nobody_knows(
    outcome: str | None, says: str, tmp_path: Path, turn_of: Callable[..., tuple[Turn, Reached]]
) -> None:
    with pytest.raises(NixaError, match=says) as caught:
        set_up(turn_of, outcome)
    assert not isinstance(caught.value, RolledBack)
    assert "one system or the other" in (caught.value.hint or "")
    assert not Layout(tmp_path).host("web1").deployed.exists(), "the receipt from before says nothing of it"


def test_a_host_that_says_that_nothing_was_changed_is_believed(
    turn_of: Callable[..., tuple[Turn, Reached]],
) -> None:
    with pytest.raises(RolledBack, match="could not be set up"):
        set_up(turn_of, "failed")
