"""The tasks that look at the whole fleet, and the one that clears up behind it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from doit.task import Task as DoitTask

from nixa_tasks.errors import NixaError
from nixa_tasks.tasks.actions import Task, view
from nixa_tasks.tasks.options import DETAILED, DRY_RUN, JSON, LIVE, ON, OUTPUT, Params
from nixa_tasks.tasks.selection import choose

if TYPE_CHECKING:
    from nixa_tasks.deploy.disks import Disks
    from nixa_tasks.flake.evaluate import Output
    from nixa_tasks.fleet.plan import Planned
    from nixa_tasks.fleet.report.records import Log
    from nixa_tasks.fleet.status import Standing
    from nixa_tasks.host.reach import Reached
    from nixa_tasks.nix.command import Nix
    from nixa_tasks.tasks.run import Run

Row = TypeVar("Row")


def plan_tasks(run: Run, names: Iterable[str]) -> Iterator[Task | DoitTask]:
    """The table of all hosts or those behind `--on`, and one of each host by its name."""
    yield _of_fleet(run, "plan", _plan, (*ON, *JSON, *DETAILED))
    for name in names:
        yield _of_host(run, "plan", name, _plan, (*JSON, *DETAILED), "what deploy would do to it, and why")


def status_tasks(run: Run, names: Iterable[str]) -> Iterator[Task | DoitTask]:
    """The table of all hosts or those behind `--on`, and one of each host by its name."""
    yield _of_fleet(run, "status", _status, (*ON, *JSON, *LIVE))
    for name in names:
        yield _of_host(run, "status", name, _status, (*JSON, *LIVE), "what it runs, and what it should run")


def report_tasks(run: Run, _names: Iterable[str]) -> Iterator[Task]:
    yield _of_fleet(run, "report", _report, (*LIVE, *OUTPUT))


def gc_tasks(run: Run, _names: Iterable[str]) -> Iterator[Task]:
    yield {"basename": "gc", **view(run, _gc, DRY_RUN)}


def _of_fleet(run: Run, name: str, function: Callable[..., None], params: Params) -> Task:
    """A view of all hosts, or of those that its option `on` chooses."""
    hosts = tuple(run.manifest.hosts)

    def look(run: Run, on: str = "", **options: object) -> None:
        function(run, choose(on, run.manifest) if on else hosts, **options)

    return {"basename": name, **view(run, look, params, hosts)}


def _of_host(
    run: Run, family: str, host: str, function: Callable[..., None], params: Params, doc: str
) -> DoitTask:
    """A view of one host, beside the task of the same name for all of them."""

    def look(run: Run, **options: object) -> None:
        function(run, (host,), **options)

    made = DoitTask(f"{family}:{host}", doc=doc, **view(run, look, params, (host,)))
    made.subtask_of = family
    return made


def _plan(run: Run, hosts: tuple[str, ...], as_json: bool, detailed_exitcode: bool) -> None:
    from nixa_tasks.fleet import plan
    from nixa_tasks.fleet.reporter import wants_colour
    from nixa_tasks.text import terminal_width

    rows = planned(run, hosts)
    status = plan.exit_status(rows, detailed=detailed_exitcode)
    shown = plan.render(rows, terminal_width(), colour=wants_colour(sys.__stdout__ or sys.stdout))
    run.results.show(plan.as_json(rows) if as_json else shown, status=status)


def planned(run: Run, hosts: Sequence[str]) -> list[Planned]:
    """What a deploy would do to each host, and why; asks those that are not settled."""
    from nixa_tasks.fleet import plan
    from nixa_tasks.manifest.select import wave_of

    manifest = run.manifest
    return plan.in_waves(_all(run, _plan_one, hosts), wave_of(manifest.fleet.waves, manifest.hosts))


def _status(run: Run, hosts: tuple[str, ...], as_json: bool, live: bool) -> None:
    from nixa_tasks.fleet import status
    from nixa_tasks.text import terminal_width

    rows = standings(run, hosts, live=live)
    run.results.show(status.as_json(rows) if as_json else status.render(rows, terminal_width()))


def standings(run: Run, hosts: Sequence[str], *, live: bool) -> list[Standing]:
    """How each host stands: by what is remembered here, or, `live`, by what it says itself."""
    return _all(run, _ask_standing if live else _remember_standing, hosts)


def _all(run: Run, one: Callable[[Run, str], Row], hosts: Sequence[str]) -> list[Row]:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(max(1, run.manifest.fleet.jobs)) as pool:
        return list(pool.map(lambda host: one(run, host), hosts))


def _plan_one(run: Run, name: str) -> Planned:
    from nixa_tasks.deploy.decide import Action, Situation, judge
    from nixa_tasks.fleet import plan

    host, receipt = run.manifest.hosts[name], run.receipt(name)
    try:
        output = run.output(name)
    except NixaError as error:
        return plan.failed(host, error)
    remembered = judge(Situation(host, output.toplevel_out, receipt))
    if receipt and remembered.action in (Action.CURRENT, Action.HOLD):
        return plan.from_memory(host, output, receipt)
    try:
        reached = run.connect(host)
    except NixaError as error:
        return plan.failed(host, error, output)
    try:
        row = plan.asked(host, output, reached, receipt)
        if row.action is Action.INSTALL:
            row = plan.asked(host, output, reached, receipt, _disks(reached))
        return _compare(run.nix, row, reached, output)
    finally:
        reached.ssh.disconnect()


def _disks(reached: Reached) -> Disks | None:
    """What an installation would wipe; None where that can't be seen."""
    from nixa_tasks.deploy.preflight import look_at_disks

    try:
        return look_at_disks(reached.ssh) if reached.can_be_root else None
    except NixaError:
        return None


def _compare(nix: Nix, row: Planned, reached: Reached, output: Output) -> Planned:
    """With the closures' difference, where the wanted one is built here and the live one is there."""
    from nixa_tasks.deploy.copy import closure_here, closure_there
    from nixa_tasks.fleet.plan import with_difference

    live = reached.facts.system
    if live is None or live == output.toplevel_out:
        return row
    wanted_paths, live_paths = (
        closure_here(nix, output.toplevel_out),
        closure_there(reached.ssh, live),
    )
    return (
        row if wanted_paths is None or live_paths is None else with_difference(row, wanted_paths, live_paths)
    )


def _outputs(run: Run, name: str) -> Output | None:
    try:
        return run.output(name)
    except NixaError:
        return None


def _remember_standing(run: Run, name: str) -> Standing:
    from nixa_tasks.fleet import status

    return status.remembered(run.manifest.hosts[name], _outputs(run, name), run.receipt(name))


def _ask_standing(run: Run, name: str) -> Standing:
    from nixa_tasks.fleet import status

    host, output = run.manifest.hosts[name], _outputs(run, name)
    try:
        reached = run.connect(host)
    except NixaError as error:
        run.journal.note(name, "reach", error.what)
        return status.unreachable(host, output, run.receipt(name))
    reached.ssh.disconnect()
    return status.asked(host, output, reached, run.receipt(name))


def _gc(run: Run, dry_run: bool) -> None:
    from nixa_tasks.manifest.model import BuildOn
    from nixa_tasks.text import size

    in_use: list[str] = []
    removed = run.cache.gc(dry_run=dry_run, keep=run.manifest.images.values(), note=in_use.append)
    word = "would be removed" if dry_run else "removed"
    lines = [*in_use, *(f"{one.path}: {size(one.size)} {word}" for one in removed)]
    hosts = run.manifest.hosts
    names = {host for host in hosts if hosts[host].build_on is not BuildOn.REMOTE}
    names |= {f"{host}-disko" for host in hosts}
    superseded = {f"{host}-previous" for host in hosts} | hosts.keys()  # theirs who build by themselves
    for root in sorted(run.layout.gcroots.glob("*")) if run.layout.gcroots.is_dir() else []:
        if root.is_symlink() and root.name not in names and not root.name.startswith("kexec-"):
            why = "a superseded system" if root.name in superseded else "a host that hosts.toml no longer has"
            lines.append(f"{root}: GC root of {why}, {word}")
            if not dry_run:
                root.unlink()
    lines.append(f"{size(sum(one.size for one in removed))} {word}")
    run.results.show("\n".join(lines))


def _report(run: Run, hosts: tuple[str, ...], live: bool, output: str) -> None:
    from nixa_tasks.files import write_bytes
    from nixa_tasks.fleet.report.page import Report, Row, render
    from nixa_tasks.fleet.report.records import read_journal
    from nixa_tasks.fleet.report.runs import account, failures, runs

    declared = run.manifest.hosts
    rows = tuple(
        Row(declared[one.host], one, run.receipt(one.host)) for one in standings(run, hosts, live=live)
    )
    journaled = read_journal(run.layout.journal)
    last = runs(journaled.recent, without=run.journal.run)
    page = render(Report(
        title=run.manifest.root.name or "nixa",
        made_at=run.processes.clock.now().timestamp(),
        rows=rows,
        runs=last,
        failures=failures(last, lambda host, of_run: _log(run, host, of_run)),
        images=account(journaled.files),
        since=journaled.since,
        is_live=live,
    ))  # fmt: skip
    path = Path(output).expanduser().absolute() if output else run.layout.report
    write_bytes(path, page.encode())
    run.results.show(f"report: {path}")


def _log(run: Run, host: str, of_run: str) -> Log | None:
    """The log of a host that hosts.toml has: a name in the journal alone is no path to look at."""
    from nixa_tasks.fleet.report.records import find_log

    return find_log(run.layout, host, of_run) if host in run.manifest.hosts else None
