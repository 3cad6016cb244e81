"""The fleet as a table: what is wanted, what runs, when it was last deployed, and the state of each host."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass

from nixa_tasks import text
from nixa_tasks.deploy.decide import Action, Judgement, Situation, State, judge
from nixa_tasks.flake.output import Output
from nixa_tasks.host.reach import Reached
from nixa_tasks.manifest.model import Host
from nixa_tasks.state.receipt import Receipt

# States that the word alone explains.
PLAIN = frozenset({State.CURRENT, State.NEW, State.STALE})


@dataclass(frozen=True, slots=True)
class Standing:
    """One host's row. `action`: what a deploy would do; `reason` ends a sentence that begins with the
    host's name. `is_live`: the host itself was asked."""

    host: str
    wanted: str | None
    live: str | None
    deployed_at: str | None
    state: State
    action: Action
    reason: str
    is_live: bool


def remembered(host: Host, output: Output | None, here: Receipt | None) -> Standing:
    """The row by what is remembered here: no host is asked."""
    wanted = output.toplevel_out if output else None
    judgement = judge(Situation(host, wanted, here))
    return _standing(host, wanted, here.out if here else None, here, judgement, is_live=False)


def asked(host: Host, output: Output | None, reached: Reached, here: Receipt | None) -> Standing:
    """The row by what the host says now."""
    wanted, facts = output.toplevel_out if output else None, reached.facts
    judgement = judge(Situation(host, wanted, here, facts, reached.key.text))
    last = Receipt.from_json(facts.receipt) or here
    return _standing(host, wanted, facts.system, last, judgement, is_live=True)


def unreachable(host: Host, output: Output | None, here: Receipt | None) -> Standing:
    """The row of a host that did not answer."""
    wanted = output.toplevel_out if output else None
    judgement = judge(Situation(host, wanted, here, is_unreachable=True))
    return _standing(host, wanted, here.out if here else None, here, judgement, is_live=True)


def _standing(
    host: Host,
    wanted: str | None,
    live: str | None,
    last: Receipt | None,
    judgement: Judgement,
    *,
    is_live: bool,
) -> Standing:
    at = last.started_at if last else None
    return Standing(
        host.name, wanted, live, at, judgement.state, judgement.action, judgement.text, is_live=is_live
    )


def render(rows: Sequence[Standing], width: int | None) -> str:
    """A table, and below it a line for each state that needs one."""
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
    return "\n".join(lines + [f"{row.host} {row.reason}" for row in rows if row.state not in PLAIN])


def as_json(rows: Sequence[Standing]) -> str:
    """One JSON document."""
    return json.dumps({"hosts": [dataclasses.asdict(row) for row in rows]}, indent=2, ensure_ascii=False)
