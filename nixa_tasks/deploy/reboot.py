"""Waiting for a machine to go down and to come back as what it should be.

Told by `boot_id`, not by connections: a machine that falls silent instead of closing them, and is
back within seconds, is noticed all the same.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from dataclasses import dataclass

from nixa_tasks.errors import DeadlinePassed, NixaError
from nixa_tasks.host import probe
from nixa_tasks.host.probe import Facts
from nixa_tasks.host.ssh import Ssh, Unreachable, environment
from nixa_tasks.process.run import Place

BOOT_SECONDS = 600.0
_POLL_SECONDS = 0.3
_LOGIN_POLL_SECONDS = 1.0
_BANNER_SECONDS = 3.0
_LOGIN_REFUSED_SECONDS = 60.0
_STAYS_SECONDS = 60.0

# What nixos-anywhere's own reboot phase does first, so that the disk is clean and a zpool can be
# imported without force. No nohup, which not every installer has.
_REBOOT = """
umount -R /mnt 2>/dev/null; swapoff -a 2>/dev/null
if command -v zpool >/dev/null 2>&1; then zpool export -a; fi
sync
(trap '' HUP; sleep 1; reboot || busybox reboot -f) </dev/null >/dev/null 2>&1 &
"""
# An installed system ends its services in order by itself.
_RESTART = """
PATH=$PATH:/run/current-system/sw/bin:/usr/sbin:/sbin
sync
(trap '' HUP; sleep 1; systemctl reboot || reboot || busybox reboot -f) </dev/null >/dev/null 2>&1 &
"""


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
    ssh.run(_REBOOT, deadline=120, root=True, what="reboot")


def restart(ssh: Ssh) -> None:
    """Ask an installed system to reboot, as root. It answers before it goes."""
    ssh.run(_RESTART, deadline=120, root=True, what="reboot")


def tell(command: Callable[[], None]) -> Unreachable | None:
    """Give the command that makes the machine go down. One that goes at once takes the answer along:
    that loss is returned, for `await_boot` to judge. Raises what else the command does."""
    try:
        command()
    except Unreachable as error:
        if error.kind in ("hostkey", "login"):
            raise
        return error
    return None


def await_boot(
    ssh: Ssh,
    *,
    before: str,
    deadline: float,
    what: str,
    hint: str,
    lost: Unreachable | None = None,
    is_right: Callable[[Facts], bool] = lambda _facts: True,
) -> Facts:
    """Wait until the machine runs another boot than `before`, and `is_right` of it.

    Raises DeadlinePassed with what was last seen, HostKeyMismatch by way of Unreachable("hostkey"),
    and `lost` (see `tell`) where the machine just stays up.
    """
    try:
        return _await_boot(ssh, before, deadline, what, hint, lost, is_right)
    finally:
        ssh.disconnect()  # not sooner: the host's lock is held over it until the machine goes down


def _await_boot(
    ssh: Ssh,
    before: str,
    deadline: float,
    what: str,
    hint: str,
    lost: Unreachable | None,
    is_right: Callable[[Facts], bool],
) -> Facts:
    address = Address.of(ssh)
    begun = ssh.clock.monotonic()
    until = begun + deadline
    refused_since: float | None = None
    last = "nothing"
    while ssh.clock.monotonic() < until:
        if address is not None and not address.answers():
            last = "no ssh banner"
            ssh.clock.sleep(_POLL_SECONDS)
            continue
        try:
            facts = probe.ask(ssh.unshared())
        except Unreachable as error:
            if error.kind == "hostkey":
                raise
            if error.kind == "login":
                refused_since = refused_since or ssh.clock.monotonic()
                if ssh.clock.monotonic() - refused_since > _LOGIN_REFUSED_SECONDS:
                    raise
            last = error.what
        except DeadlinePassed:
            last = "a login that did not end"
        except NixaError as error:
            last = error.what
        else:
            if facts.boot_id and facts.boot_id != before and is_right(facts):
                return facts
            if (
                lost is not None
                and facts.boot_id == before
                and ssh.clock.monotonic() - begun > _STAYS_SECONDS
            ):
                raise lost
            last = f"{facts.os_name or facts.os}, boot {facts.boot_id[:8]}" + (
                " (the one before)" if facts.boot_id == before else ""
            )
        ssh.clock.sleep(_LOGIN_POLL_SECONDS)
    raise DeadlinePassed(
        f"{what}: not there after {deadline:g} s; last seen: {last}", host=ssh.host.name, hint=hint
    )
