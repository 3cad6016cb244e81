"""`doit hardware:HOST`: the host's hardware report, written to its file in the flake."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from nixa_tasks.errors import UsageError
from nixa_tasks.tasks import run
from nixa_tasks.tasks.doit import outcome
from nixa_tasks.tasks.hosts import asked_task

_GIT_SECONDS = 30.0


def hardware_tasks(hosts: Iterable[str]) -> Iterator[dict[str, Any]]:
    for host in hosts:
        yield asked_task("hardware", host, _hardware, "its hardware report, into its file in the flake")


def _hardware(host: str) -> None:
    from nixa_tasks.files import write_bytes
    from nixa_tasks.host.hardware import command_for

    path = run.current().manifest.hosts[host].hardware
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
    told = _told(host, command)
    if path.exists() and path.read_bytes() == told:
        outcome.show(f"{host}: {path} stays as it was: the hardware is the same")
        return
    write_bytes(path, told)
    note = " (a new file, which the flake does not see yet: git add it)" if _is_untracked(path) else ""
    outcome.show(f"{host}: {path} written{note}")


def _told(host: str, command: tuple[str, ...]) -> bytes:
    from nixa_tasks.errors import NixaError
    from nixa_tasks.host.hardware import report
    from nixa_tasks.host.reach import as_root

    now = run.current()
    with now.journal.step(host, "hardware"):
        reached = run.connect(now.manifest.hosts[host])
        try:
            reached = as_root(
                reached, now.access.passwords, lambda text: now.journal.note(host, "sudo", text)
            )
            if not reached.can_be_root:
                raise NixaError("the login can't become root, which the report needs", host=host)
            return report(reached.ssh, command)
        finally:
            reached.ssh.disconnect()


def _is_untracked(path: Path) -> bool:
    """Whether git has a work tree there and does not know the file."""
    from nixa_tasks.process import run as process

    def git(*words: str) -> bool:
        argv = ("git", "-C", str(path.parent), *words)
        return process.run(argv, deadline=_GIT_SECONDS, check=False).is_ok

    return git("rev-parse", "--is-inside-work-tree") and not git(
        "ls-files", "--error-unmatch", "--", path.name
    )
