"""Whether a machine can be installed, or changed at all, before anything is sent to it."""

from __future__ import annotations

from nixa_tasks.deploy.work import Work
from nixa_tasks.errors import NixaError
from nixa_tasks.host.probe import Os
from nixa_tasks.manifest.model import KexecPhase

_NEEDED = ("tar", "gzip", "cpio", "setsid")
_LEAST_MEMORY = 900 << 20  # nixos-anywhere asks for 1 GB; firmware and kernel keep some of it


def check_host(work: Work) -> None:
    """Whether this machine can be installed at all, before anything is sent. Raises NixaError."""
    facts, name = work.reached.facts, work.host.name
    arch = work.output.system.removesuffix("-linux")
    if facts.arch and facts.arch != arch:
        raise NixaError(
            f"the machine is {facts.arch}, the configuration is for {work.output.system}",
            host=name,
            hint="set nixpkgs.hostPlatform to the machine's, or correct `target`",
        )
    check_root(work)
    if facts.os is Os.INSTALLER:
        return
    if work.reached.ssh.password is not None and not is_own_phase(work):
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


def check_root(work: Work) -> None:
    """Whether the login can become root. Raises NixaError."""
    facts, name = work.reached.facts, work.host.name
    if not work.reached.can_be_root:
        why = "sudo asks for a password" if facts.root == "password" else "there is no sudo or doas"
        raise NixaError(
            f"{facts.user or work.host.user} can't become root there: {why}",
            host=name,
            hint="log in as root, set NIXA_SUDO_PASSWORD, or allow the user NOPASSWD in sudoers",
        )


def needs_image(work: Work) -> bool:
    return work.reached.facts.os is not Os.INSTALLER


def is_own_phase(work: Work) -> bool:
    return work.manifest.fleet.kexec_phase is KexecPhase.NIXA
