"""What was deployed to a host: by the host's own record, or by what is remembered here."""

from __future__ import annotations

import json
from pathlib import Path

from nixa_tasks.deploy.receipts import parse_history, read_history
from nixa_tasks.errors import NixaError
from nixa_tasks.fleet import text
from nixa_tasks.manifest.model import Host
from nixa_tasks.state.layout import Layout
from nixa_tasks.state.receipt import Receipt
from nixa_tasks.target.hostkey import KnownHosts
from nixa_tasks.target.reach import connect


def read(layout: Layout, host: Host, folder: Path) -> tuple[list[Receipt], str]:
    """The receipts, oldest first, and where they are from."""
    try:
        reached = connect(host, folder, KnownHosts(), lambda _text: None)
    except NixaError as error:
        place = layout.host(host.name).history
        lines = place.read_text().splitlines() if place.exists() else []
        return parse_history(lines), f"remembered here, since {host.name} was not reached: {error.what}"
    try:
        is_root = reached.facts.elevation is not None
        return read_history(reached.ssh, root=is_root), "the host's own record"
    finally:
        reached.ssh.disconnect()


def render(host: str, receipts: list[Receipt], source: str, *, as_json: bool) -> str:
    """A table, newest last, or one JSON document."""
    if as_json:
        document = {"host": host, "source": source, "deploys": [receipt.to_json() for receipt in receipts]}
        return json.dumps(document, indent=2, ensure_ascii=False)
    if not receipts:
        return f"{host}: nothing was deployed yet ({source})"
    rows = [
        (
            one.started_at,
            one.mode,
            one.outcome,
            text.duration(one.seconds),
            one.operator,
            (one.flake or "-")[:18],
            (one.out or "-").removeprefix("/nix/store/"),
        )
        for one in receipts
    ]
    head = ("started", "mode", "outcome", "time", "operator", "flake", "runs")
    return "\n".join([*text.table(head, rows, 200), f"({source})"])
