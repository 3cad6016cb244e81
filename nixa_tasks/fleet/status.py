"""The fleet as a table: what is wanted, what runs, when it was last deployed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass

from nixa_tasks import text
from nixa_tasks.flake.evaluate import Output
from nixa_tasks.host.probe import Facts, Os
from nixa_tasks.manifest.model import Host
from nixa_tasks.state.receipt import Outcome, Receipt


@dataclass(frozen=True, slots=True)
class Standing:
    """One host's row. `state`: current, pending (the wanted system runs from the next restart on),
    unconfirmed (it runs since a restart, and no deploy has looked at it), outdated, rolled-back,
    failed, drift, new, unreachable, not-nixos, or unevaluated. `is_live`: the host itself was asked."""

    host: str
    wanted: str | None
    live: str | None
    deployed_at: str | None
    state: str
    is_live: bool


def remembered(host: Host, output: Output | None, receipt: Receipt | None) -> Standing:
    """The row by what is remembered here: no host is asked."""
    wanted = output.toplevel_out if output else None
    live = receipt.out if receipt else None
    return Standing(
        host.name,
        wanted,
        live,
        receipt.started_at if receipt else None,
        _state(wanted, live, receipt),
        is_live=False,
    )


def asked(host: Host, output: Output | None, facts: Facts) -> Standing:
    """The row by what the host says now."""
    wanted = output.toplevel_out if output else None
    receipt = Receipt.from_json(facts.receipt)
    state = _state(wanted, facts.system, receipt)
    if facts.os is not Os.NIXOS:
        state = "not-nixos"
    elif receipt is not None and facts.system != wanted and not receipt.accounts_for(facts.system):
        state = "drift"
    return Standing(
        host.name, wanted, facts.system, receipt.started_at if receipt else None, state, is_live=True
    )


def unreachable(host: Host, output: Output | None, receipt: Receipt | None) -> Standing:
    row = remembered(host, output, receipt)
    return dataclasses.replace(row, state="unreachable", is_live=True)


def _state(wanted: str | None, live: str | None, receipt: Receipt | None) -> str:
    if wanted is None:
        return "unevaluated"
    if live == wanted:
        return _state_of_wanted(wanted, receipt)
    if receipt is None:
        return "new" if live is None else "outdated"
    if receipt.wanted == wanted and receipt.is_pending:
        return "pending"
    if receipt.wanted == wanted and receipt.outcome is not Outcome.DONE:
        return receipt.outcome
    return "outdated"


def _state_of_wanted(wanted: str, receipt: Receipt | None) -> str:
    """Of a host that is said to run what is wanted. What failed where it ran already, such as a
    reinstallation, may have left anything there."""
    if receipt is None or receipt.wanted != wanted or receipt.outcome is not Outcome.FAILED:
        return "current"
    return "unconfirmed" if receipt.is_unconfirmed else "failed"


def render(rows: Sequence[Standing], width: int | None) -> str:
    if not rows:
        return "hosts.toml declares no host"
    cells = [
        (
            row.host,
            row.state,
            text.store_path(row.wanted),
            text.store_path(row.live),
            row.deployed_at or "never",
        )
        for row in rows
    ]
    lines = text.table(("host", "state", "wanted", "live", "last deploy"), cells, width)
    lines += [
        f"{row.host} boots into the new system at its next restart" for row in rows if row.state == "pending"
    ]
    return "\n".join(lines)


def as_json(rows: Sequence[Standing]) -> str:
    return json.dumps({"hosts": [dataclasses.asdict(row) for row in rows]}, indent=2, ensure_ascii=False)
