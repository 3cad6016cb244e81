"""The tasks of single hosts: evaluate, build, reach, deploy, and what a person asks for by name."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from nixa_tasks.errors import NixaError, UsageError
from nixa_tasks.tasks.actions import Always, Meta, Rule, Task, host_task, on_demand
from nixa_tasks.tasks.options import AGAIN, JSON, KEY_OPTIONS, PIN, TO, YES_WIPE

if TYPE_CHECKING:
    from nixa_tasks.flake.evaluate import Output
    from nixa_tasks.manifest.model import Host
    from nixa_tasks.state.receipt import Receipt
    from nixa_tasks.tasks.run import Run

_GIT_SECONDS = 30.0
_KEY_COMMAND_SECONDS = 120.0


def evaluate_tasks(run: Run, hosts: Iterable[str]) -> Iterator[Task]:
    for host in hosts:
        yield host_task(
            run,
            "evaluate",
            host,
            _evaluate,
            doc="what the flake says of it",
            targets=[str(run.layout.host(host).output)],
            uptodate=[Rule(run, why_evaluate, host)],
        )


def build_tasks(run: Run, hosts: Iterable[str]) -> Iterator[Task]:
    for host in hosts:
        yield host_task(
            run,
            "build",
            host,
            _build,
            doc="its closure in the local store, with a GC root; or in its own, where it builds",
            file_dep=[str(run.layout.host(host).output)],
            uptodate=[Rule(run, why_build, host)],
        )


def reach_tasks(run: Run, hosts: Iterable[str]) -> Iterator[Task]:
    for host in hosts:
        yield host_task(
            run,
            "reach",
            host,
            _reach,
            doc="is it reachable, who is it, what does it run",
            uptodate=[Always()],
        )


def deploy_tasks(run: Run, hosts: Iterable[str]) -> Iterator[Task]:
    for host in hosts:
        place = run.layout.host(host)
        yield host_task(
            run,
            "deploy",
            host,
            _deploy,
            params=AGAIN,
            doc="bring it to what the flake says",
            file_dep=[str(place.output)],
            targets=[str(place.deployed)],
            uptodate=[Rule(run, why_deploy, host)],
        )


def trust_tasks(run: Run, hosts: Iterable[str]) -> Iterator[Task]:
    for host in hosts:
        yield on_demand(
            run, "trust", host, _trust, PIN, doc="take the host key that it shows now as the right one"
        )


def keys_tasks(run: Run, hosts: Iterable[str]) -> Iterator[Task]:
    for host in hosts:
        yield on_demand(
            run, "keys", host, _make_key, KEY_OPTIONS, doc="make its ssh host key before it is installed"
        )


def rollback_tasks(run: Run, hosts: Iterable[str]) -> Iterator[Task]:
    for host in hosts:
        yield on_demand(
            run,
            "rollback",
            host,
            _roll_back,
            TO,
            doc="back to the system that ran before",
            task_dep=[f"evaluate:{host}"],
        )


def reinstall_tasks(run: Run, hosts: Iterable[str]) -> Iterator[Task]:
    for host in hosts:
        yield on_demand(
            run,
            "reinstall",
            host,
            _reinstall,
            YES_WIPE,
            doc="wipe it and install it again",
            task_dep=[f"evaluate:{host}"],
        )


def generations_tasks(run: Run, hosts: Iterable[str]) -> Iterator[Task]:
    for host in hosts:
        yield on_demand(
            run,
            "generations",
            host,
            _generations,
            doc="the systems that it can be rolled back to",
            meta=Meta(run, host=host, view=True),
        )


def history_tasks(run: Run, hosts: Iterable[str]) -> Iterator[Task]:
    for host in hosts:
        yield on_demand(
            run,
            "history",
            host,
            _history,
            JSON,
            doc="what was deployed, when, by whom, how it ended",
            meta=Meta(run, host=host, view=True),
        )


def hardware_tasks(run: Run, hosts: Iterable[str]) -> Iterator[Task]:
    for host in hosts:
        yield on_demand(
            run, "hardware", host, _hardware, doc="its hardware report, into its file in the flake"
        )


def why_evaluate(run: Run, host: str) -> str | None:
    """Why the flake has to be evaluated for the host; None where it need not be. Raises NixaError."""
    if host in run.evaluated:
        return None
    return f"the flake was not evaluated for {host} since it changed"


def _evaluate(run: Run, host: str) -> Task:
    output = run.output(host)
    if (unwritten := run.evaluation_for(host).unwritten) is not None:
        raise unwritten
    return {"system": output.system, "drv": output.toplevel_drv, "out": output.toplevel_out}


def why_build(run: Run, host: str) -> str | None:
    """Why the host's closure has to be built; None where it is there."""
    from nixa_tasks.flake.build import is_built
    from nixa_tasks.manifest.model import BuildOn

    if run.manifest.hosts[host].build_on is BuildOn.REMOTE:
        return f"{host} builds its own system, and only {host} knows what it has built"
    output = run.remembered_output(host)
    if output is not None and is_built(run.layout, host, output, "toplevel"):
        return None
    return f"the closure of {host} is not in the local store with a GC root"


def _build(run: Run, host: str) -> None:
    from nixa_tasks.manifest.model import BuildOn
    from nixa_tasks.tasks.turn import build_alone

    build_alone(run, host, on_host=run.manifest.hosts[host].build_on is BuildOn.REMOTE)


def why_deploy(run: Run, host: str) -> str | None:
    """Why the host has to be deployed, by what is remembered here; None where it need not be."""
    from nixa_tasks.deploy.decide import Action, Situation, judge
    from nixa_tasks.manifest.model import InstallPolicy

    declared = run.manifest.hosts[host]
    if declared.install is InstallPolicy.ALWAYS:
        return f'{host} has install = "always": it is asked what it runs at every deploy'
    output, receipt = run.remembered_output(host), run.receipt(host)
    again = _is_again(run, host)
    now = Situation(declared, output.toplevel_out if output else None, receipt, again=again)
    judgement = judge(now)
    if judgement.action is Action.HOLD:
        run.held[host] = f"{judgement.text}, or until doit deploy:{host} --again"
    if judgement.action in (Action.CURRENT, Action.HOLD):
        return None
    return _what_differs(declared, output, receipt)


def _what_differs(host: Host, output: Output | None, receipt: Receipt | None) -> str:
    if output is None:
        return f"the flake was not evaluated for {host.name} yet"
    if receipt is None:
        return f"{host.name} was never deployed from here"
    if receipt.target != host.target:
        return f"{host.name} has another target than at its last deploy: {host.target}, not {receipt.target}"
    if receipt.wanted != output.toplevel_out:
        wanted = f"{output.toplevel_out}, not {receipt.wanted}"
        return f"{host.name} has a new output since its last deploy: {wanted}"
    return f"the last deploy of {host.name} ended as {receipt.outcome}"


def _is_again(run: Run, host: str) -> bool:
    """Whether a hold on the output is to be lifted: `doit deploy:HOST --again`, `doit deploy --again`."""
    return any(run.options.get(name, {}).get("again") for name in ("deploy", f"deploy:{host}"))


def _deploy(run: Run, host: str, again: bool) -> Task:
    from nixa_tasks.deploy.decide import Asked
    from nixa_tasks.tasks.turn import Request, carry_out

    run.check_dirty(host)
    carry_out(run, host, Request(Asked.DEPLOY, again=again or _is_again(run, host)))
    receipt = run.receipt(host)
    return {"target": run.manifest.hosts[host].target, "out": receipt.out if receipt else None}


def _roll_back(run: Run, host: str, to: int) -> None:
    from nixa_tasks.deploy.decide import Asked
    from nixa_tasks.tasks.turn import Request, carry_out

    carry_out(run, host, Request(Asked.ROLLBACK, generation=to or None))


def _generations(run: Run, host: str) -> None:
    import time

    from nixa_tasks.deploy.rollback import generations
    from nixa_tasks.text import store_path, table, terminal_width

    reached = run.connect(run.manifest.hosts[host])
    try:
        found = generations(reached.ssh)
    finally:
        reached.ssh.disconnect()
    rows = [
        (
            str(one.number),
            time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(one.made_at)) if one.made_at else "-",
            store_path(one.system),
            "the profile leads to it" if one.is_current else "",
        )
        for one in found
    ]
    if not rows:
        run.results.show(f"{host}: no generation to roll back to", host=host)
        return
    lines = table(("generation", "made", "system", ""), rows, terminal_width())
    run.results.show(
        "\n".join([f"{host}:", *lines, f"doit rollback:{host} --to N goes back to one"]), host=host
    )


def _reinstall(run: Run, host: str, yes_wipe: str) -> None:
    from nixa_tasks.deploy.decide import Asked
    from nixa_tasks.tasks.turn import Request, carry_out

    if yes_wipe and yes_wipe != host:
        raise UsageError(f"--yes-wipe {yes_wipe} does not name {host}; nothing was done", host=host)
    if not yes_wipe:
        _ask_for_name(run, host)
    run.check_dirty(host)
    carry_out(run, host, Request(Asked.REINSTALL))


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
    from nixa_tasks.fleet.status import describe

    with run.journal.step(host, "reach"):
        reached = run.connect(run.manifest.hosts[host])
    try:
        write_json(run.layout.host(host).facts, reached.facts.to_json())
        run.results.show("\n".join(describe(host, reached)), host=host)
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
    run.results.show("\n".join(lines), host=host)


def _make_key(run: Run, host: str, to: str, into: str, pin: bool) -> None:
    from nixa_tasks.files import write_bytes
    from nixa_tasks.host.host_key import generate
    from nixa_tasks.manifest.edit import set_host_key
    from nixa_tasks.process.run import Place

    declared = run.manifest.hosts[host]
    if bool(to) == bool(into):
        raise UsageError(
            "where should the private key go: into a file, or to a command's standard input?",
            host=host,
            hint=f"doit keys:{host} --to secrets/{host}/etc/ssh/ssh_host_ed25519_key --pin\n"
            f"doit keys:{host} --into 'sops encrypt --output secrets/{host}.key /dev/stdin' --pin",
        )
    path = run.manifest.path.parent / Path(to).expanduser()
    if to and path.exists():
        raise UsageError(
            f"{to} exists; a host key is never overwritten", host=host, hint="choose another file"
        )
    private, public = generate(declared, run.processes)
    if to:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, private, 0o600)
    else:
        run.processes.run(
            tuple(shlex.split(into)),
            deadline=_KEY_COMMAND_SECONDS,
            stdin=private,
            place=Place(cwd=run.manifest.path.parent),
            host=host,
            what=f"the command for the private key ({shlex.split(into)[0]})",
        )
    if to and _would_be_committed(run, path):
        run.journal.note(
            host, "keys", f"git does not ignore {to}: add it to .gitignore, or encrypt it (--into)"
        )
    lines = [f"{host}: {public.text}", f"{host}: private key written to {to or shlex.split(into)[0]}"]
    if pin:
        set_host_key(run.manifest.path, host, public.text)
        lines.append(
            f"{host}: written to {run.manifest.path.name} as host_key; before the first deploy, take the key "
            f"that the machine has now as well: doit trust:{host}"
        )
    run.results.show("\n".join(lines), host=host)


def _history(run: Run, host: str, as_json: bool) -> None:
    from nixa_tasks.fleet.status import history_of, render_history
    from nixa_tasks.text import terminal_width

    receipts, source = history_of(run.layout, run.manifest.hosts[host], run.access)
    run.results.show(render_history(host, receipts, source, terminal_width(), as_json=as_json), host=host)


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
        run.results.show(f"{host}: {path} stays as it was: the hardware is the same", host=host)
        return
    write_bytes(path, report)
    note = " (a new file, which the flake does not see yet: git add it)" if _is_untracked(run, path) else ""
    run.results.show(f"{host}: {path} written{note}", host=host)


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


def _would_be_committed(run: Run, path: Path) -> bool:
    """Whether `git add .` would take the file."""
    return _git(run, path, "rev-parse", "--is-inside-work-tree") and not _git(
        run, path, "check-ignore", "-q", "--", path.name
    )


def _is_untracked(run: Run, path: Path) -> bool:
    """Whether git has a work tree there and does not know the file."""
    return _git(run, path, "rev-parse", "--is-inside-work-tree") and not _git(
        run, path, "ls-files", "--error-unmatch", "--", path.name
    )


def _git(run: Run, path: Path, *words: str) -> bool:
    argv = ("git", "-C", str(path.parent), *words)
    return run.processes.run(argv, deadline=_GIT_SECONDS, check=False).is_ok
