"""The history of a host, as a person reads it."""

from __future__ import annotations

import json

import pytest

from nixa_tasks.fleet.status import render_history
from nixa_tasks.state.receipt import How, Outcome, Receipt

OLD, NEW = (f"/nix/store/{letter * 32}-nixos-system-web1" for letter in "ab")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def receipt(minute: int, how: How, outcome: Outcome, out: str, flake: str | None = COMMIT) -> Receipt:
    started = f"2026-01-01T00:{minute:02}:00Z"
    return Receipt("192.0.2.1", "k", out, NEW, None, how, None, flake, started, 3.0, "me@here", outcome)


INSTALLED = receipt(1, How.INSTALL, Outcome.DONE, OLD)
ARMED, BOOTED = (
    receipt(2, How.BOOT, outcome, out) for outcome, out in ((Outcome.FAILED, OLD), (Outcome.DONE, NEW))
)


def test_a_watched_restart_is_one_line_that_says_how_it_ended() -> None:
    shown = render_history("web1", [INSTALLED, ARMED, BOOTED], "the host", 120, as_json=False).splitlines()
    assert [line.split()[1:3] for line in shown[2:]] == [["install", "done"], ["boot", "done"]]
    shown = render_history("web1", [INSTALLED, ARMED], "the host", 120, as_json=False).splitlines()
    assert [line.split()[1:3] for line in shown[2:]] == [["install", "done"], ["boot", "failed"]]


def test_the_document_has_all_that_is_on_record() -> None:
    told = json.loads(render_history("web1", [INSTALLED, ARMED, BOOTED], "the host", 80, as_json=True))
    assert [one["outcome"] for one in told["deploys"]] == ["done", "failed", "done"]


@pytest.mark.parametrize("width", [80, 140])
def test_it_fits_the_terminal_and_names_what_ran(width: int) -> None:
    dirty = receipt(3, How.SWITCH, Outcome.DONE, NEW, f"{COMMIT}-dirty")
    shown = render_history("web1", [INSTALLED, dirty], "the host", width, as_json=False)
    assert max(map(len, shown.splitlines())) <= width
    assert "aaaaaaa…-nixos-system-web1" in shown
    assert ("0123456-dirty" in shown) is (width == 140)
