"""What state a host is in, and what is to be done with it: one pure function, no I/O.

`deploy`, `plan`, `status`, `history` and the report all ask `judge`, so that they can't disagree.
Whatever ends in INSTALL wipes a disk: the rows that lead there are few, and `may_wipe` states what
holds for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, assert_never

from nixa_tasks.deploy.disks import Disks
from nixa_tasks.host.probe import Facts, Os
from nixa_tasks.manifest.model import Host, InstallPolicy, Mode, OnDrift, OnInhibitor
from nixa_tasks.state.receipt import How, Outcome, Receipt


class Asked(StrEnum):
    """What the user asked for."""

    DEPLOY = "deploy"
    REINSTALL = "reinstall"
    ROLLBACK = "rollback"


class State(StrEnum):
    """What a host's standing is; docs/states.md explains each to users."""

    NEW = "new"  # nixa has never deployed it
    CURRENT = "current"  # it runs and boots what the flake says
    STALE = "stale"  # the flake says something newer than what it runs
    PENDING = "pending"  # the wanted system takes effect at the next restart
    UNCONFIRMED = "unconfirmed"  # the wanted system runs, but nobody has confirmed it (yet)
    HELD = "held"  # the wanted system was rolled back, and is not deployed again by itself
    DRIFTED = "drifted"  # it runs something that nixa did not deploy
    FAILED = "failed"  # the last deploy of the wanted system failed
    UNREACHABLE = "unreachable"
    WAITING = "waiting-in-initrd"
    REFUSED = "refused"  # it may not be installed
    UNKNOWN = "unknown"  # the flake can't be evaluated


class Action(StrEnum):
    """What a deploy does."""

    CURRENT = "current"  # nothing
    VERIFY = "verify"  # runs the checks, and records what runs already
    SWITCH = "switch"
    BOOT = "boot"
    INSTALL = "install"
    REFUSE = "refuse"
    HOLD = "hold"  # leaves the host alone until its output changes
    WAIT = "wait"  # the host can't be changed now
    ASK = "ask"  # asks the host, and decides then

    @property
    def is_change(self) -> bool:
        """Whether the host is changed by it."""
        return self in (Action.SWITCH, Action.BOOT, Action.INSTALL)


class Reason(StrEnum):
    """Why: `text` ends a sentence that begins with the host's name."""

    RUNS_WANTED = "runs-wanted"
    RUNS_UNRECORDED = "runs-unrecorded"
    WAITS_FOR_RESTART = "waits-for-restart"
    BOOTS_ANOTHER = "boots-another"
    NOT_CONFIRMED = "not-confirmed"
    SWITCH_UNDER_WAY = "switch-under-way"
    NEW_OUTPUT = "new-output"
    NOT_BY_NIXA = "not-by-nixa"
    FAILED_LAST_TIME = "failed-last-time"
    DRIFT = "drift"
    DRIFT_OVERRIDDEN = "drift-overridden"
    ROLLED_BACK_BY_PERSON = "rolled-back-by-person"
    ROLLED_BACK_BY_ITSELF = "rolled-back-by-itself"
    NOT_NIXOS = "not-nixos"
    IN_INSTALLER = "in-installer"
    INSTALL_UNFINISHED = "install-unfinished"
    INSTALL_ALWAYS = "install-always"
    INSTALL_NEVER = "install-never"
    RAN_NIXOS = "ran-nixos"
    NIXOS_ON_DISK = "nixos-on-disk"
    IN_INITRD = "in-initrd"
    NEVER_DEPLOYED = "never-deployed"
    UNREACHABLE = "unreachable"
    NOT_EVALUATED = "not-evaluated"
    REINSTALL_ASKED = "reinstall-asked"
    ROLLBACK_ASKED = "rollback-asked"
    KEEPS_LIVE = "keeps-live"
    ROLLED_BACK_ALREADY = "rolled-back-already"
    NOTHING_BEFORE = "nothing-before"
    NO_NIXOS_TO_ROLL_BACK = "no-nixos-to-roll-back"
    MOVED_ON = "moved-on"

    @property
    def text(self) -> str:
        return _TEXTS[self]


_TEXTS: Final[Mapping[Reason, str]] = {
    Reason.RUNS_WANTED: "runs what the flake says",
    Reason.RUNS_UNRECORDED: "runs what the flake says, but has no receipt of it",
    Reason.WAITS_FOR_RESTART: "boots into the new system at its next restart",
    Reason.BOOTS_ANOTHER: "runs what the flake says, but is set to boot into another system",
    Reason.NOT_CONFIRMED: "runs what the flake says, but nobody has confirmed it since it booted",
    Reason.SWITCH_UNDER_WAY: "is in the middle of a switch that nobody has confirmed",
    Reason.NEW_OUTPUT: "has a new output",
    Reason.NOT_BY_NIXA: "runs a NixOS that was not deployed by nixa",
    Reason.FAILED_LAST_TIME: "failed to deploy last time",
    Reason.DRIFT: "has drifted since its last deploy",
    Reason.DRIFT_OVERRIDDEN: "has drifted since its last deploy, and hosts.toml says to deploy over it",
    Reason.ROLLED_BACK_BY_PERSON: "was rolled back",
    Reason.ROLLED_BACK_BY_ITSELF: "rolled back automatically",
    Reason.NOT_NIXOS: "does not run NixOS",
    Reason.IN_INSTALLER: "is in the NixOS installer",
    Reason.INSTALL_UNFINISHED: "is in the NixOS installer, in the middle of an installation",
    Reason.INSTALL_ALWAYS: 'has another output, and hosts.toml says install = "always"',
    Reason.INSTALL_NEVER: 'may not be installed: hosts.toml says install = "never"',
    Reason.RAN_NIXOS: "does not run NixOS now, but its receipt says that it did",
    Reason.NIXOS_ON_DISK: "does not run NixOS now, but has a NixOS on its disk",
    Reason.IN_INITRD: "is still booting: it waits in its initrd",
    Reason.NEVER_DEPLOYED: "was never deployed from here",
    Reason.UNREACHABLE: "can't be reached",
    Reason.NOT_EVALUATED: "has no output: the flake can't be evaluated",
    Reason.REINSTALL_ASKED: "is to be wiped and installed again, as asked",
    Reason.ROLLBACK_ASKED: "goes back to the system before",
    Reason.KEEPS_LIVE: "keeps the system that runs, also at its next restart",
    Reason.ROLLED_BACK_ALREADY: "runs that system already",
    Reason.NOTHING_BEFORE: "has no system from before to go back to",
    Reason.NO_NIXOS_TO_ROLL_BACK: "does not run NixOS, so there is nothing to go back to",
    Reason.MOVED_ON: "runs something else by now than what it was switched to",
}


@dataclass(frozen=True, slots=True)
class Situation:
    """All that a judgement depends on.

    `wanted`: the store path that the flake says (for a rollback: the one to go back to), None where
    there is none. `here`: the receipt that is remembered here. `facts`: what the host says, None
    where it was not asked; `key`: the host key that it showed then, as `TYPE BLOB`. `disks`: what
    lies on its disks, None where nobody has looked. `again`: a hold is lifted. `since`: for a
    rollback of one switch, the system that must still run.
    """

    host: Host
    wanted: str | None
    here: Receipt | None = None
    facts: Facts | None = None
    key: str | None = None
    disks: Disks | None = None
    asked: Asked = Asked.DEPLOY
    is_unreachable: bool = False
    again: bool = False
    since: str | None = None

    @property
    def there(self) -> Receipt | None:
        """The host's own receipt."""
        return Receipt.from_json(self.facts.receipt) if self.facts is not None else None

    @property
    def is_throwaway(self) -> bool:
        return self.host.install is InstallPolicy.ALWAYS


@dataclass(frozen=True, slots=True)
class Judgement:
    """A host's state, what a deploy does to it, and why. `by`: the receipt that the reason is about."""

    state: State
    action: Action
    reason: Reason
    by: Receipt | None = None

    @property
    def text(self) -> str:
        """The reason in full; it ends a sentence that begins with the host's name."""
        if self.by is None:
            return self.reason.text
        match self.reason:
            case Reason.ROLLED_BACK_BY_PERSON:
                who = f" by {self.by.operator}"
            case Reason.ROLLED_BACK_BY_ITSELF:
                who = ""
            case Reason.FAILED_LAST_TIME if self.by.why:
                return f"{self.reason.text}: {self.by.why}"
            case _:
                return self.reason.text
        why = f" ({self.by.why})" if self.by.why else ""
        return f"{self.reason.text}{who} at {self.by.started_at}{why}; held until its output changes"


def judge(now: Situation) -> Judgement:  # noqa: PLR0911 -- a row each
    """The table, read from the top: the first row that fits is taken."""
    if now.wanted is None and now.asked is Asked.DEPLOY:
        return Judgement(State.UNKNOWN, Action.REFUSE, Reason.NOT_EVALUATED)
    if now.is_unreachable:
        return Judgement(State.UNREACHABLE, Action.WAIT, Reason.UNREACHABLE)
    if now.facts is None:
        return _judge_from_memory(now)
    if now.facts.os is Os.INITRD:
        return Judgement(State.WAITING, Action.WAIT, Reason.IN_INITRD)
    match now.asked:
        case Asked.REINSTALL:
            return _judge_reinstall(now)
        case Asked.ROLLBACK:
            return _judge_rollback(now, now.facts)
        case Asked.DEPLOY if now.facts.os is Os.NIXOS:
            return _judge_nixos(now, now.facts)
        case Asked.DEPLOY:
            return _judge_other(now, now.facts)
        case _ as never:
            assert_never(never)


def _judge_from_memory(now: Situation) -> Judgement:  # noqa: PLR0911 -- a row each
    here, host = now.here, now.host
    if here is None or here.target != host.target:
        return Judgement(State.NEW, Action.ASK, Reason.NEVER_DEPLOYED)
    held = _hold(now, here, here.out)
    if held is not None:
        return held
    if here.wanted != now.wanted or here.outcome is Outcome.ROLLED_BACK:
        return Judgement(State.STALE, Action.ASK, Reason.NEW_OUTPUT)
    if here.outcome is Outcome.FAILED:
        state = State.UNCONFIRMED if _is_unconfirmed(here) else State.FAILED
        return Judgement(state, Action.ASK, Reason.FAILED_LAST_TIME, here)
    if here.is_pending:
        action = Action.CURRENT if _waits_for_restart(host, here) else Action.ASK
        return Judgement(State.PENDING, action, Reason.WAITS_FOR_RESTART)
    if here.out is None or now.is_throwaway:
        return Judgement(State.CURRENT, Action.ASK, Reason.RUNS_WANTED)
    return Judgement(State.CURRENT, Action.CURRENT, Reason.RUNS_WANTED)


def _waits_for_restart(host: Host, pending: Receipt) -> bool:
    """Whether a system that was set up for the next boot is left for whoever restarts the host."""
    is_for_boot = host.mode is Mode.BOOT or (
        pending.mode is How.BOOT and host.on_inhibitor is OnInhibitor.BOOT
    )
    return is_for_boot and not host.reboot


def _is_unconfirmed(receipt: Receipt) -> bool:
    """Whether a change of the host was begun, and nobody knows its end. An installation has none that
    could confirm itself."""
    return receipt.is_unconfirmed and receipt.mode is not How.INSTALL


def _judge_nixos(now: Situation, facts: Facts) -> Judgement:  # noqa: PLR0911 -- a row each
    live, there = facts.system, now.there
    if facts.guard is not None:
        return Judgement(State.UNCONFIRMED, Action.WAIT, Reason.SWITCH_UNDER_WAY, there)
    if live == now.wanted:
        return _judge_live(now, facts)
    if now.is_throwaway:
        return Judgement(State.STALE, Action.INSTALL, Reason.INSTALL_ALWAYS)
    if there is None:
        return _change(now, State.NEW, Reason.NOT_BY_NIXA)
    held = _hold(now, there, live)
    if held is not None:
        return held
    if boots_another(facts) and facts.profile == now.wanted == there.wanted and there.is_pending:
        if _waits_for_restart(now.host, there):
            return Judgement(State.PENDING, Action.CURRENT, Reason.WAITS_FOR_RESTART)
        return _change(now, State.PENDING, Reason.NEW_OUTPUT)
    if there.accounts_for(live):
        last = there if there.wanted == now.wanted else None
        last = last or (now.here if now.here is not None and now.here.wanted == now.wanted else None)
        if last is not None and last.outcome is Outcome.FAILED:
            return _change(now, State.FAILED, Reason.FAILED_LAST_TIME, last)
        return _change(now, State.STALE, Reason.NEW_OUTPUT)
    if now.host.on_drift is OnDrift.STOP:
        return Judgement(State.DRIFTED, Action.REFUSE, Reason.DRIFT)
    return _change(now, State.DRIFTED, Reason.DRIFT_OVERRIDDEN)


def boots_another(facts: Facts) -> bool:
    """Whether the host is set to boot another system than the one that runs, as far as it says."""
    return any(known not in (None, facts.system) for known in (facts.profile, facts.boots))


def _judge_live(now: Situation, facts: Facts) -> Judgement:
    """The wanted system runs: it must boot too, and be confirmed."""
    there, here = now.there, now.here
    if there is not None and there.is_unconfirmed and there.wanted == facts.system:
        return _change(now, State.UNCONFIRMED, Reason.NOT_CONFIRMED, there)
    if facts.before is not None:  # booted to be watched, and nobody did
        return _change(now, State.UNCONFIRMED, Reason.NOT_CONFIRMED, there)
    if boots_another(facts):
        return _change(now, State.STALE, Reason.BOOTS_ANOTHER, there)
    if there is not None and there.wanted == now.wanted and there.outcome is Outcome.DONE:
        return Judgement(State.CURRENT, Action.CURRENT, Reason.RUNS_WANTED, there)
    last = there or here
    if last is not None and last.wanted == now.wanted and last.outcome is Outcome.FAILED:
        return Judgement(State.FAILED, Action.VERIFY, Reason.FAILED_LAST_TIME, last)
    return Judgement(State.CURRENT, Action.VERIFY, Reason.RUNS_UNRECORDED)


def _hold(now: Situation, receipt: Receipt, live: str | None) -> Judgement | None:
    """The hold on an output that was rolled back, for as long as the host runs what it went back to."""
    if now.again or now.is_throwaway or live != receipt.out:
        return None
    if receipt.left != now.wanted:  # one that nobody confirmed has shown no fault: it is tried again
        return None
    if receipt.outcome is Outcome.ROLLED_BACK:
        return Judgement(State.HELD, Action.HOLD, Reason.ROLLED_BACK_BY_ITSELF, receipt)
    if receipt.mode is How.ROLLBACK and receipt.outcome is Outcome.DONE:
        return Judgement(State.HELD, Action.HOLD, Reason.ROLLED_BACK_BY_PERSON, receipt)
    return None


def _change(now: Situation, state: State, reason: Reason, by: Receipt | None = None) -> Judgement:
    """To another NixOS, in the way that hosts.toml says."""
    return Judgement(state, Action.BOOT if now.host.mode is Mode.BOOT else Action.SWITCH, reason, by)


def _judge_other(now: Situation, facts: Facts) -> Judgement:
    """A machine that does not run NixOS, or runs its installer."""
    if now.host.install is InstallPolicy.NEVER:
        return Judgement(State.REFUSED, Action.REFUSE, Reason.INSTALL_NEVER)
    is_installer = facts.os is Os.INSTALLER
    reason = Reason.IN_INSTALLER if is_installer else Reason.NOT_NIXOS
    if now.is_throwaway:
        return Judgement(State.NEW, Action.INSTALL, reason)
    if is_installer and facts.is_installing:
        return Judgement(State.FAILED, Action.INSTALL, Reason.INSTALL_UNFINISHED)
    if has_run_nixos(now):
        return Judgement(State.REFUSED, Action.REFUSE, Reason.RAN_NIXOS, now.here)
    if now.disks is not None and now.disks.has_nixos:
        return Judgement(State.REFUSED, Action.REFUSE, Reason.NIXOS_ON_DISK)
    return Judgement(State.NEW, Action.INSTALL, reason)


def has_run_nixos(now: Situation) -> bool:
    """Whether the receipt here says that this very machine (address and host key) has run NixOS."""
    here = now.here
    return (
        here is not None
        and here.target == now.host.target
        and (now.key is None or here.host_key == now.key)
        and here.out is not None
    )


def _judge_reinstall(now: Situation) -> Judgement:
    if now.host.install is InstallPolicy.NEVER:
        return Judgement(State.REFUSED, Action.REFUSE, Reason.INSTALL_NEVER)
    return Judgement(State.STALE, Action.INSTALL, Reason.REINSTALL_ASKED)


def _judge_rollback(now: Situation, facts: Facts) -> Judgement:
    if facts.os is not Os.NIXOS:
        return Judgement(State.REFUSED, Action.REFUSE, Reason.NO_NIXOS_TO_ROLL_BACK)
    if now.since is not None and facts.system != now.since:
        return Judgement(State.DRIFTED, Action.REFUSE, Reason.MOVED_ON)
    if now.wanted is None:
        return Judgement(State.REFUSED, Action.REFUSE, Reason.NOTHING_BEFORE)
    if facts.system != now.wanted:
        return _change(now, State.STALE, Reason.ROLLBACK_ASKED)
    if boots_another(facts):
        return _change(now, State.PENDING, Reason.KEEPS_LIVE)
    return Judgement(State.CURRENT, Action.CURRENT, Reason.ROLLED_BACK_ALREADY)


def may_wipe(now: Situation) -> bool:
    """The promise: a disk is wiped only where this holds. Checked over every situation."""
    if now.facts is None or now.facts.os is Os.INITRD or now.asked is Asked.ROLLBACK:
        return False
    if now.host.install is InstallPolicy.NEVER:
        return False
    if now.asked is Asked.REINSTALL:
        return True
    if now.facts.os is Os.NIXOS:
        return now.is_throwaway and now.facts.system != now.wanted
    if now.is_throwaway or (now.facts.os is Os.INSTALLER and now.facts.is_installing):
        return True
    return not has_run_nixos(now) and not (now.disks is not None and now.disks.has_nixos)
