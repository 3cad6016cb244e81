"""Closures to a host over nixa's own ssh, or built by the host itself.

`ssh-ng://`: it asks once for all paths where `ssh://` pays a round trip for each, which at 80 ms
makes 2.6 s of 26 to 51 s for 300 small paths (docs/benchmarks.md).
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from nixa_tasks.errors import NixaError
from nixa_tasks.flake import build
from nixa_tasks.flake.evaluate import Output as Evaluated
from nixa_tasks.host.probe import Os
from nixa_tasks.host.ssh import Ssh, remote_command, script
from nixa_tasks.host.sudo import Elevation
from nixa_tasks.manifest.model import BuildOn, Host
from nixa_tasks.nix.command import Nix, command, is_store_path, store_command
from nixa_tasks.process.pump import Sink
from nixa_tasks.process.run import Argv, Output
from nixa_tasks.state import private_dir as private
from nixa_tasks.state.journal import RunLog
from nixa_tasks.state.layout import Layout

COPY_SECONDS = 6 * 3600.0
_KEEP_SECONDS = 120.0


def store_url(ssh: Ssh, *, root: str | None = None) -> str:
    """The host's store for `nix copy`; `root` is a folder there that a system is installed into."""
    options = []
    if ssh.elevation is not Elevation.NONE:
        program = remote_command((*ssh.elevation.prefix, "nix-daemon"))
        options.append("remote-program=" + quote(program, safe=""))
    if root is not None:
        options.append("remote-store=" + quote(f"local?root={root}", safe=""))
    query = "?" + "&".join(options) if options else ""
    return f"ssh-ng://{ssh.user}@{_url_host(ssh.target)}{query}"


def _url_host(target: str) -> str:
    try:
        is_v6 = ipaddress.ip_address(target).version == 6
    except ValueError:
        is_v6 = False
    return f"[{target}]" if is_v6 else target


def copy_command(ssh: Ssh, paths: tuple[str, ...], *, root: str | None = None) -> Argv:
    """The `nix copy` of closures to the host; `root` as for `store_url`.

    Unsigned local paths are taken too: who may log in as root may do so anyway.
    """
    substitute = ("--substitute-on-destination",) if ssh.host.substitute_on_destination else ()
    return command("copy", "--no-check-sigs", *substitute, "--to", store_url(ssh, root=root), *paths)


def copy(ssh: Ssh, *paths: Path | str, sink: Sink, root: str | None = None) -> None:
    """Copy closures to the host; it substitutes what it can fetch itself, unless it must not.

    Raises nix.errors.NixFailed, DeadlinePassed, Interrupted.
    """
    argv = copy_command(ssh, tuple(map(str, paths)), root=root)
    with environment(ssh) as env:
        nix = Nix(ssh.processes)
        nix.run(argv, deadline=COPY_SECONDS, sink=sink, host=ssh.host.name, what="copy", env=env)


@contextlib.contextmanager
def environment(ssh: Ssh) -> Iterator[dict[str, str]]:
    """What `nix` finds our `ssh` by, for as long as it works with the host's store as root."""
    with _preamble(ssh) as preamble:
        yield {"PATH": ssh.tool_environment(preamble=preamble)["PATH"], "NIX_SSHOPTS": ""}


@contextlib.contextmanager
def _preamble(ssh: Ssh) -> Iterator[Path | None]:
    """A file in memory with what sudo there reads first; Nix calls our `ssh`, which sends it ahead."""
    if ssh.password is None:
        yield None
        return
    with private.memory_folder(ssh.folder, ssh.processes) as place:
        file = place / "preamble"
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            stream.write(ssh.password.preamble)
        yield file


_REQUISITES_SECONDS = 60.0
_REQUISITES = 'PATH=$PATH:/run/current-system/sw/bin; nix-store --query --requisites "$1"'


def closure_here(nix: Nix, path: str) -> frozenset[str] | None:
    """All store paths of a closure in the local store; None where it is not built."""
    argv = store_command("--query", "--requisites", path)
    done = nix.run(argv, deadline=_REQUISITES_SECONDS, check=False, what="closure")
    return frozenset(done.stdout.split()) if done.is_ok else None


def closure_there(ssh: Ssh, path: str) -> frozenset[str] | None:
    """The same in the host's store; None where it can't say."""
    output = Output(keep=32 << 20)
    done = ssh.run(
        _REQUISITES, path, deadline=_REQUISITES_SECONDS, check=False, output=output, what="closure"
    )
    return frozenset(filter(is_store_path, done.stdout.split())) if done.is_ok else None


def builds_itself(host: Host, os: Os) -> bool:
    """Whether the host builds its own system (`build_on = "remote"`). A machine that is still to be
    installed can't: its first system is built here."""
    return host.build_on is BuildOn.REMOTE and os is Os.NIXOS


def build_there(ssh: Ssh, layout: Layout, output: Evaluated, log: RunLog) -> str:
    """Have the host build its system from derivations that are sent to it; its path there, rooted.

    The controller evaluates and keeps no closure. Raises NixaError where the host made another path,
    flake.build.DerivationGone, nix_errors.NixFailed, DeadlinePassed, Interrupted.
    """
    host = ssh.host.name
    with environment(ssh) as env:
        store = build.RemoteStore(store_url(ssh), env)
        nix = Nix(ssh.processes)
        out = build.build_remotely(nix, layout, output, "toplevel", store, host=host, sink=log)
    keep = script("keep_build", "nixa_tasks.deploy")
    arguments = (output.toplevel_drv, out)
    done = ssh.run(keep, *arguments, root=True, deadline=_KEEP_SECONDS, check=False, what="remote build")
    if not done.is_ok or out not in done.stdout.split():
        raise NixaError(
            f"the host built {done.stdout.strip() or 'nothing that it still has'}, not {out} as evaluated",
            host=host,
            tail=done.tail,
            log=log.path,
            hint='build_on = "local" builds here and copies the closure',
        )
    return out
