"""The tasks that look at the whole fleet, and the one that clears up behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from nixa_tasks.errors import NixaError
from nixa_tasks.tasks import run
from nixa_tasks.tasks.doit import action, outcome

if TYPE_CHECKING:
    from nixa_tasks.flake.evaluate import Output
    from nixa_tasks.fleet.plan import Planned
    from nixa_tasks.fleet.status import Standing
    from nixa_tasks.host.reach import Reached

Task = dict[str, Any]
Row = TypeVar("Row")
JSON = [{"name": "as_json", "long": "json", "type": bool, "default": False,
         "help": "one JSON document on standard output"}]  # fmt: skip
LIVE = [{"name": "live", "long": "live", "type": bool, "default": False, "help": "ask the hosts themselves"}]
DRY_RUN = [{"name": "dry_run", "long": "dry-run", "type": bool, "default": False,
            "help": "say what and how much, and remove nothing"}]  # fmt: skip


def plan_task(hosts: Sequence[str], as_json: bool) -> Task:
    return view(_plan, tuple(hosts), as_json)


def status_task(hosts: Sequence[str], as_json: bool, live: bool) -> Task:
    return view(_status, tuple(hosts), as_json, live)


def gc_task(dry_run: bool) -> Task:
    return view(_gc, dry_run)


def view(function: Callable[..., None], *args: object) -> Task:
    """A task that only looks: its text is alone on standard output."""
    return {
        "actions": [action(function, *args)],
        "uptodate": [False],
        "verbosity": 2,
        "io": {"capture": False},
        "meta": {"view": True},
    }


def _plan(hosts: tuple[str, ...], as_json: bool) -> None:
    from nixa_tasks.fleet import plan
    from nixa_tasks.manifest.waves import wave_of
    from nixa_tasks.text import terminal_width

    manifest = run.manifest()
    rows = plan.in_waves(_all(_plan_one, hosts), wave_of(manifest.fleet.waves, manifest.hosts))
    outcome.show(plan.as_json(rows) if as_json else plan.render(rows, terminal_width()))


def _status(hosts: tuple[str, ...], as_json: bool, live: bool) -> None:
    from nixa_tasks.fleet import status
    from nixa_tasks.text import terminal_width

    rows = standings(hosts, live=live)
    outcome.show(status.as_json(rows) if as_json else status.render(rows, terminal_width()))


def standings(hosts: Sequence[str], *, live: bool) -> list[Standing]:
    """How each host stands: by what is remembered here, or, `live`, by what it says itself."""
    return _all(_ask_standing if live else _remember_standing, hosts)


def _all(one: Callable[[str], Row], hosts: Sequence[str]) -> list[Row]:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(max(1, run.manifest().fleet.jobs)) as pool:
        return list(pool.map(one, hosts))


def _plan_one(name: str) -> Planned:
    from nixa_tasks.deploy.adopt import is_deployed
    from nixa_tasks.fleet import plan
    from nixa_tasks.manifest.model import InstallPolicy

    now = run.current()
    host, receipt = now.manifest.hosts[name], now.receipt(name)
    try:
        output = now.evaluation.of(name)
    except NixaError as error:
        return plan.unknown(name, f"the flake can't be evaluated: {error.what}")
    if receipt and is_deployed(host, output, receipt) and host.install is not InstallPolicy.ALWAYS:
        return plan.unchanged(name, output, receipt)
    try:
        reached = run.connect(host)
    except NixaError as error:
        return plan.unknown(name, error.what, output)
    try:
        row = plan.planned(host, output, reached.facts, receipt)
        return _compare(row, reached, output)
    finally:
        reached.ssh.disconnect()


def _compare(row: Planned, reached: Reached, output: Output) -> Planned:
    """With the closures' difference, where the wanted one is built here and the live one is there."""
    from nixa_tasks.deploy.copy import closure_here, closure_there
    from nixa_tasks.fleet.plan import with_difference

    live = reached.facts.system
    if live is None or live == output.toplevel_out:
        return row
    wanted_paths, live_paths = closure_here(output.toplevel_out), closure_there(reached.ssh, live)
    return (
        row if wanted_paths is None or live_paths is None else with_difference(row, wanted_paths, live_paths)
    )


def _outputs(name: str) -> Output | None:
    try:
        return run.current().evaluation.of(name)
    except NixaError:
        return None


def _remember_standing(name: str) -> Standing:
    from nixa_tasks.fleet import status

    now = run.current()
    return status.remembered(now.manifest.hosts[name], _outputs(name), now.receipt(name))


def _ask_standing(name: str) -> Standing:
    from nixa_tasks.fleet import status

    now = run.current()
    host, output = now.manifest.hosts[name], _outputs(name)
    try:
        reached = run.connect(host)
    except NixaError as error:
        now.journal.note(name, "reach", error.what)
        return status.unreachable(host, output, now.receipt(name))
    reached.ssh.disconnect()
    return status.asked(host, output, reached.facts)


def _gc(dry_run: bool) -> None:
    from nixa_tasks.manifest.model import BuildOn
    from nixa_tasks.tasks.images import cache
    from nixa_tasks.text import size

    removed = cache().gc(dry_run=dry_run, keep=run.manifest().images.values())
    word = "would be removed" if dry_run else "removed"
    lines = [f"{one.path}: {size(one.size)} {word}" for one in removed]
    now = run.current()
    hosts = now.manifest.hosts
    names = {host for host in hosts if hosts[host].build_on is not BuildOn.REMOTE}
    names |= {f"{host}-disko" for host in hosts}
    superseded = {f"{host}-previous" for host in hosts} | hosts.keys()  # theirs who build by themselves
    for root in sorted(now.layout.gcroots.glob("*")) if now.layout.gcroots.is_dir() else []:
        if root.is_symlink() and root.name not in names and not root.name.startswith("kexec-"):
            why = "a superseded system" if root.name in superseded else "a host that hosts.toml no longer has"
            lines.append(f"{root}: GC root of {why}, {word}")
            if not dry_run:
                root.unlink()
    lines.append(f"{size(sum(one.size for one in removed))} {word}")
    outcome.show("\n".join(lines))
