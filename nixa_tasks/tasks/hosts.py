"""The tasks of single hosts: evaluate, build, reach, deploy, and what a person asks for by name."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from nixa_tasks.errors import NixaError, UsageError
from nixa_tasks.manifest.waves import in_order
from nixa_tasks.tasks import waves
from nixa_tasks.tasks.actions import Meta, Task, action, action_with_options, is_uptodate
from nixa_tasks.tasks.run import Run

_GIT_SECONDS = 30.0


def evaluate_tasks(run: Run, hosts: Iterable[str]) -> Iterator[Task]:
    for host in hosts:
        yield _task(
            run,
            "evaluate",
            host,
            _evaluate,
            "what the flake says of it",
            targets=[str(run.layout.host(host).output)],
            uptodate=[is_uptodate(run, _is_evaluated, host)],
        )


def build_tasks(run: Run, hosts: Iterable[str]) -> Iterator[Task]:
    for host in hosts:
        yield _task(
            run,
            "build",
            host,
            _build,
            "its closure in the local store, with a GC root; or in its own, where it builds",
            file_dep=[str(run.layout.host(host).output)],
            uptodate=[is_uptodate(run, _is_built, host)],
        )


def reach_tasks(run: Run, hosts: Iterable[str]) -> Iterator[Task]:
    for host in hosts:
        yield _task(run, "reach", host, _reach, "is it there, who is it, what does it run")


def deploy_tasks(run: Run, hosts: Iterable[str], asked: Collection[str]) -> Iterator[Task]:
    """Those of `hosts`; the ones that are asked for start wave by wave."""
    order = in_order(run.manifest, asked)
    yield from waves.gate_tasks(order)
    gate = waves.gates(order)
    for host in hosts:
        place = run.layout.host(host)
        yield _task(
            run,
            "deploy",
            host,
            _deploy,
            "bring it to what the flake says",
            file_dep=[str(place.output)],
            targets=[str(place.deployed)],
            task_dep=[gate[host]] if host in gate else [],
            uptodate=[is_uptodate(run, _is_deployed, host)],
        )


def trust_tasks(run: Run, hosts: Iterable[str]) -> Iterator[Task]:
    pin = {
        "name": "pin",
        "long": "pin",
        "type": bool,
        "default": False,
        "help": "write the key into hosts.toml as host_key",
    }
    for host in hosts:
        yield asked_task(
            run, "trust", host, _trust, "take the host key that it shows now as the right one", [pin]
        )


def rollback_tasks(run: Run, hosts: Iterable[str]) -> Iterator[Task]:
    for host in hosts:
        yield asked_task(
            run,
            "rollback",
            host,
            _roll_back,
            "back to the system that ran before",
            task_dep=[f"evaluate:{host}"],
        )


def reinstall_tasks(run: Run, hosts: Iterable[str]) -> Iterator[Task]:
    word = {
        "name": "yes_wipe",
        "long": "yes-wipe",
        "type": str,
        "default": "",
        "help": "the host's name: wipe its disk without asking",
    }
    for host in hosts:
        yield asked_task(
            run,
            "reinstall",
            host,
            _reinstall,
            "wipe it and install it again",
            [word],
            task_dep=[f"evaluate:{host}"],
        )


def history_tasks(run: Run, hosts: Iterable[str]) -> Iterator[Task]:
    as_json = {"name": "as_json", "long": "json", "type": bool, "default": False, "help": "one JSON document"}
    for host in hosts:
        task = asked_task(
            run, "history", host, _history, "what was deployed, when, by whom, how it ended", [as_json]
        )
        yield task | {"meta": Meta(run, view=True)}


def _task(run: Run, family: str, host: str, function: Any, doc: str, **more: Any) -> Task:
    return {
        "basename": family,
        "name": host,
        "doc": doc,
        "actions": [action(run, function, host)],
        "verbosity": 2,
        "io": {"capture": False},
        "meta": Meta(run, host=host, work=True),
        **more,
    }


def asked_task(
    run: Run, family: str, host: str, function: Any, doc: str, params: list[Task] | None = None, **more: Any
) -> Task:
    """A task that always runs: somebody asked for it. Its options reach the function by name."""
    names = tuple(param["name"] for param in params or ())
    return {
        "basename": family,
        "name": host,
        "doc": doc,
        "params": params or [],
        "actions": [action_with_options(run, function, (host,), names)],
        "uptodate": [False],
        "verbosity": 2,
        "io": {"capture": False},
        "meta": Meta(run, host=host),
        **more,
    }


def _is_evaluated(run: Run, host: str) -> bool:
    from nixa_tasks.flake.evaluate import current

    return current(run.layout, run.fingerprint, host, run.manifest.hosts[host].flake_attr) is not None


def _evaluate(run: Run, host: str) -> None:
    run.evaluation.of(host)


def _is_built(run: Run, host: str) -> bool:
    from nixa_tasks.flake.build import is_built
    from nixa_tasks.manifest.model import BuildOn

    if run.manifest.hosts[host].build_on is BuildOn.REMOTE:
        return False  # only the host knows
    output = run.remembered_output(host)
    return output is not None and is_built(run.layout, host, output, "toplevel")


def _build(run: Run, host: str) -> None:
    from nixa_tasks.manifest.model import BuildOn
    from nixa_tasks.tasks.turn import build_alone

    build_alone(run, host, on_host=run.manifest.hosts[host].build_on is BuildOn.REMOTE)


def _is_deployed(run: Run, host: str) -> bool:
    from nixa_tasks.deploy.adopt import is_deployed
    from nixa_tasks.manifest.model import InstallPolicy

    declared = run.manifest.hosts[host]
    if declared.install is InstallPolicy.ALWAYS:
        return False  # it comes and goes behind nixa's back: it is asked at every deploy
    return is_deployed(declared, run.remembered_output(host), run.receipt(host))


def _deploy(run: Run, host: str) -> None:
    from nixa_tasks.deploy.decide import Asked
    from nixa_tasks.tasks.turn import carry_out

    carry_out(run, host, Asked.DEPLOY)


def _roll_back(run: Run, host: str) -> None:
    from nixa_tasks.deploy.decide import Asked
    from nixa_tasks.tasks.turn import carry_out

    carry_out(run, host, Asked.ROLLBACK)


def _reinstall(run: Run, host: str, yes_wipe: str) -> None:
    from nixa_tasks.deploy.decide import Asked
    from nixa_tasks.tasks.turn import carry_out

    if yes_wipe and yes_wipe != host:
        raise UsageError(f"--yes-wipe {yes_wipe} does not name {host}; nothing was done", host=host)
    if not yes_wipe:
        _ask_for_name(run, host)
    carry_out(run, host, Asked.REINSTALL)


def _ask_for_name(run: Run, host: str) -> None:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError(
            "reinstall wipes the disk, so it wants the host's name as a confirmation",
            host=host,
            hint=f"doit reinstall:{host} --yes-wipe {host}",
        )
    target = run.manifest.hosts[host].target
    sys.stderr.write(
        f"This wipes every disk that {host}'s configuration names, on {target}.\n"
        f"Type the host's name to go on: "
    )
    sys.stderr.flush()
    if sys.stdin.readline().strip() != host:
        raise UsageError("that is not its name; nothing was done", host=host)


def _reach(run: Run, host: str) -> None:
    from nixa_tasks.files import write_json
    from nixa_tasks.fleet.facts import describe

    with run.journal.step(host, "reach"):
        reached = run.connect(run.manifest.hosts[host])
    try:
        write_json(run.layout.host(host).facts, reached.facts.to_json())
        run.results.show("\n".join(describe(host, reached)))
    finally:
        reached.ssh.disconnect()


def _trust(run: Run, host: str, pin: bool) -> None:
    from nixa_tasks.host.reach import trust
    from nixa_tasks.manifest.edit import set_host_key

    declared = run.manifest.hosts[host]
    old, new = trust(declared, run.access, is_pinned_anew=pin)
    lines = [f"{host}: old {old or 'none'}", f"{host}: new {new.fingerprint} ({new.kind})"]
    if pin:
        set_host_key(run.manifest.path, host, new.text)
        lines.append(f"{host}: written to {run.manifest.path.name} as host_key")
    elif declared.host_key is not None:
        lines.append(
            f"{host}: hosts.toml still pins another key; this one is taken as well until the host is "
            "installed, or add --pin"
        )
    run.results.show("\n".join(lines))


def _history(run: Run, host: str, as_json: bool) -> None:
    from nixa_tasks.fleet.history import read, render
    from nixa_tasks.text import terminal_width

    receipts, source = read(run.layout, run.manifest.hosts[host], run.access)
    run.results.show(render(host, receipts, source, terminal_width(), as_json=as_json))


def hardware_tasks(run: Run, hosts: Iterable[str]) -> Iterator[Task]:
    for host in hosts:
        yield asked_task(run, "hardware", host, _hardware, "its hardware report, into its file in the flake")


def _hardware(run: Run, host: str) -> None:
    from nixa_tasks.files import write_bytes
    from nixa_tasks.host.hardware import command_for

    path = run.manifest.hosts[host].hardware
    if path is None:
        raise UsageError(
            "hosts.toml names no file for its hardware report",
            host=host,
            hint=f'add hardware = "hosts/{host}/facter.json" (nixos-facter), or a path that ends in .nix',
        )
    command = command_for(path)
    if command is None:
        raise UsageError(
            f"{path} is to hold its hardware report, but ends in neither .json nor .nix",
            host=host,
            hint=".json is written by nixos-facter, .nix by nixos-generate-config",
        )
    report = _hardware_report(run, host, command)
    if path.exists() and path.read_bytes() == report:
        run.results.show(f"{host}: {path} stays as it was: the hardware is the same")
        return
    write_bytes(path, report)
    note = " (a new file, which the flake does not see yet: git add it)" if _is_untracked(run, path) else ""
    run.results.show(f"{host}: {path} written{note}")


def _hardware_report(run: Run, host: str, command: tuple[str, ...]) -> bytes:
    from nixa_tasks.host.hardware import report
    from nixa_tasks.host.reach import as_root

    with run.journal.step(host, "hardware"):
        reached = run.connect(run.manifest.hosts[host])
        try:
            reached = as_root(
                reached, run.access.passwords, lambda text: run.journal.note(host, "sudo", text)
            )
            if not reached.can_be_root:
                raise NixaError("the login can't become root, which the report needs", host=host)
            return report(reached.ssh, command)
        finally:
            reached.ssh.disconnect()


def _is_untracked(run: Run, path: Path) -> bool:
    """Whether git has a work tree there and does not know the file."""

    def git(*words: str) -> bool:
        argv = ("git", "-C", str(path.parent), *words)
        return run.processes.run(argv, deadline=_GIT_SECONDS, check=False).is_ok

    return git("rev-parse", "--is-inside-work-tree") and not git(
        "ls-files", "--error-unmatch", "--", path.name
    )
