"""What people look at: plain lines, the live table, the end of a run, numbers."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from nixa_tasks import text
from nixa_tasks.deploy.decide import Action, State
from nixa_tasks.errors import CommandFailed, NixaError
from nixa_tasks.fleet import plan
from nixa_tasks.fleet.live import Live
from nixa_tasks.fleet.reporter import Lines, Result, summary, wants_colour
from nixa_tasks.process.run import LocalProcesses
from nixa_tasks.state.journal import Event, Journal, Kind


def test_plain_lines_name_the_host_first() -> None:
    stream = io.StringIO()
    view = Lines(stream)
    view(Event(Kind.BEGIN, "web1", "deploy"))
    view(Event(Kind.BEGIN, "web1", "reach"))
    view(Event(Kind.END, "web1", "reach", outcome="done", seconds=0.25))
    view(Event(Kind.NOTE, "web1", "decide", "install: it does not run NixOS"))
    view(Event(Kind.END, "web1", "deploy", "no way", outcome="failed", seconds=75))
    assert stream.getvalue().splitlines() == [
        "web1: reach …",
        "web1: reach: done in 0.2 s",
        "web1: decide: install: it does not run NixOS",
        "web1: deploy: failed after 1 min 15 s: no way",
    ]


@pytest.mark.parametrize("columns", [80, 140])
def test_the_live_table_fits_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("LINES", "24")
    stream = io.StringIO()
    view = Live(stream, colour=False)
    try:
        for number in range(40):
            view(Event(Kind.BEGIN, f"web{number}", "deploy"))
            view(Event(Kind.BEGIN, f"web{number}", "reach"))
            view(Event(Kind.END, f"web{number}", "reach", outcome="done", seconds=1))
        view(Event(Kind.BEGIN, "web1", "upload"))
        view(Event(Kind.PROGRESS, "web1", "upload", done=10_000_000, total=350_000_000))
        with view._console.capture() as shown:
            view._console.print(view._draw())
    finally:
        view.close()
    lines = shown.get().splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= columns
    assert "web1" in shown.get()
    assert "more" in shown.get()
    assert "350" in shown.get()


def test_the_end_shows_every_error_in_full_and_one_table() -> None:
    error = NixaError("it broke", host="web2", tail=("why",), log=Path("/x.log"), hint="mend it")
    lines = summary(
        [Result("web1", "installed", "x" * 200, 12), Result("web2", "failed", "it broke")], [error], 80
    )
    shown = "\n".join(lines)
    assert "web2: it broke\n    | why\n    whole log: /x.log\n    what to do: mend it" in shown
    assert max(map(len, lines)) <= 80
    assert "web1  installed  12 s" in shown


def test_an_error_of_many_hosts_is_told_once_with_their_names() -> None:
    errors = [NixaError("the flake has uncommitted changes", host=f"web{number}") for number in range(9)]
    errors.append(CommandFailed("it broke", host="db1", argv=("x",), status=1))
    assert [line for line in summary([], errors) if line] == [
        "web0, web1, web2, web3, web4, web5 and 3 more: the flake has uncommitted changes",
        "db1: it broke",
    ]


def test_a_table_in_a_pipe_is_whole_and_every_row_is_one_line() -> None:
    rows = [("web1", "failed", "it broke\nin two lines " + "x" * 300)]
    head, row = text.table(("host", "outcome", "what"), rows, None)
    assert head == "host  outcome  what"
    assert row == "web1  failed   it broke in two lines " + "x" * 300
    assert text.terminal_width() is None or os.isatty(1)


def test_no_colour_where_it_is_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    def terminal() -> io.StringIO:
        stream = io.StringIO()
        monkeypatch.setattr(stream, "isatty", lambda: True)
        return stream

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert wants_colour(terminal())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not wants_colour(terminal())
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not wants_colour(terminal())
    assert not wants_colour(io.StringIO())


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (350e6, "350 MB"), (2.5e12, "2.5 TB")]
)
def test_sizes(count: float, shown: str) -> None:
    assert text.size(count) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (59.4, "59 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")],
)
def test_durations(seconds: float, shown: str) -> None:
    assert text.duration(seconds) == shown


def test_a_journal_keeps_a_line_for_a_step_begun_and_one_for_its_end(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl", LocalProcesses().clock)
    with pytest.raises(NixaError), journal.step("web1", "copy"):
        raise NixaError("cut")
    begun, ended = journal.path.read_text().splitlines()
    assert '"event": "begin"' in begun
    assert '"outcome": "failed"' in ended
    assert '"text": "cut"' in ended


def test_a_host_whose_turn_does_not_come_is_shown_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    event = Event(Kind.NOTE, "web2", "deploy", "not started: wave 1 failed (web1)", outcome="not started")
    lines = io.StringIO()
    Lines(lines)(event)
    assert lines.getvalue() == "web2: deploy: not started: wave 1 failed (web1)\n"
    monkeypatch.setenv("COLUMNS", "100")
    view = Live(io.StringIO(), colour=False)
    try:
        view(event)
        with view._console.capture() as shown:
            view._console.print(view._draw())
    finally:
        view.close()
    assert " ".join(shown.get().split()) == "○ web2 0.0 s not started: wave 1 failed (web1)"


def test_what_on_finish_prints_stays_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    stream = io.StringIO()
    view = Live(stream, colour=False)
    view(Event(Kind.BEGIN, "", "on_finish"))
    view(Event(Kind.NOTE, "", "on_finish", "ticket 17 was closed [bold]"))
    view.close()
    assert stream.getvalue().count("on_finish: ticket 17 was closed [bold]\n") == 1


def test_a_plan_says_which_wave_a_host_is_in() -> None:
    rows = [
        plan.Planned(name, State.STALE, Action.SWITCH, "it has a new output") for name in ("web1", "web2")
    ]
    assert "wave" not in plan.render(plan.in_waves(rows, {}), 80)
    shown = plan.render(plan.in_waves(rows, {"web2": 1}), 80).splitlines()
    assert [line.split()[:3] for line in shown[:3]] == [
        ["host", "wave", "state"], ["web1", "last", "stale"], ["web2", "1", "stale"],
    ]  # fmt: skip
