"""Every combination of what is known of a host: all views say the same, and nothing is called current that is not."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nixa_tasks.deploy.decide import Action, Judgement, Reason, Situation, State, judge
from nixa_tasks.deploy.disks import Disk, Disks
from nixa_tasks.errors import NixaError
from nixa_tasks.flake.output import Output
from nixa_tasks.fleet import plan, status
from nixa_tasks.fleet.report.page import Report, Row, environment, render
from nixa_tasks.host.host_key import HostKey, Trust
from nixa_tasks.host.probe import Facts, Os
from nixa_tasks.host.reach import Reached
from nixa_tasks.host.ssh import Ssh
from nixa_tasks.manifest.model import Host, InstallPolicy, Mode, OnDrift
from nixa_tasks.process.run import LocalProcesses
from nixa_tasks.state.receipt import How, Outcome, Receipt
from tests.html_document import read

OLD, NEW, ODD = (f"/nix/store/{letter * 32}-nixos-system-web1" for letter in "abc")
OUTPUT = Output("web1", "x86_64-linux", "/nix/store/x.drv", NEW)
KEY = HostKey("ssh-ed25519", "AAAAC3NzaC1lZDI1NTE5AAAAIB9JgoYTUSjWDsCHeuqmQ5iUgoMHqZT5q1kMWWRHVEVs")
HOSTS = [
    Host("web1", "192.0.2.1", install=install, on_drift=drift, mode=mode, reboot=reboot)
    for install, drift, (mode, reboot) in itertools.product(
        InstallPolicy, OnDrift, ((Mode.SWITCH, False), (Mode.BOOT, False), (Mode.BOOT, True))
    )
]
RECEIPTS = [None] + [
    Receipt(
        "192.0.2.1", KEY.text, out, wanted, None, how, None, None, "2026-01-02T03:04:05Z", 1.0, "me@here", outcome,
        left=NEW if how is How.ROLLBACK or outcome is Outcome.ROLLED_BACK else None, why="the checks failed" if outcome is Outcome.FAILED else None,
    )
    for out, wanted, how, outcome in itertools.product(
        (None, OLD, NEW), (OLD, NEW), (How.INSTALL, How.SWITCH, How.BOOT, How.ROLLBACK), Outcome
    )
]  # fmt: skip
NIXOS = [
    Facts(os=Os.NIXOS, system=system, profile=profile, boots=boots, before=before, guard=guard)
    for system, profile, boots, before, guard in itertools.product(
        (OLD, NEW, ODD), (None, OLD, NEW), (None, NEW), (None, OLD), (None, 30)
    )
]
OTHERS = [
    Facts(os=os, os_name="Debian GNU/Linux 12 (bookworm)", is_installing=installing)
    for os, installing in itertools.product((Os.OTHER, Os.INSTALLER, Os.INITRD), (False, True))
]
PROCESSES = LocalProcesses()
DISKS = Disks((Disk("/dev/vda", 20 << 30, "QEMU", ("ext4",)),))


def reached(host: Host, facts: Facts, receipt: Receipt | None, folder: Path) -> Reached:
    said = replace(facts, receipt=receipt.to_json() if receipt else None)
    return Reached(Ssh.to(host, folder, PROCESSES, PROCESSES.clock), KEY, Trust.SEEN, said)


def asked() -> Iterator[tuple[Host, Facts, Receipt | None, Receipt | None]]:
    """Host, what it says, its own receipt, and the receipt here."""
    for host, facts, there in itertools.product(HOSTS, NIXOS, RECEIPTS):
        yield host, facts, there, None
    for host, facts, here in itertools.product(HOSTS, OTHERS, RECEIPTS):
        yield host, facts, None, here
    for host, facts, there, here in itertools.product(HOSTS[:3], NIXOS[:12], RECEIPTS[::3], RECEIPTS[::3]):
        yield host, facts, there, here


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Host, Reached, Receipt | None]]:
    folder = tmp_path_factory.mktemp("ssh")
    return [(host, reached(host, facts, there, folder), here) for host, facts, there, here in asked()]


def test_plan_and_status_say_the_same_of_every_host_that_was_asked(
    everything: list[tuple[Host, Reached, Receipt | None]],
) -> None:
    for host, there, here in everything:
        row, standing = plan.asked(host, OUTPUT, there, here), status.asked(host, OUTPUT, there, here)
        judgement = judge(Situation(host, NEW, here, there.facts, KEY.text))
        assert (
            (row.state, row.action)
            == (standing.state, standing.action)
            == (judgement.state, judgement.action)
        )
        assert judgement.text in row.reason
        assert judgement.text == standing.reason


def test_plan_and_status_say_the_same_from_memory() -> None:
    for host, here in itertools.product(HOSTS, RECEIPTS):
        standing = status.remembered(host, OUTPUT, here)
        judgement = judge(Situation(host, NEW, here))
        assert (standing.state, standing.action) == (judgement.state, judgement.action)
        if here is not None:
            row = plan.from_memory(host, OUTPUT, here)
            assert (row.state, row.action) == (judgement.state, judgement.action)


def test_nothing_is_current_that_does_not_run_and_boot_what_is_wanted(
    everything: list[tuple[Host, Reached, Receipt | None]],
) -> None:
    for host, there, here in everything:
        standing, facts = status.asked(host, OUTPUT, there, here), there.facts
        if standing.state is State.CURRENT:
            assert facts.system == NEW
            assert {facts.profile, facts.boots} <= {None, NEW}
            assert facts.guard is None


def test_a_plan_that_wipes_says_so_in_capitals_and_names_the_disks(
    everything: list[tuple[Host, Reached, Receipt | None]],
) -> None:
    seen = 0
    for host, there, here in everything:
        row = plan.asked(host, OUTPUT, there, here, DISKS)
        assert (plan.WIPES in row.reason) == (row.action is Action.INSTALL)
        assert bool(row.disks) == (row.action is Action.INSTALL)
        seen += row.action is Action.INSTALL
    assert seen


def test_every_state_and_action_occurs(
    everything: list[tuple[Host, Reached, Receipt | None]],
) -> None:
    host = HOSTS[0]
    rows = [status.asked(one, OUTPUT, there, here) for one, there, here in everything]
    rows += [status.remembered(host, OUTPUT, here) for host, here in itertools.product(HOSTS, RECEIPTS)]
    rows += [status.unreachable(host, OUTPUT, None), status.remembered(host, None, None)]
    assert {row.state for row in rows} == set(State)
    assert {row.action for row in rows} == set(Action)


def test_the_report_shows_every_state_with_a_tone_and_its_reason() -> None:
    standings = [
        status.Standing(state, NEW, OLD, None, state, Action.ASK, f"is {state} for a reason", is_live=True)
        for state in State
    ]
    rows = tuple(Row(Host(one.host, "192.0.2.1"), one, None) for one in standings)
    document = read(render(Report("x", 1.7e9, rows, (), (), (), None), environment()))
    (table,) = document.all("table", "fleet")
    for line, standing in zip(table.all("tbody")[0].all("tr"), standings, strict=True):
        cell = next(one for one in line.all("td") if one.attributes["data-label"] == "State")
        assert (standing.reason in cell.text) == (standing.state not in status.PLAIN)


def test_whole_errors_are_below_the_plan_and_decide_its_exit_status() -> None:
    error = NixaError("evaluation: this is", host="web1", tail=("broken",), hint="fix it")
    rows = [plan.failed(HOSTS[0], error)]
    shown = plan.render(rows, 80)
    assert shown.splitlines()[1].split()[:3] == ["web1", "unknown", "refuse"]
    assert "web1: evaluation: this is\n    | broken\n    what to do: fix it" in shown
    assert plan.exit_status(rows, detailed=False) == plan.exit_status(rows, detailed=True) == 1
    away = plan.failed(HOSTS[0], NixaError("no route"), OUTPUT)
    assert (away.state, away.action) == (State.UNREACHABLE, Action.WAIT)
    assert json.loads(plan.as_json([away]))["hosts"][0]["error"] == "no route"


@pytest.mark.parametrize(("action", "status"), [
    (Action.CURRENT, 0), (Action.HOLD, 0), (Action.REFUSE, 0), (Action.WAIT, 0), (Action.VERIFY, 4), (Action.SWITCH, 4),
    (Action.BOOT, 4), (Action.INSTALL, 4),
])  # fmt: skip
def test_a_detailed_exit_status_tells_work_from_none(action: Action, status: int) -> None:
    rows = [plan.Planned("web1", State.STALE, action, "it has a new output")]
    assert plan.exit_status(rows, detailed=True) == status
    assert plan.exit_status(rows, detailed=False) == 0


def test_the_wipe_is_red_on_a_terminal_alone() -> None:
    row = plan.Planned(
        "web1", State.NEW, Action.INSTALL, f"{plan.WIPES}: it does not run NixOS", disks=DISKS.lines
    )
    plain, coloured = plan.render([row], 80), plan.render([row], 80, colour=True)
    assert "\x1b" not in plain
    assert "web1: WIPES THE DISK\n    /dev/vda (QEMU, 21.5 GB): ext4" in plain
    assert coloured.count(f"\x1b[1;31m{plan.WIPES}\x1b[0m") == 2


def test_a_judgement_has_a_text_for_every_reason() -> None:
    assert all(Judgement(State.NEW, Action.ASK, reason).text for reason in Reason)
