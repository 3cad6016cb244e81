"""How a host stands, by what is remembered here and by what it says itself."""

from __future__ import annotations

import pytest

from nixa_tasks.flake.output import Output
from nixa_tasks.fleet import status
from nixa_tasks.host.probe import Facts, Os
from nixa_tasks.manifest.model import Host
from nixa_tasks.state.receipt import How, Outcome, Receipt

OLD, NEW = (f"/nix/store/{letter * 32}-nixos-system-web1" for letter in "ab")
HOST = Host("web1", "192.0.2.1")
OUTPUT = Output("web1", "x86_64-linux", "/nix/store/x.drv", NEW, None, None)


def receipt(out: str | None, wanted: str, outcome: Outcome, how: How = How.SWITCH) -> Receipt:
    return Receipt("192.0.2.1", "k", out, wanted, None, how, None, None, "t", 1.0, "me", outcome)


@pytest.mark.parametrize(
    ("last", "state"),
    [
        (receipt(NEW, NEW, Outcome.DONE), "current"),
        (receipt(OLD, OLD, Outcome.DONE), "outdated"),
        (receipt(OLD, NEW, Outcome.DONE), "pending"),
        (receipt(OLD, NEW, Outcome.FAILED), "failed"),
        (receipt(None, NEW, Outcome.FAILED, How.INSTALL), "failed"),
        (receipt(NEW, NEW, Outcome.FAILED, How.INSTALL), "failed"),
        (receipt(NEW, OLD, Outcome.FAILED), "current"),
        (receipt(OLD, NEW, Outcome.ROLLED_BACK), "rolled-back"),
    ],
)
def test_what_is_remembered(last: Receipt, state: str) -> None:
    """A reinstall that failed may have wiped what the receipt still names."""
    assert status.remembered(HOST, OUTPUT, last).state == state


@pytest.mark.parametrize(
    ("last", "state"),
    [
        (receipt(OLD, NEW, Outcome.FAILED), "unconfirmed"),
        (receipt(OLD, NEW, Outcome.DONE), "current"),
        (receipt(NEW, NEW, Outcome.DONE), "current"),
        (None, "current"),
    ],
)
def test_what_it_says_itself(last: Receipt | None, state: str) -> None:
    facts = Facts(os=Os.NIXOS, system=NEW, receipt=last.to_json() if last else None)
    assert status.asked(HOST, OUTPUT, facts).state == state
