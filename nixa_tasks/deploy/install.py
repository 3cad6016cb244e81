"""A first deploy: the installer is booted, nixos-anywhere partitions and installs, nixa reboots.

Each step is in the journal, and each is safe to begin again: a host that is left in the installer
is picked up there by the next deploy.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from nixa_tasks.deploy import boot, checks, nixos_anywhere, receipts, secrets
from nixa_tasks.deploy.nixos_anywhere import Installation
from nixa_tasks.deploy.receipts import Started
from nixa_tasks.deploy.work import Work
from nixa_tasks.errors import NixaError
from nixa_tasks.manifest.model import KexecPhase
from nixa_tasks.state.receipt import How, Outcome, Receipt
from nixa_tasks.target import hostkey, reach
from nixa_tasks.target.hostkey import Expectation, KnownHosts, Trust
from nixa_tasks.target.probe import Facts, Os
from nixa_tasks.target.ssh import Ssh, Unreachable

BOOT_SECONDS = 600.0
_NEEDED = ("tar", "gzip", "cpio", "setsid")
_LEAST_MEMORY = 900 << 20  # nixos-anywhere asks for 1 GB; firmware and kernel keep some of it


@dataclass(frozen=True, slots=True)
class Parts:
    """What an installation brings along. `image` is None where the host is in the installer already."""

    system: Path
    disko: Path
    image: Path | None
    image_sha256: str | None


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
    if facts.elevation is None:
        why = "sudo asks for a password" if facts.root == "password" else "there is no sudo or doas"
        raise NixaError(
            f"{facts.user or work.host.user} can't become root there: {why}",
            host=name,
            hint="log in as root, or allow the user NOPASSWD in sudoers",
        )


def install(work: Work, parts: Parts, started: Started) -> Receipt:
    """Install the host; its lock is held. Ends with the installed system running and its receipt
    on both sides. Raises NixaError; the host is then in the installer, or as it was."""
    name, journal = work.host.name, work.journal
    ssh, facts = work.reached.ssh, work.reached.facts
    deadline = work.host.install_timeout
    with secrets.provided(work.host, work.manifest.root, work.folder) as provided:
        installation = Installation(
            ("disko", "install"),
            parts.disko,
            parts.system,
            extra_files=provided.extra_files,
            keys=provided.keys,
        )
        if facts.os is not Os.INSTALLER:
            if parts.image is None:
                raise NixaError("there is no image to boot the installer from", host=name)
            installation = dataclasses.replace(
                installation, phases=("kexec", "disko", "install"), kexec=parts.image
            )
        with journal.step(name, "install"):
            nixos_anywhere.run(
                work.manifest.fleet,
                work.host,
                ssh,
                installation,
                deadline=deadline,
                log=work.log,
                step=lambda text: journal.note(name, "install", text),
            )
    return finish(work, parts, started)


def finish(work: Work, parts: Parts, started: Started) -> Receipt:
    """From the installed disk to the running system: reboot, wait, look, check, write the receipt."""
    name, journal = work.host.name, work.journal
    ssh = _moved(work).as_root()
    with journal.step(name, "reboot"):
        ssh.disconnect()
        installer = reach.ask_again(ssh)
        boot.reboot(ssh)
        installed, facts = _await_installed(work, ssh, installer)
    with journal.step(name, "verify"):
        if facts.system != work.wanted:
            raise NixaError(
                f"it runs {facts.system or facts.os_name}, not {work.wanted}",
                host=name,
                log=work.log.path,
                hint=f"did it boot from another disk? then: doit -a deploy:{name}",
            )
        work = dataclasses.replace(work, reached=installed)
        checks.run_all(
            work.host.checks,
            installed.ssh,
            failed_before=frozenset(),
            note=lambda text: journal.note(name, "check", text),
        )
        receipt = receipts.make(
            work, started, How.INSTALL, out=work.wanted, outcome=Outcome.DONE, kexec_sha256=parts.image_sha256
        )
        receipts.write_remote(installed.ssh, receipt)
        receipts.write_local(work, receipt)
    return receipt


def _moved(work: Work) -> Ssh:
    """The way to the machine once it is in the installer, which may have another address."""
    ssh, host = work.reached.ssh, work.host
    if host.post_kexec_target is None and host.post_kexec_port is None:
        return ssh
    return dataclasses.replace(
        ssh, target=host.post_kexec_target or ssh.target, port=host.post_kexec_port or ssh.port
    )


def _await_installed(work: Work, ssh: Ssh, installer: Facts) -> tuple[reach.Reached, Facts]:
    """Wait for the installed system, with the key that it must show; a new one is taken only where
    the installation itself brought it and nobody pinned another."""
    host = work.host
    home = dataclasses.replace(ssh, target=host.target, port=host.port)
    keeps_key = host.copy_host_keys and host.extra_files is None
    if not keeps_key and host.host_key is None:
        home = reach.prepare(home, Expectation(Trust.ANY))
    try:
        facts = boot.await_boot(
            home,
            before=installer.boot_id,
            deadline=BOOT_SECONDS,
            what="the installed system",
            hint="look at its console: does it boot from the right disk, and does the configuration\n"
            "bring up the network and sshd with your key?",
            is_right=lambda facts: facts.os is Os.NIXOS,
        )
    except Unreachable as error:
        if error.kind == "hostkey":
            raise hostkey.mismatch(
                host, hostkey.expectation(host, KnownHosts()), reach.shown_key(home)
            ) from error
        raise
    reached = reach.settle(home, work.reached.trust, facts)
    if reached.key != work.reached.key:
        work.journal.note(host.name, "verify", f"the installed system's host key: {reached.key.fingerprint}")
    if host.host_key is None:
        KnownHosts().remember(host, reached.key)
    else:
        KnownHosts().trust_beside_pin(host, None)
    return reached, facts


def needs_image(work: Work) -> bool:
    return work.reached.facts.os is not Os.INSTALLER


def is_own_phase(work: Work) -> bool:
    return work.manifest.fleet.kexec_phase is KexecPhase.NIXA
