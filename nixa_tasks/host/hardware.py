"""A host's hardware report: what the configuration of a new machine starts from."""

from __future__ import annotations

import json
from pathlib import Path

from nixa_tasks.errors import NixaError
from nixa_tasks.host.ssh import Ssh, script
from nixa_tasks.process.run import Output

_SECONDS = 300.0  # nixos-facter looks at every bus
_MOST = 16 << 20
_NO_TOOL = 127


def command_for(path: Path) -> tuple[str, ...] | None:
    """The tool that writes such a file, by its suffix; None for one that none of them writes."""
    match path.suffix:
        case ".json":
            return ("nixos-facter",)
        case ".nix":
            return ("nixos-generate-config", "--show-hardware-config")
        case _:
            return None


def report(ssh: Ssh, command: tuple[str, ...]) -> bytes:
    """The whole report, run as root on the host. Raises NixaError where the tool is not there, fails,
    or prints what is no report."""
    tool, host = command[0], ssh.host.name
    output = Output(sink_stdout=False, keep=_MOST)
    done = ssh.run(
        script("hardware"), *command, root=True, deadline=_SECONDS, check=False, output=output, what=tool
    )
    if done.status == _NO_TOOL:
        raise NixaError(
            f"{tool} is not there",
            host=host,
            hint="the NixOS installer has it; on an installed host add it to environment.systemPackages"
            if tool == "nixos-facter"
            else 'it comes with NixOS and its installer; for another Linux: hardware = "….json" and nixos-facter',
        )
    if not done.is_ok:
        raise NixaError(f"{tool}: ended with status {done.status}", host=host, tail=done.tail)
    if len(done.raw) >= _MOST or not _is_whole(tool, done.raw):
        raise NixaError(f"{tool} printed no report", host=host, tail=done.tail)
    return done.raw


def _is_whole(tool: str, text: bytes) -> bool:
    if tool != "nixos-facter":
        return bool(text.strip())
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False
