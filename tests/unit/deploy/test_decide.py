"""The decision table: every situation is gone through, and what it may lead to is stated once."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import pytest

from nixa_tasks.deploy.decide import Action, Asked, Situation, decide, wipes_only_if
from nixa_tasks.host.probe import Os
from nixa_tasks.manifest.model import InstallPolicy, Mode, OnDrift
from nixa_tasks.state.receipt import How, Outcome, Receipt

WANTED, OLD, STRANGE = "/nix/store/wanted", "/nix/store/old", "/nix/store/strange"


def receipt(out: str, wanted: str | None = None, outcome: Outcome = Outcome.DONE) -> Receipt:
    return Receipt("h", "k", out, wanted or out, None, How.SWITCH, None, None, "t", 1.0, "me", outcome)


PENDING = receipt(OLD, WANTED)  # set up for the next boot
ELSEWHERE = receipt(WANTED, STRANGE)  # the same, and the flake went back to what runs
UNCONFIRMED = receipt(OLD, WANTED, Outcome.FAILED)  # booted, or about to be
TAKEN_BACK = receipt(OLD, WANTED, Outcome.ROLLED_BACK)


AFTER = tuple(
    (profile, mode, reboot)
    for profile in (WANTED, OLD, STRANGE)
    for mode, reboot in ((Mode.SWITCH, False), (Mode.BOOT, False), (Mode.BOOT, True))
)


def situations() -> Iterator[Situation]:
    for asked, wanted, os, live, key, theirs, ours, install, drift, after in itertools.product(
        Asked,
        (WANTED, None),
        Os,
        (WANTED, OLD, None),
        (True, False),
        (None, receipt(OLD), receipt(STRANGE), PENDING, ELSEWHERE, UNCONFIRMED, TAKEN_BACK),
        (None, receipt(OLD)),
        InstallPolicy,
        OnDrift,
        AFTER,
    ):
        if wanted is not None or asked is Asked.ROLLBACK:
            yield Situation(asked, wanted, os, live, key, theirs, ours, install, drift, *after)


ALL = tuple(situations())


def test_every_situation_gives_a_decision_with_a_reason() -> None:
    assert len(ALL) > 50_000
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


def test_what_runs_already_is_left_alone_once_it_is_settled() -> None:
    """Settled: it is what boots next, as far as nixa set that, and a boot of it was confirmed."""
    for now in ALL:
        if (
            now.is_expected_key
            and now.os is Os.NIXOS
            and now.live == now.wanted
            and now.asked is Asked.DEPLOY
        ):
            is_settled = not now.boots_elsewhere and now.receipt is not UNCONFIRMED
            assert (decide(now).action is Action.CURRENT) is is_settled


def test_the_mode_alone_says_how_a_change_takes_effect() -> None:
    for now in ALL:
        action = decide(now).action
        assert action is not (Action.SWITCH if now.mode is Mode.BOOT else Action.BOOT)


def test_a_host_waits_for_a_restart_only_with_the_wanted_system_set_up() -> None:
    waiting = [now for now in ALL if decide(now).action is Action.PENDING]
    assert waiting
    for now in waiting:
        assert now.receipt is PENDING
        assert (now.live, now.profile, now.mode, now.reboot) == (OLD, now.wanted, Mode.BOOT, False)


def test_a_restart_into_what_was_set_up_is_no_drift() -> None:
    for now in ALL:
        if now.receipt in (PENDING, UNCONFIRMED) and now.live == WANTED:
            moved_on = dataclasses.replace(now, wanted=STRANGE)
            assert "other means" not in decide(moved_on).reason


def test_local_memory_never_changes_a_decision() -> None:
    """Truth lies on the host: a controller without local state decides as one with it."""
    seen: dict[Situation, Action] = {}
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
        ({"mode": Mode.BOOT}, Action.BOOT, "new output"),
        ({"mode": Mode.BOOT, "receipt": PENDING, "profile": WANTED}, Action.PENDING, "next restart"),
        ({"mode": Mode.BOOT, "receipt": PENDING}, Action.BOOT, "new output"),
        (
            {"mode": Mode.BOOT, "reboot": True, "receipt": PENDING, "profile": WANTED},
            Action.BOOT,
            "new output",
        ),
        ({"receipt": PENDING, "profile": WANTED}, Action.SWITCH, "new output"),
        ({"receipt": PENDING, "profile": WANTED, "live": WANTED}, Action.CURRENT, "runs what"),
        (
            {"receipt": PENDING, "profile": WANTED, "wanted": STRANGE, "live": WANTED},
            Action.SWITCH,
            "new output",
        ),
        ({"receipt": ELSEWHERE, "profile": STRANGE, "live": WANTED}, Action.SWITCH, "another system"),
        (
            {"mode": Mode.BOOT, "receipt": ELSEWHERE, "profile": STRANGE, "live": WANTED},
            Action.BOOT,
            "another",
        ),
        ({"mode": Mode.BOOT, "receipt": UNCONFIRMED, "live": WANTED}, Action.BOOT, "nobody has confirmed"),
        ({"mode": Mode.BOOT, "receipt": UNCONFIRMED}, Action.BOOT, "new output"),
        ({"receipt": TAKEN_BACK}, Action.SWITCH, "new output"),
        ({"receipt": TAKEN_BACK, "live": STRANGE}, Action.REFUSE, "other means"),
        (
            {"asked": Asked.ROLLBACK, "receipt": ELSEWHERE, "profile": STRANGE, "live": WANTED},
            Action.SWITCH,
            "keeps",
        ),
        ({"asked": Asked.ROLLBACK, "mode": Mode.BOOT, "wanted": STRANGE}, Action.BOOT, "before"),
        ({"asked": Asked.REINSTALL, "live": WANTED}, Action.INSTALL, "as asked"),
        ({"asked": Asked.REINSTALL, "install": InstallPolicy.NEVER}, Action.REFUSE, "never"),
        ({"asked": Asked.ROLLBACK, "wanted": STRANGE}, Action.SWITCH, "before"),
        ({"asked": Asked.ROLLBACK, "wanted": None}, Action.REFUSE, "no system from before"),
        ({"asked": Asked.ROLLBACK, "os": Os.OTHER}, Action.REFUSE, "nothing to go back to"),
    ],
)
def test_the_table(changes: dict[str, object], action: Action, says: str) -> None:
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
        profile=OLD,
    )
    decision = decide(dataclasses.replace(plain, **changes))  # type: ignore[arg-type]
    assert decision.action is action
    assert says in decision.reason
