"""Waiting for a machine to go down and to come back as what it should be.

Recognised by `boot_id`, not by connections: a machine that falls silent instead of closing them, and is
back within seconds, is noticed all the same.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from dataclasses import dataclass

from nixa_tasks.errors import DeadlinePassed, NixaError
from nixa_tasks.host import probe
from nixa_tasks.host.probe import Facts, Os
from nixa_tasks.host.ssh import Kind, Ssh, Unreachable, environment, script
from nixa_tasks.process.run import Place

PACKAGE = "nixa_tasks.deploy"
BOOT_SECONDS = 600.0
_POLL_SECONDS = 0.3
_LOGIN_POLL_SECONDS = 1.0
_BANNER_SECONDS = 3.0
_LOGIN_REFUSED_SECONDS = 60.0
_STAYS_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Address:
    """Where sshd is to be found without any jump host: what a banner can be asked of."""

    host: str
    port: int

    @classmethod
    def of(cls, ssh: Ssh) -> Address | None:
        """From ssh's own reading of its configuration; None where the way leads over a proxy."""
        argv = ("ssh", "-G", *ssh.command()[1:])
        done = ssh.processes.run(argv, deadline=10, place=Place(env=environment()), check=False)
        said = dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)
        if "proxyjump" in said or said.get("proxycommand", "none") != "none" or "hostname" not in said:
            return None
        return cls(said["hostname"], int(said.get("port", "22")))

    def answers(self) -> bool:
        """Whether an sshd shows its banner: a twentieth of a login's cost, on both sides."""
        with (
            contextlib.suppress(OSError),
            socket.create_connection((self.host, self.port), _BANNER_SECONDS) as line,
        ):
            line.settimeout(_BANNER_SECONDS)
            return line.recv(4) == b"SSH-"
        return False


def reboot(ssh: Ssh) -> None:
    """Ask the installer to reboot, as root. It answers before it goes."""
    ssh.run(script("reboot_installer", PACKAGE), deadline=120, root=True, what="reboot")


def restart(ssh: Ssh) -> None:
    """Ask an installed system to reboot, as root. It answers before it goes."""
    ssh.run(script("reboot_system", PACKAGE), deadline=120, root=True, what="reboot")


def ask_to_go(command: Callable[[], None]) -> Unreachable | None:
    """Give the command that makes the machine go down. One that goes at once takes the answer along:
    that loss is returned, for `await_boot` to judge. Raises what else the command does."""
    try:
        command()
    except Unreachable as error:
        if error.kind in (Kind.HOSTKEY, Kind.LOGIN):
            raise
        return error
    return None


@dataclass(frozen=True, slots=True)
class Awaited:
    """A boot that is waited for: another one than `before`, within `deadline` seconds.

    `what` and `hint` are for the error; `lost`: see `ask_to_go`; `is_right`: whether this is the
    system that was waited for.
    """

    before: str
    deadline: float
    what: str
    hint: str
    lost: Unreachable | None = None
    is_right: Callable[[Facts], bool] = lambda _facts: True


def await_boot(ssh: Ssh, awaited: Awaited) -> Facts:
    """Wait until the machine has booted, further than its initrd.

    A host key that is not the expected one may be the initrd's, so it counts only once the time is
    up. Raises DeadlinePassed with what was last seen, Unreachable (a wrong host key, a login that is
    refused), and `lost` where the machine just stays up.
    """
    try:
        return _await_boot(ssh, awaited)
    finally:
        ssh.disconnect()  # not sooner: the host's lock is held over it until the machine goes down


def _await_boot(ssh: Ssh, awaited: Awaited) -> Facts:
    address, clock = Address.of(ssh), ssh.clock
    begun = clock.monotonic()
    refused_since: float | None = None
    stranger: Unreachable | None = None
    last = "nothing"
    while clock.monotonic() < begun + awaited.deadline:
        if address is not None and not address.answers():
            last = "no ssh banner"
            clock.sleep(_POLL_SECONDS)
            continue
        try:
            facts = probe.ask(ssh.unshared())
        except Unreachable as error:
            stranger = error if error.kind is Kind.HOSTKEY else None
            if error.kind is Kind.LOGIN:
                refused_since = refused_since or clock.monotonic()
                if clock.monotonic() - refused_since > _LOGIN_REFUSED_SECONDS:
                    raise
            last = error.what
        except DeadlinePassed:
            last = "a login that timed out"
        except NixaError as error:
            last = error.what
        else:
            stranger = None
            if _is_awaited(facts, awaited):
                return facts
            stays = clock.monotonic() - begun > _STAYS_SECONDS
            if awaited.lost is not None and facts.boot_id == awaited.before and stays:
                raise awaited.lost
            last = _describe(facts, awaited.before)
        clock.sleep(_LOGIN_POLL_SECONDS)
    if stranger is not None:
        raise stranger
    raise DeadlinePassed(
        f"{awaited.what}: timed out after {awaited.deadline:g} s; last seen: {last}",
        host=ssh.host.name,
        hint=awaited.hint,
    )


def _is_awaited(facts: Facts, awaited: Awaited) -> bool:
    return facts.boot_id not in ("", awaited.before) and facts.os is not Os.INITRD and awaited.is_right(facts)


def _describe(facts: Facts, before: str) -> str:
    if facts.os is Os.INITRD:
        return "its initrd, which waits (for a passphrase?)"
    suffix = " (the one before)" if facts.boot_id == before else ""
    return f"{facts.os_name or facts.os}, boot {facts.boot_id[:8]}{suffix}"
