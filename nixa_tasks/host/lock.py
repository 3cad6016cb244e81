"""The lock on the host: one deploy at a time, over all controllers.

An ssh session holds it, with a beat every few seconds, so that it is free again soon after its
holder died or was cut off. A switch that is being watched on the host (deploy/guard.sh) holds a
second lock of its own, since it goes on without a controller.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from nixa_tasks.errors import CommandFailed, DeadlinePassed, NixaError
from nixa_tasks.host.ssh import STATUS_SSH, Kind, Ssh, Unreachable, environment, script
from nixa_tasks.process.clock import rfc3339
from nixa_tasks.process.run import Heartbeat, Place

_BEAT_SECONDS = 5.0  # the host waits 30 s for one (lock.sh)
_HELD = 75


class HolderRestarted(Unreachable):
    """The connection was lost while another deploy was waited for: as it seems, for that one's sake."""


def operator() -> str:
    """Who runs this, from where: `user@computer`."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


@dataclass(slots=True)
class Held:
    """The host's lock, once it is held. `token` is empty where the host has no flock; `waited_for`:
    what the host said of whoever held it before, None where nobody did."""

    token: str = ""
    waited_for: str | None = None


@contextlib.contextmanager
def held(ssh: Ssh, *, timeout: float, announce: Callable[[str], None]) -> Iterator[Held]:
    """Hold the host's lock; a wait is announced with who holds it.

    Raises DeadlinePassed after `timeout` seconds of waiting, HolderRestarted, Interrupted,
    CommandFailed.
    """
    lock = Held()

    def is_ready(line: str) -> bool:
        if line.startswith("held by "):
            lock.waited_for = line
            announce(f"waiting for the host's lock, {line}")
        elif line == "unlocked":
            announce("the host has no flock, so nothing stops another controller")
        elif line.startswith("locked "):
            lock.token = line.removeprefix("locked ").strip()
        return line == "unlocked" or line.startswith("locked ")

    holder = f"{operator()} process {os.getpid()} since {rfc3339(ssh.clock.now())}"
    arguments = (str(max(1, int(timeout))), holder)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(
                ssh.processes.hold(
                    ssh.command("sh", "-c", script("lock"), "nixa", *arguments, root=True),
                    is_ready=is_ready,
                    deadline=timeout + 60,
                    heartbeat=Heartbeat(
                        b"beat\n", _BEAT_SECONDS, ssh.password.preamble if ssh.password else b""
                    ),
                    place=Place(env=environment()),
                    host=ssh.host.name,
                    what="the host's lock",
                )
            )
        except CommandFailed as error:
            raise _explain(ssh, error, lock.waited_for, timeout) from error
        yield lock


def _explain(ssh: Ssh, error: CommandFailed, holder: str | None, timeout: float) -> NixaError:
    if holder is not None and error.status == _HELD:
        return DeadlinePassed(
            f"the host's lock is still {holder} after {timeout:g} s",
            host=ssh.host.name,
            hint="wait for that deploy, or raise `lock_timeout`",
        )
    if holder is not None and error.status == STATUS_SSH:
        return HolderRestarted(
            Kind.LOST,
            f"the connection was lost while waiting for the host's lock, {holder}",
            host=ssh.host.name,
            hint=f"that deploy may have restarted it; to go on from there: doit deploy:{ssh.host.name}",
        )
    return error
