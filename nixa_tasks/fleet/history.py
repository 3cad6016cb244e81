"""What was deployed to a host: by the host's own record, or by what is remembered here."""

from __future__ import annotations

import json
import re

from nixa_tasks import text
from nixa_tasks.deploy.receipts import parse_history, read_history
from nixa_tasks.errors import NixaError
from nixa_tasks.host.reach import Access, connect
from nixa_tasks.manifest.model import Host
from nixa_tasks.state.layout import Layout
from nixa_tasks.state.receipt import Receipt


def read(layout: Layout, host: Host, access: Access) -> tuple[list[Receipt], str]:
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


def render(host: str, receipts: list[Receipt], source: str, width: int | None, *, as_json: bool) -> str:
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
