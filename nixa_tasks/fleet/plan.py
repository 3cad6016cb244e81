"""What a deploy would do to each host, and why: by the same judgement that `deploy` acts on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from nixa_tasks import text
from nixa_tasks.deploy.copy import builds_itself
from nixa_tasks.deploy.decide import Action, Reason, Situation, State, judge
from nixa_tasks.deploy.disks import Disks
from nixa_tasks.deploy.next_boot import unwatched
from nixa_tasks.errors import EXIT_CHANGES, EXIT_FAILED, NixaError
from nixa_tasks.flake.output import Output
from nixa_tasks.host.probe import Facts
from nixa_tasks.host.reach import Reached
from nixa_tasks.manifest.model import BuildOn, Host
from nixa_tasks.state.receipt import Receipt

WIPES = "WIPES THE DISK"
_RED, _PLAIN = "\x1b[1;31m", "\x1b[0m"
_MOST_PATHS = 8


@dataclass(frozen=True, slots=True)
class Planned:
    """One host's row. `added` and `removed` are store paths' names, where both closures are known;
    `wave`: the one that the host is in, None for a host that no wave names; `disks`: what an
    installation would wipe, a line each; `error`: why the host can't be planned."""

    host: str
    state: State
    action: Action
    reason: str
    wanted: str | None = None
    live: str | None = None
    added: tuple[str, ...] | None = None
    removed: tuple[str, ...] | None = None
    wave: int | None = None
    disks: tuple[str, ...] = ()
    error: NixaError | None = None


def from_memory(host: Host, output: Output, here: Receipt) -> Planned:
    """The row of a host that need not be asked."""
    judgement = judge(Situation(host, output.toplevel_out, here))
    when = f"deployed {here.started_at}"
    is_plain = judgement.reason is Reason.RUNS_WANTED
    reason = when if is_plain else f"it {judgement.text}"
    if judgement.action is Action.HOLD:
        reason += f", or until doit deploy:{host.name} --again"
    return Planned(host.name, judgement.state, judgement.action, reason, output.toplevel_out, here.out)


def failed(host: Host, error: NixaError, output: Output | None = None) -> Planned:
    """The row of a host that can't be planned: it can't be reached, or, without `output`, evaluated."""
    wanted = output.toplevel_out if output else None
    judgement = judge(Situation(host, wanted, is_unreachable=output is not None))
    return Planned(host.name, judgement.state, judgement.action, error.what, wanted, error=error)


def asked(
    host: Host, output: Output, reached: Reached, here: Receipt | None, disks: Disks | None = None
) -> Planned:
    """The row of a host that was asked. `disks`: what lies on them, where somebody has looked."""
    facts, wanted = reached.facts, output.toplevel_out
    judgement = judge(Situation(host, wanted, here, facts, reached.key.text, disks))
    wipes = judgement.action is Action.INSTALL
    was = (
        f" (it is {facts.os_name})"
        if wipes and judgement.reason is Reason.NOT_NIXOS and facts.os_name
        else ""
    )
    reason = f"it {judgement.text}{was}"
    return Planned(
        host.name,
        judgement.state,
        judgement.action,
        "; ".join((f"{WIPES}: {reason}" if wipes else reason, *_notes(host, facts, judgement.action))),
        wanted,
        facts.system,
        disks=disks.lines if wipes and disks is not None else (),
    )


def _notes(host: Host, facts: Facts, action: Action) -> Iterator[str]:
    """What is worth knowing before the go-ahead."""
    if action is Action.INSTALL and host.build_on is BuildOn.REMOTE:
        yield "its first system is built here"
    if action in (Action.SWITCH, Action.BOOT) and builds_itself(host, facts.os):
        yield "it builds its own system"
    if action is Action.BOOT and (why := unwatched(host, facts)) is not None:
        yield why


def with_difference(row: Planned, wanted: frozenset[str], live: frozenset[str]) -> Planned:
    """The row with what the closures differ in."""
    return dataclasses.replace(row, added=_names(wanted - live), removed=_names(live - wanted))


def in_waves(rows: Sequence[Planned], waves: Mapping[str, int]) -> list[Planned]:
    """The rows with the wave of each."""
    return [dataclasses.replace(row, wave=waves.get(row.host)) for row in rows]


def exit_status(rows: Sequence[Planned], *, detailed: bool) -> int:
    """1 where a host can't be planned; `detailed`: else 4 where a deploy would do something."""
    if any(row.error is not None for row in rows):
        return EXIT_FAILED
    has_work = any(row.action.is_change or row.action is Action.VERIFY for row in rows)
    return EXIT_CHANGES if detailed and has_work else 0


def _names(paths: frozenset[str]) -> tuple[str, ...]:
    return tuple(sorted(path.rpartition("/")[2][33:] for path in paths))


def render(rows: Sequence[Planned], width: int | None, *, colour: bool = False) -> str:
    """A table; below it the disks that would be wiped, what each closure gains and loses, and whole errors."""
    if not rows:
        return "hosts.toml declares no host"
    lines = _table(rows, width)
    for row in rows:
        if row.disks:
            lines += [f"{row.host}: {WIPES}", *(f"    {disk}" for disk in row.disks)]
        if row.added is not None and row.removed is not None:
            lines.append(f"{row.host}: {len(row.added)} store paths new, {len(row.removed)} gone")
            lines += [f"    + {name}" for name in row.added[:_MOST_PATHS]]
            lines += [f"    - {name}" for name in row.removed[:_MOST_PATHS]]
    lines += _errors(rows)
    counts = {
        action: sum(row.action == action for row in rows) for action in dict.fromkeys(r.action for r in rows)
    }
    lines.append(", ".join(f"{count} {action}" for action, count in counts.items()))
    if any(row.action.is_change for row in rows):
        lines.append("to do it: doit deploy")
    shown = "\n".join(lines)
    return shown.replace(WIPES, f"{_RED}{WIPES}{_PLAIN}") if colour else shown


def _errors(rows: Sequence[Planned]) -> list[str]:
    """Each error once and whole, though it be several hosts'."""
    lines: list[str] = []
    for row in rows:
        if row.error is not None:
            shown = row.error.render()
            shown = shown if row.error.host else f"{row.host}: {shown}"
            lines += ["", *shown.splitlines()]
    return [*lines, ""] if lines else []


def _table(rows: Sequence[Planned], width: int | None) -> list[str]:
    if all(row.wave is None for row in rows):
        cells = [(row.host, row.state, row.action, row.reason) for row in rows]
        return text.table(("host", "state", "action", "why"), cells, width)
    waves = [(row.host, str(row.wave or "last"), row.state, row.action, row.reason) for row in rows]
    return text.table(("host", "wave", "state", "action", "why"), waves, width)


def as_json(rows: Sequence[Planned]) -> str:
    """One JSON document; an error as its one-line text."""
    return json.dumps({"hosts": [_plain(row) for row in rows]}, indent=2, ensure_ascii=False)


def _plain(row: Planned) -> dict[str, object]:
    shown = {one.name: getattr(row, one.name) for one in dataclasses.fields(row)}
    return shown | {"error": row.error.what if row.error else None}
