"""Who of a failed wave goes back, and which runs on_finish hears of."""

from __future__ import annotations

from nixa_tasks.deploy.decide import Action, Asked, Judgement, Reason, State
from nixa_tasks.deploy.turn import Done, Undo
from nixa_tasks.state.receipt import How, Outcome, Receipt
from nixa_tasks.tasks.finish import has_changed_hosts, way_back
from nixa_tasks.tasks.run import Turn

OLD, NEW = "/nix/store/old", "/nix/store/new"


def turn(action: Action | None, before: str | None = OLD) -> Turn:
    if action is None:
        return Turn(Asked.DEPLOY, "2026-01-01T00:00:00Z")
    receipt = Receipt(
        target="192.0.2.1", host_key="k", out=NEW, wanted=NEW, drv=None, mode=How.SWITCH, kexec_sha256=None,
        flake=None, started_at="2026-01-01T00:00:00Z", seconds=1.0, operator="o", outcome=Outcome.DONE,
    )  # fmt: skip
    return Turn(
        Asked.DEPLOY,
        "2026-01-01T00:00:00Z",
        Done(Judgement(State.STALE, action, Reason.NEW_OUTPUT), receipt, before),
    )


def test_only_what_this_run_switched_goes_back_and_to_exactly_what_ran() -> None:
    assert way_back(turn(Action.SWITCH)) == Undo(OLD, since=NEW)
    assert way_back(turn(Action.BOOT)) == Undo(OLD, since=NEW)
    assert way_back(turn(Action.VERIFY)) == "this run did not change it"
    assert way_back(turn(Action.INSTALL)) == "it was installed in this run, so there is no system before"
    assert way_back(turn(Action.CURRENT)) == "this run did not change it"
    assert way_back(None) == "this run did not change it"
    assert isinstance(way_back(turn(Action.SWITCH, before=None)), str)


def test_on_finish_runs_only_if_the_run_changed_a_host_or_tried_to() -> None:
    assert not has_changed_hosts({})
    assert not has_changed_hosts({"web1": turn(Action.CURRENT)})
    assert has_changed_hosts({"web1": turn(Action.CURRENT), "web2": turn(Action.SWITCH)})
    assert not has_changed_hosts({"web1": turn(Action.VERIFY)})
    assert has_changed_hosts({"web1": turn(Action.BOOT)})
    assert has_changed_hosts({"web1": turn(None)})
