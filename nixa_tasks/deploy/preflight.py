"""Whether a machine can be installed, or changed at all, before anything is sent to it."""

from __future__ import annotations

from nixa_tasks.deploy import disks
from nixa_tasks.deploy.disks import Disks
from nixa_tasks.errors import NixaError
from nixa_tasks.host.probe import Os, Root
from nixa_tasks.host.reach import Reached
from nixa_tasks.host.ssh import Ssh, script
from nixa_tasks.manifest.model import KexecPhase
from nixa_tasks.process.run import Output

_NEEDED = ("tar", "gzip", "cpio", "setsid")
_LEAST_MEMORY = 900 << 20  # nixos-anywhere asks for 1 GB; firmware and kernel keep some of it
_DISK_SECONDS = 120.0
_ANSWER = Output(sink_stdout=False, keep=1 << 18, limit=1 << 20)


def check_host(reached: Reached, system: str, phase: KexecPhase) -> None:
    """Whether this machine can be installed with a configuration for `system` (`x86_64-linux`),
    before anything is sent. Raises NixaError."""
    facts, name = reached.facts, reached.ssh.host.name
    if facts.arch and facts.arch != system.removesuffix("-linux"):
        raise NixaError(
            f"the machine is {facts.arch}, the configuration is for {system}",
            host=name,
            hint="set nixpkgs.hostPlatform to the machine's, or correct `target`",
        )
    check_root(reached)
    if facts.os is Os.INSTALLER:
        return
    if reached.ssh.password is not None and phase is not KexecPhase.NIXA:
        raise NixaError(
            "nixos-anywhere's own kexec phase can't give sudo a password",
            host=name,
            hint='leave kexec_phase = "nixa", or allow the user NOPASSWD in sudoers',
        )
    missing = [tool for tool in _NEEDED if tool not in facts.tools]
    if missing:
        raise NixaError(
            f"the machine lacks {', '.join(missing)}, which booting the installer needs",
            host=name,
            hint=f"install {' '.join(missing)} there",
        )
    if 0 < facts.memory < _LEAST_MEMORY:
        raise NixaError(
            f"the machine has {facts.memory >> 20} MiB of memory; the installer needs 1 GiB",
            host=name,
            hint="give it more memory, or install it from an image",
        )


def check_root(reached: Reached) -> None:
    """Whether the login can become root. Raises NixaError."""
    if reached.can_be_root:
        return
    facts, ssh = reached.facts, reached.ssh
    why = "sudo asks for a password" if facts.root is Root.PASSWORD else "there is no sudo or doas"
    raise NixaError(
        f"{facts.user or ssh.user} can't become root there: {why}",
        host=ssh.host.name,
        hint="log in as root, set NIXA_SUDO_PASSWORD, or allow the user NOPASSWD in sudoers",
    )


def look_at_disks(ssh: Ssh) -> Disks:
    """What lies on the machine's disks; nothing is written, and no journal replayed. Raises
    Unreachable, CommandFailed, DeadlinePassed."""
    text = script("look_at_disks", "nixa_tasks.deploy")
    done = ssh.run(text, root=True, deadline=_DISK_SECONDS, output=_ANSWER, what="look at the disks")
    return disks.parse(done.stdout)
