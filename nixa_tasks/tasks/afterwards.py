"""What a run does once its tasks have ended: takes a failed wave back, and tells `on_finish`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from nixa_tasks.deploy.decide import Action, Asked
from nixa_tasks.deploy.order import Back
from nixa_tasks.errors import Interrupted, NixaError
from nixa_tasks.fleet.reporter import FAILED, UNCHANGED, Result
from nixa_tasks.host.lock import operator
from nixa_tasks.manifest.waves import Broken, in_order
from nixa_tasks.process import run as process
from nixa_tasks.state.receipt import Receipt
from nixa_tasks.tasks import run
from nixa_tasks.tasks.doit import outcome
from nixa_tasks.tasks.work import Turn, carry_out

ON_FINISH_SECONDS = 300.0


def take_back(broken: Broken) -> None:
    """Take the hosts of a failed wave back to what ran before, those that this run switched. The
    failed one has gone back by itself; every other one is left as it is, and named."""
    rest = [host for host in broken.wave.hosts if host not in broken.failed]
    with ThreadPoolExecutor(run.manifest().fleet.jobs) as pool:
        for _ in pool.map(lambda host: _take_back(host, broken), rest):
            pass


def way_back(turn: Turn | None) -> Back | str:
    """Where a host of a failed wave goes back to, or why it is left as it is."""
    done = turn.done if turn is not None else None
    if done is None or not done.action.is_change:
        return "this run did not change it"
    if done.before is None or done.receipt.out is None:
        return "what ran before is not known"
    if done.action is Action.INSTALL:
        return "it was installed in this run, so there is no system before"
    return Back(done.before, since=done.receipt.out)


def _take_back(host: str, broken: Broken) -> None:
    way = way_back(run.current().turns.get(host))
    if isinstance(way, str):
        run.current().journal.note(host, "wave", f"left as it is: {way}")
        had = outcome.results.get(host, Result(host, UNCHANGED, "up to date"))
        outcome.record(replace(had, said=f"{had.said}; left as it is: {way}"))
        return
    try:
        carry_out(host, Asked.ROLLBACK, way)
    except Interrupted:
        raise
    except NixaError as error:
        outcome.fail(error)
        said = f"{broken.said}, and it could not be taken back: {error.what}"
        outcome.record(replace(outcome.results[host], outcome=FAILED, said=said))
    else:
        said = f"{broken.said}; it runs the system before again"
        outcome.record(replace(outcome.results[host], said=said))


@dataclass(frozen=True, slots=True)
class Ended:
    """A whole run as `on_finish` is told of it. `seconds` is a duration, `started_at` RFC 3339."""

    run: str
    started_at: str
    seconds: float
    status: int


def is_told(made: Mapping[str, Turn]) -> bool:
    """Whether the run changed a host, or tried to: `on_finish` hears of nothing else."""
    return any(turn.done is None or turn.done.action.is_change for turn in made.values())


def tell(started_at: str, seconds: float, status: int) -> None:
    """Run `on_finish`, if the run is worth it. Raises NixaError; nothing is undone for that."""
    current = run.current()
    command = current.manifest.fleet.on_finish
    if command is None or not is_told(current.turns):
        return
    ended = Ended(current.journal.run, started_at, seconds, status)
    data = json.dumps(_document(ended), indent=2, ensure_ascii=False).encode() + b"\n"
    with current.journal.step("", "on_finish"):
        try:
            process.run(
                command,
                deadline=ON_FINISH_SECONDS,
                cwd=current.manifest.root,
                stdin=data,
                sink=lambda line: current.journal.note("", "on_finish", line),
                what="on_finish",
            )
        except NixaError as error:
            error.hint = error.hint or "the deploys are not touched by that: what is done is done"
            raise


def _document(ended: Ended) -> dict[str, Any]:
    current = run.current()
    unchanged = {name.removeprefix("deploy:") for name in outcome.unchanged if name.startswith("deploy:")}
    results = {host: Result(host, UNCHANGED, "up to date") for host in unchanged} | outcome.results
    waves = {
        host: wave.number
        for wave in in_order(current.manifest, current.manifest.hosts)
        for host in wave.hosts
    }
    return {
        "run": ended.run,
        "started_at": ended.started_at,
        "seconds": round(ended.seconds, 1),
        "exit_status": ended.status,
        "operator": operator(),
        "flake": current.fingerprint.revision,
        "manifest": str(current.manifest.path),
        "hosts": [
            _row(results[host], waves[host], current.turns.get(host), current.receipt(host), _wanted(host))
            for host in current.manifest.hosts
            if host in results
        ],
    }


def _wanted(host: str) -> str | None:
    output = run.current().remembered_output(host)
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
