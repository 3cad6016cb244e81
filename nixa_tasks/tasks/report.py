"""The task that makes the HTML page about the fleet."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nixa_tasks.tasks import run
from nixa_tasks.tasks.doit import outcome
from nixa_tasks.tasks.fleet import standings, view

if TYPE_CHECKING:
    from nixa_tasks.fleet.report.failures import Log

Task = dict[str, Any]
OUTPUT = [{"name": "output", "short": "o", "long": "output", "type": str, "default": "",
           "help": "the file to write (.nixa/report.html)"}]  # fmt: skip


def report_task(hosts: Sequence[str], live: bool, output: str) -> Task:
    return view(_report, tuple(hosts), live, output)


def _report(hosts: tuple[str, ...], live: bool, output: str) -> None:
    from nixa_tasks.files import write_bytes
    from nixa_tasks.fleet.report.failures import failures
    from nixa_tasks.fleet.report.fleet_table import Row
    from nixa_tasks.fleet.report.page import Report, render
    from nixa_tasks.fleet.report.runs import runs
    from nixa_tasks.fleet.report.savings import account
    from nixa_tasks.fleet.report.tail import read_journal

    now = run.current()
    declared = now.manifest.hosts
    rows = tuple(Row(declared[one.host], one, now.receipt(one.host)) for one in standings(hosts, live=live))
    journaled = read_journal(now.layout.journal)
    last = runs(journaled.recent, without=now.journal.run)
    page = render(Report(
        title=now.manifest.root.name or "nixa",
        made_at=time.time(),
        rows=rows,
        runs=last,
        failures=failures(last, _log),
        images=account(journaled.files),
        since=journaled.since,
        is_live=live,
    ))  # fmt: skip
    path = Path(output).expanduser().absolute() if output else now.layout.report
    write_bytes(path, page.encode())
    outcome.show(f"report: {path}")


def _log(host: str, of_run: str) -> Log | None:
    """The log of a host that hosts.toml has: a name in the journal alone is no path to look at."""
    from nixa_tasks.fleet.report.tail import find_log

    now = run.current()
    return find_log(now.layout, host, of_run) if host in now.manifest.hosts else None
