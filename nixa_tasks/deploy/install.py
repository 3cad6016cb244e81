"""A first deploy: the installer is booted, nixos-anywhere partitions and installs, nixa reboots.

Each step is in the journal, and each is safe to begin again: a host that is left in the installer
is picked up there by the next deploy.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from nixa_tasks.deploy import checks, copy, nixos_anywhere, preflight, receipts, secrets
from nixa_tasks.deploy import reboot as boot
from nixa_tasks.deploy.nixos_anywhere import Installation
from nixa_tasks.deploy.receipts import Started
from nixa_tasks.deploy.secrets import Provided
from nixa_tasks.deploy.work import Work
from nixa_tasks.errors import NixaError
from nixa_tasks.host import host_key as hostkey
from nixa_tasks.host import lock, reach
from nixa_tasks.host.host_key import Expectation, Trust
from nixa_tasks.host.probe import Facts, Os
from nixa_tasks.host.ssh import Ssh, Unreachable
from nixa_tasks.image.delivery import upload as deliver
from nixa_tasks.image.delivery.neighbours import Neighbours
from nixa_tasks.image.obtain import Obtained, damage_here
from nixa_tasks.state.receipt import How, Outcome, Receipt

_KEXEC_HINT = (
    "look at its console; `kexec_extra_flags` go to kexec, 1.5 GB of memory are recommended, and\n"
    "Secure Boot must be off. If it has another address there: post_kexec_target"
)
_BOOT_HINT = (
    "look at its console: does it boot from the right disk, and does the configuration\n"
    "bring up the network and sshd with your key?"
)


@dataclass(frozen=True, slots=True)
class Parts:
    """What an installation brings along. There is no image where the host is in the installer."""

    system: Path
    disko: Path
    image: Obtained | None
    neighbours: Neighbours


def install(work: Work, parts: Parts, started: Started) -> Receipt:
    """Install the host; its lock is held. A boot ends that, so it is taken anew in the installer and
    in the installed system. Ends with the installed system running and its receipt on both sides.
    Raises NixaError; the host is then in the installer, or as it was."""
    with contextlib.ExitStack() as held:
        with secrets.provided(
            work.host, work.manifest.root, work.access.folder, work.access.processes
        ) as provided:
            if work.reached.facts.os is not Os.INSTALLER and not preflight.is_own_phase(work):
                _all_by_nixos_anywhere(work, parts, provided)
            else:
                if work.reached.facts.os is not Os.INSTALLER:
                    _boot_installer(work, parts)
                    held.enter_context(_locked(work, _moved(work).as_root()))
                _partition_and_install(work, parts, provided)
        return finish(work, parts, started)


def _locked(work: Work, ssh: Ssh) -> AbstractContextManager[bool]:
    return lock.held(
        ssh,
        timeout=work.host.lock_timeout,
        announce=lambda text: work.journal.note(work.host.name, "lock", text),
    )


def _all_by_nixos_anywhere(work: Work, parts: Parts, provided: Provided) -> None:
    """The plain form: `--kexec FILE`, its own kexec phase, its own copies. Nobody checks the image on
    the host then, so its bytes are read once more here."""
    if parts.image is not None and (damage := damage_here(parts.image)) is not None:
        name = work.host.name
        raise NixaError(
            "the image is not the pinned one; nothing was sent",
            host=name,
            hint=f"{damage}\ntry again: doit deploy:{name}",
        )
    todo = Installation(
        ("kexec", "disko", "install"),
        parts.disko,
        parts.system,
        parts.image.path if parts.image else None,
        provided.extra_files,
        provided.keys,
    )
    _nixos_anywhere(work, work.reached.ssh, "install", todo, sent=parts.image)


def _boot_installer(work: Work, parts: Parts) -> None:
    """nixa's own kexec phase: the image there, checked there, then the jump and the wait."""
    name, journal, ssh, facts = work.host.name, work.journal, work.reached.ssh, work.reached.facts
    if parts.image is None:
        raise NixaError("there is no image to boot the installer from", host=name)
    with journal.step(name, "upload") as step:
        step.sha256, step.size = parts.image.sha256, parts.image.path.stat().st_size
        delivered = deliver.deliver(
            ssh, parts.image, tools=facts.tools, neighbours=parts.neighbours, log=work.log,
            turn=lambda: work.turn("upload"),
            progress=step.progress, downloaded=step.downloaded,
            note=lambda text: journal.note(name, "upload", text),
        )  # fmt: skip
    with journal.step(name, "kexec"):
        flags = work.host.kexec_extra_flags
        lost = boot.tell(lambda: deliver.boot(ssh, delivered, extra_flags=flags, log=work.log))
        installer = _await(work, _moved(work).as_root(), facts.boot_id, "the installer", _KEXEC_HINT, lost)
        ssh.disconnect()  # not sooner: the host's lock is held over it until the machine jumps
        if installer.os is not Os.INSTALLER:
            raise NixaError(
                f"it came back as {installer.os_name or installer.os}, not as the installer",
                host=name,
                log=work.log.path,
                hint=_KEXEC_HINT,
            )


def _partition_and_install(work: Work, parts: Parts, provided: Provided) -> None:
    """Two runs of nixos-anywhere, and nixa's own copy of the closure between them: its own pays a
    round trip for every path, and finds nothing to do then."""
    ssh = _moved(work).as_root()
    with work.sending("copy disko"):
        copy.copy(ssh, parts.disko, sink=work.log)
    _nixos_anywhere(
        work, ssh, "disko", Installation(("disko",), parts.disko, parts.system, keys=provided.keys)
    )
    with work.sending("copy"):
        copy.copy(ssh, parts.system, sink=work.log, root="/mnt")
    _nixos_anywhere(
        work,
        ssh,
        "install",
        Installation(("install",), parts.disko, parts.system, extra_files=provided.extra_files),
    )


def _nixos_anywhere(
    work: Work, ssh: Ssh, step: str, todo: Installation, *, sent: Obtained | None = None
) -> None:
    name, journal = work.host.name, work.journal
    with journal.step(name, step) as begun:
        nixos_anywhere.run(
            work.manifest.fleet,
            work.host,
            ssh,
            todo,
            deadline=work.host.install_timeout,
            log=work.log,
            step=lambda text: journal.note(name, step, text),
        )
        if sent is not None:  # it sends the whole file, whatever the host has of it
            begun.sha256, begun.size = sent.sha256, sent.path.stat().st_size
            begun.moved = begun.size


def finish(work: Work, parts: Parts, started: Started) -> Receipt:
    """From the installed disk to the running system: reboot, wait, look, check, write the receipt."""
    name, journal = work.host.name, work.journal
    ssh = _moved(work).as_root()
    with journal.step(name, "reboot"):
        installer = reach.ask_again(ssh)
        lost = boot.tell(lambda: boot.reboot(ssh))
        installed, facts = _await_installed(work, ssh, installer, lost)
    with journal.step(name, "verify"), _locked(work, installed.ssh) as waited:
        if waited and (now := reach.ask_again(installed.ssh)).system != facts.system == work.wanted:
            raise _superseded(work, now)
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
            work,
            started,
            How.INSTALL,
            out=work.wanted,
            outcome=Outcome.DONE,
            kexec_sha256=parts.image.sha256 if parts.image else None,
        )
        receipts.write_remote(installed.ssh, receipt)
        receipts.write_local(work, receipt)
    return receipt


def _superseded(work: Work, facts: Facts) -> NixaError:
    """Between the boot and our lock another deploy had the host, which is not ours to undo."""
    theirs = Receipt.from_json(facts.receipt)
    return NixaError(
        f"it was installed, but {theirs.operator if theirs else 'somebody'} has deployed over it before it could be "
        f"checked: it runs {facts.system or facts.os_name}",
        host=work.host.name,
        log=work.log.path,
        hint=f"to deploy this over it: doit deploy:{work.host.name}",
    )


def _moved(work: Work) -> Ssh:
    """The way to the machine once it is in the installer, which may have another address."""
    ssh, host = work.reached.ssh, work.host
    if host.post_kexec_target is None and host.post_kexec_port is None:
        return ssh
    return dataclasses.replace(
        ssh, target=host.post_kexec_target or ssh.target, port=host.post_kexec_port or ssh.port
    )


def _await_installed(
    work: Work, ssh: Ssh, installer: Facts, lost: Unreachable | None
) -> tuple[reach.Reached, Facts]:
    """Wait for the installed system, with the key that it must show; a new one is taken only where
    the installation itself brought it and nobody pinned another."""
    host = work.host
    home = dataclasses.replace(ssh, target=host.target, port=host.port)
    keeps_key = host.copy_host_keys and host.extra_files is None
    if not keeps_key and host.host_key is None:
        home = reach.prepare(home, Expectation(Trust.ANY))
    facts = _await(
        work,
        home,
        installer.boot_id,
        "the installed system",
        _BOOT_HINT,
        lost,
        is_right=lambda facts: facts.os is Os.NIXOS,
    )
    reached = reach.settle(home, work.reached.trust, facts)
    if reached.key != work.reached.key:
        work.journal.note(host.name, "verify", f"the installed system's host key: {reached.key.fingerprint}")
    if host.host_key is None:
        work.access.known.remember(host, reached.key)
    else:
        work.access.known.trust_beside_pin(host, None)
    return reached, facts


def _await(
    work: Work,
    ssh: Ssh,
    before: str,
    what: str,
    hint: str,
    lost: Unreachable | None,
    is_right: Callable[[Facts], bool] = lambda _facts: True,
) -> Facts:
    """Wait for another boot than `before`; a wrong host key is told with both fingerprints."""
    deadline = min(boot.BOOT_SECONDS, work.host.install_timeout)
    try:
        return boot.await_boot(
            ssh, before=before, deadline=deadline, what=what, hint=hint, lost=lost, is_right=is_right
        )
    except Unreachable as error:
        if error.kind == "hostkey":
            expected = hostkey.expectation(work.host, work.access.known)
            raise hostkey.mismatch(work.host, expected, reach.shown_key(ssh)) from error
        raise
