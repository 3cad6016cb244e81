"""From derivations to store paths on this machine, each with a GC root from the first moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nixa_tasks.errors import NixaError
from nixa_tasks.files import read_json
from nixa_tasks.flake.output import Output, forget
from nixa_tasks.nix import errors as nix_errors
from nixa_tasks.nix.command import Nix, command, is_store_path, store_command
from nixa_tasks.nix.errors import NixFailed, Reason
from nixa_tasks.process.pump import Sink
from nixa_tasks.process.run import Argv
from nixa_tasks.state.layout import Layout

BUILD_SECONDS = 12 * 3600.0
_ROOT_SECONDS = 120.0
_LOG_SECONDS = 60.0
_LOG_LINES = 10
What = Literal["toplevel", "disko"]


class NoDisko(NixaError):
    """The configuration has no disko script, so that nothing says how to partition its disk."""


class DerivationGone(NixaError):
    """What was evaluated has been garbage-collected before it was built: evaluate again
    (`Evaluation.again`). The next run does so by itself."""


def root_of(layout: Layout, host: str, what: What) -> Path:
    """The GC root of what is deployed, or about to be."""
    return layout.gcroots / (host if what == "toplevel" else f"{host}-disko")


def previous_root_of(layout: Layout, host: str) -> Path:
    """The GC root of what the host runs while something newer is built, and after, until `doit gc`."""
    return layout.gcroots / f"{host}-previous"


def is_built(layout: Layout, host: str, output: Output, what: What) -> bool:
    """Whether the path is there and rooted: then it can't have gone away."""
    wanted = output.toplevel_out if what == "toplevel" else output.disko_out
    return wanted is not None and _is_rooted(root_of(layout, host, what), wanted)


def build(
    nix: Nix,
    layout: Layout,
    host: str,
    output: Output,
    what: What,
    *,
    sink: Sink,
    deadline: float = BUILD_SECONDS,
) -> Path:
    """Build, or substitute, one closure; remote builders are Nix's own business.

    `deadline`: seconds. Raises NoDisko, DerivationGone, nix_errors.NixFailed, DeadlinePassed,
    Interrupted.
    """
    drv, out = _paths(host, output, what)
    if is_built(layout, host, output, what):
        return Path(out)
    if what == "toplevel":
        _keep_deployed(nix, layout, host, out)
    root = root_of(layout, host, what)
    root.parent.mkdir(parents=True, exist_ok=True)
    # Without its derivation, a path that is in the store only needs its root.
    source = f"{drv}!out" if Path(drv).exists() or not Path(out).exists() else out
    argv = store_command("--realise", source, "--add-root", str(root), "--indirect")
    try:
        nix.run(argv, deadline=deadline, sink=sink, host=host, what=f"build of {what}")
    except NixFailed as error:
        _raise_if_gone(layout, host, what, drv, error)
        _add_builders_lines(nix, error)
        raise
    if not is_built(layout, host, output, what):
        raise NixaError(f"nix built {drv}, but {root} does not lead to {out}", host=host)
    return Path(out)


def remote_build_commands(
    nix: Nix, output: Output, what: What, store: str, *, host: str
) -> tuple[Argv, Argv]:
    """Send the derivations to another store, such as `ssh-ng://root@HOST`, and build them there.

    Two commands, since Nix 2.8 looks for a derivation in the store that builds it whatever
    `--eval-store` says. Raises NoDisko, NixMissing.
    """
    drv, _ = _paths(host, output, what)
    # From 2.15 on a .drv alone means the file itself; before, `^` was not known.
    installable = f"{drv}^out" if nix.version() >= (2, 15) else drv
    return (
        command("copy", "--derivation", "--to", store, drv),
        command("build", "--no-link", "-L", "--store", store, installable),
    )


@dataclass(frozen=True, slots=True)
class RemoteStore:
    """Another store, such as `ssh-ng://root@HOST`. `env`: what ssh needs to reach it (NIX_SSHOPTS,
    a PATH with an `ssh` in front)."""

    url: str
    env: Mapping[str, str]


def build_remotely(
    nix: Nix,
    layout: Layout,
    output: Output,
    what: What,
    store: RemoteStore,
    *,
    host: str,
    sink: Sink,
    deadline: float = BUILD_SECONDS,
) -> str:
    """Build in another store; the path there, which has no root yet.

    `deadline`: seconds, for each of two steps.

    Raises NoDisko, DerivationGone, nix_errors.NixFailed, DeadlinePassed, Interrupted.
    """
    drv, _ = _paths(host, output, what)
    for argv in remote_build_commands(nix, output, what, store.url, host=host):
        try:
            nix.run(
                argv,
                deadline=deadline,
                sink=sink,
                env=store.env,
                host=host,
                what=f"build of {what} on the host",
            )
        except NixFailed as error:
            _raise_if_gone(layout, host, what, drv, error)
            raise
    return _paths(host, output, what)[1]


def _raise_if_gone(layout: Layout, host: str, what: What, drv: str, error: NixFailed) -> None:
    if error.reason is not Reason.PATH_INVALID or Path(drv).exists():
        return
    forget(layout, host)
    raise DerivationGone(
        f"build of {what}: {drv} is no longer in the store",
        host=host,
        tail=error.tail,
        hint="run the same command again: the host is then evaluated again",
    ) from error


def _add_builders_lines(nix: Nix, error: NixFailed) -> None:
    """Put the end of the failed builder's own log in front of Nix's error, which does not hold it."""
    if error.reason is Reason.BUILD and is_store_path(error.subject):
        argv = store_command("--read-log", error.subject)
        done = nix.run(argv, deadline=_LOG_SECONDS, check=False, what="log of the build")
        said = [nix_errors.plain(line) for line in done.stdout.splitlines() if line.strip()]
        new = [line for line in said[-_LOG_LINES:] if not any(line in shown for shown in error.tail)]
        error.tail = (*new, *error.tail)


def _paths(host: str, output: Output, what: What) -> tuple[str, str]:
    drv, out = (
        (output.toplevel_drv, output.toplevel_out)
        if what == "toplevel"
        else (output.disko_drv, output.disko_out)
    )
    if drv is None or out is None:
        raise NoDisko(
            f"nixosConfigurations.{output.attr} has no config.system.build.diskoScript",
            host=host,
            hint="add disko to the configuration: https://github.com/nix-community/disko",
        )
    return drv, out


def _is_rooted(root: Path, out: str) -> bool:
    return root.is_symlink() and str(root.readlink()) == out and root.exists()


def _keep_deployed(nix: Nix, layout: Layout, host: str, wanted: str) -> None:
    """Root what the host runs, as its receipt says, before its root goes to what is built next: a
    build that is never deployed must not let go of what is."""
    runs = (read_json(layout.host(host).deployed) or {}).get("out")
    root = previous_root_of(layout, host)
    if not isinstance(runs, str) or not is_store_path(runs) or runs == wanted:
        return
    if Path(runs).exists() and not _is_rooted(root, runs):
        root.parent.mkdir(parents=True, exist_ok=True)
        argv = store_command("--realise", runs, "--add-root", str(root), "--indirect")
        nix.run(argv, deadline=_ROOT_SECONDS, check=False, host=host, what="keep what is deployed")
