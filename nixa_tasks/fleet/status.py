"""The fleet as a table: what each host should run, runs, and when it was last deployed; its state;
one host's facts as lines; and its history, by the host's own record or by what is remembered here."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from nixa_tasks import text
from nixa_tasks.deploy.decide import Action, Judgement, Situation, State, judge
from nixa_tasks.deploy.receipts import parse_history, read_history
from nixa_tasks.errors import NixaError
from nixa_tasks.flake.output import Output
from nixa_tasks.host.host_key import Trust
from nixa_tasks.host.probe import Os
from nixa_tasks.host.reach import Access, Reached, connect
from nixa_tasks.manifest.model import Host
from nixa_tasks.state.layout import Layout
from nixa_tasks.state.receipt import Receipt

# States that the word alone explains.
PLAIN = frozenset({State.CURRENT, State.NEW, State.STALE})
_TRUST = {
    Trust.PINNED: "as pinned in hosts.toml",
    Trust.SEEN: "as seen before",
    Trust.FIRST: "first contact, remembered",
    Trust.ANY: "not checked: a throwaway machine",
}
_ROOT = {
    "yes": "logged in as root",
    "sudo": "root by sudo",
    "doas": "root by doas",
    "password": "sudo asks for a password",
    "no": "no way to root",
}
_OS = {
    Os.NIXOS: "NixOS",
    Os.INSTALLER: "the NixOS installer",
    Os.INITRD: "waiting in its initrd",
    Os.OTHER: "not NixOS",
}


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


def describe(host: str, reached: Reached) -> list[str]:
    """A reached host in a few aligned lines."""
    facts = reached.facts
    rows = [
        ("host key", f"{reached.key.fingerprint} ({reached.key.kind}), {_TRUST[reached.trust]}"),
        ("system", f"{facts.os_name or '?'} ({_OS[facts.os]}), {facts.kernel}, {facts.arch}"),
        ("runs", facts.system or "no NixOS system"),
        ("login", f"{facts.user}, {_ROOT.get(facts.root, facts.root)}"),
        ("memory", f"{text.size(facts.memory)}, {text.size(facts.memory_available)} available"),
        ("free", f"{text.size(facts.free)} in {facts.home}"),
        ("tools", " ".join(facts.tools)),
    ]
    receipt = Receipt.from_json(facts.receipt)
    if receipt is not None:
        rows.append(("deployed", f"{receipt.started_at} by {receipt.operator}"))
    return [f"{host}: {name:<9} {value}" for name, value in rows]


def history_of(layout: Layout, host: Host, access: Access) -> tuple[list[Receipt], str]:
    """The receipts, oldest first, and where they are from."""
    try:
        reached = connect(host, access, lambda _text: None)
    except NixaError as error:
        place = layout.host(host.name).history
        lines = place.read_text().splitlines() if place.exists() else []
        return parse_history(lines), f"remembered here; {error.what}"
    try:
        is_root = reached.facts.elevation is not None
        return read_history(reached.ssh, root=is_root), "the host's own record"
    finally:
        reached.ssh.disconnect()


def render_history(
    host: str, receipts: list[Receipt], source: str, width: int | None, *, as_json: bool
) -> str:
    """A table, newest last, of at most `width` columns, or one JSON document with all that is on record."""
    if as_json:
        document = {"host": host, "source": source, "deploys": [receipt.to_json() for receipt in receipts]}
        return json.dumps(document, indent=2, ensure_ascii=False)
    if not receipts:
        return f"{host}: nothing has been deployed yet ({source})"
    rows = [
        (
            one.started_at,
            one.mode,
            one.outcome,
            text.duration(one.seconds),
            text.store_path(one.out),
            _revision(one.flake),
            one.operator,
        )
        for one in _ends(receipts)
    ]
    head = ("started", "mode", "outcome", "time", "runs", "flake", "operator")
    return "\n".join([f"{host} ({source})", *text.table(head, rows, width)])


def _revision(flake: str | None) -> str:
    if flake is None:
        return "-"
    commit, dash, rest = flake.partition("-")
    return f"{commit[:7]}{dash}{rest}" if re.fullmatch("[0-9a-f]{18,}", commit) else flake[:18]


def _ends(receipts: list[Receipt]) -> list[Receipt]:
    """How each deploy ended. Before a watched restart the host puts the worst on record, which stands
    only where nothing comes after it."""
    last = {(one.started_at, one.operator): one for one in receipts}
    return list(last.values())
