"""One host, from here to there: reach, decide, act, record. Truth lies on the host."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

from nixa_tasks import nix
from nixa_tasks.deploy import checks, copy, install, next_boot, receipts, remote_build, switch
from nixa_tasks.deploy.decide import Action, Asked, Decision, Situation, decide
from nixa_tasks.deploy.receipts import Started
from nixa_tasks.deploy.uplink import Uplink
from nixa_tasks.deploy.work import Work
from nixa_tasks.errors import CommandFailed, NixaError
from nixa_tasks.flake.evaluate import Output
from nixa_tasks.kexec.image import Obtained
from nixa_tasks.kexec.neighbours import Neighbours
from nixa_tasks.manifest.model import Host, Manifest, Mode
from nixa_tasks.state.journal import Journal
from nixa_tasks.state.layout import Layout
from nixa_tasks.state.lock import locked
from nixa_tasks.state.receipt import How, Outcome, Receipt
from nixa_tasks.state.runlog import RunLog
from nixa_tasks.state.stamps import read_json, write_json
from nixa_tasks.target import lock, reach, sudo
from nixa_tasks.target.hostkey import KnownHosts
from nixa_tasks.target.probe import Os
from nixa_tasks.target.ssh import Ssh

_IS_SYSTEM = '[ -x "$1/bin/switch-to-configuration" ]'
_GENERATIONS = """
cd /nix/var/nix/profiles && live=$(readlink -f /run/current-system) &&
ls -d system-*-link 2>/dev/null | sort -t- -k2 -n -r | while read -r link; do
  path=$(readlink -f "$link"); [ "$path" = "$live" ] || { echo "$path"; break; }
done
"""


class Refused(NixaError):
    """The decision was not to touch the host."""


@dataclass(frozen=True, slots=True)
class Suppliers:
    """What a deploy asks for only when its decision needs it: built closures and a kexec image.

    `system` and `disko` build and root a closure; `image` gives a verified tarball,
    looked into for the host's architecture. `there` has the host build its own system.
    """

    system: Callable[[Work], Path]
    disko: Callable[[Work], Path]
    image: Callable[[Work], Obtained]
    there: Callable[[Work], str]


@dataclass(frozen=True, slots=True)
class Back:
    """The way back of one switch: to the system `to` that ran before it, and only while what it
    switched to, `since`, still runs."""

    to: str
    since: str


@dataclass(frozen=True, slots=True)
class Order:
    """One host's turn. `flake`: the locked reference that `output` was evaluated from; `neighbours`:
    the hosts of this run; `back`: for a rollback that undoes one switch and nothing else (without
    it, the host's history says to where)."""

    manifest: Manifest
    host: Host
    output: Output
    flake: str | None
    layout: Layout
    journal: Journal
    folder: Path
    suppliers: Suppliers
    neighbours: Neighbours
    uplink: Uplink
    asked: Asked = Asked.DEPLOY
    back: Back | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """How a host's turn ended well. `before` is the system that ran when it began."""

    action: Action
    reason: str
    receipt: Receipt
    before: str | None


def carry_out(order: Order) -> Done:
    """Bring one host to what is asked. Raises NixaError; what was done is recorded either way."""
    name = order.host.name
    log = RunLog(order.layout.host(name).logs, order.asked, order.journal.run)
    started = Started()
    ssh: Ssh | None = None
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
            work = _reach(order, log)
            ssh = work.reached.ssh
            return _act(order, work, started)
    except NixaError as error:
        error.host = error.host or name
        error.hint = (
            error.hint or f"what was finished is kept; to go on from there: doit {order.asked}:{name}"
        )
        if error.log is None and log.path.exists():
            error.log = log.path
        raise
    finally:
        if ssh is not None:
            ssh.disconnect()
        log.close()


def _reach(order: Order, log: RunLog) -> Work:
    name = order.host.name
    with order.journal.step(name, "reach"):
        reached = reach.connect(
            order.host, order.folder, KnownHosts(), lambda text: order.journal.note(name, "reach", text)
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
        order.folder,
        order.uplink,
    )


def situation(work: Work, asked: Asked, wanted: str | None) -> Situation:
    """What the table decides on."""
    facts, host = work.reached.facts, work.host
    return Situation(
        asked=asked,
        wanted=wanted,
        os=facts.os,
        live=facts.system,
        is_expected_key=True,  # reach.connect has ended otherwise
        receipt=Receipt.from_json(facts.receipt),
        local=Receipt.from_json(read_json(work.layout.host(host.name).deployed)),
        install=host.install,
        on_drift=host.on_drift,
        profile=facts.profile,
        mode=host.mode,
        reboot=host.reboot,
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
    if is_sure:
        _prepare(order, work, decision)
    if not work.reached.can_be_root and decision.action in (Action.CURRENT, Action.PENDING):
        return Done(decision.action, decision.reason, _adopt(work, started), work.reached.facts.system)
    install.check_root(work)
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
    reached = sudo.as_root(work.reached, lambda text: work.journal.note(work.host.name, "sudo", text))
    return dataclasses.replace(work, reached=reached)


def _decide(order: Order, work: Work) -> tuple[str | None, Decision]:
    """The system that is wanted, and what the table says."""
    wanted = _earlier(order, work) if order.asked is Asked.ROLLBACK else work.wanted
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
        install.check_root(work)
        order.suppliers.there(work)
        return
    order.suppliers.system(work)
    if decision.action is Action.INSTALL:
        install.check_host(work)
        order.suppliers.disko(work)


def _builds_there(work: Work, decision: Decision) -> bool:
    return decision.action is not Action.INSTALL and remote_build.is_remote(work.host, work.reached.facts.os)


def _change(order: Order, work: Work, decision: Decision, wanted: str | None, started: Started) -> Receipt:
    if decision.action.is_change:
        _expect_the_worst(work, How(decision.action), wanted, started)
    match decision.action:
        case Action.INSTALL:
            return _install(order, work, started)
        case Action.SWITCH | Action.BOOT:
            return _switch(order, work, decision.action, wanted or work.wanted, started)
        case Action.CURRENT | Action.PENDING:
            return _adopt(work, started)
        case Action.REFUSE:
            raise AssertionError(decision)  # _prepare has raised
        case _ as never:
            assert_never(never)


def _expect_the_worst(work: Work, how: How, wanted: str | None, started: Started) -> None:
    """From here on the host may run something else than the last receipt here says, and this process
    may die before it has told so: a deploy back to that system must not seem to be done already."""
    receipt = receipts.make(
        work, started, how, out=work.reached.facts.system, outcome=Outcome.FAILED, wanted=wanted
    )
    write_json(work.layout.host(work.host.name).deployed, receipt.to_json())


def _install(order: Order, work: Work, started: Started) -> Receipt:
    image = order.suppliers.image(work) if install.needs_image(work) else None
    parts = install.Parts(order.suppliers.system(work), order.suppliers.disko(work), image, order.neighbours)
    return install.install(work, parts, started)


def _switch(order: Order, work: Work, action: Action, new: str, started: Started) -> Receipt:
    is_boot = action is Action.BOOT
    is_back = order.asked is Asked.ROLLBACK
    how = How.ROLLBACK if is_back else How.BOOT if is_boot else How.SWITCH
    drv = None if is_back else work.drv
    if not is_back and not remote_build.is_remote(work.host, work.reached.facts.os):
        system = order.suppliers.system(work)
        with work.sending("copy"):
            copy.copy(work.reached.ssh, system, sink=work.log)
    if is_boot:
        return next_boot.boot_into(work, new, how, started, drv=drv)
    return switch.switch(work, new, how, started, wanted=new, drv=drv)


def _adopt(work: Work, started: Started) -> Receipt:
    """Record that the host runs what is wanted, or will from its next restart on. Its own receipt
    stands if it says the same; without it nobody has seen the checks pass, as when an installation
    was cut off before them."""
    theirs, live = Receipt.from_json(work.reached.facts.receipt), work.reached.facts.system
    if theirs is not None and theirs.wanted == work.wanted and theirs.is_pending:
        receipt = dataclasses.replace(theirs, target=work.host.target, out=live)
        if live == work.wanted and work.reached.can_be_root:  # restarted since
            receipts.write_remote(work.reached.ssh, receipt)
        receipts.write_local(work, receipt)
        return receipt
    if theirs is not None and theirs.out == work.wanted and theirs.outcome is Outcome.DONE:
        receipt = dataclasses.replace(theirs, target=work.host.target, wanted=work.wanted)
        write_json(work.layout.host(work.host.name).deployed, receipt.to_json())
        return receipt
    if work.reached.can_be_root:
        _check(work)
    receipt = receipts.make(work, started, How.ADOPT, out=work.reached.facts.system, outcome=Outcome.DONE)
    if work.reached.can_be_root:
        receipts.write_remote(work.reached.ssh, receipt)
    receipts.write_local(work, receipt)
    return receipt


def _check(work: Work) -> None:
    name = work.host.name
    checks.run_all(
        work.host.checks,
        work.reached.ssh,
        failed_before=frozenset(),
        note=lambda text: work.journal.note(name, "check", text),
    )


def _earlier(order: Order, work: Work) -> str | None:
    """The system that ran before the live one: by the order itself, the host's own history, or its
    profile."""
    if order.back is not None:
        return order.back.to
    ssh, live = work.reached.ssh, work.reached.facts.system
    if work.reached.facts.os is not Os.NIXOS:
        return None
    if situation(work, Asked.ROLLBACK, live).boots_elsewhere:
        return live  # what was set up for the next boot is taken back
    for receipt in reversed(receipts.read_history(ssh, root=True)):
        if receipt.out is None or receipt.out == live or not nix.is_store_path(receipt.out):
            continue
        if ssh.run(_IS_SYSTEM, receipt.out, deadline=30, check=False, what="history").is_ok:
            return receipt.out
    try:
        found = ssh.run(_GENERATIONS, deadline=60, what="generations").stdout.strip()
    except CommandFailed:
        return None
    return found if nix.is_store_path(found) else None


def is_deployed(host: Host, output: Output | None, receipt: Receipt | None) -> bool:
    """Whether a deploy has nothing to do by what is remembered here, without asking the host."""
    return (
        output is not None
        and receipt is not None
        and receipt.outcome is Outcome.DONE
        and receipt.wanted == output.toplevel_out
        and receipt.target == host.target
        and (not receipt.is_pending or (host.mode is Mode.BOOT and not host.reboot))
        and receipt.out is not None
    )
