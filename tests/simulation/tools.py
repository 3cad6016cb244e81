"""The local tools that reach a machine by themselves: `nix copy` and nixos-anywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from nixa_tasks.process.run import Argv, Place
from tests.simulation import scripts
from tests.simulation.machine import Kind
from tests.simulation.scripts import Refused, Unmodelled

if TYPE_CHECKING:
    from tests.simulation.network import Answer, SimulatedProcesses

COPY, DISKO, INSTALL = "nix copy", "disko", "nixos-install"


def nix(processes: SimulatedProcesses, argv: Argv, place: Place, deadline: float) -> Answer:
    """`nix copy --to ssh-ng://USER@HOST?… PATH…`"""
    if "copy" not in argv:
        raise Unmodelled(f"no model of {argv}")
    at = argv.index("--to") + 1
    url = urlsplit(argv[at])
    paths = tuple(word for word in argv[at + 1 :] if word.startswith("/nix/store/"))
    until = processes._run.world.now + deadline
    try:
        machine, boot = processes.connect(
            processes.shim(place), url.username or "root", url.hostname or "", until
        )
    except Refused as refused:
        return 1, "", f"{refused}\nerror: failed to start SSH connection to '{url.hostname}'"
    is_mounted = "remote-store" in url.query
    status, out, err = processes.execute(
        machine, boot, COPY, ("/mnt" if is_mounted else "/", *paths), b"", until, is_shared=False
    )
    return (
        (1, out, err or "error: cannot open connection to remote store: Broken pipe")
        if status
        else (0, out, err)
    )


def nixos_anywhere(processes: SimulatedProcesses, argv: Argv, place: Place, deadline: float) -> Answer:
    """`nixos-anywhere --phases … --store-paths DISKO SYSTEM … --target-host USER@HOST`"""
    phases = argv[argv.index("--phases") + 1].split(",")
    disko, system = argv[argv.index("--store-paths") + 1 :][:2]
    user, _, target = argv[argv.index("--target-host") + 1].partition("@")
    until = processes._run.world.now + deadline
    try:
        for phase in phases:
            machine, boot = processes.connect(processes.shim(place), user, target, until)
            script, path = {"disko": (DISKO, disko), "install": (INSTALL, system)}[phase]
            fence = processes.fence(place)
            status, _, err = processes.execute(
                machine, boot, script, (path,), b"", until, is_shared=False, fence=fence
            )
            if status:
                return (1 if status != 255 else 255), "", err or "### connection lost ###"
    except Refused as refused:
        return 255, "", str(refused)
    return 0, "### Done! ###\n", ""


TOOLS = {"nix": nix, "nixos-anywhere": nixos_anywhere}


def copy(host: scripts.Context, root: str, *paths: str) -> scripts.Model:
    """The machine's side of `nix copy`."""
    yield host.rng.choice((host.rng.uniform(0.5, 5), host.rng.uniform(5, 120)))
    if root == "/mnt":
        if host.boot.mounted is None:
            return 1, "", "error: creating directory '/mnt/nix': Read-only file system"
        host.boot.mounted.store.update(paths)
    elif host.boot.kind is Kind.NIXOS and host.machine.root is not None:
        host.machine.root.store.update(paths)
    elif host.boot.kind is Kind.INSTALLER:
        host.boot.store.update(paths)
    else:
        return 1, "", "error: nix-daemon: command not found"
    return 0, "", ""


def disko(host: scripts.Context, path: str) -> scripts.Model:
    """Formats the disks and mounts the new ones: what was on them is lost."""
    yield host.rng.uniform(0.5, 3)
    if host.is_abandoned():
        return 255, "", ""
    if path not in host.boot.store:
        return 1, "", f"{path}: No such file or directory"
    with host.world.writing(host, "disko"):
        host.world.wipe(host)
        yield host.rng.uniform(2, 20)
        if host.is_abandoned():
            return 255, "", ""
        host.machine.mount_new(host.boot)
    return 0, "", ""


def nixos_install(host: scripts.Context, path: str) -> scripts.Model:
    """`nixos-install`, into what disko has mounted."""
    mounted = host.boot.mounted
    yield host.rng.uniform(0.5, 3)
    if mounted is None or path not in mounted.store:
        return 1, "", f"error: {path} is not in the store of /mnt"
    with host.world.writing(host, "install"):
        yield host.rng.uniform(2, 20)
        if host.is_abandoned():
            return 255, "", ""
        host.machine.install(host.boot, path)
    return 0, "", ""


scripts.MODELS |= {COPY: copy, DISKO: disko, INSTALL: nixos_install}
