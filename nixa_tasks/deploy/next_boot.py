"""`mode = "boot"`: a new system takes effect at the next boot, which nixa may bring about and watch.

guard.sh sets it up on the host. With `reboot = true` the boot loader is told to boot it once, where
it can be told so, and has the system before as its default until nixa has seen the new one run and
pass the checks. So a boot that fails is undone by the next power cycle, or by the machine's own
watchdog; one that comes up and fails its checks, or is not confirmed in time, by the host itself.
"""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum

from nixa_tasks.deploy import checks, reboot, receipts
from nixa_tasks.deploy.guard import (
    GO_BACK_SECONDS,
    LIMIT_FACTOR,
    Ending,
    Errand,
    Guard,
    Task,
    await_ending,
    launch,
)
from nixa_tasks.deploy.reboot import Awaited
from nixa_tasks.deploy.receipts import PACKAGE
from nixa_tasks.deploy.switch import Change, RolledBack, prove, rolled_back, stuck
from nixa_tasks.errors import Interrupted, NixaError
from nixa_tasks.host import lock, reach
from nixa_tasks.host.probe import Facts
from nixa_tasks.host.ssh import Fence, Ssh, script
from nixa_tasks.manifest.model import Host
from nixa_tasks.state.receipt import Outcome, Receipt


class Restart(StrEnum):
    """Who restarts the host, and whether a boot that fails leads back by itself."""

    NOBODY = "no"
    WATCHED = "watched"
    UNWATCHED = "unwatched"


def unwatched(host: Host, facts: Facts) -> str | None:
    """Why the first boot of a new system would not be watched; None where it is."""
    if not host.reboot:
        return "the first boot is not watched: reboot = false leaves it to whoever restarts the host"
    if not facts.loader:
        return "the first boot is not watched: its boot loader is not known to boot a system just once"
    return None


def needs_reboot(ssh: Ssh) -> tuple[str, ...]:
    """What of the system that runs takes effect at a reboot only, such as `kernel 6.12.3 → 6.12.9`.

    Empty where the host can't be asked: the switch is done either way.
    """
    try:
        done = ssh.run(script("needs_reboot", PACKAGE), deadline=60, check=False, what="needs a reboot")
    except Interrupted:
        raise
    except NixaError:
        return ()
    return tuple(done.stdout.splitlines()) if done.is_ok else ()


def boot_into(change: Change) -> Receipt:
    """Have the host boot the new system. The host's lock is held.

    Returns the receipt that now lies on the host; without a reboot it is a pending one. Raises Stale,
    RolledBack (the host runs and boots what it ran before), DeadlinePassed, NixaError.
    """
    turn, facts, new = change.turn, change.reached.facts, change.new
    host, theirs = turn.host, Receipt.from_json(facts.receipt)
    failed_before = checks.failed_units(change.reached.ssh) if host.checks else frozenset()
    is_unconfirmed = (theirs is not None and theirs.is_unconfirmed) or facts.before is not None
    if facts.system == new and is_unconfirmed:
        return _confirm(change, failed_before)
    restart = Restart.NOBODY
    if facts.system != new:
        if host.reboot:
            restart = Restart.WATCHED if facts.loader else Restart.UNWATCHED
        why = unwatched(host, facts)
        if why is not None:
            turn.note("boot", why)
    pending = _set_up(change, restart)
    return pending if restart is Restart.NOBODY else _restart(change, restart, failed_before)


def _set_up(change: Change, restart: Restart) -> Receipt:
    """The boot loader's side of it. Nothing is activated."""
    turn = change.turn
    templates = {
        "done": change.receipt("@OUT@", Outcome.DONE),
        "armed": change.receipt("@OUT@", Outcome.FAILED),
        **change.ways_back,
    }
    with turn.journal.step(turn.name, "set up boot"):
        errand = Errand(change.new, Task.BOOT, templates, restart)
        guard = launch(change.reached.ssh, errand, run=turn.journal.run, log=turn.log)
        ending, reason = await_ending(guard, seconds=_limit(turn.host) * 2)
        if ending in (Ending.GONE, Ending.UNKNOWN):
            raise _unknown(change, ending)
        receipt = _ended(change, guard)
        if receipt is not None and ending is not Ending.FAILED:
            receipts.remember(turn, receipt)
        if ending in (Ending.DONE, Ending.ARMED):
            if receipt is None:
                raise _unknown(change, ending)
            return receipt
        if ending is Ending.STUCK:
            raise stuck(turn.name, turn.log.path, reason, receipt.out if receipt else None)
        hint = "it runs and boots what it did before"
        if restart is not Restart.NOBODY:
            hint += "; with reboot = false the boot loader is not asked to boot once"
        raise RolledBack(
            f"it could not be set up for the next boot: {reason or 'the host does not say why'}",
            host=turn.name,
            log=turn.log.path,
            hint=hint,
        )


def _unknown(change: Change, ending: Ending) -> NixaError:
    """Nobody can say what the host boots next: the next deploy looks, and sets it up again."""
    what = (
        "the host was restarted while the next boot was set up"
        if ending is Ending.GONE
        else "the next boot was being set up, but the host can't be asked how that ended"
    )
    name = change.turn.name
    return NixaError(
        what,
        host=name,
        log=change.turn.log.path,
        hint=f"it may boot the one system or the other; to go on from there: doit -a deploy:{name}",
    )


def _restart(change: Change, restart: Restart, failed_before: frozenset[str]) -> Receipt:
    turn, ssh = change.turn, change.reached.ssh
    with turn.journal.step(turn.name, "reboot"):
        awaited = Awaited(
            before=change.reached.facts.boot_id,
            deadline=_boot_seconds(turn.host),
            what="the first boot of the new system",
            hint=_gone_hint(turn.name, restart),
            lost=reboot.ask_to_go(lambda: reboot.restart(ssh)),
        )
        after = reboot.await_boot(ssh, awaited)
    ssh = replace(ssh, fence=None)
    with lock.held(  # the session that held it ended with the boot
        ssh, timeout=turn.host.lock_timeout, announce=lambda text: turn.note("lock", text)
    ) as held:
        after = reach.ask_again(ssh)
        fence = Fence(after.boot_id, held.token, after.system)
        booted = replace(change, reached=replace(change.reached, facts=after, ssh=replace(ssh, fence=fence)))
        if after.system == change.new:
            return _confirm(booted, failed_before)
        raise _came_back_without(booted, change.reached.facts)


def _gone_hint(name: str, restart: Restart) -> str:
    way = (
        "look at its console, then cut its power and put it on again: it boots the system before"
        if restart is Restart.WATCHED
        else "look at its console, and choose the generation before in its boot menu"
    )
    return f"{way}\nthen: doit -a deploy:{name}"


def _confirm(change: Change, failed_before: frozenset[str]) -> Receipt:
    """The new system runs: it stays if the checks pass, else the host restarts into the one before."""
    turn, host, facts = change.turn, change.turn.host, change.reached.facts
    templates = {"done": change.receipt(change.new, Outcome.DONE), **change.ways_back}
    with turn.journal.step(host.name, "verify"):
        errand = Errand(change.new, Task.PROVE, templates)
        guard = launch(change.reached.ssh, errand, run=turn.journal.run, log=turn.log)
        trouble = prove(guard, change.new, failed_before, turn.journal)
        wait = host.confirm_timeout + GO_BACK_SECONDS if trouble else _limit(host)
        ending, reason = await_ending(guard, seconds=wait)
        if ending is Ending.DONE:
            receipt = _ended(change, guard) or templates["done"]
            receipts.remember(turn, receipt)
            return receipt
    reason = reason or trouble or "the host does not say why"
    if ending is Ending.FAILED:
        raise NixaError(
            f"the new system runs, but was not confirmed: {reason}",
            host=host.name,
            log=turn.log.path,
            hint=f"look at the log, then: doit -a deploy:{host.name}",
        )
    with turn.journal.step(host.name, "go back"):
        awaited = Awaited(
            before=facts.boot_id,
            deadline=_boot_seconds(host),
            what="the restart into the system before",
            hint=_gone_hint(host.name, Restart.WATCHED),
        )
        after = reboot.await_boot(replace(change.reached.ssh, fence=None), awaited)
    theirs = Receipt.from_json(after.receipt)
    earlier = facts.before or (theirs.out if theirs is not None else None)
    if after.system not in (change.new, earlier):
        raise _came_back_with(change, after)
    if after.system == change.new:
        receipts.remember(turn, receipts.failed(change.receipt(after.system, Outcome.FAILED), reason))
        raise stuck(host.name, turn.log.path, trouble or reason, after.system)
    ours = receipts.failed(change.receipt(after.system, Outcome.ROLLED_BACK), reason)
    receipts.remember(turn, theirs or ours)
    raise rolled_back(host.name, turn.log.path, trouble or reason)


def _came_back_without(change: Change, before: Facts) -> NixaError:
    """The machine runs something else than what it was to boot: record what, and say so. `change` is
    of the boot that it came back with, `before` how it was."""
    turn, after, ssh = change.turn, change.reached.facts, change.reached.ssh
    if after.system is None or after.system not in (before.system, before.profile):
        return _came_back_with(change, after)
    reason = "the new system did not boot"
    made = replace(change.receipt(after.system, Outcome.ROLLED_BACK), left=change.new)
    receipt = receipts.failed(made, reason)
    if after.profile == change.new:  # somebody chose it in the boot menu: make it what boots next
        errand = Errand(after.system, Task.BOOT, {"done": receipt, "back": receipt}, Restart.NOBODY)
        guard = launch(ssh, errand, run=turn.journal.run, log=turn.log)
        await_ending(guard, seconds=_limit(turn.host))
    else:
        receipts.write_remote(ssh, receipt)
    receipts.remember(turn, receipt)
    return rolled_back(turn.name, turn.log.path, reason)


def _came_back_with(change: Change, after: Facts) -> NixaError:
    name = change.turn.name
    return NixaError(
        f"it came back with {after.system or after.os_name}, not with {change.new}",
        host=name,
        log=change.turn.log.path,
        hint=f"did it boot from another disk? then: doit -a deploy:{name}",
    )


def _ended(change: Change, guard: Guard) -> Receipt | None:
    """The receipt that the host wrote, with its logs taken along."""
    for line in guard.logs():
        change.turn.log(line)
    return guard.receipt()


def _boot_seconds(host: Host) -> float:
    return min(reboot.BOOT_SECONDS, host.install_timeout)


def _limit(host: Host) -> float:
    return host.confirm_timeout * LIMIT_FACTOR + 30
