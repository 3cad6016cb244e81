"""The password for sudo: had once a run, from the environment or the terminal, and tried with care.

A refused password is not tried on another host until some host has taken it: with accounts of a
directory, every try counts towards one lockout.
"""

from __future__ import annotations

import os
import select
import termios
import threading
from collections.abc import Callable
from dataclasses import replace

from nixa_tasks.errors import Interrupted, NixaError
from nixa_tasks.host.elevation import Elevation, Password
from nixa_tasks.host.reach import Reached
from nixa_tasks.host.ssh import Ssh
from nixa_tasks.process import run as process
from nixa_tasks.process.sessions import SUDO_PASSWORD

_TRY_SECONDS = 60
_TERMINAL = "/dev/tty"
_TRY = "LC_ALL=C exec sudo -k -S -p '' -- sh -c :"
_WRONG = ("incorrect password", "try again", "authentication fail", "incorrect authentication")


class Passwords:
    """One run's password, and whether a host has taken or refused it. Safe to use from threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._password: Password | None = None
        self._is_taken = False
        self._refused_by: str | None = None

    def checked(
        self, host: str, user: str, check: Callable[[Password], bool], announce: Callable[[str], None]
    ) -> Password:
        """The password, after `check` said that this host takes it. `announce` hears that a person is
        waited for. Raises NixaError, Interrupted."""
        with self._lock:  # held over the first check, so that a wrong one is tried once
            if self._password is None:
                self._password = _obtain(host, user, announce)
            password = self._password
            if not self._is_taken:
                if self._refused_by not in (None, host):
                    raise NixaError(
                        f"sudo asks for a password; the one given was refused by {self._refused_by}, "
                        "so it was not tried here",
                        host=host,
                        hint=_hint(user),
                    )
                if not check(password):
                    self._refused_by = host
                    raise _refused(host, user)
                self._is_taken = True
                return password
        if not check(password):
            raise _refused(host, user)
        return password


_passwords = Passwords()


def with_password(ssh: Ssh, announce: Callable[[str], None]) -> Ssh:
    """The same way to the host, with the password that its sudo asks for; tried once, there.

    Raises NixaError where there is none, where it is refused, or where sudo does not let the user.
    """
    password = _passwords.checked(ssh.host.name, ssh.user, lambda given: _is_taken(ssh, given), announce)
    return replace(ssh, elevation=Elevation.PASSWORD, password=password)


def as_root(reached: Reached, announce: Callable[[str], None]) -> Reached:
    """The host as it was reached, with sudo's password where it asks for one. Raises NixaError."""
    if reached.can_be_root or reached.facts.root != "password":
        return reached
    return replace(reached, ssh=with_password(reached.ssh, announce))


def is_at_hand() -> bool:
    """Whether a password could be had: it is set, or there is a terminal to ask on."""
    if os.environ.get(SUDO_PASSWORD):
        return True
    terminal = _open_terminal()
    if terminal is None:
        return False
    os.close(terminal)
    return True


def _is_taken(ssh: Ssh, password: Password) -> bool:
    """Whether sudo there takes it. The input ends behind it, so that sudo can't ask again."""
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


def _hint(user: str) -> str:
    return (
        f"set {SUDO_PASSWORD} to the password of {user} there, or allow {user} NOPASSWD in sudoers,\n"
        "or log in as root"
    )


def _refused(host: str, user: str) -> NixaError:
    return NixaError(f"sudo refused the password of {user}", host=host, hint=_hint(user))


def _obtain(host: str, user: str, announce: Callable[[str], None]) -> Password:
    given = os.environ.get(SUDO_PASSWORD)
    text = given or _ask(host, user, announce)
    try:
        return Password.parse(text)
    except ValueError as error:
        raise NixaError(
            f"the password for sudo can't be used: {error}", host=host, hint=_hint(user)
        ) from None


def _open_terminal() -> int | None:
    """The terminal, where there is one that a person looks at: not from the background."""
    try:
        terminal = os.open(_TERMINAL, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return None
    if os.tcgetpgrp(terminal) == os.getpgrp():
        return terminal
    os.close(terminal)
    return None


def _ask(host: str, user: str, announce: Callable[[str], None]) -> str:
    """Ask on the terminal, without echo. Unlike getpass it ends when the run is stopped, and gives
    the terminal back as it was. Raises NixaError where there is no terminal, Interrupted."""
    terminal = _open_terminal()
    if terminal is None:
        raise NixaError(
            f"sudo asks {user} for a password, and there is no terminal to ask for it on",
            host=host,
            hint=_hint(user),
        )
    announce(f"type the password of {user} for sudo, on the terminal")
    try:
        before = termios.tcgetattr(terminal)
        quiet = [*before]
        quiet[3] = before[3] & ~termios.ECHO
        try:
            termios.tcsetattr(terminal, termios.TCSAFLUSH, quiet)
            os.write(terminal, f"{host}: sudo password of {user} (for every host that asks): ".encode())
            return _read_line(terminal)
        finally:
            termios.tcsetattr(terminal, termios.TCSADRAIN, before)
            os.write(terminal, b"\n")
    finally:
        os.close(terminal)


def _read_line(terminal: int) -> str:
    text = b""
    while not text.endswith(b"\n"):
        if process.is_stopping():
            raise Interrupted("stopped")
        if not select.select([terminal], [], [], 0.1)[0]:
            continue
        more = os.read(terminal, 4096)
        if not more:  # Ctrl-D
            raise Interrupted("no password was given")
        text += more
    return text.rstrip(b"\r\n").decode("utf-8", "surrogateescape")
