"""One host's ssh: the same pins, user, port, key and options for every connection of every tool.

nixa's own calls, `nix copy` and nixos-anywhere all run the same command line: the tools find an
`ssh` of ours in front of their PATH, since each has some way of its own to pass options that is
split at blanks or comes too late (ssh takes the first value of an option).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum, StrEnum
from importlib import resources
from pathlib import Path
from typing import Final, assert_never

from nixa_tasks.errors import CommandFailed, NixaError
from nixa_tasks.host.sudo import Elevation, Password
from nixa_tasks.manifest.model import Host
from nixa_tasks.process.clock import Clock
from nixa_tasks.process.run import Argv, Completed, Output, Place, Processes, Stdin, paste

CONNECT_SECONDS = 10
ALIVE_SECONDS = 3  # 3 x 3 s: a dead connection is noticed in 9 s, one through a kexec survives
PERSIST_SECONDS = 60
STATUS_SSH = 255
ANSWER_LIMIT = 64 << 20  # bytes; a host that says more in one call is not listened to
_OUTPUT = Output(keep=1 << 20)


class Kind(StrEnum):
    """Why a host can't be reached."""

    UNKNOWN = "unknown"  # its name does not resolve
    REFUSED = "refused"
    TIMEOUT = "timeout"
    LOGIN = "login"
    PROTOCOL = "protocol"
    CLOSED = "closed"
    HOSTKEY = "hostkey"
    LOST = "lost"
    SSH = "ssh"  # anything else


class Unreachable(NixaError):
    """The host can't be reached or does not let us in. `kind` says why."""

    def __init__(
        self, kind: Kind, what: str, *, host: str, tail: tuple[str, ...] = (), hint: str | None = None
    ):
        super().__init__(what, host=host, tail=tail, hint=hint)
        self.kind = kind


class FenceBroken(IntEnum):
    """The exit codes of fence.sh."""

    REBOOTED = 121
    LOCK_LOST = 122
    OTHER_SYSTEM = 123

    @property
    def text(self) -> str:
        match self:
            case FenceBroken.REBOOTED:
                return "the host was restarted since it was looked at"
            case FenceBroken.LOCK_LOST:
                return "the host's lock was lost, so that another deploy may have it (was this computer suspended?)"
            case FenceBroken.OTHER_SYSTEM:
                return "the host runs another system than when it was looked at"
            case _ as never:
                assert_never(never)


class Stale(NixaError):
    """A decision is out of date: the host is no longer what it was made for. Nothing was done."""

    def __init__(self, broken: FenceBroken, *, host: str):
        super().__init__(
            f"{broken.text}; nothing was done to it", host=host, hint=f"to look again: doit deploy:{host}"
        )
        self.broken = broken


@dataclass(frozen=True, slots=True)
class Fence:
    """What must still hold on the host when a script begins to change it; checked there (fence.sh).

    `token` belongs to the host's lock, empty where it has none; `system` is the store path that runs,
    None where none does.
    """

    boot_id: str
    token: str
    system: str | None

    @property
    def text(self) -> str:
        """The script's beginning. It takes no arguments, and leaves those of the script alone."""
        call = remote_command(("nixa_fence", self.boot_id, self.token, self.system or ""))
        return f"{script('fence')}{call}\n"


def script(name: str, package: str = "nixa_tasks.host") -> str:
    """A shell script of nixa's that runs on hosts: the text of `NAME.sh` in a package."""
    return resources.files(package).joinpath(f"{name}.sh").read_text()


def remote_command(argv: Argv) -> str:
    """A command for the shell at the other end: the one place where anything is quoted for it.

    POSIX single quotes, which dash, bash, ksh, zsh and busybox read alike; csh and fish do not read
    every newline and backslash in them so. What nixa sends through a login shell is `sh -c SCRIPT`.
    """
    return shlex.join(argv)


@dataclass(frozen=True, slots=True)
class Ssh:
    """The way to one host, over the processes and by the clock of this run.

    `folder` is private to this run and short (sockets lie in it). `strict` false takes the key that
    is shown and writes it to `known_hosts` (first contact). `shared`: over one connection for all
    calls, else a new login for each. `fence`: what every script that runs as root checks first.
    """

    host: Host
    folder: Path
    target: str
    user: str
    port: int | None
    processes: Processes = field(repr=False, compare=False)
    clock: Clock = field(repr=False, compare=False)
    strict: bool = True
    shared: bool = True
    fence: Fence | None = None
    elevation: Elevation = Elevation.NONE
    password: Password | None = field(default=None, repr=False)

    @classmethod
    def to(cls, host: Host, folder: Path, processes: Processes, clock: Clock) -> Ssh:
        """The way that hosts.toml describes."""
        return cls(host, folder, host.target, host.user, host.port, processes, clock)

    def as_root(self) -> Ssh:
        """The same machine once it runs the installer or what was installed: root's login."""
        return replace(self, user="root", elevation=Elevation.NONE, password=None, fence=None)

    def unshared(self) -> Ssh:
        """The same way, with a new login for each call, and without a fence: to look at the host."""
        return replace(self, shared=False, fence=None)

    @property
    def known_hosts(self) -> Path:
        return self.folder / f"{self._tag}.known_hosts"

    @property
    def _tag(self) -> str:
        return hashlib.sha256(self.host.name.encode()).hexdigest()[:12]

    @property
    def socket(self) -> Path:
        where = f"{self.user}@{self.target}:{self.port}"
        return self.folder / f"{self._tag}-{hashlib.sha256(where.encode()).hexdigest()[:8]}"

    def options(self) -> Argv:
        """ssh's options, those that identity hangs on first: ssh takes the first value it sees."""
        pairs = [
            f"HostKeyAlias={self.host.name}",
            f"UserKnownHostsFile={self.known_hosts}",
            "GlobalKnownHostsFile=/dev/null",
            f"StrictHostKeyChecking={'yes' if self.strict else 'accept-new'}",
            "KnownHostsCommand=none",
            "VerifyHostKeyDNS=no",
            "UpdateHostKeys=no",
            "BatchMode=yes",
        ]
        if self.shared:
            pairs += ["ControlMaster=auto", f"ControlPath={self.socket}", f"ControlPersist={PERSIST_SECONDS}"]
        else:
            pairs += ["ControlMaster=no", "ControlPath=none"]
        pairs += self.host.ssh_options
        pairs += [
            f"ConnectTimeout={CONNECT_SECONDS}",
            f"ServerAliveInterval={ALIVE_SECONDS}",
            "ServerAliveCountMax=3",
            "LogLevel=ERROR",
        ]
        options = [word for pair in pairs for word in ("-o", pair)]
        if self.host.identity is not None:
            options += ["-o", "IdentitiesOnly=yes", "-i", str(self.host.identity)]
        if self.port is not None:
            options += ["-p", str(self.port)]
        return tuple(options)

    def command(self, *remote: str, root: bool = False) -> Argv:
        """The whole argv that runs `remote` on the host, as root if asked.

        Its input then begins with `password.preamble`, where there is a password.
        """
        prefix = self.elevation.prefix if root else ()
        quoted = (remote_command(prefix + remote),) if remote else ()
        return ("ssh", *self.options(), "-T", "-l", self.user, "--", self.target, *quoted)

    def run(
        self,
        script: str,
        *args: str,
        deadline: float,
        root: bool = False,
        stdin: Stdin | None = None,
        output: Output = _OUTPUT,
        check: bool = True,
        what: str = "ssh",
    ) -> Completed:
        """Run a POSIX shell script on the host; `args` are its `$1`, `$2`, …

        As root it runs behind the fence, if there is one. Raises Stale where that does not hold,
        Unreachable where ssh itself fails, else as Processes.run does; a host that answers with more
        than `output.limit` bytes (by default ANSWER_LIMIT) is cut off.
        """
        if root and self.fence is not None:
            script = f"{self.fence.text}{script}"
        argv = self.command("sh", "-c", script, "nixa", *args, root=root)
        done = self.processes.run(
            argv,
            deadline=deadline,
            stdin=self.password.ahead_of(stdin) if root and self.password else stdin,
            place=Place(env=environment()),
            output=output if output.limit else replace(output, limit=ANSWER_LIMIT),
            check=False,
            host=self.host.name,
            what=what,
        )
        if done.status == STATUS_SSH or done.status < 0:  # ssh's own failure, or somebody killed it
            raise explain(self, done.tail)
        if root and self.fence is not None and done.status in tuple(FenceBroken):
            raise Stale(FenceBroken(done.status), host=self.host.name)
        if check and done.status != 0:
            raise CommandFailed(
                f"{what}: ended with status {done.status}",
                argv=argv,
                status=done.status,
                host=self.host.name,
                tail=done.tail,
            )
        return done

    def disconnect(self) -> None:
        """End the shared connection, if there is one, so that the next call logs in anew."""
        if self.socket.exists():
            end_shared(self.processes, self.socket)

    def tool_environment(self, *, preamble: Path | None = None, is_fenced: bool = False) -> dict[str, str]:
        """The environment for a tool that calls `ssh`: ours comes first on its PATH.

        `preamble`: a private file that goes ahead of the input of a `nix-daemon` on the host;
        `is_fenced`: each command that the tool gives the host runs behind the fence.
        """
        return environment() | {
            "PATH": f"{self._shim(preamble, self.fence if is_fenced else None)}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        }

    def _shim(self, preamble: Path | None, fence: Fence | None) -> Path:
        real = shutil.which("ssh")
        if real is None:
            raise NixaError("ssh not found", hint="install the OpenSSH client")
        kind = f"{'shared' if self.shared else 'plain'}-{self.strict:d}{'-fed' if preamble else ''}{'-fenced' if fence else ''}"
        folder = self.folder / f"{self._tag}-{kind}-bin"
        folder.mkdir(mode=0o700, exist_ok=True)
        script = folder / "ssh"
        call = shlex.join((real, *self.options()))
        before = (_feeding(preamble, call) if preamble else "") + (_fencing(fence) if fence else "")
        text = f'#!/bin/sh\n{before}exec {call} "$@"\n'
        fresh = script.with_name(f".ssh-{os.getpid()}-{id(self)}")
        fresh.write_text(text)
        fresh.chmod(0o700)
        fresh.replace(script)
        return folder


def _feeding(preamble: Path, call: str) -> str:
    """The shell lets go of the output at once: a pipeline ends with its last part, and while ours
    waits for more input, the tool would never see that ssh is gone."""
    return (
        'case " $* " in *" nix-daemon "*)\n'
        "  exec 3<&0\n"
        f'  {{ cat {shlex.quote(str(preamble))} && exec cat; }} <&3 3<&- | {call} "$@" 3<&- &\n'
        "  exec 3<&- </dev/null >&-; wait $!; exit $?;;\nesac\n"
    )


def _fencing(fence: Fence) -> str:
    """Puts the fence ahead of the remote command, where there is one: behind the options, the
    destination, and the options that ssh takes behind that."""
    return (
        f"fence={shlex.quote(fence.text)} count=$# number=0 value= destination= is_done=\n"
        "while [ $number -lt $count ]; do\n"
        "  word=$1 number=$((number + 1)); shift\n"
        '  if [ -n "$value" ]; then value=\n'
        '  elif [ -z "$is_done" ]; then case $word in\n'
        "    --) ;;\n"
        "    -[BbcDEeFIiJLlmOoPpQRSWw]) value=yes ;;\n"
        "    -*) ;;\n"
        '    *) [ -z "$destination" ] || { is_done=yes; set -- "$@" "$fence"; }; destination=yes ;;\n'
        "  esac; fi\n"
        '  set -- "$@" "$word"\n'
        "done\n"
    )


def end_shared(processes: Processes, socket: Path) -> None:
    """End the shared connection of that socket. Where all is being stopped, whoever ends the rest
    does it (cleanup_after_kill.py)."""
    with contextlib.suppress(NixaError):
        processes.run(
            ("ssh", "-o", f"ControlPath={socket}", "-O", "exit", "--", "gone"), deadline=5, check=False
        )
        socket.unlink(missing_ok=True)


def environment() -> dict[str, str]:
    """Ours, in the language that ssh's messages are matched in, and without a graphical prompt."""
    return {name: value for name, value in os.environ.items() if name != "SSH_ASKPASS"} | {"LC_ALL": "C"}


_KINDS: Final[Mapping[str, tuple[Kind, str, str]]] = {
    r"could not resolve hostname": (
        Kind.UNKNOWN,
        "its name does not resolve",
        "check `target` in hosts.toml, and this computer's DNS",
    ),
    r"connection refused": (
        Kind.REFUSED,
        "the connection is refused: nothing listens there",
        "is sshd running, and is `port` right?",
    ),
    r"timed out|timeout, server|no route to host|network is unreachable|host is down": (
        Kind.TIMEOUT,
        "it does not answer",
        "is it switched on, is the address right, does a firewall drop the port?",
    ),
    r"permission denied|too many authentication failures|no such identity": (
        Kind.LOGIN,
        "the login is refused",
        "put your public key into its authorized_keys, or set `user` or `identity`",
    ),
    r"no matching (host key|key exchange|cipher)": (
        Kind.PROTOCOL,
        "its sshd and this ssh have no algorithm in common",
        "see `ssh -v` to it; update the older side",
    ),
    r"connection (closed|reset)|kex_exchange_identification|broken pipe|connection lost": (
        Kind.CLOSED,
        "it closed the connection",
        "does sshd accept this user and address? its log says why",
    ),
}


def explain(ssh: Ssh, tail: tuple[str, ...]) -> Unreachable:
    """ssh's own message as one of a few kinds that a person treats differently."""
    text = "\n".join(tail)
    if re.search(r"host key verification failed|remote host identification has changed", text, re.IGNORECASE):
        return Unreachable(
            Kind.HOSTKEY,
            "the host key is not the expected one",
            host=ssh.host.name,
            tail=tail,
            hint=f"doit trust:{ssh.host.name}, if the machine was re-imaged",
        )
    where = f"{ssh.user}@{ssh.target}" + (f":{ssh.port}" if ssh.port else "")
    for pattern, (kind, what, hint) in _KINDS.items():
        if re.search(pattern, text, re.IGNORECASE):
            return Unreachable(kind, f"{where}: {what}", host=ssh.host.name, tail=tail[-3:], hint=hint)
    if not text.strip():  # a shared connection that dies says nothing
        return Unreachable(
            Kind.LOST,
            f"{where}: the connection was lost",
            host=ssh.host.name,
            hint="is the machine still up, and the network? The same command goes on from where it was",
        )
    login = ("ssh", "-v", *(("-p", str(ssh.port)) if ssh.port else ()), f"{ssh.user}@{ssh.target}")
    return Unreachable(
        Kind.SSH,
        f"{where}: ssh failed",
        host=ssh.host.name,
        tail=tail,
        hint=f"try it by hand: {paste(login)}",
    )
