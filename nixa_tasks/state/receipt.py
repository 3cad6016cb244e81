"""The receipt of a deploy: the same on the host and beside the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any


class How(StrEnum):
    """The way that a deploy took."""

    INSTALL = "install"
    SWITCH = "switch"
    BOOT = "boot"
    ADOPT = "adopt"
    ROLLBACK = "rollback"


class Outcome(StrEnum):
    DONE = "done"
    ROLLED_BACK = "rolled-back"
    FAILED = "failed"


_TEXTS = ("target", "host_key", "wanted", "started_at", "operator")
_PERHAPS = ("out", "drv", "kexec_sha256", "flake", "left", "why")
_LATER = ("left", "why")  # receipts of older versions have no such fields
_LONGEST_TEXT = 8192
_LONGEST_SECONDS = 1e9


def _is_text(value: object) -> bool:
    """Text of one line that a terminal may show as it is: a receipt comes from a host."""
    return isinstance(value, str) and len(value) <= _LONGEST_TEXT and value.isprintable()


def _is_sound(known: Mapping[str, Any]) -> bool:
    return (
        all(_is_text(known[name]) for name in _TEXTS)
        and all(known[name] is None or _is_text(known[name]) for name in _PERHAPS)
        and all(known[name] is None or known[name].startswith("/") for name in ("out", "drv", "left"))
        and 0 <= known["seconds"] < _LONGEST_SECONDS
    )


@dataclass(frozen=True, slots=True)
class Receipt:
    """`out` is what runs now, `wanted` what was to run; times are RFC 3339 UTC, `seconds` a duration.

    `left`: the output that a rollback took back, and that is held; of a failure, the system that the
    host still boots.
    `why`: the reason of a failure, in one line.
    """

    target: str
    host_key: str
    out: str | None
    wanted: str
    drv: str | None
    mode: How
    kexec_sha256: str | None
    flake: str | None
    started_at: str
    seconds: float
    operator: str
    outcome: Outcome
    left: str | None = None
    why: str | None = None

    @property
    def is_pending(self) -> bool:
        """Whether `wanted` was set up and is to run from the next restart on."""
        return self.outcome is Outcome.DONE and self.out is not None and self.out != self.wanted

    @property
    def is_unconfirmed(self) -> bool:
        """Whether `wanted` was booted, or about to be, and nobody has confirmed it yet."""
        return self.outcome is Outcome.FAILED and self.out is not None and self.out != self.wanted

    def accounts_for(self, live: str | None) -> bool:
        """Whether a host that runs `live` does what this receipt says, restarts included."""
        if live == self.wanted and (self.is_pending or self.is_unconfirmed):
            return True
        return live == self.out or (self.outcome is Outcome.FAILED and live == self.left is not None)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any] | None) -> Receipt | None:
        """None for what is not a receipt: a receipt that can't be read is one that is not there."""
        if value is None:
            return None
        try:
            known = {field.name: value[field.name] for field in fields(cls) if field.name not in _LATER}
            known |= {name: value.get(name) for name in _LATER}
            known["seconds"] = float(known["seconds"])
            if not _is_sound(known):
                return None
            return cls(**known | {"mode": How(known["mode"]), "outcome": Outcome(known["outcome"])})
        except (KeyError, ValueError, TypeError, OverflowError):
            return None
