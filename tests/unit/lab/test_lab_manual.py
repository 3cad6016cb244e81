"""The lab's page tells of every command, fault and broken activation that there is, and of no other."""

from __future__ import annotations

import re
from pathlib import Path

from nixa_tasks.lab.__main__ import main
from nixa_tasks.lab.faults import FAULTS
from nixa_tasks.lab.paths import FILES
from nixa_tasks.lab.sequence import Stage

PAGE = (Path(__file__).parents[3] / "docs/lab.md").read_text()


def _rows(heading: str) -> list[str]:
    """The first cells of the table under a heading, without their header."""
    section = PAGE.split(heading, 1)[1].split("\n\n|", 1)[1].split("\n\n", 1)[0]
    return [line.split("|")[1 if line.startswith("|") else 0].strip() for line in section.splitlines()][2:]


def test_its_faults_are_those_of_the_code() -> None:
    told = [re.split(r"[` \[]", row)[1] for row in _rows("## Faults")]

    assert told == list(FAULTS)
    defaults = {name: fault.default for name, fault in FAULTS.items() if fault.default is not None}
    rows = {name: line for name in defaults for line in PAGE.splitlines() if line.startswith(f"| `{name} ")}
    assert {name for name, line in rows.items() if f"; {defaults[name]} |" in line} == set(defaults)


def test_its_stages_are_those_of_the_code() -> None:
    assert [row.strip("`") for row in _rows("## What a machine is")] == [str(stage) for stage in Stage]


def test_its_broken_activations_are_those_of_the_systems() -> None:
    told = {row.strip('`"') for row in _rows("A *system* can be broken too")}
    scripts = "".join(
        (FILES / f"flake/system/{name}").read_text() for name in ("activate", "switch-to-configuration")
    )
    labels = re.findall(
        r"^((?:[a-z-]+ \| )*[a-z-]+)\)", scripts.split('"@activation@" in', 1)[1], re.MULTILINE
    )

    assert told <= {label for line in labels for label in line.split(" | ")}
    assert len(told) == 6


def test_its_commands_are_those_of_the_program() -> None:
    told = {word for row in _rows("## Commands") for word in re.findall(r"`([a-z]+)", row)}
    help_text = _help()

    assert told == set(re.findall(r"^    ([a-z]+) ", help_text, re.MULTILINE))


def _help() -> str:
    import contextlib
    import io

    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        main(["--help"])
    return text.getvalue()
