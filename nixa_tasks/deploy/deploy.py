"""One host, from here to there: reach, decide, act, record. Truth lies on the host."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import assert_never

from nixa_tasks.deploy import copy, inhibitors, install, next_boot, preflight, reboot, receipts, switch
from nixa_tasks.deploy.decide import Action, Asked, Judgement, Reason, Situation, judge
from nixa_tasks.deploy.reboot import Awaited
from nixa_tasks.deploy.receipts import adopt
from nixa_tasks.deploy.rollback import find_earlier
from nixa_tasks.deploy.switch import Change
from nixa_tasks.deploy.turn import Done, Turn
from nixa_tasks.errors import NixaError
from nixa_tasks.files import locked, read_json, write_json
from nixa_tasks.host import lock, reach
from nixa_tasks.host.probe import Os
from nixa_tasks.host.reach import Reached
from nixa_tasks.host.ssh import Fence, FenceBroken, Stale
from nixa_tasks.manifest.model import OnInhibitor
from nixa_tasks.state.receipt import How, Outcome, Receipt


class Refused(NixaError):
    """The decision was not to touch the host."""


@dataclass(frozen=True, slots=True)
class Decided:
    """What is done with the host as it was reached, and the system that is wanted on it."""

    reached: Reached
    situation: Situation
    judgement: Judgement

    @property
    def action(self) -> Action:
        return self.judgement.action

    @property
    def wanted(self) -> str | None:
        return self.situation.wanted


def carry_out(turn: Turn) -> Done:
    """Bring one host to what is asked. Raises NixaError; what was done is recorded either way."""
    name = turn.name
    try:
        with (
            turn.journal.step(name, turn.asked),
            locked(
                turn.layout.locks / f"{name}.lock",
                timeout=turn.host.lock_timeout,
                announce=lambda text: turn.note("lock", text),
                what="this host's turn",
            ),
        ):
            return _run(turn)
    except NixaError as error:
        error.host = error.host or name
        error.hint = error.hint or f"finished steps are not repeated; to continue: doit {turn.asked}:{name}"
        if error.log is None and turn.log.path.exists():
            error.log = turn.log.path
        raise
    finally:
        turn.log.close()


def _run(turn: Turn) -> Done:
    """Reach the host and do what is to be done. Where the deploy that was waited for has restarted
    the host, it is begun anew: an installation restarts it twice. The same where the lock was lost with
    a connection that was cut. Not a reinstallation, which would wipe what the user did not know of."""
    for is_last in (False, False, False, True):
        reached = _reach(turn)
        try:
            return _act(turn, reached)
        except lock.HolderRestarted as error:
            if is_last or turn.asked is Asked.REINSTALL:
                raise
            turn.note("lock", "whoever held it has restarted the host: looking again")
            awaited = Awaited(
                reached.facts.boot_id,
                min(reboot.BOOT_SECONDS, turn.host.install_timeout),
                "the host, which another deploy has restarted",
                f"look at that deploy, then: doit deploy:{turn.name}",
                error,
            )
            reboot.await_boot(reached.ssh, awaited)
        except Stale as error:
            is_reinstall = turn.asked is Asked.REINSTALL
            if is_last or is_reinstall or error.broken is not FenceBroken.LOCK_LOST or _has_changed(reached):
                raise
            turn.note(
                "lock", "the host's lock was lost, and nobody has changed the host since: looking again"
            )
        finally:
            reached.ssh.disconnect()
    raise AssertionError  # the last one has returned or raised


def _has_changed(reached: Reached) -> bool:
    """Whether the host has booted, or was switched or deployed to, since it was reached."""
    now, then = reach.ask_again(reached.ssh), reached.facts
    return (now.boot_id, now.system, now.receipt) != (then.boot_id, then.system, then.receipt)


def _reach(turn: Turn) -> Reached:
    with turn.journal.step(turn.name, "reach"):
        if needs_touch(turn.host.identity):
            turn.note("reach", "its key needs a touch for each login, and a switch makes several: stay there")
        reached = reach.connect(turn.host, turn.access, lambda text: turn.note("reach", text))
        with contextlib.suppress(NixaError):  # a full disk here costs a cache, not a deploy
            write_json(turn.layout.host(turn.name).facts, reached.facts.to_json())
    turn.log(f"reached: {json.dumps(reached.facts.to_json())}")
    return reached


def needs_touch(identity: Path | None) -> bool:
    """Whether that is a key on a hardware token (sk-ssh-…), by its public half beside it."""
    if identity is None:
        return False
    try:
        return Path(f"{identity}.pub").read_text(errors="replace").startswith("sk-")
    except OSError:
        return False


def _act(turn: Turn, reached: Reached) -> Done:
    """Decide, prepare, take the host's lock, and decide again on what the host says then.

    The first decision only tells what has to be built, which may take hours; another controller may
    have had the host meanwhile. A host that is current is asked under its lock too: a switch whose
    controller died may be about to go back from it, and one that seems to have drifted may be in the
    middle of somebody's switch.
    """
    if turn.asked is Asked.ROLLBACK:
        reached = _as_root(turn, reached, is_needed=True)
    first = _decide(turn, reached)
    first = replace(first, reached=_as_root(turn, reached, is_needed=first.action.is_change))
    if first.action is Action.HOLD:
        return Done(first.judgement, first.situation.there, reached.facts.system)
    is_nixos = reached.facts.os is Os.NIXOS
    if not (first.reached.can_be_root and is_nixos and first.action in (Action.REFUSE, Action.WAIT)):
        _prepare(turn, first)
    if not first.reached.can_be_root and not first.action.is_change:
        return Done(first.judgement, adopt(turn, first.reached), reached.facts.system)
    preflight.check_root(first.reached)
    with lock.held(
        first.reached.ssh,
        timeout=turn.host.lock_timeout,
        announce=lambda text: turn.note("lock", text),
    ) as held:
        facts = reach.ask_again(first.reached.ssh)
        fence = Fence(facts.boot_id, held.token, facts.system)
        ssh = replace(first.reached.ssh, fence=fence)
        decided = _decide(turn, replace(first.reached, ssh=ssh, facts=facts), before=first.judgement)
        if decided.action is Action.HOLD:
            return Done(decided.judgement, decided.situation.there, facts.system)
        _prepare(turn, decided)
        receipt = _change(turn, decided)
        return Done(decided.judgement, receipt, facts.system, facts.os_name)


def _as_root(turn: Turn, reached: Reached, *, is_needed: bool) -> Reached:
    """The way to root with sudo's password, where the host asks for one. A host that is current does
    without where there is none: its record is then made without its lock."""
    passwords = turn.access.passwords
    if not (is_needed or passwords.is_at_hand()):
        return reached
    return reach.as_root(reached, passwords, lambda text: turn.note("sudo", text))


def _decide(turn: Turn, reached: Reached, *, before: Judgement | None = None) -> Decided:
    """What the table says of the host as it is, its disks looked at where they may be wiped. It is
    announced, unless it is what was decided `before`."""
    rollback = turn.asked is Asked.ROLLBACK
    now = Situation(
        host=turn.host,
        wanted=find_earlier(turn, reached) if rollback else turn.wanted,
        here=Receipt.from_json(read_json(turn.layout.host(turn.name).deployed)),
        facts=reached.facts,
        key=reached.key.text,
        asked=turn.asked,
        again=turn.again,
        since=turn.undo.since if turn.undo else None,
    )
    judgement = judge(now)
    if judgement.action is Action.INSTALL and reached.can_be_root and not reached.facts.is_installing:
        now = replace(now, disks=preflight.look_at_disks(reached.ssh))
        judgement = judge(now)
    if before is None or judgement != before:
        turn.note("decide", f"{judgement.action}: it {judgement.text}")
        for line in now.disks.lines if now.disks and judgement.action is Action.INSTALL else ():
            turn.note("decide", f"wipes {line}")
    return Decided(reached, now, judgement)


def _refuse(turn: Turn, decided: Decided) -> Refused:
    name, now, judgement = turn.name, decided.situation, decided.judgement
    tail: tuple[str, ...] = ()
    hint: str | None = None
    match judgement.reason:
        case Reason.DRIFT:
            was = now.there.out if now.there else "nothing"
            hint = (
                f"it runs {decided.reached.facts.system}, its receipt names {was}\n"
                f'to deploy over it, set on_drift = "deploy" for {name}, or bring the change into the flake'
            )
        case Reason.INSTALL_NEVER:
            hint = f"to install it, change `install` for {name} in hosts.toml"
        case Reason.RAN_NIXOS | Reason.NIXOS_ON_DISK:
            tail = now.disks.lines if now.disks else ()
            hint = (
                "is it in a rescue system? Then restart it into its own\n"
                f"to wipe it and install it again: doit reinstall:{name}"
            )
        case Reason.IN_INITRD:
            hint = f"give it its passphrase, then: doit deploy:{name}"
        case Reason.SWITCH_UNDER_WAY:
            hint = f"it goes back by itself unless it is confirmed; then: doit deploy:{name}"
        case _:
            pass
    return Refused(f"refused: it {judgement.text}", host=name, hint=hint, tail=tail)


def _prepare(turn: Turn, decided: Decided) -> None:
    """Have the closures before the host's lock is taken: building may take long. Raises Refused."""
    if decided.action in (Action.REFUSE, Action.WAIT):
        raise _refuse(turn, decided)
    if turn.asked is Asked.ROLLBACK or not decided.action.is_change:
        return
    reached = decided.reached
    if decided.action is not Action.INSTALL and copy.builds_itself(turn.host, reached.facts.os):
        preflight.check_root(reached)
        turn.suppliers.there(turn, replace(reached.ssh, fence=None))
        return
    system = turn.suppliers.system(turn)
    if decided.action is Action.INSTALL:
        preflight.check_later_login(turn.host, system)
        preflight.check_host(reached, turn.output.system, turn.manifest.fleet.kexec_phase)
        turn.suppliers.disko(turn)


def _change(turn: Turn, decided: Decided) -> Receipt:
    reached = decided.reached
    if decided.action.is_change:
        _expect_the_worst(turn, decided)
    match decided.action:
        case Action.INSTALL:
            image = turn.suppliers.image(turn) if reached.facts.os is not Os.INSTALLER else None
            parts = install.Parts(turn.suppliers.system(turn), turn.suppliers.disko(turn), image)
            return install.install(turn, reached, parts)
        case Action.SWITCH | Action.BOOT:
            return _switch(turn, decided)
        case Action.CURRENT | Action.VERIFY:
            return adopt(turn, reached)
        case Action.REFUSE | Action.WAIT | Action.HOLD | Action.ASK:
            raise AssertionError(decided)  # _act and _prepare have ended before
        case _ as never:
            assert_never(never)


def _how(turn: Turn, action: Action) -> How:
    return How.ROLLBACK if turn.asked is Asked.ROLLBACK else How(action)


def _expect_the_worst(turn: Turn, decided: Decided) -> None:
    """From here on the host may run something else than the last receipt here says, and this process
    may die before it could say so: a deploy back to that system must not seem to be done already."""
    facts = decided.reached.facts
    receipt = receipts.make(
        turn,
        decided.reached,
        _how(turn, decided.action),
        out=facts.system
        if facts.os is Os.NIXOS
        else None,  # the installer's own system is none of the host's
        outcome=Outcome.FAILED,
        wanted=decided.wanted,
    )
    receipts.remember(turn, receipt, history=False)


def _switch(turn: Turn, decided: Decided) -> Receipt:
    reached, is_back = decided.reached, turn.asked is Asked.ROLLBACK
    drv = None if is_back else turn.output.toplevel_drv
    if not is_back and not copy.builds_itself(turn.host, reached.facts.os):
        system = turn.suppliers.system(turn)
        with turn.sending("copy"):
            copy.copy(reached.ssh, system, sink=turn.log)
    # What a person took back is held; what went back with a failed wave has shown no fault of its own.
    left = reached.facts.system if is_back and turn.undo is None else None
    change = Change(
        turn,
        reached,
        decided.wanted or turn.wanted,
        _how(turn, decided.action),
        drv,
        left,
    )
    if decided.action is Action.BOOT:
        return next_boot.boot_into(change)
    return _switch_unless_inhibited(change)


def _switch_now(change: Change) -> Receipt:
    receipt = switch.switch(change)
    parts = next_boot.needs_reboot(change.reached.ssh.unshared())
    if parts:
        change.turn.note("reboot", f"a reboot is needed for: {', '.join(parts)}")
    return receipt


def _switch_unless_inhibited(change: Change) -> Receipt:
    """Switch, or what `on_inhibitor` says where NixOS would refuse to. Raises Refused."""
    turn, ssh = change.turn, change.reached.ssh
    names = ", ".join(inhibitors.of_switch(ssh, change.new))
    if not names:
        return _switch_now(change)
    match turn.host.on_inhibitor:
        case OnInhibitor.FORCE:
            turn.note("inhibitors", f"switches although {names} changes under the running system")
            return _switch_now(change)
        case OnInhibitor.BOOT:
            turn.note("inhibitors", f"{names} can't change in a running system: set up for the next boot")
            return next_boot.boot_into(
                replace(change, how=How.BOOT if change.how is How.SWITCH else change.how)
            )
        case OnInhibitor.STOP:
            raise Refused(
                f"refused: {names} can't change in a running system",
                host=turn.name,
                hint=f'nothing was changed; set on_inhibitor = "boot" or mode = "boot" for {turn.name},\n'
                'or on_inhibitor = "force" to switch all the same',
            )
        case _ as never:
            assert_never(never)
