"""The page about states names each of them, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

from nixa_tasks.deploy.decide import Action, State

PAGE = (Path(__file__).parents[3] / "docs/states.md").read_text()


def _named(table: str) -> set[str]:
    """The words in code style in the first column of the table that begins so."""
    rows = PAGE.split(f"| {table} |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return {word for row in rows for word in re.findall(r"`([a-z-]+)`", row.split("|")[1])}


def test_every_state_is_explained() -> None:
    assert _named("state") == set(State)


def test_every_action_is_explained() -> None:
    assert _named("action") == set(Action)
