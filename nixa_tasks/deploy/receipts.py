"""Receipts: written on the host and beside the manifest, the same on both sides."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from nixa_tasks.deploy import checks
from nixa_tasks.deploy.turn import Turn
from nixa_tasks.errors import NixaError
from nixa_tasks.files import write_json
from nixa_tasks.host import lock
from nixa_tasks.host.reach import Reached
from nixa_tasks.host.ssh import Ssh, script
from nixa_tasks.state.receipt import How, Outcome, Receipt

PACKAGE = "nixa_tasks.deploy"
_LONGEST_WHY = 300
# The first line may be cut by the limit; it is no receipt then.
_HISTORY = "tail -n 200 /var/lib/nixa/history.jsonl 2>/dev/null | tail -c 262144"


def make(
    turn: Turn,
    reached: Reached,
    how: How,
    *,
    out: str | None,
    outcome: Outcome,
    wanted: str | None = None,
    drv: str | None = None,
) -> Receipt:
    """A receipt of this turn. `out` runs now; `wanted` defaults to the flake's output, and `drv` to
    its derivation."""
    return Receipt(
        target=turn.host.target,
        host_key=reached.key.text,
        out=out,
        wanted=wanted or turn.wanted,
        drv=drv if wanted else turn.output.toplevel_drv,
        mode=how,
        kexec_sha256=None,
        flake=turn.flake,
        started_at=turn.started.at,
        seconds=turn.started.seconds,
        operator=lock.operator(),
        outcome=outcome,
    )


def line(receipt: Receipt) -> str:
    return json.dumps(receipt.to_json(), ensure_ascii=False) + "\n"


def failed(receipt: Receipt, why: str) -> Receipt:
    """The receipt with the reason of a failure, in one line."""
    text = "".join(char for char in " ".join(why.split()) if char.isprintable())
    return dataclasses.replace(receipt, why=text[:_LONGEST_WHY] or None)


def write_remote(ssh: Ssh, receipt: Receipt) -> None:
    """Put the receipt on the host, in one step, and its line into the history there."""
    ssh.run(script("receipt", PACKAGE), root=True, deadline=60, stdin=line(receipt).encode(), what="receipt")


def parse(text: str) -> Receipt | None:
    """One receipt as a host sent it: None where it is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return Receipt.from_json(value) if isinstance(value, dict) else None


def read_history(ssh: Ssh, *, root: bool) -> list[Receipt]:
    """The host's last receipts, oldest first. Raises Unreachable."""
    done = ssh.run(_HISTORY, root=root, deadline=60, check=False, what="history")
    return parse_history(done.stdout.splitlines())


def parse_history(lines: list[str]) -> list[Receipt]:
    return [receipt for line in lines if (receipt := parse(line)) is not None]


def remember(turn: Turn, receipt: Receipt, *, history: bool = True) -> None:
    """Put the receipt beside the manifest, and its line into the local history.

    A disk that is full here ends no deploy: the next one asks the host instead.
    """
    place = turn.layout.host(turn.name)
    try:
        if history:
            _append(place.history, line(receipt))
        write_json(place.deployed, receipt.to_json())
    except (OSError, NixaError) as error:
        what = error.what if isinstance(error, NixaError) else str(error)
        turn.note("receipt", f"not remembered here: {what}")


def _append(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def adopt(turn: Turn, reached: Reached) -> Receipt:
    """Record that the host runs the wanted system, or will after its next restart.

    Its own receipt stands if it says the same; without that nobody has seen the checks pass, as when
    an installation was cut off before them. Raises checks.CheckFailed.
    """
    facts, wanted = reached.facts, turn.wanted
    theirs, live = Receipt.from_json(facts.receipt), facts.system
    if theirs is not None and theirs.wanted == wanted and theirs.is_pending:
        receipt = dataclasses.replace(theirs, target=turn.host.target, out=live)
        if live == wanted and reached.can_be_root:  # restarted since
            write_remote(reached.ssh, receipt)
        remember(turn, receipt)
        return receipt
    if theirs is not None and theirs.out == live == theirs.wanted and theirs.outcome is Outcome.DONE:
        receipt = dataclasses.replace(theirs, target=turn.host.target)
        remember(turn, receipt, history=False)
        return receipt
    if reached.can_be_root:
        checks.run_all(
            turn.host.checks,
            reached.ssh,
            failed_before=frozenset(),
            note=lambda text: turn.note("check", text),
        )
    # After a rollback that found nothing to do, that is not what the flake says, nor is it on its way.
    drv = turn.output.toplevel_drv if live == wanted else None
    receipt = make(turn, reached, How.ADOPT, out=live, outcome=Outcome.DONE, wanted=live, drv=drv)
    if reached.can_be_root:
        write_remote(reached.ssh, receipt)
    remember(turn, receipt)
    return receipt
