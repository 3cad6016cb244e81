"""What a deploy would do to each host, and why: the same table that `deploy` acts on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from nixa_tasks import text
from nixa_tasks.deploy.copy import builds_itself
from nixa_tasks.deploy.decide import Action, Situation, judge
from nixa_tasks.deploy.next_boot import unwatched
from nixa_tasks.flake.evaluate import Output
from nixa_tasks.host.probe import Facts
from nixa_tasks.host.reach import Reached
from nixa_tasks.manifest.model import BuildOn, Host
from nixa_tasks.state.receipt import Receipt

UNCHANGED, UNKNOWN = "unchanged", "unknown"
NOTHING_TO_DO = frozenset((UNCHANGED, UNKNOWN, Action.CURRENT, Action.HOLD))


@dataclass(frozen=True, slots=True)
class Planned:
    """One host's row. `action` is a decision's, or `unchanged`, or `unknown` where the host or the
    flake can't be asked. `added` and `removed` are store paths' names, where both sides are known.
    `wave`: the one that the host is in; None for a host that no wave names."""

    host: str
    action: str
    reason: str
    wanted: str | None = None
    live: str | None = None
    added: tuple[str, ...] | None = None
    removed: tuple[str, ...] | None = None
    wave: int | None = None


def unchanged(host: str, output: Output, receipt: Receipt) -> Planned:
    waits = "; it takes effect at the next restart" if receipt.is_pending else ""
    reason = f"deployed {receipt.started_at}{waits}"
    return Planned(host, UNCHANGED, reason, output.toplevel_out, receipt.out)


def held(host: str, output: Output, receipt: Receipt, why: str) -> Planned:
    """The row of a host whose wanted system was rolled back: it is left alone."""
    reason = f"it {why}, or until doit deploy:{host} --again"
    return Planned(host, Action.HOLD, reason, output.toplevel_out, receipt.out)


def unknown(host: str, why: str, output: Output | None = None) -> Planned:
    return Planned(host, UNKNOWN, why, output.toplevel_out if output else None)


def planned(host: Host, output: Output, reached: Reached, here: Receipt | None) -> Planned:
    """The row of a host that was asked."""
    facts, wanted = reached.facts, output.toplevel_out
    judgement = judge(Situation(host, wanted, here, facts, reached.key.text))
    reason = "; ".join((f"it {judgement.text}", *_notes(host, facts, judgement.action)))
    return Planned(host.name, judgement.action, reason, wanted, facts.system)


def _notes(host: Host, facts: Facts, action: Action) -> Iterator[str]:
    """What is worth knowing before the word is given."""
    if action is Action.INSTALL and host.build_on is BuildOn.REMOTE:
        yield "its first system is built here"
    if action in (Action.SWITCH, Action.BOOT) and builds_itself(host, facts.os):
        yield "it builds by itself"
    if action is Action.BOOT and (why := unwatched(host, facts)) is not None:
        yield why


def with_difference(row: Planned, wanted: frozenset[str], live: frozenset[str]) -> Planned:
    """The row with what the closures differ in."""
    return dataclasses.replace(row, added=_names(wanted - live), removed=_names(live - wanted))


def in_waves(rows: Sequence[Planned], waves: Mapping[str, int]) -> list[Planned]:
    """The rows with the wave of each."""
    return [dataclasses.replace(row, wave=waves.get(row.host)) for row in rows]


def _names(paths: frozenset[str]) -> tuple[str, ...]:
    return tuple(sorted(path.rpartition("/")[2][33:] for path in paths))


def render(rows: Sequence[Planned], width: int | None) -> str:
    """A table, and below it what each closure gains and loses."""
    if not rows:
        return "hosts.toml declares no host"
    lines = _table(rows, width)
    for row in rows:
        if row.added is None or row.removed is None:
            continue
        lines.append(f"{row.host}: {len(row.added)} store paths new, {len(row.removed)} gone")
        lines += [f"    + {name}" for name in row.added[:8]] + [f"    - {name}" for name in row.removed[:8]]
    counts = {
        action: sum(row.action == action for row in rows) for action in dict.fromkeys(r.action for r in rows)
    }
    lines.append(", ".join(f"{count} {action}" for action, count in counts.items()))
    if any(row.action in (Action.SWITCH, Action.BOOT, Action.INSTALL) for row in rows):
        lines.append("to do it: doit deploy")
    return "\n".join(lines)


def _table(rows: Sequence[Planned], width: int | None) -> list[str]:
    if all(row.wave is None for row in rows):
        return text.table(
            ("host", "action", "why"), [(row.host, row.action, row.reason) for row in rows], width
        )
    cells = [(row.host, str(row.wave or "last"), row.action, row.reason) for row in rows]
    return text.table(("host", "wave", "action", "why"), cells, width)


def as_json(rows: Sequence[Planned]) -> str:
    return json.dumps({"hosts": [dataclasses.asdict(row) for row in rows]}, indent=2, ensure_ascii=False)
