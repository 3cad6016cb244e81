"""The way in: the key first, then a login, then the facts."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from nixa_tasks.errors import NixaError
from nixa_tasks.host import host_key as hostkey
from nixa_tasks.host import probe
from nixa_tasks.host.host_key import Expectation, HostKey, KnownHosts, Trust
from nixa_tasks.host.probe import Facts, Os, Root
from nixa_tasks.host.ssh import Kind, Ssh, Unreachable, end_shared, environment, explain
from nixa_tasks.host.sudo import Elevation, Password, Passwords
from nixa_tasks.manifest.model import Host
from nixa_tasks.process.clock import Clock
from nixa_tasks.process.run import Place, Processes
from nixa_tasks.state import private_dir as private

Note = Callable[[str], None]
_KEY_SECONDS = 25
_TRY_SECONDS = 60
_TRY = "LC_ALL=C exec sudo -k -S -p '' -- sh -c :"
_WRONG = ("incorrect password", "try again", "authentication fail", "incorrect authentication")


@dataclass(frozen=True, slots=True)
class Access:
    """What a run reaches hosts with. `folder` is its private folder (see `run_folder`)."""

    processes: Processes
    clock: Clock
    folder: Path
    known: KnownHosts
    passwords: Passwords

    def ssh(self, host: Host) -> Ssh:
        """The way that hosts.toml describes."""
        return Ssh.to(host, self.folder, self.processes, self.clock)


@dataclass(frozen=True, slots=True)
class Reached:
    """A host that was reached: the way there, the key it showed and why that is right, its facts."""

    ssh: Ssh
    key: HostKey
    trust: Trust
    facts: Facts

    @property
    def can_be_root(self) -> bool:
        """Whether commands can run as root there: without a password, or with one that is known."""
        return self.facts.elevation is not None or self.ssh.password is not None


@contextlib.contextmanager
def run_folder(processes: Processes) -> Iterator[Path]:
    """A private folder for this run's sockets and keys. What killed runs left is removed."""
    private.sweep()
    with private.folder(private.temporary(), processes) as folder:
        try:
            yield folder
        finally:
            if not processes.is_stopping():  # else nothing can be started: cleanup_after_kill.py ends them
                for path in filter(Path.is_socket, folder.glob("*")):
                    end_shared(processes, path)


def connect(host: Host, access: Access, note: Note) -> Reached:
    """Reach a host with the key that is expected of it, and ask what it is.

    A first contact is remembered once the login worked; not with an initrd, which may have a host key
    of its own. Raises HostKeyMismatch before anything
    is sent, Unreachable, NixaError.
    """
    expected = hostkey.expectation(host, access.known)
    ssh = prepare(access.ssh(host), expected)
    try:
        ssh, facts = _ask(ssh)
    except Unreachable as error:
        if error.kind is Kind.HOSTKEY:
            raise hostkey.mismatch(host, expected, shown_key(ssh)) from error
        raise
    reached = settle(ssh, expected.trust, facts)
    if expected.trust is Trust.FIRST and facts.os is not Os.INITRD:
        access.known.remember(host, reached.key)
        note(f"first contact: {reached.key.fingerprint} ({reached.key.kind}), remembered")
    return reached


def _ask(ssh: Ssh) -> tuple[Ssh, Facts]:
    """The facts, and the login that got them. Where `user` is refused, `install_user` may get in as long
    as the machine runs no NixOS, and root into an installer, which knows nobody else: a deploy that
    was cut off may have left the host there. Raises Unreachable."""
    try:
        return ssh, probe.ask(ssh)
    except Unreachable as error:
        if error.kind is not Kind.LOGIN:
            raise
        before = ssh.host.install_user
        others = [(before, Os.OTHER)] if before is not None else []
        others += [("root", Os.INSTALLER)]
        for user, system in others:
            if user == ssh.user:
                continue
            other = replace(ssh, user=user) if user != "root" else ssh.as_root()
            with contextlib.suppress(NixaError):
                facts = probe.ask(other)
                if facts.os is system or (facts.os is Os.INSTALLER and user == "root"):
                    return other, facts
                other.disconnect()
        raise


def as_root(reached: Reached, passwords: Passwords, announce: Note) -> Reached:
    """The host as it was reached, with sudo's password where it asks for one.

    The password is tried once, there. Raises NixaError where there is none, where it is refused, or
    where sudo does not let the user become root.
    """
    if reached.can_be_root or reached.facts.root is not Root.PASSWORD:
        return reached
    ssh = reached.ssh
    password = passwords.checked(ssh.host.name, ssh.user, lambda given: _accepts(ssh, given), announce)
    return replace(reached, ssh=replace(ssh, elevation=Elevation.PASSWORD, password=password))


def _accepts(ssh: Ssh, password: Password) -> bool:
    """Whether sudo there accepts it. The input ends behind it, so that sudo can't ask again."""
    done = ssh.run(_TRY, deadline=_TRY_SECONDS, stdin=password.line, check=False, what="sudo")
    if done.is_ok:
        return True
    if any(word in line.lower() for line in done.tail for word in _WRONG):
        return False
    raise NixaError(
        f"sudo does not let {ssh.user} become root",
        host=ssh.host.name,
        tail=done.tail,
        hint=f"nixa runs `sh` as root; see what `sudo -l` says there to {ssh.user}",
    )


def settle(ssh: Ssh, trust: Trust, facts: Facts) -> Reached:
    """From now on the key that was shown is the only one: every later connection is held to it."""
    elevation = facts.elevation or ssh.elevation
    return Reached(replace(ssh, strict=True, elevation=elevation), _used_key(ssh), trust, facts)


def _used_key(ssh: Ssh) -> HostKey:
    """The key that the host showed: the only expected one, or asked for where there are two."""
    keys = [HostKey.parse(line.partition(" ")[2]) for line in ssh.known_hosts.read_text().splitlines()]
    return keys[0] if len(keys) == 1 else shown_key(ssh) or keys[0]


def trust(host: Host, access: Access, *, is_pinned_anew: bool) -> tuple[str | None, HostKey]:
    """Take the key that the host shows now as the right one. Gives the old one's fingerprint, and the
    new key. Beside a pin that stays, it holds until the host is installed. Raises Unreachable."""
    known = access.known
    expected = hostkey.expectation(host, known)
    old = expected.fingerprint or (expected.keys[0].fingerprint if expected.keys else None)
    key = shown_key(access.ssh(host))
    if key is None:
        raise NixaError("it shows no host key", host=host.name)
    known.remember(host, key)
    if host.host_key is not None:
        known.trust_beside_pin(host, None if is_pinned_anew else key)
    return old, key


def ask_again(ssh: Ssh) -> Facts:
    """The facts as they are now. Raises Unreachable."""
    return probe.ask(ssh)


def prepare(ssh: Ssh, expected: Expectation) -> Ssh:
    """Write down what the host must show, so that every connection of every tool is held to it."""
    keys = expected.keys
    if expected.fingerprint is not None:
        key = shown_key(ssh, expected.fingerprint)
        if key is None or (key.fingerprint != expected.fingerprint and key not in keys):
            raise hostkey.mismatch(ssh.host, expected, key)
        keys = (*keys, key)
    if not keys:
        ssh.known_hosts.unlink(missing_ok=True)
        return replace(ssh, strict=False)
    expect_keys(ssh, keys)
    return replace(ssh, strict=True)


def expect_keys(ssh: Ssh, keys: tuple[HostKey, ...]) -> None:
    ssh.known_hosts.write_text("".join(f"{ssh.host.name} {key.text}\n" for key in keys))


def key_in(known_hosts: Path) -> HostKey:
    try:
        _, _, key = known_hosts.read_text().splitlines()[0].partition(" ")
        return HostKey.parse(key)
    except (OSError, IndexError, ValueError) as error:
        raise NixaError(f"ssh left no host key in {known_hosts}: {error}") from error


def shown_key(ssh: Ssh, fingerprint: str | None = None) -> HostKey | None:
    """The key that the host shows now, asked without logging in, through jump hosts and aliases
    alike. With `fingerprint`, the one among its keys that has it, where one does.

    Raises Unreachable where it can't even be asked.
    """
    first: HostKey | None = None
    kinds = (None, "ssh-ed25519", "ecdsa-sha2-nistp256", "rsa-sha2-512") if fingerprint else (None,)
    for kind in kinds:
        key = _ask_key(ssh, kind)
        first = first or key
        if key is not None and key.fingerprint == fingerprint:
            return key
    return first


def _ask_key(ssh: Ssh, kind: str | None) -> HostKey | None:
    with tempfile.TemporaryDirectory(dir=ssh.folder) as place:
        asked = replace(ssh, folder=Path(place), strict=False, shared=False)
        options: tuple[str, ...] = ("-o", "PreferredAuthentications=none")
        options += ("-o", f"HostKeyAlgorithms={kind}") if kind else ()
        _, *rest = asked.command("true")
        done = ssh.processes.run(
            ("ssh", *options, *rest),
            deadline=_KEY_SECONDS,
            place=Place(env=environment()),
            check=False,
            host=ssh.host.name,
            what="host key",
        )
        if asked.known_hosts.exists():
            return key_in(asked.known_hosts)
        if kind is not None:
            return None  # the host has no key of that type
        raise explain(asked, done.tail)
