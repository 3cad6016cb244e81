"""A first deploy: the installer is booted, nixos-anywhere partitions and installs, nixa reboots.

Each step is in the journal, and each is safe to begin again: a host that is left in the installer
is picked up there by the next deploy.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nixa_tasks.deploy import checks, copy, nixos_anywhere, preflight, reboot, receipts, secrets
from nixa_tasks.deploy.decide import Asked
from nixa_tasks.deploy.nixos_anywhere import Installation
from nixa_tasks.deploy.reboot import Awaited
from nixa_tasks.deploy.secrets import Provided
from nixa_tasks.deploy.turn import Turn
from nixa_tasks.errors import NixaError
from nixa_tasks.host import host_key as hostkey
from nixa_tasks.host import lock, reach
from nixa_tasks.host.host_key import Expectation, Trust
from nixa_tasks.host.probe import Facts, Os
from nixa_tasks.host.reach import Reached
from nixa_tasks.host.ssh import Fence, Kind, Ssh, Unreachable
from nixa_tasks.image.delivery import upload as deliver
from nixa_tasks.image.obtain import Obtained, damage_here
from nixa_tasks.manifest.model import Host, InstallPolicy, KexecPhase
from nixa_tasks.state.receipt import How, Outcome, Receipt

_KEXEC_HINT = (
    "look at its console; `kexec_extra_flags` go to kexec, 1.5 GB of memory are recommended, and\n"
    "Secure Boot must be off. If it has another address there: post_kexec_target"
)
_BOOT_HINT = (
    "look at its console: does it boot from the right disk, and does the configuration\n"
    "bring up the network and sshd with your key?"
)
_MARK = (
    ": >/run/nixa-installing"  # the disks may be wiped from here on: another deploy may go on in this boot
)


@dataclass(frozen=True, slots=True)
class Parts:
    """What an installation brings along. There is no image where the host is in the installer."""

    system: Path
    disko: Path
    image: Obtained | None


def install(turn: Turn, reached: Reached, parts: Parts) -> Receipt:
    """Install the host; its lock is held. A boot ends that, so it is taken anew in the installer and
    in the installed system. Ends with the installed system running and its receipt on both sides.
    Raises Stale, NixaError; the host is then in the installer, or as it was."""
    is_in_installer = reached.facts.os is Os.INSTALLER
    with contextlib.ExitStack() as held:
        provided = held.enter_context(
            secrets.provided(turn.host, turn.manifest.root, turn.access.folder, turn.access.processes)
        )
        if not is_in_installer and turn.manifest.fleet.kexec_phase is not KexecPhase.NIXA:
            _all_by_nixos_anywhere(turn, reached.ssh, parts, provided)
        else:
            ssh = reached.ssh
            if not is_in_installer:
                installer = _boot_installer(turn, reached, parts.image)
                ssh = held.enter_context(_locked_installer(turn, reached, installer))
            _partition_and_install(turn, ssh, parts, provided)
            return finish(turn, reached, ssh, parts)
        return finish(turn, reached, _moved(reached.ssh).as_root(), parts)


@contextlib.contextmanager
def _locked_installer(turn: Turn, reached: Reached, installer: Facts) -> Iterator[Ssh]:
    """The way to the installer that was just booted, behind a fence, its lock held."""
    ssh = _moved(reached.ssh).as_root()
    with lock.held(
        ssh, timeout=turn.host.lock_timeout, announce=lambda text: turn.note("lock", text)
    ) as held:
        facts = reach.ask_again(ssh)
        fenced = dataclasses.replace(ssh, fence=Fence(installer.boot_id, held.token, facts.system))
        if not facts.is_installing and turn.asked is Asked.DEPLOY:
            _check_disks(turn.host, fenced)
        yield fenced


def _check_disks(host: Host, ssh: Ssh) -> None:
    """The installer may see more of the disks than the Linux before did."""
    if host.install is InstallPolicy.ALWAYS:
        return
    found = preflight.look_at_disks(ssh)
    if found.has_nixos:
        raise NixaError(
            "there is a NixOS on its disks, so it is not installed; nothing was written to them",
            host=host.name,
            tail=found.lines,
            hint="it is in the installer now: restart it to get back to what it ran\n"
            f"to wipe it all the same: doit reinstall:{host.name}",
        )


def _all_by_nixos_anywhere(turn: Turn, ssh: Ssh, parts: Parts, provided: Provided) -> None:
    """The plain form: `--kexec FILE`, its own kexec phase, its own copies. Nobody checks the image on
    the host then, so its bytes are read once more here; and its commands can't run behind the fence,
    since the boot changes in the middle of them."""
    if parts.image is not None and (damage := damage_here(parts.image)) is not None:
        name = turn.name
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
    ssh.run(":", root=True, deadline=60, what="look at the host")
    _nixos_anywhere(turn, ssh, "install", todo, sent=parts.image)


def _boot_installer(turn: Turn, reached: Reached, image: Obtained | None) -> Facts:
    """nixa's own kexec phase: the image there, checked there, then the jump and the wait."""
    name, journal, ssh, facts = turn.name, turn.journal, reached.ssh, reached.facts
    if image is None:
        raise NixaError("there is no image to boot the installer from", host=name)
    hint = _KEXEC_HINT
    if (by := preflight.network_lost_by_kexec(ssh)) is not None:
        hint = f"{name} was reached over {by.described()}, which the installer does not set up\n{hint}"
        turn.note(
            "kexec",
            f"ssh arrives on {by.described()}: the installer has no such interface, and may be unreachable",
        )
    with journal.step(name, "upload") as step:
        step.sha256, step.size = image.sha256, image.path.stat().st_size
        delivered = deliver.deliver(
            ssh,
            image,
            tools=facts.tools,
            neighbours=turn.neighbours,
            turn=lambda: turn.slot("upload"),
            report=deliver.Reporting(
                step.progress, step.downloaded, lambda text: turn.note("upload", text), turn.log
            ),
        )
    with journal.step(name, "kexec"):
        flags = turn.host.kexec_extra_flags
        lost = reboot.ask_to_go(lambda: deliver.boot(ssh, delivered, extra_flags=flags, log=turn.log))
        awaited = Awaited(facts.boot_id, _boot_seconds(turn.host), "the installer", hint, lost)
        installer = _await(turn, _moved(ssh).as_root(), awaited)
        ssh.disconnect()  # not sooner: the host's lock is held over it until the machine jumps
        if installer.os is not Os.INSTALLER:
            raise NixaError(
                f"it came back as {installer.os_name or installer.os}, not as the installer",
                host=name,
                log=turn.log.path,
                hint=_KEXEC_HINT,
            )
        return installer


def _partition_and_install(turn: Turn, ssh: Ssh, parts: Parts, provided: Provided) -> None:
    """Two runs of nixos-anywhere, and nixa's own copy of the closure between them: its own pays a
    round trip for every path, and finds nothing to do then."""
    disko = Installation(("disko",), parts.disko, parts.system, keys=provided.keys)
    system = Installation(("install",), parts.disko, parts.system, extra_files=provided.extra_files)
    with turn.sending("copy disko"):
        copy.copy(ssh, parts.disko, sink=turn.log)
    ssh.run(_MARK, root=True, deadline=60, what="mark the installation")
    _nixos_anywhere(turn, ssh, "disko", disko)
    with turn.sending("copy"):
        copy.copy(ssh, parts.system, sink=turn.log, root="/mnt")
    _nixos_anywhere(turn, ssh, "install", system)


def _nixos_anywhere(
    turn: Turn, ssh: Ssh, step: str, todo: Installation, *, sent: Obtained | None = None
) -> None:
    with turn.journal.step(turn.name, step) as begun:
        nixos_anywhere.run(
            turn.manifest.fleet,
            turn.host,
            ssh,
            todo,
            deadline=turn.host.install_timeout,
            log=turn.log,
            step=lambda text: turn.note(step, text),
        )
        if sent is not None:  # it sends the whole file, whatever the host has of it
            begun.sha256, begun.size = sent.sha256, sent.path.stat().st_size
            begun.moved = begun.size


def finish(turn: Turn, reached: Reached, ssh: Ssh, parts: Parts) -> Receipt:
    """From the installed disk to the running system: reboot, wait, look, check, write the receipt.
    `ssh` leads to the installer."""
    name, journal, wanted = turn.name, turn.journal, turn.wanted
    with journal.step(name, "reboot"):
        installer = reach.ask_again(ssh)
        lost = reboot.ask_to_go(lambda: reboot.reboot(ssh))
        installed = _await_installed(turn, reached, ssh, installer, lost)
    with (
        journal.step(name, "verify"),
        lock.held(
            installed.ssh,
            timeout=turn.host.lock_timeout,
            announce=lambda text: turn.note("lock", text),
        ) as held,
    ):
        facts = reach.ask_again(installed.ssh)
        if facts.system != installed.facts.system == wanted:
            raise _superseded(turn, facts)
        if facts.system != wanted:
            raise NixaError(
                f"it runs {facts.system or facts.os_name}, not {wanted}",
                host=name,
                log=turn.log.path,
                hint=f"did it boot from another disk? then: doit -a deploy:{name}",
            )
        checks.run_all(
            turn.host.checks,
            installed.ssh,
            failed_before=frozenset(),
            note=lambda text: turn.note("check", text),
        )
        made = receipts.make(turn, installed, How.INSTALL, out=wanted, outcome=Outcome.DONE)
        receipt = dataclasses.replace(made, kexec_sha256=parts.image.sha256 if parts.image else None)
        fence = Fence(facts.boot_id, held.token, wanted)
        receipts.write_remote(dataclasses.replace(installed.ssh, fence=fence), receipt)
        receipts.remember(turn, receipt)
        locked_out = preflight.login_afterwards(installed)
    if locked_out is not None:
        raise locked_out
    return receipt


def _superseded(turn: Turn, facts: Facts) -> NixaError:
    """Between the boot and our lock another deploy had the host, which is not ours to undo."""
    theirs = Receipt.from_json(facts.receipt)
    return NixaError(
        f"it was installed, but {theirs.operator if theirs else 'somebody'} has deployed over it before it could be "
        f"checked: it runs {facts.system or facts.os_name}",
        host=turn.name,
        log=turn.log.path,
        hint=f"to deploy this over it: doit deploy:{turn.name}",
    )


def _moved(ssh: Ssh) -> Ssh:
    """The way to the machine once it is in the installer, which may have another address."""
    host = ssh.host
    if host.post_kexec_target is None and host.post_kexec_port is None:
        return ssh
    return dataclasses.replace(
        ssh, target=host.post_kexec_target or ssh.target, port=host.post_kexec_port or ssh.port
    )


def _await_installed(
    turn: Turn, reached: Reached, ssh: Ssh, installer: Facts, lost: Unreachable | None
) -> Reached:
    """Wait for the installed system, with the key that it must show; a new one is taken only where
    the installation itself brought it and nobody pinned another."""
    host, known = turn.host, turn.access.known
    home = dataclasses.replace(ssh, target=host.target, port=host.port, fence=None)
    keeps_key = host.copy_host_keys and host.extra_files is None
    if not keeps_key and host.host_key is None:
        home = reach.prepare(home, Expectation(Trust.ANY))
    awaited = Awaited(
        installer.boot_id,
        _boot_seconds(host),
        "the installed system",
        _BOOT_HINT,
        lost,
        is_right=lambda facts: facts.os is Os.NIXOS,
    )
    installed = reach.settle(home, reached.trust, _await(turn, home, awaited))
    if installed.key != reached.key:
        turn.note("verify", f"the installed system's host key: {installed.key.fingerprint}")
    if host.host_key is None:
        known.remember(host, installed.key)
    else:
        known.trust_beside_pin(host, None)
    return installed


def _boot_seconds(host: Host) -> float:
    return min(reboot.BOOT_SECONDS, host.install_timeout)


def _await(turn: Turn, ssh: Ssh, awaited: Awaited) -> Facts:
    """Wait for a boot; a wrong host key is reported with both fingerprints."""
    try:
        return reboot.await_boot(ssh, awaited)
    except Unreachable as error:
        if error.kind is Kind.HOSTKEY:
            expected = hostkey.expectation(turn.host, turn.access.known)
            raise hostkey.mismatch(turn.host, expected, reach.shown_key(ssh)) from error
        raise
