"""One host, from here to there: reach, decide, act, record. Truth lies on the host."""

from __future__ import annotations

import dataclasses
import json
from typing import assert_never

from nixa_tasks.deploy import copy, install, next_boot, preflight, receipts, remote_build, switch
from nixa_tasks.deploy import reboot as boot
from nixa_tasks.deploy.adopt import adopt
from nixa_tasks.deploy.decide import Action, Asked, Decision, decide
from nixa_tasks.deploy.order import Done, Order
from nixa_tasks.deploy.receipts import Started
from nixa_tasks.deploy.situation import earlier, situation
from nixa_tasks.deploy.work import Work
from nixa_tasks.errors import NixaError
from nixa_tasks.files import locked, write_json
from nixa_tasks.host import lock, reach, sudo
from nixa_tasks.host.probe import Os
from nixa_tasks.state.receipt import How, Outcome, Receipt
from nixa_tasks.state.run_log import RunLog


class Refused(NixaError):
    """The decision was not to touch the host."""


def carry_out(order: Order) -> Done:
    """Bring one host to what is asked. Raises NixaError; what was done is recorded either way."""
    name = order.host.name
    log = RunLog(order.layout.host(name).logs, order.asked, order.journal.run, order.journal.clock)
    started = Started.now(order.access.clock)
    try:
        with (
            order.journal.step(name, order.asked),
            locked(
                order.layout.locks / f"{name}.lock",
                timeout=order.host.lock_timeout,
                announce=lambda text: order.journal.note(name, "lock", text),
                what="this host's turn",
            ),
        ):
            return _turn(order, log, started)
    except NixaError as error:
        error.host = error.host or name
        error.hint = (
            error.hint or f"what was finished is kept; to go on from there: doit {order.asked}:{name}"
        )
        if error.log is None and log.path.exists():
            error.log = log.path
        raise
    finally:
        log.close()


def _turn(order: Order, log: RunLog, started: Started) -> Done:
    """Reach the host and do what is to be done. Where the deploy that was waited for has restarted
    the host, it is begun anew: an installation restarts it twice. Not a reinstallation, which would
    wipe what the user did not know of."""
    for is_last in (False, False, False, True):
        work = _reach(order, log)
        ssh = work.reached.ssh
        try:
            return _act(order, work, started)
        except lock.HolderRestarted as error:
            if is_last or order.asked is Asked.REINSTALL:
                raise
            order.journal.note(
                order.host.name, "lock", "whoever held it has restarted the host: looking again"
            )
            boot.await_boot(
                ssh,
                before=work.reached.facts.boot_id,
                deadline=min(boot.BOOT_SECONDS, order.host.install_timeout),
                what="the host, which another deploy has restarted",
                hint=f"look at that deploy, then: doit deploy:{order.host.name}",
                lost=error,
            )
        finally:
            ssh.disconnect()
    raise AssertionError  # the last one has returned or raised


def _reach(order: Order, log: RunLog) -> Work:
    name = order.host.name
    with order.journal.step(name, "reach"):
        reached = reach.connect(
            order.host, order.access, lambda text: order.journal.note(name, "reach", text)
        )
        write_json(order.layout.host(name).facts, reached.facts.to_json())
    log(f"reached: {json.dumps(reached.facts.to_json())}")
    return Work(
        order.manifest,
        order.host,
        order.output,
        order.flake,
        reached,
        order.layout,
        order.journal,
        log,
        order.access,
        order.uplink,
    )


def _act(order: Order, work: Work, started: Started) -> Done:
    """Decide and do it, under the host's lock. That holds for a host that runs the wanted system
    too: a switch whose controller died may be about to go back from it. And a host that seems to
    have been changed by other means may be in the middle of somebody's switch."""
    if order.asked is Asked.ROLLBACK:
        work = _with_password(work, is_needed=True)
    wanted, decision = _decide(order, work)
    work = _with_password(work, is_needed=decision.action.is_change)
    is_sure = decision.action is not Action.REFUSE or work.reached.facts.os is not Os.NIXOS
    if is_sure or not work.reached.can_be_root:
        _prepare(order, work, decision)
    if not work.reached.can_be_root and decision.action in (Action.CURRENT, Action.PENDING):
        return Done(decision.action, decision.reason, adopt(work, started), work.reached.facts.system)
    preflight.check_root(work)
    with lock.held(
        work.reached.ssh,
        timeout=order.host.lock_timeout,
        announce=lambda text: order.journal.note(order.host.name, "lock", text),
    ) as waited:
        if waited or not is_sure:  # whoever held it has changed the host: look again
            facts = reach.ask_again(work.reached.ssh)
            work = dataclasses.replace(work, reached=dataclasses.replace(work.reached, facts=facts))
            wanted, decision = _decide(order, work)
            _prepare(order, work, decision)
        receipt = _change(order, work, decision, wanted, started)
        return Done(decision.action, decision.reason, receipt, work.reached.facts.system)


def _with_password(work: Work, *, is_needed: bool) -> Work:
    """The way to root with sudo's password, where the host asks for one. A host that is current does
    without where none can be had: its record is then made without its lock."""
    if not (is_needed or sudo.is_at_hand()):
        return work
    reached = reach.as_root(
        work.reached,
        work.access.passwords,
        lambda text: work.journal.note(work.host.name, "sudo", text),
    )
    return dataclasses.replace(work, reached=reached)


def _decide(order: Order, work: Work) -> tuple[str | None, Decision]:
    """The system that is wanted, and what the table says."""
    wanted = earlier(work, order.back) if order.asked is Asked.ROLLBACK else work.wanted
    decision = decide(situation(work, order.asked, wanted))
    if order.back is not None and work.reached.facts.system != order.back.since:
        decision = Decision(Action.REFUSE, "runs something else by now than what it was switched to")
    order.journal.note(order.host.name, "decide", f"{decision.action}: it {decision.reason}")
    return wanted, decision


def _refusal_hint(work: Work, decision: Decision) -> str | None:
    name = work.host.name
    if "other means" in decision.reason:
        receipt = Receipt.from_json(work.reached.facts.receipt)
        was = receipt.out if receipt else "nothing"
        return (
            f"it runs {work.reached.facts.system}, its receipt names {was}\n"
            f'to deploy over it, set on_drift = "deploy" for {name}, or bring the change into the flake'
        )
    if "install" in decision.reason:
        return f"to install it, change `install` for {name} in hosts.toml"
    return None


def _prepare(order: Order, work: Work, decision: Decision) -> None:
    """Have the closures before the host's lock is taken: building may take long. Raises Refused."""
    if decision.action is Action.REFUSE:
        raise Refused(
            f"refused: it {decision.reason}", host=order.host.name, hint=_refusal_hint(work, decision)
        )
    if order.asked is Asked.ROLLBACK or not decision.action.is_change:
        return
    if _builds_there(work, decision):
        preflight.check_root(work)
        order.suppliers.there(work)
        return
    order.suppliers.system(work)
    if decision.action is Action.INSTALL:
        preflight.check_host(work)
        order.suppliers.disko(work)


def _builds_there(work: Work, decision: Decision) -> bool:
    return decision.action is not Action.INSTALL and remote_build.is_remote(work.host, work.reached.facts.os)


def _change(order: Order, work: Work, decision: Decision, wanted: str | None, started: Started) -> Receipt:
    if decision.action.is_change:
        _expect_the_worst(work, _how(order, decision.action), wanted, started)
    match decision.action:
        case Action.INSTALL:
            return _install(order, work, started)
        case Action.SWITCH | Action.BOOT:
            return _switch(order, work, decision.action, wanted or work.wanted, started)
        case Action.CURRENT | Action.PENDING:
            return adopt(work, started)
        case Action.REFUSE:
            raise AssertionError(decision)  # _prepare has raised
        case _ as never:
            assert_never(never)


def _how(order: Order, action: Action) -> How:
    return How.ROLLBACK if order.asked is Asked.ROLLBACK else How(action)


def _expect_the_worst(work: Work, how: How, wanted: str | None, started: Started) -> None:
    """From here on the host may run something else than the last receipt here says, and this process
    may die before it has told so: a deploy back to that system must not seem to be done already."""
    receipt = receipts.make(
        work, started, how, out=work.reached.facts.system, outcome=Outcome.FAILED, wanted=wanted
    )
    write_json(work.layout.host(work.host.name).deployed, receipt.to_json())


def _install(order: Order, work: Work, started: Started) -> Receipt:
    image = order.suppliers.image(work) if preflight.needs_image(work) else None
    parts = install.Parts(order.suppliers.system(work), order.suppliers.disko(work), image, order.neighbours)
    return install.install(work, parts, started)


def _switch(order: Order, work: Work, action: Action, new: str, started: Started) -> Receipt:
    how, is_back = _how(order, action), order.asked is Asked.ROLLBACK
    drv = None if is_back else work.drv
    if not is_back and not remote_build.is_remote(work.host, work.reached.facts.os):
        system = order.suppliers.system(work)
        with work.sending("copy"):
            copy.copy(work.reached.ssh, system, sink=work.log)
    if action is Action.BOOT:
        return next_boot.boot_into(work, new, how, started, drv=drv)
    return switch.switch(work, new, how, started, wanted=new, drv=drv)
