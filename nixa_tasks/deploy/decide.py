"""What is to be done with a host: one table, no I/O.

`deploy`, `plan` and the tests read this same table. Whatever ends in INSTALL wipes a disk, so the
rows that lead there are few, and `wipes_only_if` states what holds for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from nixa_tasks.host.probe import Os
from nixa_tasks.manifest.model import InstallPolicy, Mode, OnDrift
from nixa_tasks.state.receipt import Receipt


class Asked(StrEnum):
    """The user's word."""

    DEPLOY = "deploy"
    REINSTALL = "reinstall"
    ROLLBACK = "rollback"


class Action(StrEnum):
    """What is done with a host."""

    CURRENT = "current"
    PENDING = "pending"
    SWITCH = "switch"
    BOOT = "boot"
    INSTALL = "install"
    REFUSE = "refuse"

    @property
    def is_change(self) -> bool:
        """Whether the host is changed by it."""
        return self in (Action.SWITCH, Action.BOOT, Action.INSTALL)


@dataclass(frozen=True, slots=True)
class Situation:
    """All that a decision depends on.

    `live` is the store path that runs now, `wanted` the one that the flake says (for a rollback:
    the one to go back to, or None where there is none), `profile` the one that the system profile
    leads to. `mode` and `reboot`: how a change takes effect. `is_expected_key`: the host key is the
    pinned or remembered one, or a first contact; false only for a key that differs.
    """

    asked: Asked
    wanted: str | None
    os: Os
    live: str | None
    is_expected_key: bool
    receipt: Receipt | None
    local: Receipt | None
    install: InstallPolicy
    on_drift: OnDrift
    profile: str | None = None
    mode: Mode = Mode.SWITCH
    reboot: bool = False

    @property
    def boots_elsewhere(self) -> bool:
        """Whether nixa itself has set another system than the live one to be booted next."""
        return (
            self.receipt is not None
            and self.receipt.is_pending
            and self.receipt.out == self.live != self.profile == self.receipt.wanted
        )


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, and why in words that end a sentence beginning with the host's name."""

    action: Action
    reason: str


def decide(now: Situation) -> Decision:
    """The table, read from the top: the first row that fits is taken."""
    if not now.is_expected_key:
        return Decision(Action.REFUSE, "shows another host key than the expected one")
    match now.asked:
        case Asked.REINSTALL:
            return _reinstall(now)
        case Asked.ROLLBACK:
            return _roll_back(now)
        case Asked.DEPLOY:
            return _deploy_nixos(now) if now.os is Os.NIXOS else _deploy_other(now)


def _reinstall(now: Situation) -> Decision:
    if now.install is InstallPolicy.NEVER:
        return Decision(Action.REFUSE, 'may not be installed: hosts.toml says install = "never"')
    return Decision(Action.INSTALL, "is to be wiped and installed again, as asked")


def _roll_back(now: Situation) -> Decision:
    if now.os is not Os.NIXOS:
        return Decision(Action.REFUSE, "does not run NixOS, so there is nothing to go back to")
    if now.wanted is None:
        return Decision(Action.REFUSE, "has no system from before to go back to")
    if now.live == now.wanted:
        if now.boots_elsewhere:
            return _change(now, "keeps the system that runs, also at its next restart")
        return Decision(Action.CURRENT, "runs that system already")
    return _change(now, "goes back to the system before")


def _deploy_nixos(now: Situation) -> Decision:
    receipt = now.receipt
    if now.live == now.wanted:
        return _deploy_live(now)
    if now.install is InstallPolicy.ALWAYS:
        return Decision(Action.INSTALL, 'has another output, and hosts.toml says install = "always"')
    if receipt is None:
        return _change(now, "runs a NixOS that was not deployed by nixa")
    if now.mode is Mode.BOOT and not now.reboot and now.boots_elsewhere and now.profile == now.wanted:
        return Decision(Action.PENDING, "boots into the new system at its next restart")
    if receipt.accounts_for(now.live):
        return _change(now, "has a new output")
    return _deploy_over(now)


def _deploy_live(now: Situation) -> Decision:
    if now.boots_elsewhere:
        return _change(now, "runs what the flake says, but is set to boot into another system")
    if now.receipt is not None and now.receipt.is_unconfirmed and now.receipt.wanted == now.live:
        return _change(now, "runs what the flake says, but nobody has confirmed it since it booted")
    return Decision(Action.CURRENT, "runs what the flake says")


def _deploy_over(now: Situation) -> Decision:
    if now.on_drift is OnDrift.STOP:
        return Decision(Action.REFUSE, "was changed by other means since its last deploy")
    return _change(now, "was changed by other means, and hosts.toml says to deploy over it")


def _change(now: Situation, reason: str) -> Decision:
    """To another NixOS, in the way that hosts.toml says."""
    return Decision(Action.BOOT if now.mode is Mode.BOOT else Action.SWITCH, reason)


def _deploy_other(now: Situation) -> Decision:
    what = "is in the NixOS installer" if now.os is Os.INSTALLER else "does not run NixOS"
    if now.install is InstallPolicy.NEVER:
        return Decision(Action.REFUSE, f'{what}, and hosts.toml says install = "never"')
    return Decision(Action.INSTALL, what)


def wipes_only_if(now: Situation) -> bool:
    """The promise: a disk is wiped only where this holds. Checked over every situation."""
    is_told = now.asked is Asked.REINSTALL or now.install is InstallPolicy.ALWAYS
    return (
        now.is_expected_key
        and now.install is not InstallPolicy.NEVER
        and now.asked is not Asked.ROLLBACK
        and (now.os is not Os.NIXOS or is_told)
        and (now.asked is Asked.REINSTALL or now.os is not Os.NIXOS or now.live != now.wanted)
    )
