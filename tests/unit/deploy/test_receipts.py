"""What is recorded of a host at which nothing was to be done."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from nixa_tasks.deploy.decide import Action, Situation, judge
from nixa_tasks.deploy.receipts import adopt, remember
from nixa_tasks.deploy.turn import Turn
from nixa_tasks.flake.output import Output
from nixa_tasks.host.probe import Facts, Os
from nixa_tasks.host.reach import Reached
from nixa_tasks.manifest.model import Host, Mode

OLD, NEW = (f"/nix/store/{letter * 32}-nixos-system-web1" for letter in "ab")
HOST = Host("web1", "192.0.2.1", mode=Mode.BOOT)
OUTPUT = Output("web1", "x86_64-linux", "/nix/store/new.drv", NEW)


@pytest.mark.parametrize(("live", "drv", "is_done"), [(NEW, "/nix/store/new.drv", True), (OLD, None, False)])
def test_a_system_that_is_not_the_flakes_is_not_recorded_as_waiting_for_it(
    live: str, drv: str | None, is_done: bool, turn_of: Callable[..., tuple[Turn, Reached]]
) -> None:
    """A wave is taken back, and somebody has taken this host back already."""
    turn, reached = turn_of(HOST, OUTPUT, Facts(os=Os.NIXOS, system=live))
    receipt = adopt(turn, reached)
    assert (receipt.out, receipt.wanted, receipt.drv) == (live, live, drv)
    assert not receipt.is_pending
    assert (judge(Situation(HOST, NEW, receipt)).action is Action.CURRENT) is is_done


def test_a_state_folder_that_can_not_be_written_ends_no_deploy(
    turn_of: Callable[..., tuple[Turn, Reached]],
) -> None:
    turn, reached = turn_of(HOST, OUTPUT, Facts(os=Os.NIXOS, system=NEW))
    said: list[str] = []
    turn.journal.subscribe(lambda event: said.append(event.text))
    turn.layout.state.write_text("no folder")
    receipt = adopt(turn, reached)
    remember(turn, receipt)
    assert any("not remembered here" in text for text in said)
