"""The page: from what is known to one HTML document that needs nothing else. Pure.

What hosts and tools say ends up in it: every value is made printable and escaped by the template engine, and
nothing is loaded or run, whatever a host has said.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from nixa_tasks import text
from nixa_tasks.deploy.decide import State
from nixa_tasks.fleet.report.records import moment
from nixa_tasks.fleet.report.runs import Failure, Image, Run, latest
from nixa_tasks.fleet.report.timeline import LEGEND, timeline
from nixa_tasks.fleet.status import PLAIN, Standing
from nixa_tasks.manifest.model import Host
from nixa_tasks.state.receipt import Receipt

_FOLDER = Path(__file__).parent
_LONGEST = 2000
# Control characters, lone surrogates and non-characters are not allowed in HTML; bidirectional
# controls would show a text in another order than it has.
_ODD = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"
)
# A state or an outcome: its class, which is its colour, and its mark, for those who see no colour.
_GOOD, _TODO, _BAD, _QUIET = ("good", "✓"), ("todo", "●"), ("bad", "✗"), ("quiet", "○")
_TONES = {
    State.CURRENT: _GOOD, "done": _GOOD,
    State.STALE: _TODO, State.PENDING: _TODO, State.UNCONFIRMED: _TODO, State.HELD: _TODO,
    "stopped": _TODO, "open": _TODO, "rolled-back": _TODO,
    State.DRIFTED: _BAD, State.FAILED: _BAD, State.UNREACHABLE: _BAD, State.REFUSED: _BAD, State.WAITING: _BAD,
}  # fmt: skip
_SHOWN = {"open": "no end noted", "rolled-back": "rolled back", State.WAITING: "waiting in its initrd"}
_ATTENTION = frozenset(
    {
        State.DRIFTED,
        State.FAILED,
        State.UNREACHABLE,
        State.REFUSED,
        State.WAITING,
        State.HELD,
        State.UNCONFIRMED,
    }
)


@dataclass(frozen=True, slots=True)
class Row:
    """One host: what is declared, its state, and the receipt of its last deploy."""

    host: Host
    standing: Standing
    receipt: Receipt | None


@dataclass(frozen=True, slots=True)
class Report:
    """What the page tells. `made_at`, `since`: seconds since 1970; the account of the cache begins at
    `since`. `runs` and `failures` are newest first. `is_live`: the hosts were asked."""

    title: str
    made_at: float
    rows: tuple[Row, ...]
    runs: tuple[Run, ...]
    failures: tuple[Failure, ...]
    images: tuple[Image, ...]
    since: float | None
    is_live: bool = False


def render(report: Report, engine: Environment | None = None) -> str:
    """The whole document. `engine`: one that was made before, since compiling the template takes longer than
    filling it in."""
    states = [row.standing.state for row in report.rows]
    return (engine or environment()).get_template("page.html.jinja").render(
        report=report,
        style=Markup((_FOLDER / "style.css").read_text(encoding="utf-8")),  # noqa: S704 -- our own file
        current=states.count(State.CURRENT),
        others=_others(states),
        attention=sum(state in _ATTENTION for state in states),
        last=latest(report.runs) if report.runs else None,
        saved=sum(image.saved_download + image.saved_upload for image in report.images),
        timelines=[timeline(run) for run in report.runs],
        legend=LEGEND,
        plain_states=PLAIN,
    )  # fmt: skip


def environment() -> Environment:
    """The template engine: what a template shows is escaped, and cleaned before."""
    made = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "size": text.size,
        "duration": text.duration,
        "moment": moment,
        "utc": _utc,
        "tone": lambda state: _TONES.get(state, _QUIET)[0],
        "mark": lambda state: _TONES.get(state, _QUIET)[1],
        "state": lambda state: _SHOWN.get(state, state),
        "store_name": _store_name,
    }
    return made


def clean(value: str) -> str:
    """The text with every character visible and allowed, cut where it is absurdly long."""
    if len(value) > _LONGEST:
        value = value[:_LONGEST] + "…"
    return _ODD.sub(lambda odd: _visible(ord(odd[0])), value)


def _shown(value: Any) -> Any:
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _visible(code: int) -> str:
    """The control's own picture (␀ … ␟, ␡), else the replacement character."""
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else "\ufffd"


def _others(states: Sequence[str]) -> str:
    others = [state for state in dict.fromkeys(states) if state != State.CURRENT]
    return ", ".join(f"{states.count(state)} {state}" for state in others) or "all of them"


def _utc(at: float, form: str) -> str | None:
    """The moment, as strftime writes it; None for one that no calendar has."""
    try:
        return datetime.fromtimestamp(at, UTC).strftime(form)
    except (ValueError, OverflowError, OSError):
        return None


def _store_name(path: str, host: str) -> tuple[str, str]:
    """The beginning of a store path's hash, and what its name tells beside the host's."""
    name = path.rpartition("/")[2]
    rest = name[33:].removeprefix(f"nixos-system-{host}-")
    return (name[:7], rest) if rest else ("", name)
