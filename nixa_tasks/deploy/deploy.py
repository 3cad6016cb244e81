"""One host, from here to there: reach, decide, act, record. Truth lies on the host."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

from nixa_tasks import nix
from nixa_tasks.deploy import copy, install, receipts, switch
from nixa_tasks.deploy.decide import Action, Asked, Decision, Situation, decide
from nixa_tasks.deploy.receipts import Started
from nixa_tasks.deploy.work import Work
from nixa_tasks.errors import CommandFailed, NixaError
from nixa_tasks.flake.evaluate import Output
from nixa_tasks.kexec.image import Obtained
from nixa_tasks.kexec.neighbours import Neighbours
from nixa_tasks.manifest.model import Host, Manifest
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
    looked into for the host's architecture.
    """

    system: Callable[[Work], Path]
    disko: Callable[[Work], Path]
    image: Callable[[Work], Obtained]


@dataclass(frozen=True, slots=True)
class Order:
    """One host's turn. `flake`: the locked reference that `output` was evaluated from; `neighbours`:
    the hosts of this run."""

    manifest: Manifest
    host: Host
    output: Output
    flake: str | None
    layout: Layout
    journal: Journal
    folder: Path
    suppliers: Suppliers
    neighbours: Neighbours
    asked: Asked = Asked.DEPLOY


@dataclass(frozen=True, slots=True)
class Done:
    """How a host's turn ended well."""

    action: Action
    reason: str
    receipt: Receipt


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
    )


def _act(order: Order, work: Work, started: Started) -> Done:
    """Decide and do it, under the host's lock. That holds for a host that runs the wanted system
    too: a switch whose controller died may be about to go back from it."""
    if order.asked is Asked.ROLLBACK:
        work = _with_password(work, is_needed=True)
    wanted = _earlier(work) if order.asked is Asked.ROLLBACK else work.wanted
    decision = _decide(order, work, wanted)
    work = _with_password(work, is_needed=decision.action is not Action.CURRENT)
    _build(order, work, decision)
    if not work.reached.can_be_root and decision.action is Action.CURRENT:
        return Done(decision.action, decision.reason, _adopt(work, started))
    install.check_root(work)
    with lock.held(
        work.reached.ssh,
        timeout=order.host.lock_timeout,
        announce=lambda text: order.journal.note(order.host.name, "lock", text),
    ) as waited:
        if waited:  # whoever held it has changed the host: look again
            facts = reach.ask_again(work.reached.ssh)
            work = dataclasses.replace(work, reached=dataclasses.replace(work.reached, facts=facts))
            decision = _decide(order, work, wanted)
            _build(order, work, decision)
        return Done(decision.action, decision.reason, _change(order, work, decision, wanted, started))


def _with_password(work: Work, *, is_needed: bool) -> Work:
    """The way to root with sudo's password, where the host asks for one. A host that is current does
    without where none can be had: its record is then made without its lock."""
    reached = work.reached
    if reached.can_be_root or reached.facts.root != "password" or not (is_needed or sudo.is_at_hand()):
        return work
    ssh = sudo.with_password(reached.ssh, lambda text: work.journal.note(work.host.name, "sudo", text))
    return dataclasses.replace(work, reached=dataclasses.replace(reached, ssh=ssh))


def _decide(order: Order, work: Work, wanted: str | None) -> Decision:
    decision = decide(situation(work, order.asked, wanted))
    order.journal.note(order.host.name, "decide", f"{decision.action}: it {decision.reason}")
    if decision.action is Action.REFUSE:
        raise Refused(
            f"refused: it {decision.reason}", host=order.host.name, hint=_refusal_hint(work, decision)
        )
    return decision


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


def _build(order: Order, work: Work, decision: Decision) -> None:
    """Have the closures before the host's lock is taken: building may take long."""
    if order.asked is Asked.ROLLBACK or decision.action is Action.CURRENT:
        return
    order.suppliers.system(work)
    if decision.action is Action.INSTALL:
        install.check_host(work)
        order.suppliers.disko(work)


def _change(order: Order, work: Work, decision: Decision, wanted: str | None, started: Started) -> Receipt:
    match decision.action:
        case Action.INSTALL:
            return _install(order, work, started)
        case Action.SWITCH:
            return _switch(order, work, wanted or work.wanted, started)
        case Action.CURRENT:
            return _adopt(work, started)
        case Action.REFUSE:
            raise AssertionError(decision)  # _decide has raised
        case _ as never:
            assert_never(never)


def _install(order: Order, work: Work, started: Started) -> Receipt:
    image = order.suppliers.image(work) if install.needs_image(work) else None
    parts = install.Parts(order.suppliers.system(work), order.suppliers.disko(work), image, order.neighbours)
    return install.install(work, parts, started)


def _switch(order: Order, work: Work, new: str, started: Started) -> Receipt:
    if order.asked is Asked.ROLLBACK:
        return switch.switch(work, new, How.ROLLBACK, started, wanted=new, drv=None)
    system = order.suppliers.system(work)
    with order.journal.step(order.host.name, "copy"):
        copy.copy(work.reached.ssh, system, sink=work.log)
    return switch.switch(work, new, How.SWITCH, started, wanted=new, drv=work.drv)


def _adopt(work: Work, started: Started) -> Receipt:
    """Record that the host runs what is wanted. Its own receipt stands if it says the same."""
    theirs = Receipt.from_json(work.reached.facts.receipt)
    if theirs is not None and theirs.out == work.wanted and theirs.outcome is Outcome.DONE:
        receipt = dataclasses.replace(theirs, target=work.host.target, wanted=work.wanted)
        write_json(work.layout.host(work.host.name).deployed, receipt.to_json())
        return receipt
    receipt = receipts.make(work, started, How.ADOPT, out=work.reached.facts.system, outcome=Outcome.DONE)
    if work.reached.can_be_root:
        receipts.write_remote(work.reached.ssh, receipt)
    receipts.write_local(work, receipt)
    return receipt


def _earlier(work: Work) -> str | None:
    """The system that ran before the live one: by the host's own history, else its profile."""
    ssh, live = work.reached.ssh, work.reached.facts.system
    if work.reached.facts.os is not Os.NIXOS:
        return None
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
        and receipt.out == receipt.wanted == output.toplevel_out
        and receipt.target == host.target
    )
