"""What the flake says for one host, and the memory of it: `output.json` and `flake.json`.

Both are written under one file lock, so that two runs side by side lose nothing of each other's,
and so that an output never stands beside a fingerprint that it does not belong to.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nixa_tasks.files import locked, read_json, write_json_if_changed
from nixa_tasks.flake.fingerprint import Fingerprint
from nixa_tasks.state.layout import Layout

_LOCK_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Output:
    """What the flake says of one host: derivations and the store paths that they build."""

    attr: str
    system: str
    toplevel_drv: str
    toplevel_out: str
    disko_drv: str | None = None
    disko_out: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As in `output.json`."""
        disko = {"drv": self.disko_drv, "out": self.disko_out} if self.disko_drv else None
        return {
            "attr": self.attr,
            "system": self.system,
            "toplevel": {"drv": self.toplevel_drv, "out": self.toplevel_out},
            "disko": disko,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Output | None:
        """None for what is not an output: a stamp that can't be read is one that is not there."""
        match value:
            case {
                "attr": str(attr),
                "system": str(system),
                "toplevel": {"drv": str(drv), "out": str(out)},
                "disko": None,
            }:
                return cls(attr, system, drv, out)
            case {
                "attr": str(attr),
                "system": str(system),
                "toplevel": {"drv": str(drv), "out": str(out)},
                "disko": {"drv": str(disko_drv), "out": str(disko_out)},
            }:
                return cls(attr, system, drv, out, disko_drv, disko_out)
            case _:
                return None


def remembered(layout: Layout, host: str) -> Output | None:
    """What output.json says, whether or not the flake has changed since."""
    value = read_json(layout.host(host).output)
    return None if value is None else Output.from_json(value)


def current(layout: Layout, fingerprint: Fingerprint, host: str, attr: str) -> Output | None:
    """The host's output, if it was evaluated at this very content; else None."""
    return current_of(layout, fingerprint, {host: attr}).get(host)


def current_of(layout: Layout, fingerprint: Fingerprint, wanted: Mapping[str, str]) -> dict[str, Output]:
    """The outputs of those hosts of `wanted` (each with its attribute) that are current."""
    if fingerprint.is_impure:
        return {}
    evaluated = _evaluated(layout, fingerprint)
    known = {host: remembered(layout, host) for host, attr in wanted.items() if evaluated.get(host) == attr}
    return {
        host: output for host, output in known.items() if output is not None and output.attr == wanted[host]
    }


def record(layout: Layout, fingerprint: Fingerprint, reference: str, outputs: Mapping[str, Output]) -> None:
    """Write down what was evaluated at `reference`; an output that is the same keeps its file as it is."""
    with _lock(layout):
        for host, output in outputs.items():
            # Not flushed: a thousand flushes take longer than a thousand evaluations, and a file that a
            # power cut left damaged reads as none.
            write_json_if_changed(layout.host(host).output, output.to_json(), durable=False)
        evaluated = {
            **_evaluated(layout, fingerprint),
            **{host: output.attr for host, output in outputs.items()},
        }
        write_json_if_changed(
            layout.flake,
            {
                "fingerprint": fingerprint.value,
                "locked": reference,
                "revision": fingerprint.revision,
                "evaluated": evaluated,
            },
        )


def forget(layout: Layout, host: str) -> None:
    """Have one host evaluated again by the next run; its output.json stays."""
    with _lock(layout):
        said = read_json(layout.flake)
        if said is not None and isinstance(said.get("evaluated"), dict):
            said["evaluated"].pop(host, None)
            write_json_if_changed(layout.flake, said)


def _evaluated(layout: Layout, fingerprint: Fingerprint) -> dict[str, Any]:
    said = read_json(layout.flake) or {}
    evaluated = said.get("evaluated")
    if said.get("fingerprint") != fingerprint.value or not isinstance(evaluated, dict):
        return {}
    return evaluated


@contextlib.contextmanager
def _lock(layout: Layout) -> Iterator[None]:
    path = layout.locks / "flake.lock"
    with locked(path, timeout=_LOCK_SECONDS, announce=lambda _text: None, what=str(path)):
        yield
