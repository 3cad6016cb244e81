"""What a run does once its tasks have ended: roll a failed wave back, and run `on_finish`."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nixa_tasks.deploy.decide import Action, Asked
from nixa_tasks.deploy.turn import Undo
from nixa_tasks.errors import Interrupted, NixaError
from nixa_tasks.flake import reference
from nixa_tasks.flake.output import current_of
from nixa_tasks.fleet.reporter import FAILED, UNCHANGED, Result
from nixa_tasks.host.lock import operator
from nixa_tasks.manifest.select import Broken, in_order
from nixa_tasks.process.run import Output, Place
from nixa_tasks.state.receipt import Receipt
from nixa_tasks.tasks import settled
from nixa_tasks.tasks.hosts import why_deploy
from nixa_tasks.tasks.run import Run, Turn
from nixa_tasks.tasks.turn import Request, carry_out

ON_FINISH_SECONDS = 300.0
_GIT_SECONDS = 60.0
_TREE = re.compile("git:[0-9a-f]{40,64}:[^:]*(:[0-9a-f]+(-dirty)?)?$")


def take_back(run: Run, broken: Broken) -> None:
    """Take the hosts of a failed wave back to what ran before, those that this run switched. The
    failed one has gone back by itself; every other one is left as it is, and named."""
    rest = [host for host in broken.wave.hosts if host not in broken.failed]
    with ThreadPoolExecutor(run.manifest.fleet.jobs) as pool:
        for _ in pool.map(lambda host: _take_back(run, host, broken), rest):
            pass


def way_back(turn: Turn | None) -> Undo | str:
    """Where a host of a failed wave goes back to, or why it is left as it is."""
    done = turn.done if turn is not None else None
    if done is None or not done.action.is_change:
        return "this run did not change it"
    if done.before is None or done.receipt is None or done.receipt.out is None:
        return "what ran before is not known"
    if done.action is Action.INSTALL:
        return "it was installed in this run, so there is no system before"
    return Undo(done.before, since=done.receipt.out)


def _take_back(run: Run, host: str, broken: Broken) -> None:
    way = way_back(run.turns.get(host))
    if isinstance(way, str):
        run.journal.note(host, "wave", f"left as it is: {way}")
        had = run.results.hosts.get(host, Result(host, UNCHANGED, "up to date"))
        run.results.record(replace(had, said=f"{had.said}; left as it is: {way}"))
        return
    try:
        carry_out(run, host, Request(Asked.ROLLBACK, way))
    except Interrupted:
        raise
    except NixaError as error:
        run.results.fail(error)
        said = f"{broken.said}, and it could not be taken back: {error.what}"
        run.results.record(replace(run.results.hosts[host], outcome=FAILED, said=said))
    else:
        said = f"{broken.said}; it runs the system before again"
        run.results.record(replace(run.results.hosts[host], said=said))


@dataclass(frozen=True, slots=True)
class Ended:
    """How a whole run ended. `seconds` is a duration, `started_at` RFC 3339."""

    started_at: str
    seconds: float
    status: int


def has_changed_hosts(turns: Mapping[str, Turn]) -> bool:
    """Whether the run changed a host, or tried to: `on_finish` is run for nothing else."""
    return any(turn.done is None or turn.done.action.is_change for turn in turns.values())


def report_end(run: Run, ended: Ended) -> None:
    """Run `on_finish`, if the run is worth it. Raises NixaError; nothing is undone for that."""
    command = run.manifest.fleet.on_finish
    if command is None or not has_changed_hosts(run.turns):
        return
    data = json.dumps(_document(run, ended), indent=2, ensure_ascii=False).encode() + b"\n"
    with run.journal.step("", "on_finish"):
        try:
            run.processes.run(
                command,
                deadline=ON_FINISH_SECONDS,
                stdin=data,
                place=Place(run.manifest.root),
                output=Output(lambda line: run.journal.note("", "on_finish", line)),
                what="on_finish",
            )
        except NixaError as error:
            error.hint = error.hint or "the deploys are not touched by that: what is done is done"
            raise


def _document(run: Run, ended: Ended) -> dict[str, Any]:
    done = run.results
    unchanged = {name.removeprefix("deploy:") for name in done.unchanged if name.startswith("deploy:")}
    results = {host: Result(host, UNCHANGED, "up to date") for host in unchanged} | done.hosts
    waves = {host: wave.number for wave in in_order(run.manifest, run.manifest.hosts) for host in wave.hosts}
    return {
        "run": run.journal.run,
        "started_at": ended.started_at,
        "seconds": round(ended.seconds, 1),
        "exit_status": ended.status,
        "operator": operator(),
        "flake": run.fingerprint.revision,
        "manifest": str(run.manifest.path),
        "hosts": [
            _row(results[host], waves[host], run.turns.get(host), run.receipt(host), _wanted(run, host))
            for host in run.manifest.hosts
            if host in results
        ],
    }


def _wanted(run: Run, host: str) -> str | None:
    output = run.remembered_output(host)
    return output.toplevel_out if output else None


def _row(
    result: Result, wave: int | None, turn: Turn | None, receipt: Receipt | None, wanted: str | None
) -> dict[str, Any]:
    """One host. `out` is what runs there, as far as this project knows."""
    return {
        "host": result.name,
        "outcome": result.outcome,
        "said": result.said,
        "wave": wave,
        "started_at": turn.started_at if turn else None,
        "seconds": round(result.seconds, 1),
        "wanted": wanted,
        "out": receipt.out if receipt else None,
    }


def record_settled(run: Run, hosts: Iterable[str], at_ns: int | None = None) -> None:
    """Take hosts that doit has just found up to date into the index of what is settled. Everything is
    looked at before and after it is checked once more; whatever is in doubt stays out, as does all
    where a file changed shortly before `at_ns` (now), which may change again unseen."""
    state, manifest = run.layout.state, run.manifest
    at_ns = time.time_ns() if at_ns is None else at_ns
    if (
        not _TREE.match(run.fingerprint.value)
        or run.fingerprint.is_impure
        or "${" in manifest.path.read_text()
    ):
        return
    now = settled.basis(state, _flake_files(run))
    entries, rows = settled.known(state, now), settled.rows(state)
    seen = {host: settled.entry(state, host, rows) for host in hosts}
    fresh = {host: looks for host, looks in seen.items() if entries.get(host) != looks}
    if not fresh or not settled.is_calm(now, at_ns) or run.read_fingerprint() != run.fingerprint:
        return
    attributes = {host: manifest.hosts[host].flake_attr for host in fresh}
    evaluated = current_of(run.layout, run.fingerprint, attributes)
    fine = [host for host in evaluated if why_deploy(run, host) is None and host not in run.held]
    rows = settled.rows(state)
    entries |= {host: fresh[host] for host in fine if settled.entry(state, host, rows) == fresh[host]}
    if settled.basis(state, now.flake) == now:
        settled.write(state, manifest.fleet.jobs, manifest.hosts, now, entries)


def _flake_files(run: Run) -> list[str]:
    """What git and Nix look at: the tracked files, and git's own that say which those are."""
    root = reference.parse(run.manifest.fleet.flake).local

    def git(*words: str) -> str:
        argv = ("git", "-C", str(root), *words)
        return run.processes.run(argv, deadline=_GIT_SECONDS, check=False, what="git").stdout

    names = ["index", "HEAD", "config", "info/attributes", "packed-refs"]
    names += git("symbolic-ref", "-q", "HEAD").split()
    own = git(
        "rev-parse", "--path-format=absolute", *(word for name in names for word in ("--git-path", name))
    )
    settings = [
        str(Path("~/.gitconfig").expanduser()),
        str(Path("~/.config/git/config").expanduser()),
        "/etc/gitconfig",
    ]
    tracked = [f"{root}/{name}" for name in git("ls-files", "-z").split("\0") if name]
    return [*own.splitlines(), *settings, *tracked]
