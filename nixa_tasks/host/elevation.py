"""How a login becomes root on a host, and what goes ahead of a command's input for that.

sudo's password travels on standard input only: it is in no argument, no environment, no file on
the host. `sudo -S` reads it byte by byte up to the newline, so that what follows is the command's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from typing import IO

from nixa_tasks.process.pump import chunks_of
from nixa_tasks.process.run import Argv

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
        """What stands before the command. `-k`: no remembered login is used, and none is left behind."""
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

    def ahead_of(self, stdin: bytes | Iterator[bytes] | IO[bytes] | None) -> Iterator[bytes]:
        return chain((self.preamble,), chunks_of(stdin))
