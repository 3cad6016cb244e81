"""How a login becomes root on a host, and sudo's password for that.

The password is asked for once a run, from the environment or the terminal. It travels on standard
input only: it is in no argument, no environment, no file on the host. `sudo -S` reads it byte by
byte up to the newline, so that what follows is the command's.

A refused password is not tried on another host until some host has accepted it: with directory
accounts, every try counts towards one lockout.
"""

from __future__ import annotations

import os
import select
import termios
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain

from nixa_tasks.errors import Interrupted, NixaError
from nixa_tasks.process.pump import chunks_of
from nixa_tasks.process.run import Argv, Stdin
from nixa_tasks.process.sessions import SUDO_PASSWORD

_TERMINAL = "/dev/tty"
_LONGEST = 255  # bytes; sudo before 1.9 reads no more

# Whether sudo took the password or did not ask, an empty line ends what is not the command's own
# input: a password is never empty. `read` takes no byte past a newline in any POSIX shell.
_SKIP = 'while IFS= read -r line && [ -n "$line" ]; do :; done; exec "$@"'


class Elevation(StrEnum):
    """How the login becomes root."""

    NONE = "none"
    SUDO = "sudo"
    DOAS = "doas"
    PASSWORD = "password"  # noqa: S105 -- the name of a way, not a password

    @property
    def prefix(self) -> Argv:
        """What goes before the command. `-k`: no remembered login is used, and none is left behind."""
        match self:
            case Elevation.NONE:
                return ()
            case Elevation.SUDO:
                return ("sudo", "-n", "--")
            case Elevation.DOAS:
                return ("doas", "-n", "--")
            case Elevation.PASSWORD:
                return ("sudo", "-k", "-S", "-p", "", "--", "sh", "-c", _SKIP, "nixa")


@dataclass(frozen=True, slots=True, repr=False)
class Password:
    """sudo's password. It shows itself to nobody; `line` is what sudo reads."""

    _text: str

    @classmethod
    def parse(cls, text: str) -> Password:
        """Raises ValueError, without the text, for one that sudo can't be given in one line."""
        if not text:
            raise ValueError("it is empty")
        if any(ord(char) < 32 or ord(char) == 127 for char in text):
            raise ValueError("it holds a control character")
        if len(text.encode("utf-8", "surrogateescape")) > _LONGEST:
            raise ValueError(f"it is longer than {_LONGEST} bytes")
        return cls(text)

    @property
    def line(self) -> bytes:
        return self._text.encode("utf-8", "surrogateescape") + b"\n"

    @property
    def preamble(self) -> bytes:
        """What goes ahead of the input of a command behind `Elevation.PASSWORD.prefix`."""
        return self.line + b"\n"

    def ahead_of(self, stdin: Stdin | None) -> Iterator[bytes]:
        return chain((self.preamble,), chunks_of(stdin))


class Passwords:
    """One run's password, and whether a host has accepted or refused it. Safe to use from threads.

    `is_stopping` ends a question on the terminal.
    """

    def __init__(self, is_stopping: Callable[[], bool]) -> None:
        self._is_stopping = is_stopping
        self._lock = threading.Lock()
        self._password: Password | None = None
        self._is_taken = False
        self._refused_by: str | None = None

    def is_at_hand(self) -> bool:
        """Whether there is a password, or a way to get one: the environment, or a terminal to ask on."""
        if self._password is not None or os.environ.get(SUDO_PASSWORD):
            return True
        terminal = _open_terminal()
        if terminal is None:
            return False
        os.close(terminal)
        return True

    def checked(
        self, host: str, user: str, check: Callable[[Password], bool], announce: Callable[[str], None]
    ) -> Password:
        """The password, after `check` said that this host takes it. `announce` hears that a person is
        waited for. Raises NixaError, Interrupted."""
        with self._lock:  # held over the first check, so that a wrong one is tried once
            if self._password is None:
                self._password = _obtain(host, user, announce, self._is_stopping)
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


def _hint(user: str) -> str:
    return (
        f"set {SUDO_PASSWORD} to the password of {user} there, or allow {user} NOPASSWD in sudoers,\n"
        "or log in as root"
    )


def _refused(host: str, user: str) -> NixaError:
    return NixaError(f"sudo refused the password of {user}", host=host, hint=_hint(user))


def _obtain(
    host: str, user: str, announce: Callable[[str], None], is_stopping: Callable[[], bool]
) -> Password:
    given = os.environ.get(SUDO_PASSWORD)
    text = given or _ask(host, user, announce, is_stopping)
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


def _ask(host: str, user: str, announce: Callable[[str], None], is_stopping: Callable[[], bool]) -> str:
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
            return _read_line(terminal, is_stopping)
        finally:
            termios.tcsetattr(terminal, termios.TCSADRAIN, before)
            os.write(terminal, b"\n")
    finally:
        os.close(terminal)


def _read_line(terminal: int, is_stopping: Callable[[], bool]) -> str:
    text = b""
    while not text.endswith(b"\n"):
        if is_stopping():
            raise Interrupted("stopped")
        if not select.select([terminal], [], [], 0.1)[0]:
            continue
        more = os.read(terminal, 4096)
        if not more:  # Ctrl-D
            raise Interrupted("no password was given")
        text += more
    return text.rstrip(b"\r\n").decode("utf-8", "surrogateescape")
