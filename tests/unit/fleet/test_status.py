"""How a host stands, by what is remembered here and by what it says itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from nixa_tasks.flake.output import Output
from nixa_tasks.fleet import status
from nixa_tasks.host.host_key import HostKey, Trust
from nixa_tasks.host.probe import Facts, Os
from nixa_tasks.host.reach import Reached
from nixa_tasks.host.ssh import Ssh
from nixa_tasks.manifest.model import Host
from nixa_tasks.process.run import LocalProcesses
from nixa_tasks.state.receipt import How, Outcome, Receipt

OLD, NEW = (f"/nix/store/{letter * 32}-nixos-system-web1" for letter in "ab")
HOST = Host("web1", "192.0.2.1")
OUTPUT = Output("web1", "x86_64-linux", "/nix/store/x.drv", NEW, None, None)


def receipt(out: str | None, wanted: str, outcome: Outcome, how: How = How.SWITCH) -> Receipt:
    left = wanted if outcome is Outcome.ROLLED_BACK else None
    return Receipt("192.0.2.1", "k", out, wanted, None, how, None, None, "t", 1.0, "me", outcome, left)


@pytest.mark.parametrize(
    ("last", "state"),
    [
        (receipt(NEW, NEW, Outcome.DONE), "current"),
        (receipt(OLD, OLD, Outcome.DONE), "stale"),
        (receipt(OLD, NEW, Outcome.DONE), "pending"),
        (receipt(OLD, NEW, Outcome.FAILED), "unconfirmed"),
        (receipt(None, NEW, Outcome.FAILED, How.INSTALL), "failed"),
        (receipt(NEW, NEW, Outcome.FAILED, How.INSTALL), "failed"),
        (receipt(NEW, OLD, Outcome.FAILED), "stale"),
        (receipt(OLD, NEW, Outcome.ROLLED_BACK), "held"),
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
def test_what_it_says_itself(last: Receipt | None, state: str, tmp_path: Path) -> None:
    facts = Facts(os=Os.NIXOS, system=NEW, receipt=last.to_json() if last else None)
    processes = LocalProcesses()
    ssh = Ssh.to(HOST, tmp_path, processes, processes.clock)
    row = status.asked(HOST, OUTPUT, Reached(ssh, HostKey("ssh-ed25519", "AAAA"), Trust.SEEN, facts), None)
    assert row.state == state


def test_a_state_that_its_word_does_not_explain_has_a_line_below_the_table() -> None:
    held = status.remembered(HOST, OUTPUT, receipt(OLD, NEW, Outcome.ROLLED_BACK))
    shown = status.render([held], 80).splitlines()
    assert shown[-1] == "web1 rolled back automatically at t; held until its output changes"
    assert status.render([status.remembered(HOST, OUTPUT, None)], 80).count("\n") == 1
