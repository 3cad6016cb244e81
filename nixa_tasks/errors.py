"""What can go wrong for a user, as values that carry what a message needs.

One root, so that the doit adapter maps every one of them to a line and an exit status, and
nothing else does. A message says what failed, on which host, and what to do next.
"""

from __future__ import annotations

from pathlib import Path

EXIT_FAILED = 1
EXIT_INTERNAL = 2
EXIT_USAGE = 3
EXIT_CHANGES = 4  # doit plan --detailed-exitcode, where there is something to do


def plain(line: str, longest: int = 500) -> str:
    """One line as it may be shown on a terminal: what a host or a tool said holds no escape
    sequence, no other control character and no end."""
    shown = "".join(
        char if char.isprintable() or char == "\t" else "\N{REPLACEMENT CHARACTER}"
        for char in line[: longest + 1]
    )
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


class NixaError(Exception):
    """Something failed that a user can understand and act on.

    `what`: one sentence without a final full stop. `host`: whom it concerns. `tail`: the last
    lines of the tool's own output. `log`: where all of it lies. `hint`: what to do next.
    """

    exit_status = EXIT_FAILED

    def __init__(
        self,
        what: str,
        *,
        host: str | None = None,
        tail: tuple[str, ...] = (),
        log: Path | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.host = host
        self.tail = tail
        self.log = log
        self.hint = hint

    def render(self) -> str:
        """The whole message as plain text, several lines."""
        what = "\n".join(plain(line, 4000) for line in self.what.split("\n"))
        lines = [f"{self.host}: {what}" if self.host else what]
        lines += [f"    | {plain(line)}" for line in self.tail]
        if self.log is not None:
            lines.append(f"    whole log: {self.log}")
        if self.hint:
            lines += [
                f"    {'what to do: ' if number == 0 else '            '}{line}"
                for number, line in enumerate(self.hint.splitlines())
            ]
        return "\n".join(lines)


class UsageError(NixaError):
    """The command line, or a choice of hosts, can't be served. Exit status 3."""

    exit_status = EXIT_USAGE


class CommandFailed(NixaError):
    """A tool ended with a status other than 0. `argv` and `status` are its own."""

    def __init__(
        self,
        what: str,
        *,
        argv: tuple[str, ...],
        status: int,
        host: str | None = None,
        tail: tuple[str, ...] = (),
        log: Path | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(what, host=host, tail=tail, log=log, hint=hint)
        self.argv = argv
        self.status = status


class DeadlinePassed(NixaError):
    """Something did not end within its time; what was started for it has been ended."""


class Interrupted(NixaError):
    """Ctrl-C or SIGTERM: the work was ended on the user's word."""
