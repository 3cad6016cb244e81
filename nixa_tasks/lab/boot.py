"""One boot of a machine: a process in new namespaces that builds the root, and the pid 1 in it.

The supervisor hears of it through a pipe, one JSON object a line: {"net": true} when the network
namespace waits for its cable, {"pid": N} for pid 1, {"up": true} when the boot is through,
{"error": "…"} when it can't be.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nixa_tasks.lab import linux, network, root
from nixa_tasks.lab.root import Root
from nixa_tasks.lab.sequence import End, Stage

_REBOOTED, _POWERED_OFF, _CRASHED = 10, 11, 12
_SIGNALS: dict[int, int] = {signal.SIGHUP: _REBOOTED, signal.SIGINT: _POWERED_OFF}
_NAMESPACES = linux.CLONE_NEWNS | linux.CLONE_NEWNET | linux.CLONE_NEWUTS | linux.CLONE_NEWIPC
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NIXOS_PATH = f"/run/wrappers/bin:/root/.nix-profile/bin:/nix/var/nix/profiles/default/bin:/run/current-system/sw/bin:{_PATH}"


@dataclass(frozen=True, slots=True)
class Boot:
    """All that one boot is given."""

    stage: Stage
    hostname: str
    root: Root
    boot_id: Path
    console: Path
    addresses: str  # commands for `ip -batch`


@dataclass(frozen=True, slots=True)
class Running:
    """The supervisor's ends: `pid` to wait for, `events` to read, `go` to say that the cable is in."""

    pid: int
    events: int
    go: int


def start(boot: Boot) -> Running:
    """Begin a boot. The caller plugs the network in when told, then writes a byte to `go`."""
    events_read, events_write = os.pipe()
    go_read, go_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = _CRASHED
        try:
            _close_all_but(events_write, go_read)
            status = _stage(boot, events_write, go_read)
        except BaseException as error:  # noqa: BLE001  nothing may climb back into the supervisor's code
            _tell(events_write, {"error": f"{type(error).__name__}: {error}"})
        finally:
            os._exit(status)
    os.close(events_write)
    os.close(go_read)
    return Running(pid, events_read, go_write)


def reason(status: int) -> End:
    """Why the boot ended, from the wait status of its process."""
    if os.WIFEXITED(status):
        match os.WEXITSTATUS(status):
            case 10:
                return End.REBOOT
            case 11:
                return End.POWER_OFF
    return End.CRASH


def _stage(boot: Boot, events: int, go: int) -> int:
    """Outside of the pid namespace: everything but /proc. Returns the exit status to end with."""
    linux.die_with_parent(signal.SIGKILL)
    os.setsid()
    linux.unshare(_NAMESPACES)
    _tell(events, {"net": True})
    socket.sethostname(boot.hostname)
    root.build(boot.root)
    if os.read(go, 1) != b"g":
        return _CRASHED
    os.close(go)
    network.batch(boot.addresses)
    linux.unshare(linux.CLONE_NEWPID)
    init = os.fork()
    if init == 0:
        try:
            _init(boot, events)
        except BaseException as error:  # noqa: BLE001
            _tell(events, {"error": f"{type(error).__name__}: {error}"})
        finally:
            os._exit(1)
    _tell(events, {"pid": init})
    os.close(events)
    _, status = os.waitpid(init, 0)
    if os.WIFSIGNALED(status):  # how the kernel tells what reboot(2) was asked for in there
        return _SIGNALS.get(os.WTERMSIG(status), _CRASHED)
    return _CRASHED


def _init(boot: Boot, events: int) -> None:
    """Pid 1: runs the boot script, says that the machine is up, and buries what dies."""
    linux.die_with_parent(signal.SIGKILL)
    root.processes(boot.root.target, boot.boot_id)
    console = os.open(boot.console, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(console, 1)
    os.dup2(console, 2)
    linux.enter_root(boot.root.target)
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.umask(0o022)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    environment = {
        "PATH": _PATH if boot.stage is Stage.OLD else NIXOS_PATH,
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "TERM": "dumb",
    }
    script = os.posix_spawn(
        "/bin/sh", ["sh", "/run/lab/fw/rc", boot.stage], environment,
        setsigmask=(), setsigdef=(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE),
    )  # fmt: skip
    while True:
        with contextlib.suppress(ChildProcessError):
            while (dead := os.waitpid(-1, os.WNOHANG)[0]) != 0:
                if dead == script:
                    _tell(events, {"up": True})
        signal.sigwait({signal.SIGCHLD})


def _tell(events: int, what: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        os.write(events, json.dumps(what).encode() + b"\n")


def _close_all_but(*kept: int) -> None:
    sys.stdout.flush()
    for entry in list(Path("/proc/self/fd").iterdir()):
        descriptor = int(entry.name)
        if descriptor > 2 and descriptor not in kept:
            with contextlib.suppress(OSError):
                os.close(descriptor)
