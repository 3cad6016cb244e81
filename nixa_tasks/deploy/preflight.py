"""Whether a machine can be installed, or changed at all, before anything is sent to it."""

from __future__ import annotations

import contextlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Final

from nixa_tasks.deploy import disks
from nixa_tasks.deploy.disks import Disks
from nixa_tasks.errors import NixaError
from nixa_tasks.host import network, probe
from nixa_tasks.host.network import Lost
from nixa_tasks.host.probe import Os, Root
from nixa_tasks.host.reach import Reached
from nixa_tasks.host.ssh import Ssh, script
from nixa_tasks.manifest.model import Host, KexecPhase
from nixa_tasks.process.run import Output

_NEEDED = ("tar", "gzip", "cpio", "setsid")
_LEAST_MEMORY = 900 << 20  # nixos-anywhere asks for 1 GB; firmware and kernel keep some of it
_DISK_SECONDS = 120.0
_ASK_SECONDS = 60.0
_OTHER_KEYS: Final = re.compile(r"(?mi)^\s*(TrustedUserCAKeys|AuthorizedKeysCommand)\s+(?!none\b)")
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


def network_lost_by_kexec(ssh: Ssh) -> Lost | None:
    """The interface that leads to the host, where the installer will not create it: nixa would not find
    the machine again. None where nothing is known. Raises Unreachable."""
    done = ssh.run(script("network"), deadline=_ASK_SECONDS, output=_ANSWER, check=False, what="network")
    return network.lost_by_kexec(done.stdout)


def check_later_login(host: Host, system: Path) -> None:
    """Whether the new system has an ssh key for the user of later deploys, as far as its closure tells:
    NixOS puts the declared keys into `etc/ssh/authorized_keys.d`. Where keys may come another way (with
    the extra files, by a certificate or a command), nothing is known. Raises NixaError."""
    declared = system / "etc/ssh/authorized_keys.d"
    if host.extra_files is not None or not declared.is_dir() or (declared / host.user).exists():
        return
    with contextlib.suppress(OSError):
        if _OTHER_KEYS.search((system / "etc/ssh/sshd_config").read_text()):
            return
    known = ", ".join(sorted(path.name for path in declared.iterdir())) or "nobody"
    raise NixaError(
        f"the new system would lock {host.user} out: it has ssh keys for {known} only; nothing was changed",
        host=host.name,
        hint=f"add users.users.{host.user}.openssh.authorizedKeys.keys to its configuration;\n"
        f'or set user = "root", with install_user = "{host.user}" for the machine as it is now',
    )


def login_afterwards(reached: Reached) -> NixaError | None:
    """What keeps the user of later deploys out of a system that root was just let into."""
    host, ssh = reached.ssh.host, reached.ssh
    if host.user == ssh.user:
        return None
    later = replace(ssh, user=host.user)
    try:
        facts = probe.ask(later)
    except NixaError as error:
        why = error.what
    else:
        later.disconnect()
        if facts.root is not Root.NO:
            return None
        why = f"{host.user} can't become root"
    return NixaError(
        f"installed and running, but later deploys log in as {host.user}: {why}",
        host=host.name,
        hint="root can still log in. Give the user a key and a way to become root (security.sudo or\n"
        'doas) in the configuration, or set user = "root" in hosts.toml',
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
