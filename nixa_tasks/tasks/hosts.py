"""The tasks of single hosts: evaluate, build, reach, deploy, and what a person asks for by name."""

from __future__ import annotations

import functools
import sys
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from nixa_tasks.errors import UsageError
from nixa_tasks.manifest.waves import in_order
from nixa_tasks.tasks import run, waves
from nixa_tasks.tasks.doit import action, action_with_options, is_uptodate, outcome

Task = dict[str, Any]


def evaluate_tasks(hosts: Iterable[str]) -> Iterator[Task]:
    for host in hosts:
        yield _task(
            "evaluate",
            host,
            _evaluate,
            "what the flake says of it",
            targets=[str(run.layout().host(host).output)],
            uptodate=[is_uptodate(functools.partial(_is_evaluated, host))],
        )


def build_tasks(hosts: Iterable[str]) -> Iterator[Task]:
    for host in hosts:
        yield _task(
            "build",
            host,
            _build,
            "its closure in the local store, with a GC root; or in its own, where it builds",
            file_dep=[str(run.layout().host(host).output)],
            uptodate=[is_uptodate(functools.partial(_is_built, host))],
        )


def reach_tasks(hosts: Iterable[str]) -> Iterator[Task]:
    for host in hosts:
        yield _task("reach", host, _reach, "is it there, who is it, what does it run")


def deploy_tasks(hosts: Iterable[str], asked: Collection[str]) -> Iterator[Task]:
    """Those of `hosts`; the ones that are asked for start wave by wave."""
    order = in_order(run.manifest(), asked)
    yield from waves.gate_tasks(order)
    gate = waves.gates(order)
    for host in hosts:
        place = run.layout().host(host)
        yield _task(
            "deploy",
            host,
            _deploy,
            "bring it to what the flake says",
            file_dep=[str(place.output)],
            targets=[str(place.deployed)],
            task_dep=[gate[host]] if host in gate else [],
            uptodate=[is_uptodate(functools.partial(_is_deployed, host))],
        )


def trust_tasks(hosts: Iterable[str]) -> Iterator[Task]:
    pin = {
        "name": "pin",
        "long": "pin",
        "type": bool,
        "default": False,
        "help": "write the key into hosts.toml as host_key",
    }
    for host in hosts:
        yield asked_task("trust", host, _trust, "take the host key that it shows now as the right one", [pin])


def rollback_tasks(hosts: Iterable[str]) -> Iterator[Task]:
    for host in hosts:
        yield asked_task(
            "rollback", host, _roll_back, "back to the system that ran before", task_dep=[f"evaluate:{host}"]
        )


def reinstall_tasks(hosts: Iterable[str]) -> Iterator[Task]:
    word = {
        "name": "yes_wipe",
        "long": "yes-wipe",
        "type": str,
        "default": "",
        "help": "the host's name: wipe its disk without asking",
    }
    for host in hosts:
        yield asked_task(
            "reinstall",
            host,
            _reinstall,
            "wipe it and install it again",
            [word],
            task_dep=[f"evaluate:{host}"],
        )


def history_tasks(hosts: Iterable[str]) -> Iterator[Task]:
    as_json = {"name": "as_json", "long": "json", "type": bool, "default": False, "help": "one JSON document"}
    for host in hosts:
        task = asked_task(
            "history", host, _history, "what was deployed, when, by whom, how it ended", [as_json]
        )
        yield task | {"meta": {"view": True}}


def _task(family: str, host: str, function: Any, doc: str, **more: Any) -> Task:
    return {
        "basename": family,
        "name": host,
        "doc": doc,
        "actions": [action(function, host)],
        "verbosity": 2,
        "io": {"capture": False},
        "meta": {"host": host, "work": True},
        **more,
    }


def asked_task(
    family: str, host: str, function: Any, doc: str, params: list[Task] | None = None, **more: Any
) -> Task:
    """A task that always runs: somebody asked for it. Its options reach the function by name."""
    names = tuple(param["name"] for param in params or ())
    return {
        "basename": family,
        "name": host,
        "doc": doc,
        "params": params or [],
        "actions": [action_with_options(function, (host,), names)],
        "uptodate": [False],
        "verbosity": 2,
        "io": {"capture": False},
        "meta": {"host": host},
        **more,
    }


def _is_evaluated(host: str) -> bool:
    from nixa_tasks.flake.evaluate import current

    now = run.current()
    return current(now.layout, now.fingerprint, host, now.manifest.hosts[host].flake_attr) is not None


def _evaluate(host: str) -> None:
    run.current().evaluation.of(host)


def _is_built(host: str) -> bool:
    from nixa_tasks.flake.build import is_built
    from nixa_tasks.manifest.model import BuildOn

    if run.current().manifest.hosts[host].build_on is BuildOn.REMOTE:
        return False  # only the host knows
    output = run.current().remembered_output(host)
    return output is not None and is_built(run.current().layout, host, output, "toplevel")


def _build(host: str) -> None:
    from nixa_tasks.manifest.model import BuildOn
    from nixa_tasks.tasks.work import build_alone

    build_alone(host, on_host=run.current().manifest.hosts[host].build_on is BuildOn.REMOTE)


def _is_deployed(host: str) -> bool:
    from nixa_tasks.deploy.adopt import is_deployed
    from nixa_tasks.manifest.model import InstallPolicy

    now = run.current()
    declared = now.manifest.hosts[host]
    if declared.install is InstallPolicy.ALWAYS:
        return False  # it comes and goes behind nixa's back: it is asked at every deploy
    return is_deployed(declared, now.remembered_output(host), now.receipt(host))


def _deploy(host: str) -> None:
    from nixa_tasks.deploy.decide import Asked
    from nixa_tasks.tasks.work import carry_out

    carry_out(host, Asked.DEPLOY)


def _roll_back(host: str) -> None:
    from nixa_tasks.deploy.decide import Asked
    from nixa_tasks.tasks.work import carry_out

    carry_out(host, Asked.ROLLBACK)


def _reinstall(host: str, yes_wipe: str) -> None:
    from nixa_tasks.deploy.decide import Asked
    from nixa_tasks.tasks.work import carry_out

    if yes_wipe and yes_wipe != host:
        raise UsageError(f"--yes-wipe {yes_wipe} does not name {host}; nothing was done", host=host)
    if not yes_wipe:
        _ask_for_name(host)
    carry_out(host, Asked.REINSTALL)


def _ask_for_name(host: str) -> None:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError(
            "reinstall wipes the disk, so it wants the host's name as a confirmation",
            host=host,
            hint=f"doit reinstall:{host} --yes-wipe {host}",
        )
    target = run.current().manifest.hosts[host].target
    sys.stderr.write(
        f"This wipes every disk that {host}'s configuration names, on {target}.\n"
        f"Type the host's name to go on: "
    )
    sys.stderr.flush()
    if sys.stdin.readline().strip() != host:
        raise UsageError("that is not its name; nothing was done", host=host)


def _reach(host: str) -> None:
    from nixa_tasks.files import write_json
    from nixa_tasks.fleet.facts import describe

    now = run.current()
    with now.journal.step(host, "reach"):
        reached = run.connect(now.manifest.hosts[host])
    try:
        write_json(now.layout.host(host).facts, reached.facts.to_json())
        outcome.show("\n".join(describe(host, reached)))
    finally:
        reached.ssh.disconnect()


def _trust(host: str, pin: bool) -> None:
    from nixa_tasks.host.reach import trust
    from nixa_tasks.manifest.edit import set_host_key

    now = run.current()
    declared = now.manifest.hosts[host]
    old, new = trust(declared, now.access, is_pinned_anew=pin)
    lines = [f"{host}: old {old or 'none'}", f"{host}: new {new.fingerprint} ({new.kind})"]
    if pin:
        set_host_key(now.manifest.path, host, new.text)
        lines.append(f"{host}: written to {now.manifest.path.name} as host_key")
    elif declared.host_key is not None:
        lines.append(
            f"{host}: hosts.toml still pins another key; this one is taken as well until the host is "
            "installed, or add --pin"
        )
    outcome.show("\n".join(lines))


def _history(host: str, as_json: bool) -> None:
    from nixa_tasks.fleet.history import read, render
    from nixa_tasks.text import terminal_width

    receipts, source = read(run.current().layout, run.current().manifest.hosts[host], run.current().access)
    outcome.show(render(host, receipts, source, terminal_width(), as_json=as_json))
