"""A host that has what is wanted already: recognised without asking it, or recorded once it was asked."""

from __future__ import annotations

import dataclasses

from nixa_tasks.deploy import checks, receipts
from nixa_tasks.deploy.receipts import Started
from nixa_tasks.deploy.work import Work
from nixa_tasks.files import write_json
from nixa_tasks.flake.evaluate import Output
from nixa_tasks.manifest.model import Host, Mode
from nixa_tasks.state.receipt import How, Outcome, Receipt


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


def adopt(work: Work, started: Started) -> Receipt:
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
    # After a rollback that found nothing to do, that is not what the flake says, nor is it on its way.
    drv = work.drv if live == work.wanted else None
    receipt = receipts.make(work, started, How.ADOPT, out=live, outcome=Outcome.DONE, wanted=live, drv=drv)
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
