"""`mode = "boot"`: a new system takes effect at the next boot, which nixa may bring about and watch.

guard.sh sets it up on the host. With `reboot = true` the boot loader is told to boot it once, where
it can be told so, and has the system before as its default until nixa has seen the new one run and
pass the checks. So a boot that fails is mended by the next power cycle, or by the machine's own
watchdog; one that comes up and fails its checks, or is not confirmed in time, by the host itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nixa_tasks.deploy import checks, receipts
from nixa_tasks.deploy import reboot as boot
from nixa_tasks.deploy.guard import ENDS, GO_BACK_SECONDS, LIMIT_FACTOR, Guard, await_outcome, launch
from nixa_tasks.deploy.receipts import Started
from nixa_tasks.deploy.switch import RolledBack, prove
from nixa_tasks.deploy.work import Work
from nixa_tasks.errors import NixaError
from nixa_tasks.host import lock, reach
from nixa_tasks.host.probe import Facts
from nixa_tasks.manifest.model import Host
from nixa_tasks.state.receipt import How, Outcome, Receipt

Restart = Literal["no", "watched", "unwatched"]


def unwatched(host: Host, facts: Facts) -> str | None:
    """Why the first boot of a new system would not be watched; None where it is."""
    if not host.reboot:
        return "the first boot is not watched: reboot = false leaves it to whoever restarts the host"
    if not facts.loader:
        return "the first boot is not watched: its boot loader is not known to boot a system just once"
    return None


@dataclass(frozen=True, slots=True)
class _Change:
    """One host's way to the system `new`."""

    work: Work
    new: str
    how: How
    started: Started
    drv: str | None

    def receipt(self, out: str, outcome: Outcome) -> Receipt:
        return receipts.make(
            self.work, self.started, self.how, out=out, outcome=outcome, wanted=self.new, drv=self.drv
        )

    @property
    def back(self) -> Receipt:
        return self.receipt("@OUT@", Outcome.ROLLED_BACK)


def boot_into(work: Work, new: str, how: How, started: Started, *, drv: str | None) -> Receipt:
    """Have the host boot the system `new`, whose closure it has. The host's lock is held.

    Returns the receipt that now lies on the host; without a reboot it is a pending one. Raises
    RolledBack (the host runs and boots what it ran before), DeadlinePassed, NixaError.
    """
    host, facts = work.host, work.reached.facts
    change = _Change(work, new, how, started, drv)
    failed_before = checks.failed_units(work.reached.ssh) if host.checks else frozenset()
    before = Receipt.from_json(facts.receipt)
    if facts.system == new and before is not None and before.is_unconfirmed:
        return _confirm(change, facts, failed_before)
    restart: Restart = "no"
    if host.reboot and facts.system != new:
        restart = "watched" if facts.loader else "unwatched"
    why = unwatched(host, facts)
    if facts.system != new and why is not None:
        work.journal.note(host.name, "boot", why)
    pending = _set_up(change, restart)
    return pending if restart == "no" else _restart(change, restart, failed_before)


def _set_up(change: _Change, restart: Restart) -> Receipt:
    """The boot loader's side of it. Nothing is activated."""
    work, host = change.work, change.work.host
    templates = {
        "done": change.receipt("@OUT@", Outcome.DONE),
        "armed": change.receipt("@OUT@", Outcome.FAILED),
        "back": change.back,
    }
    with work.journal.step(host.name, "set up boot"):
        guard = launch(work, work.reached.ssh, change.new, templates, task="boot", reboot=restart)
        outcome, reason = await_outcome(guard, seconds=_limit(host) * 2)
        if outcome not in (*ENDS, "armed", "failed"):
            raise _unknown(work, outcome)
        receipt = _ended(work, guard)
        if receipt is not None and outcome != "failed":
            receipts.write_local(work, receipt)
        if outcome in ("done", "armed"):
            if receipt is None:
                raise _unknown(work, outcome)
            return receipt
        raise RolledBack(
            f"it could not be set up for the next boot: {reason or 'the host does not say why'}",
            host=host.name,
            log=work.log.path,
            hint="it runs and boots what it did before"
            + ("; with reboot = false the boot loader is not asked to boot once" if restart != "no" else ""),
        )


def _unknown(work: Work, outcome: str) -> NixaError:
    """Nobody can say what the host boots next: the next deploy looks, and sets it up again."""
    what = (
        "the host was restarted while the next boot was set up"
        if outcome == "gone"
        else "the next boot was being set up, but the host can't be asked how that ended"
    )
    return NixaError(
        what,
        host=work.host.name,
        log=work.log.path,
        hint=f"it may boot the one system or the other; to go on from there: doit -a deploy:{work.host.name}",
    )


def _restart(change: _Change, restart: Restart, failed_before: frozenset[str]) -> Receipt:
    work, host, ssh = change.work, change.work.host, change.work.reached.ssh
    with work.journal.step(host.name, "reboot"):
        lost = boot.tell(lambda: boot.restart(ssh))
        after = boot.await_boot(
            ssh,
            before=work.reached.facts.boot_id,
            deadline=_boot_seconds(host),
            what="the first boot of the new system",
            hint=_gone_hint(host.name, restart),
            lost=lost,
        )
    with lock.held(  # the session that held it ended with the boot
        ssh,
        timeout=host.lock_timeout,
        announce=lambda text: work.journal.note(host.name, "lock", text),
    ) as waited:
        if waited:
            after = reach.ask_again(ssh)
        if after.system == change.new:
            return _confirm(change, after, failed_before)
        raise _came_back_without(change, after)


def _gone_hint(name: str, restart: Restart) -> str:
    way = (
        "look at its console, then cut its power and put it on again: it boots the system before"
        if restart == "watched"
        else "look at its console, and choose the generation before in its boot menu"
    )
    return f"{way}\nthen: doit -a deploy:{name}"


def _confirm(change: _Change, facts: Facts, failed_before: frozenset[str]) -> Receipt:
    """The new system runs: it stays if the checks pass, else the host restarts into the one before."""
    work, host, ssh = change.work, change.work.host, change.work.reached.ssh
    templates = {"done": change.receipt(change.new, Outcome.DONE), "back": change.back}
    with work.journal.step(host.name, "verify"):
        guard = launch(work, ssh, change.new, templates, task="prove")
        trouble = prove(work, guard, change.new, failed_before)
        wait = host.confirm_timeout + GO_BACK_SECONDS if trouble else _limit(host)
        outcome, reason = await_outcome(guard, seconds=wait)
        if outcome == Outcome.DONE:
            receipt = _ended(work, guard) or templates["done"]
            receipts.write_local(work, receipt)
            return receipt
    reason = reason or trouble or "the host does not say why"
    if outcome == Outcome.FAILED:
        raise NixaError(
            f"the new system runs, but was not confirmed: {reason}",
            host=host.name,
            log=work.log.path,
            hint=f"look at the log, then: doit -a deploy:{host.name}",
        )
    with work.journal.step(host.name, "go back"):
        after = boot.await_boot(
            ssh,
            before=facts.boot_id,
            deadline=_boot_seconds(host),
            what="the restart into the system before",
            hint=_gone_hint(host.name, "watched"),
        )
    theirs = Receipt.from_json(after.receipt)
    receipts.write_local(work, theirs or change.receipt(after.system or "", Outcome.ROLLED_BACK))
    raise _rolled_back(work, trouble or reason)


def _came_back_without(change: _Change, after: Facts) -> NixaError:
    """The machine runs something else than what it was to boot: record what, and say so."""
    work, before = change.work, change.work.reached.facts
    if after.system is None or after.system not in (before.system, before.profile):
        return NixaError(
            f"it came back with {after.system or after.os_name}, not with {change.new}",
            host=work.host.name,
            log=work.log.path,
            hint=f"did it boot from another disk? then: doit -a deploy:{work.host.name}",
        )
    receipt = change.receipt(after.system, Outcome.ROLLED_BACK)
    if after.profile == change.new:  # somebody chose it in the boot menu: make it what boots next
        templates = {"done": receipt, "back": receipt}
        guard = launch(work, work.reached.ssh, after.system, templates, task="boot", reboot="no")
        await_outcome(guard, seconds=_limit(work.host))
    else:
        receipts.write_remote(work.reached.ssh, receipt)
    receipts.write_local(work, receipt)
    return _rolled_back(work, "the new system did not boot")


def _rolled_back(work: Work, reason: str) -> RolledBack:
    return RolledBack(
        f"rolled back: {reason}; it runs the system before again",
        host=work.host.name,
        log=work.log.path,
        hint=f"mend the configuration, then: doit deploy:{work.host.name}",
    )


def _ended(work: Work, guard: Guard) -> Receipt | None:
    """The receipt that the host wrote, with its logs taken along."""
    for line in guard.logs():
        work.log(line)
    return guard.receipt()


def _boot_seconds(host: Host) -> float:
    return min(boot.BOOT_SECONDS, host.install_timeout)


def _limit(host: Host) -> float:
    return host.confirm_timeout * LIMIT_FACTOR + 30
