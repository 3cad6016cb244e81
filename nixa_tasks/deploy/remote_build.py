"""`build_on = "remote"`: the host builds its own system, from derivations that were sent to it.

The controller evaluates and keeps no closure. What was built is held on the host by a GC root of
its own until the next build, since the system profile leads to it only later.
"""

from __future__ import annotations

from nixa_tasks.deploy import copy
from nixa_tasks.deploy.work import Work
from nixa_tasks.errors import NixaError
from nixa_tasks.flake import build
from nixa_tasks.host.probe import Os
from nixa_tasks.manifest.model import BuildOn, Host
from nixa_tasks.nix.command import Nix

_SECONDS = 120.0
_KEEP = """
PATH=$PATH:/run/current-system/sw/bin:/nix/var/nix/profiles/default/bin
mkdir -p /nix/var/nix/gcroots && ln -sfn "$2" /nix/var/nix/gcroots/nixa-built || exit 1
nix-store --query --outputs "$1" && nix-store --check-validity "$2"
"""


def is_remote(host: Host, os: Os) -> bool:
    """Whether the host builds for itself. A machine that is still to be installed can't: its first
    system is built here."""
    return host.build_on is BuildOn.REMOTE and os is Os.NIXOS


def build_there(work: Work) -> str:
    """Have the host build the wanted system; its path there, rooted, and the one that was evaluated.

    Raises NixaError where the host made another path, flake.build.DerivationGone,
    nix_errors.NixFailed, DeadlinePassed, Interrupted.
    """
    ssh, host = work.reached.ssh, work.host.name
    with copy.environment(ssh) as env:
        store = build.RemoteStore(copy.store_url(ssh), env)
        out = build.build_remotely(
            Nix(ssh.processes), work.layout, work.output, "toplevel", store, host=host, sink=work.log
        )
    kept = ssh.run(_KEEP, work.drv, out, root=True, deadline=_SECONDS, check=False, what="remote build")
    if not kept.is_ok or out not in kept.stdout.split():
        raise NixaError(
            f"the host built {kept.stdout.strip() or 'nothing that it still has'}, not {out} as evaluated",
            host=host,
            tail=kept.tail,
            log=work.log.path,
            hint='build_on = "local" builds here and copies the closure',
        )
    return out
