"""nixos-anywhere, run with nixa's own closures, key, pins and deadlines.

It has no deadlines of its own, and its own host-key settings come first on its ssh command line;
so it runs in a session of its own that is ended in time, and finds nixa's `ssh` in front of its
PATH.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from nixa_tasks.errors import CommandFailed, NixaError
from nixa_tasks.host.ssh import Ssh
from nixa_tasks.manifest.model import Fleet, Host
from nixa_tasks.process.pump import Sink
from nixa_tasks.process.run import Argv, Output, Place, paste

# Used where hosts.toml names no command and PATH has none: main of July 2026, after 1.13.0.
PINNED = "github:nix-community/nixos-anywhere/91fc9b70fc295258c366cce8627efb6f185fd9fb"
_MOST_OUTPUT = 1 << 30  # bytes; what a host says in the installation must not fill this computer's disk
_STEP = re.compile(r"^### (.+) ###$")


@dataclass(frozen=True, slots=True)
class Installation:
    """What one run of it is to do. `kexec` is the image for the plain form, else None.

    `extra_files` and `keys` are folders and files here; `disko` and `system` store paths that exist.
    """

    phases: tuple[str, ...]
    disko: Path
    system: Path
    kexec: Path | None = None
    extra_files: Path | None = None
    keys: tuple[tuple[str, Path], ...] = ()


def command(fleet: Fleet) -> Argv:
    """The command: hosts.toml's, else that on PATH, else a pinned revision by `nix run`.

    Raises NixaError where none of them is there.
    """
    if fleet.nixos_anywhere is not None:
        return fleet.nixos_anywhere
    if shutil.which("nixos-anywhere") is not None:
        return ("nixos-anywhere",)
    if shutil.which("nix") is None:
        raise NixaError(
            "nixos-anywhere not found, nor nix to run it with",
            hint="install Nix or nixos-anywhere, or name it in hosts.toml: [fleet] nixos_anywhere",
        )
    return ("nix", "--extra-experimental-features", "nix-command flakes", "run", PINNED, "--")


def arguments(host: Host, ssh: Ssh, todo: Installation) -> Argv:
    """Its arguments. `--store-paths`: nothing is evaluated; `--build-on local`: no probe build."""
    words: list[str] = [
        "--phases",
        ",".join(todo.phases),
        "--store-paths",
        str(todo.disko),
        str(todo.system),
        "--build-on",
        "local",
    ]
    if todo.kexec is not None:
        words += ["--kexec", str(todo.kexec)]
        if host.kexec_extra_flags:
            words += ["--kexec-extra-flags", host.kexec_extra_flags]
    if host.identity is not None:
        words += ["-i", str(host.identity)]
    if ssh.port is not None:
        words += ["-p", str(ssh.port)]
        if host.post_kexec_port is not None and todo.kexec is not None:
            words += ["--post-kexec-ssh-port", str(host.post_kexec_port)]
    if host.copy_host_keys:
        words.append("--copy-host-keys")
    if todo.extra_files is not None:
        words += ["--extra-files", str(todo.extra_files)]
    for remote, local in todo.keys:
        words += ["--disk-encryption-keys", remote, str(local)]
    return (*words, "--target-host", f"{ssh.user}@{ssh.target}")


def run(
    fleet: Fleet, host: Host, ssh: Ssh, todo: Installation, *, deadline: float, log: Sink, step: Sink
) -> None:
    """Run it to its end; `step` hears the name of each of its steps.

    The plain form (with the kexec phase) shares no connection: `ssh-copy-id` would test its login
    over the shared one, never upload its key, and the run would hang after the kexec. Without that
    phase, every command that it gives the host runs behind the fence.
    Raises CommandFailed, DeadlinePassed, Interrupted, NixaError.
    """

    def sink(line: str) -> None:
        log(line)
        found = _STEP.match(line)
        if found:
            step(found[1])

    argv = command(fleet) + arguments(host, ssh, todo)
    log("$ " + paste(argv))
    try:
        way = ssh if todo.kexec is None else replace(ssh, shared=False)
        ssh.processes.run(
            argv,
            deadline=deadline,
            place=Place(env=way.tool_environment(is_fenced=todo.kexec is None)),
            output=Output(sink=sink, limit=_MOST_OUTPUT),
            host=host.name,
            what="nixos-anywhere",
        )
    except CommandFailed as error:
        error.hint = f"fix what its last lines say, then: doit deploy:{host.name}"
        raise
