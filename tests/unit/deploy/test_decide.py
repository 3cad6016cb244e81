"""The decision table: every situation is gone through, and what it may lead to is stated once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from nixa_tasks.deploy.decide import Action, Asked, Situation, decide, wipes_only_if
from nixa_tasks.manifest.model import InstallPolicy, OnDrift
from nixa_tasks.state.receipt import How, Outcome, Receipt
from nixa_tasks.target.probe import Os

WANTED, OLD, STRANGE = "/nix/store/wanted", "/nix/store/old", "/nix/store/strange"


def receipt(out: str) -> Receipt:
    return Receipt("h", "k", out, out, None, How.SWITCH, None, None, "t", 1.0, "me", Outcome.DONE)


def situations() -> Iterator[Situation]:
    for asked, wanted, os, live, key, theirs, ours, install, drift in itertools.product(
        Asked,
        (WANTED, None),
        Os,
        (WANTED, OLD, None),
        (True, False),
        (None, receipt(OLD), receipt(STRANGE)),
        (None, receipt(OLD)),
        InstallPolicy,
        OnDrift,
    ):
        if wanted is not None or asked is Asked.ROLLBACK:
            yield Situation(asked, wanted, os, live, key, theirs, ours, install, drift)


ALL = tuple(situations())


def test_every_situation_gives_a_decision_with_a_reason() -> None:
    assert len(ALL) > 2500
    for now in ALL:
        decision = decide(now)
        assert decision.action in Action
        assert decision.reason


def test_a_disk_is_wiped_only_where_the_promise_allows_it() -> None:
    installs = [now for now in ALL if decide(now).action is Action.INSTALL]
    assert installs
    assert all(wipes_only_if(now) for now in installs)


def test_a_running_nixos_is_never_wiped_without_a_word() -> None:
    for now in ALL:
        if now.os is Os.NIXOS and now.asked is Asked.DEPLOY and now.install is not InstallPolicy.ALWAYS:
            assert decide(now).action is not Action.INSTALL


def test_nothing_but_refusal_follows_a_wrong_host_key() -> None:
    assert {decide(now).action for now in ALL if not now.is_expected_key} == {Action.REFUSE}


def test_what_runs_already_is_left_alone() -> None:
    for now in ALL:
        if (
            now.is_expected_key
            and now.os is Os.NIXOS
            and now.live == now.wanted
            and now.asked is Asked.DEPLOY
        ):
            assert decide(now).action is Action.CURRENT


def test_local_memory_never_changes_a_decision() -> None:
    """Truth lies on the host: a controller without local state decides as one with it."""
    seen: dict[Situation, Action] = {}
    import dataclasses

    for now in ALL:
        bare = dataclasses.replace(now, local=None)
        assert seen.setdefault(bare, decide(now).action) is decide(now).action


@pytest.mark.parametrize(
    ("changes", "action", "says"),
    [
        ({"os": Os.OTHER, "live": None}, Action.INSTALL, "does not run NixOS"),
        ({"os": Os.INSTALLER, "live": None}, Action.INSTALL, "installer"),
        ({"os": Os.OTHER, "live": None, "install": InstallPolicy.NEVER}, Action.REFUSE, "never"),
        ({}, Action.SWITCH, "new output"),
        ({"receipt": None}, Action.SWITCH, "not deployed by nixa"),
        ({"receipt": receipt(STRANGE)}, Action.REFUSE, "other means"),
        ({"receipt": receipt(STRANGE), "on_drift": OnDrift.DEPLOY}, Action.SWITCH, "other means"),
        ({"install": InstallPolicy.ALWAYS}, Action.INSTALL, "always"),
        ({"install": InstallPolicy.ALWAYS, "live": WANTED}, Action.CURRENT, "runs what"),
        ({"asked": Asked.REINSTALL, "live": WANTED}, Action.INSTALL, "as asked"),
        ({"asked": Asked.REINSTALL, "install": InstallPolicy.NEVER}, Action.REFUSE, "never"),
        ({"asked": Asked.ROLLBACK, "wanted": STRANGE}, Action.SWITCH, "before"),
        ({"asked": Asked.ROLLBACK, "wanted": None}, Action.REFUSE, "no system from before"),
        ({"asked": Asked.ROLLBACK, "os": Os.OTHER}, Action.REFUSE, "nothing to go back to"),
    ],
)
def test_the_table(changes: dict[str, object], action: Action, says: str) -> None:
    import dataclasses

    plain = Situation(
        Asked.DEPLOY,
        WANTED,
        Os.NIXOS,
        OLD,
        True,
        receipt(OLD),
        None,
        InstallPolicy.IF_NOT_NIXOS,
        OnDrift.STOP,
    )
    decision = decide(dataclasses.replace(plain, **changes))  # type: ignore[arg-type]
    assert decision.action is action
    assert says in decision.reason
