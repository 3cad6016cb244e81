"""The one function of a host's state: every situation is gone through, and what it may lead to is
stated once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from nixa_tasks.deploy.decide import (
    Action,
    Asked,
    Reason,
    Situation,
    State,
    boots_another,
    judge,
    may_wipe,
)
from nixa_tasks.deploy.disks import Disk, Disks
from nixa_tasks.host.probe import Facts, Os
from nixa_tasks.manifest.model import Host, InstallPolicy, Mode, OnDrift, OnInhibitor
from nixa_tasks.state.receipt import How, Outcome, Receipt

WANTED, OLD, STRANGE = (f"/nix/store/{letter * 32}-nixos-system-web1" for letter in "abc")
KEY, OTHER_KEY = "ssh-ed25519 AAAA", "ssh-ed25519 BBBB"


def receipt(
    out: str | None,
    wanted: str | None = None,
    outcome: Outcome = Outcome.DONE,
    mode: How = How.SWITCH,
    left: str | None = None,
) -> Receipt:
    return Receipt(
        "h", KEY, out, wanted or out or WANTED, None, mode, None, None, "2026-01-01T00:00:00Z", 1.0, "me@here",
        outcome, left,
    )  # fmt: skip


PENDING = receipt(OLD, WANTED)  # set up for the next boot
INHIBITED = receipt(OLD, WANTED, mode=How.BOOT)  # the same, since it could not be switched to
ELSEWHERE = receipt(WANTED, STRANGE)  # the same, and the flake went back to what runs
UNCONFIRMED = receipt(OLD, WANTED, Outcome.FAILED)  # booted, or about to be
BY_ITSELF = receipt(OLD, WANTED, Outcome.ROLLED_BACK, left=WANTED)
NOT_CONFIRMED = receipt(OLD, WANTED, Outcome.ROLLED_BACK)
BY_PERSON = receipt(OLD, mode=How.ROLLBACK, left=WANTED)
INSTALL_BEGUN = receipt(None, WANTED, Outcome.FAILED, How.INSTALL)
RECEIPTS = (None, receipt(OLD), receipt(WANTED), receipt(STRANGE), PENDING, ELSEWHERE, UNCONFIRMED, BY_ITSELF,
            BY_PERSON)  # fmt: skip
NIXOS_ON_DISK = Disks((Disk("/dev/sda"),), nixos=("/dev/sda1",))
DEBIAN_ON_DISK = Disks((Disk("/dev/sda", contents=("Debian on /dev/sda1",)),))
HOSTS = tuple(
    Host("web1", "h", install=install, on_drift=drift, mode=mode, reboot=reboot)
    for install in InstallPolicy
    for drift in OnDrift
    for mode, reboot in ((Mode.SWITCH, False), (Mode.BOOT, False), (Mode.BOOT, True))
)


def facts() -> Iterator[Facts]:
    for os, there in itertools.product((Os.INITRD, Os.OTHER, Os.INSTALLER), (None, receipt(WANTED))):
        for is_installing in (False, True) if os is Os.INSTALLER else (False,):
            yield Facts(os, receipt=there.to_json() if there else None, is_installing=is_installing)
    for live, profile, there in itertools.product((WANTED, OLD), (WANTED, OLD, None), RECEIPTS):
        for boots, before, guard in (
            (None, None, None),
            (OLD, None, None),
            (None, OLD, None),
            (None, None, 9),
        ):
            yield Facts(
                Os.NIXOS, system=live, profile=profile, boots=boots, before=before, guard=guard,
                receipt=there.to_json() if there else None,
            )  # fmt: skip


def situations() -> Iterator[Situation]:
    for host, said, asked, again in itertools.product(HOSTS, (None, *facts()), Asked, (False, True)):
        for here in (None, receipt(WANTED, outcome=Outcome.FAILED), BY_PERSON):
            yield Situation(host, WANTED, here, said, KEY, asked=asked, again=again)
        yield Situation(host, None, None, said, KEY, asked=asked, again=again)
    for host, said, disks, key in itertools.product(
        HOSTS,
        (one for one in facts() if one.os is not Os.NIXOS),
        (None, DEBIAN_ON_DISK, NIXOS_ON_DISK),
        (KEY, OTHER_KEY),
    ):
        for here in (None, receipt(OLD), INSTALL_BEGUN):
            for asked in (Asked.DEPLOY, Asked.REINSTALL):
                yield Situation(host, WANTED, here, said, key, disks, asked)


@pytest.fixture(scope="module")
def judged() -> list[tuple[Situation, Any]]:
    return [(now, judge(now)) for now in situations()]


def test_every_situation_has_a_state_an_action_and_a_reason(judged: list[tuple[Situation, Any]]) -> None:
    assert len(judged) > 50_000
    seen = {(one.state, one.action) for _, one in judged}
    assert {state for state, _ in seen} | {State.UNREACHABLE} == set(State)
    assert {action for _, action in seen} == set(Action)
    assert all(one.text for _, one in judged)


def test_a_disk_is_wiped_only_where_the_promise_allows_it(judged: list[tuple[Situation, Any]]) -> None:
    installs = [now for now, one in judged if one.action is Action.INSTALL]
    assert installs
    assert all(may_wipe(now) for now in installs)


def test_no_sign_of_a_nixos_is_wiped_without_a_word(judged: list[tuple[Situation, Any]]) -> None:
    for now, one in judged:
        if now.asked is not Asked.DEPLOY or now.is_throwaway or now.facts is None:
            continue
        if now.facts.os is Os.NIXOS or now.facts.os is Os.INITRD:
            assert one.action is not Action.INSTALL
        elif not now.facts.is_installing and now.disks is NIXOS_ON_DISK:
            assert one.action is Action.REFUSE


def test_a_host_in_its_initrd_is_waited_for_whatever_is_asked(judged: list[tuple[Situation, Any]]) -> None:
    waiting = [
        one for now, one in judged if now.facts is not None and now.facts.os is Os.INITRD and now.wanted
    ]
    assert {(one.state, one.action) for one in waiting} == {(State.WAITING, Action.WAIT)}


def test_nothing_is_current_that_does_not_run_and_boot_what_is_wanted(
    judged: list[tuple[Situation, Any]],
) -> None:
    for now, one in judged:
        if one.state is State.CURRENT and now.facts is not None:
            assert now.facts.system == now.wanted
            assert not boots_another(now.facts)
            assert now.facts.before is None or now.asked is Asked.ROLLBACK
            assert now.facts.guard is None or now.asked is Asked.ROLLBACK


def test_the_mode_alone_says_how_a_change_takes_effect(judged: list[tuple[Situation, Any]]) -> None:
    for now, one in judged:
        assert one.action is not (Action.SWITCH if now.host.mode is Mode.BOOT else Action.BOOT)


def test_a_restart_into_what_was_set_up_is_no_drift(judged: list[tuple[Situation, Any]]) -> None:
    for now, one in judged:
        if now.there in (PENDING, UNCONFIRMED) and now.facts and now.facts.system == WANTED:
            moved_on = judge(replace(now, wanted=STRANGE))
            assert moved_on.state is not State.DRIFTED or now.asked is not Asked.DEPLOY
            assert one.state is not State.DRIFTED or now.asked is not Asked.DEPLOY


def test_a_held_output_is_left_alone_until_it_is_asked_for_again(
    judged: list[tuple[Situation, Any]],
) -> None:
    held = [now for now, one in judged if one.action is Action.HOLD]
    assert held
    for now in held:
        assert judge(replace(now, again=True)).action is not Action.HOLD
        assert judge(replace(now, wanted=STRANGE)).action is not Action.HOLD


HERE = Situation(Host("web1", "h"), WANTED, None, Facts(Os.NIXOS, system=OLD, profile=OLD), KEY)


def on_nixos(there: Receipt | None, live: str = OLD, profile: str | None = None, **more: Any) -> Facts:
    said = there.to_json() if there else None
    return Facts(Os.NIXOS, system=live, profile=profile or live, receipt=said, **more)


@pytest.mark.parametrize(
    ("host", "said", "more", "expected"),
    [
        ({}, on_nixos(receipt(OLD)), {}, (State.STALE, Action.SWITCH, Reason.NEW_OUTPUT)),
        ({"mode": Mode.BOOT}, on_nixos(receipt(OLD)), {}, (State.STALE, Action.BOOT, Reason.NEW_OUTPUT)),
        ({}, on_nixos(None), {}, (State.NEW, Action.SWITCH, Reason.NOT_BY_NIXA)),
        ({}, on_nixos(receipt(STRANGE)), {}, (State.DRIFTED, Action.REFUSE, Reason.DRIFT)),
        (
            {"on_drift": OnDrift.DEPLOY},
            on_nixos(receipt(STRANGE)),
            {},
            (State.DRIFTED, Action.SWITCH, Reason.DRIFT_OVERRIDDEN),
        ),
        (
            {"install": InstallPolicy.ALWAYS},
            on_nixos(receipt(OLD)),
            {},
            (State.STALE, Action.INSTALL, Reason.INSTALL_ALWAYS),
        ),
        ({}, on_nixos(receipt(WANTED), WANTED), {}, (State.CURRENT, Action.CURRENT, Reason.RUNS_WANTED)),
        ({}, on_nixos(None, WANTED), {}, (State.CURRENT, Action.VERIFY, Reason.RUNS_UNRECORDED)),
        (
            {},
            on_nixos(None, WANTED),
            {"here": receipt(None, WANTED, Outcome.FAILED, How.INSTALL)},
            (State.FAILED, Action.VERIFY, Reason.FAILED_LAST_TIME),
        ),
        (
            {},
            on_nixos(receipt(WANTED), WANTED, OLD),
            {},
            (State.STALE, Action.SWITCH, Reason.BOOTS_ANOTHER),
        ),
        (
            {},
            on_nixos(receipt(WANTED), WANTED, boots=OLD),
            {},
            (State.STALE, Action.SWITCH, Reason.BOOTS_ANOTHER),
        ),
        (
            {"mode": Mode.BOOT},
            on_nixos(ELSEWHERE, WANTED, STRANGE),
            {},
            (State.STALE, Action.BOOT, Reason.BOOTS_ANOTHER),
        ),
        (
            {"mode": Mode.BOOT},
            on_nixos(PENDING, OLD, WANTED),
            {},
            (State.PENDING, Action.CURRENT, Reason.WAITS_FOR_RESTART),
        ),
        (
            {"mode": Mode.BOOT, "reboot": True},
            on_nixos(PENDING, OLD, WANTED),
            {},
            (State.PENDING, Action.BOOT, Reason.NEW_OUTPUT),
        ),
        ({}, on_nixos(PENDING, OLD, WANTED), {}, (State.PENDING, Action.SWITCH, Reason.NEW_OUTPUT)),
        ({}, on_nixos(INHIBITED, OLD, WANTED), {}, (State.PENDING, Action.CURRENT, Reason.WAITS_FOR_RESTART)),
        (
            {"reboot": True},
            on_nixos(INHIBITED, OLD, WANTED),
            {},
            (State.PENDING, Action.SWITCH, Reason.NEW_OUTPUT),
        ),
        (
            {"on_inhibitor": OnInhibitor.FORCE},
            on_nixos(INHIBITED, OLD, WANTED),
            {},
            (State.PENDING, Action.SWITCH, Reason.NEW_OUTPUT),
        ),
        (
            {"mode": Mode.BOOT},
            on_nixos(UNCONFIRMED, WANTED, OLD),
            {},
            (State.UNCONFIRMED, Action.BOOT, Reason.NOT_CONFIRMED),
        ),
        (
            {"mode": Mode.BOOT},
            on_nixos(None, WANTED, OLD, before=OLD),
            {},
            (State.UNCONFIRMED, Action.BOOT, Reason.NOT_CONFIRMED),
        ),
        (
            {},
            on_nixos(receipt(OLD), WANTED, OLD, guard=17),
            {},
            (State.UNCONFIRMED, Action.WAIT, Reason.SWITCH_UNDER_WAY),
        ),
        ({}, on_nixos(BY_ITSELF), {}, (State.HELD, Action.HOLD, Reason.ROLLED_BACK_BY_ITSELF)),
        ({}, on_nixos(BY_ITSELF), {"again": True}, (State.STALE, Action.SWITCH, Reason.NEW_OUTPUT)),
        ({}, on_nixos(NOT_CONFIRMED), {}, (State.STALE, Action.SWITCH, Reason.NEW_OUTPUT)),
        ({}, on_nixos(BY_ITSELF, STRANGE), {}, (State.DRIFTED, Action.REFUSE, Reason.DRIFT)),
        ({}, on_nixos(BY_PERSON), {}, (State.HELD, Action.HOLD, Reason.ROLLED_BACK_BY_PERSON)),
        ({}, on_nixos(BY_PERSON), {"wanted": STRANGE}, (State.STALE, Action.SWITCH, Reason.NEW_OUTPUT)),
        ({}, Facts(Os.OTHER), {}, (State.NEW, Action.INSTALL, Reason.NOT_NIXOS)),
        ({}, Facts(Os.INSTALLER), {}, (State.NEW, Action.INSTALL, Reason.IN_INSTALLER)),
        (
            {},
            Facts(Os.INSTALLER, is_installing=True),
            {"here": receipt(OLD)},
            (State.FAILED, Action.INSTALL, Reason.INSTALL_UNFINISHED),
        ),
        (
            {"install": InstallPolicy.NEVER},
            Facts(Os.OTHER),
            {},
            (State.REFUSED, Action.REFUSE, Reason.INSTALL_NEVER),
        ),
        ({}, Facts(Os.OTHER), {"here": receipt(OLD)}, (State.REFUSED, Action.REFUSE, Reason.RAN_NIXOS)),
        (
            {},
            Facts(Os.OTHER),
            {"here": receipt(OLD), "key": OTHER_KEY},
            (State.NEW, Action.INSTALL, Reason.NOT_NIXOS),
        ),
        ({}, Facts(Os.OTHER), {"here": INSTALL_BEGUN}, (State.NEW, Action.INSTALL, Reason.NOT_NIXOS)),
        ({}, Facts(Os.OTHER), {"disks": NIXOS_ON_DISK}, (State.REFUSED, Action.REFUSE, Reason.NIXOS_ON_DISK)),
        ({}, Facts(Os.OTHER), {"disks": DEBIAN_ON_DISK}, (State.NEW, Action.INSTALL, Reason.NOT_NIXOS)),
        (
            {"install": InstallPolicy.ALWAYS},
            Facts(Os.OTHER),
            {"here": receipt(OLD), "disks": NIXOS_ON_DISK},
            (State.NEW, Action.INSTALL, Reason.NOT_NIXOS),
        ),
        ({}, Facts(Os.INITRD), {}, (State.WAITING, Action.WAIT, Reason.IN_INITRD)),
        ({}, Facts(Os.OTHER), {"asked": Asked.REINSTALL, "here": receipt(OLD)},
         (State.STALE, Action.INSTALL, Reason.REINSTALL_ASKED)),
        ({}, on_nixos(receipt(OLD)), {"asked": Asked.ROLLBACK, "wanted": STRANGE},
         (State.STALE, Action.SWITCH, Reason.ROLLBACK_ASKED)),
        ({}, on_nixos(receipt(OLD)), {"asked": Asked.ROLLBACK, "wanted": OLD},
         (State.CURRENT, Action.CURRENT, Reason.ROLLED_BACK_ALREADY)),
        ({}, on_nixos(ELSEWHERE, WANTED, STRANGE), {"asked": Asked.ROLLBACK},
         (State.PENDING, Action.SWITCH, Reason.KEEPS_LIVE)),
        ({}, on_nixos(receipt(OLD)), {"asked": Asked.ROLLBACK, "wanted": None},
         (State.REFUSED, Action.REFUSE, Reason.NOTHING_BEFORE)),
        ({}, Facts(Os.OTHER), {"asked": Asked.ROLLBACK},
         (State.REFUSED, Action.REFUSE, Reason.NO_NIXOS_TO_ROLL_BACK)),
        ({}, on_nixos(receipt(OLD)), {"asked": Asked.ROLLBACK, "wanted": STRANGE, "since": WANTED},
         (State.DRIFTED, Action.REFUSE, Reason.MOVED_ON)),
        ({}, None, {}, (State.NEW, Action.ASK, Reason.NEVER_DEPLOYED)),
        ({}, None, {"is_unreachable": True}, (State.UNREACHABLE, Action.WAIT, Reason.UNREACHABLE)),
        ({}, None, {"wanted": None}, (State.UNKNOWN, Action.REFUSE, Reason.NOT_EVALUATED)),
        ({}, None, {"here": receipt(WANTED)}, (State.CURRENT, Action.CURRENT, Reason.RUNS_WANTED)),
        ({}, None, {"here": receipt(OLD)}, (State.STALE, Action.ASK, Reason.NEW_OUTPUT)),
        ({}, None, {"here": UNCONFIRMED}, (State.UNCONFIRMED, Action.ASK, Reason.FAILED_LAST_TIME)),
        ({}, None, {"here": INSTALL_BEGUN}, (State.FAILED, Action.ASK, Reason.FAILED_LAST_TIME)),
        ({}, None, {"here": BY_PERSON}, (State.HELD, Action.HOLD, Reason.ROLLED_BACK_BY_PERSON)),
        ({}, None, {"here": PENDING}, (State.PENDING, Action.ASK, Reason.WAITS_FOR_RESTART)),
        ({"mode": Mode.BOOT}, None, {"here": PENDING},
         (State.PENDING, Action.CURRENT, Reason.WAITS_FOR_RESTART)),
        ({"install": InstallPolicy.ALWAYS}, None, {"here": receipt(WANTED)},
         (State.CURRENT, Action.ASK, Reason.RUNS_WANTED)),
        ({"target": "elsewhere"}, None, {"here": receipt(WANTED)},
         (State.NEW, Action.ASK, Reason.NEVER_DEPLOYED)),
    ],
)  # fmt: skip
def test_the_table(
    host: Mapping[str, Any],
    said: Facts | None,
    more: Mapping[str, Any],
    expected: tuple[State, Action, Reason],
) -> None:
    now = replace(HERE, host=replace(HERE.host, **host), facts=said, **more)
    one = judge(now)
    assert (one.state, one.action, one.reason) == expected


def test_a_deploy_is_up_to_date_only_where_there_is_nothing_to_ask() -> None:
    asked = replace(HERE, facts=None)
    assert judge(replace(asked, here=receipt(WANTED))).action is Action.CURRENT
    assert judge(replace(asked, here=BY_PERSON)).action is Action.HOLD
    for here in (None, receipt(OLD), UNCONFIRMED, PENDING, INSTALL_BEGUN):
        assert judge(replace(asked, here=here)).action is Action.ASK


def test_a_hold_says_who_when_and_why() -> None:
    by = replace(BY_ITSELF, why="check failed: tcp port 80")
    said = judge(replace(HERE, facts=on_nixos(by))).text
    assert said == (
        "rolled back automatically at 2026-01-01T00:00:00Z (check failed: tcp port 80); "
        "held until its output changes"
    )
    assert "by me@here at" in judge(replace(HERE, facts=on_nixos(BY_PERSON))).text
