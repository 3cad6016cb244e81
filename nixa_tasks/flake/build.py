"""From derivations to store paths on this machine, each with a GC root from the first moment."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from nixa_tasks import nix
from nixa_tasks.errors import NixaError
from nixa_tasks.flake.evaluate import Output
from nixa_tasks.process import Sink
from nixa_tasks.state.layout import Layout

BUILD_SECONDS = 12 * 3600.0
What = Literal["toplevel", "disko"]


class NoDisko(NixaError):
    """The configuration has no disko script, so that nothing says how to partition its disk."""


def root_of(layout: Layout, host: str, what: What) -> Path:
    """The GC root of what is deployed, or about to be."""
    return layout.gcroots / (host if what == "toplevel" else f"{host}-disko")


def is_built(layout: Layout, host: str, output: Output, what: What) -> bool:
    """Whether the path is there and rooted: then it can't have gone away."""
    wanted = output.toplevel_out if what == "toplevel" else output.disko_out
    root = root_of(layout, host, what)
    return wanted is not None and root.is_symlink() and str(root.readlink()) == wanted and root.exists()


def build(layout: Layout, host: str, output: Output, what: What, *, sink: Sink) -> Path:
    """Build, or substitute, one closure; remote builders are Nix's own business.

    Raises NoDisko, nix_errors.NixFailed (also where the derivation was garbage-collected: evaluate
    again), DeadlinePassed, Interrupted.
    """
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
    if not is_built(layout, host, output, what):
        root = root_of(layout, host, what)
        root.parent.mkdir(parents=True, exist_ok=True)
        argv = nix.store_command("--realise", drv, "--add-root", str(root), "--indirect")
        nix.run(argv, deadline=BUILD_SECONDS, sink=sink, host=host, what=f"build of {what}")
        if not is_built(layout, host, output, what):
            raise NixaError(f"nix built {drv}, but {root} does not lead to {out}", host=host)
    return Path(out)
