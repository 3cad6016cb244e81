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

from nixa_tasks.errors import CommandFailed, DeadlinePassed, NixaError
from nixa_tasks.host.ssh import STATUS_SSH, Ssh, Unreachable, environment
from nixa_tasks.process.clock import rfc3339
from nixa_tasks.process.run import Heartbeat, Place

FOLDER = "/run/nixa"
_BEAT_SECONDS = 5.0
_SILENCE_SECONDS = 30
_HELD = 75

_SCRIPT = f"""
PATH=$PATH:/run/current-system/sw/bin:/usr/sbin:/sbin
umask 077; mkdir -p {FOLDER} || exit 1
command -v flock >/dev/null || {{ echo unlocked; exec cat >/dev/null; }}
exec 9>>{FOLDER}/lock
if ! flock -n 9; then
  echo "held by $(head -c 200 {FOLDER}/holder 2>/dev/null)"; flock -w "$1" 9 || exit {_HELD}
fi
exec 8>>{FOLDER}/guard.lock
if ! flock -n 8; then
  echo "held by a switch that the host itself still watches"; flock -w "$1" 8 || exit {_HELD}
fi
exec 8>&-
printf '%s\\n' "$2" >{FOLDER}/holder
echo locked
while line=$(timeout {_SILENCE_SECONDS} head -n 1 9>&-) && [ -n "$line" ]; do :; done
"""


class HolderRestarted(Unreachable):
    """The connection was lost while another deploy was waited for: as it seems, for that one's sake."""


def operator() -> str:
    """Who runs this, from where: `user@computer`."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


@contextlib.contextmanager
def held(ssh: Ssh, *, timeout: float, announce: Callable[[str], None]) -> Iterator[bool]:
    """Hold the host's lock; a wait is announced with who holds it. Gives whether it had to wait.

    Raises DeadlinePassed after `timeout` seconds of waiting, Interrupted, CommandFailed.
    """
    waited: list[str] = []

    def is_ready(line: str) -> bool:
        if line.startswith("held by "):
            waited.append(line)
            announce(f"waiting for the host's lock, {line}")
        if line == "unlocked":
            announce("the host has no flock, so that another controller is not kept out")
        return line in ("locked", "unlocked")

    holder = f"{operator()} process {os.getpid()} since {rfc3339(ssh.clock.now())}"
    argv = ssh.command("sh", "-c", _SCRIPT, "nixa", str(max(1, int(timeout))), holder, root=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(
                ssh.processes.hold(
                    argv,
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
            raise _not_had(ssh, error, waited[-1] if waited else None, timeout) from error
        yield bool(waited)


def _not_had(ssh: Ssh, error: CommandFailed, holder: str | None, timeout: float) -> NixaError:
    if holder is not None and error.status == _HELD:
        return DeadlinePassed(
            f"the host's lock is still {holder} after {timeout:g} s",
            host=ssh.host.name,
            hint="wait for that deploy, or raise `lock_timeout`",
        )
    if holder is not None and error.status == STATUS_SSH:
        return HolderRestarted(
            "lost",
            f"the connection was lost while waiting for the host's lock, {holder}",
            host=ssh.host.name,
            hint=f"that deploy may have restarted it; to go on from there: doit deploy:{ssh.host.name}",
        )
    return error
