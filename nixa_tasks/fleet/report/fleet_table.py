"""The fleet as a table, and what a page says in common: times, states, store paths. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from nixa_tasks import text
from nixa_tasks.fleet.report.events import moment
from nixa_tasks.fleet.report.markup import Child, Html, element
from nixa_tasks.fleet.status import Standing
from nixa_tasks.manifest.model import Host
from nixa_tasks.state.receipt import Receipt

# A state or an outcome: its class, which is its colour, and its mark, for those who see no colour.
_GOOD, _TODO, _BAD, _QUIET = ("good", "✓"), ("todo", "●"), ("bad", "✗"), ("quiet", "○")
_TONES = {
    "current": _GOOD, "done": _GOOD,
    "outdated": _TODO, "pending": _TODO, "unconfirmed": _TODO, "stopped": _TODO, "open": _TODO, "rolled-back": _TODO,
    "drift": _BAD, "failed": _BAD, "unreachable": _BAD,
}  # fmt: skip
_SAID = {"open": "no end noted", "rolled-back": "rolled back", "not-nixos": "not NixOS"}
ATTENTION = frozenset({"drift", "failed", "unreachable", "rolled-back"})


@dataclass(frozen=True, slots=True)
class Row:
    """One host: what is declared, how it stands, and the receipt of its last deploy."""

    host: Host
    standing: Standing
    receipt: Receipt | None


def badge(word: str) -> Html:
    tone, mark = _TONES.get(word, _QUIET)
    sign = element("span", mark, " ", aria_hidden="true")
    return element("span", sign, _SAID.get(word, word), class_=f"badge {tone}")


def when(at: float, *, seconds: bool = False) -> Html:
    """A moment, UTC: to the second for machines, for people to the minute unless they want more."""
    try:
        moment_ = datetime.fromtimestamp(at, UTC)
    except (ValueError, OverflowError, OSError):
        return element("span", "at no known time")
    said = f"{moment_:%Y-%m-%d %H:%M:%S}" if seconds else f"{moment_:%Y-%m-%d %H:%M}"
    return element("time", said, " UTC", datetime=f"{moment_:%Y-%m-%dT%H:%M:%SZ}")


def fleet_table(rows: Sequence[Row]) -> Html:
    head = ("Host", "Target", "Tags", "State", "Last deploy", "Wanted", "Runs")
    return element(
        "table",
        element("caption", "Every host of hosts.toml", class_="unseen"),
        element("thead", element("tr", [element("th", one, scope="col") for one in head])),
        element("tbody", [_row(row) for row in rows]),
        class_="cards fleet",
    )


def _row(row: Row) -> Html:
    host, standing = row.host, row.standing
    user = "" if host.user == "root" else f"{host.user}@"
    port = f" port {host.port}" if host.port else ""
    return element(
        "tr",
        element("th", host.name, scope="row"),
        _cell("Target", element("code", f"{user}{host.target}"), port),
        _cell("Tags", [element("span", tag, class_="tag") for tag in host.tags] or "-"),
        _cell("State", badge(standing.state)),
        _cell("Last deploy", _deploy(row.receipt)),
        _cell("Wanted", _store_path(standing.wanted, host.name)),
        _cell("Runs", _store_path(standing.live, host.name)),
    )


def _cell(label: str, *children: Child) -> Html:
    is_empty = children == ("-",)
    return element("td", element("div", *children), data_label=label, class_="none" if is_empty else None)


def _deploy(receipt: Receipt | None) -> Child:
    if receipt is None:
        return "never"
    at = moment(receipt.started_at)
    took = text.duration(max(0.0, receipt.seconds)) if receipt.seconds < 1e9 else "long"
    by = f"{receipt.mode} in {took}, by {receipt.operator}"
    return (when(at) if at is not None else receipt.started_at, " ", badge(receipt.outcome),
            element("small", by))  # fmt: skip


def _store_path(path: str | None, host: str) -> Child:
    """A store path by its hash's beginning and what its name tells beside the host's; all of it on
    hovering."""
    if path is None:
        return "-"
    name = path.rpartition("/")[2]
    rest = name[33:].removeprefix(f"nixos-system-{host}-")
    short = (element("b", name[:7]), " ", rest) if rest else name
    return element("code", short, title=path)
