"""From the flake to store paths: all hosts of a run in one evaluation, and only those.

What was evaluated is remembered in `flake.json`; a host's `output.json` changes only when its
output does, so that everything that depends on it stays as it is.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from nixa_tasks.errors import Interrupted, NixaError
from nixa_tasks.flake.batch import Batch, Limits, Result
from nixa_tasks.flake.fingerprint import Fingerprint
from nixa_tasks.flake.freeze import freeze
from nixa_tasks.flake.output import Output, current, current_of, record
from nixa_tasks.nix.command import Nix
from nixa_tasks.process.pump import Sink
from nixa_tasks.state.layout import Layout

__all__ = ["Evaluation", "Limits", "Output", "Reporting", "current"]

_FREEZE_SECONDS = 600.0
_TRIES = 5


@dataclass(frozen=True, slots=True)
class Reporting:
    """Where an evaluation reports to: `step` brackets it, `note` gets remarks for people, `sink`
    the lines that Nix prints."""

    step: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext
    note: Callable[[str], None] = lambda _text: None
    sink: Sink | None = None


_LIMITS, _SILENT = Limits(), Reporting()


class Evaluation:
    """The outputs of the hosts that a run is about. Safe to ask from many threads: the first one
    evaluates for all.

    `wanted`: each host's attribute. `recheck` takes the fingerprint again, so that an edit while
    the flake is copied is noticed.
    """

    def __init__(
        self,
        nix: Nix,
        layout: Layout,
        fingerprint: Fingerprint,
        wanted: Mapping[str, str],
        *,
        limits: Limits = _LIMITS,
        recheck: Callable[[], Fingerprint] | None = None,
        reporting: Reporting = _SILENT,
    ) -> None:
        self._nix = nix
        self._layout = layout
        self.fingerprint = fingerprint
        self._wanted = dict(wanted)
        self._limits = limits
        self._recheck = recheck
        self._reporting = reporting
        self._results: dict[str, Result] | None = None
        self._lock = threading.Lock()

    def of(self, host: str) -> Output:
        """One host's output, from the stamps or evaluated now. Raises what its evaluation raised."""
        with self._lock:
            if self._results is None:
                self._results = self._all()
            result = self._results[host]
        return _unpacked(host, result)

    def again(self, host: str) -> Output:
        """One host evaluated anew whatever is remembered: its derivation has left the store."""
        with self._lock:
            found = self._evaluate({host: self._wanted[host]})
            self._results = {**(self._results or self._all()), **found}
        return _unpacked(host, found[host])

    def _all(self) -> dict[str, Result]:
        results: dict[str, Result] = dict(current_of(self._layout, self.fingerprint, self._wanted))
        stale = {host: attr for host, attr in self._wanted.items() if host not in results}
        if not stale:
            return results
        with self._reporting.step():
            return results | self._evaluate(stale)

    def _evaluate(self, wanted: Mapping[str, str]) -> dict[str, Result]:
        """Every host of `wanted`; each good one is written down as soon as it is known."""
        try:
            fingerprint, reference = self._frozen()
        except Interrupted:
            raise
        except NixaError as error:
            return dict.fromkeys(wanted, error)
        results: dict[str, Result] = {}
        guard = threading.Lock()

        def done(found: Mapping[str, Result]) -> None:
            mine = {host: found[attr] for host, attr in wanted.items() if attr in found}
            good = {host: result for host, result in mine.items() if isinstance(result, Output)}
            with guard:
                record(self._layout, fingerprint, reference, good)
                results.update(mine)

        attrs = tuple(sorted(set(wanted.values())))
        Batch(self._nix, reference, attrs, self._limits, done, self._reporting.sink).run()
        self.fingerprint = fingerprint
        if fingerprint.reads_revision:
            self._reporting.note(
                "the flake reads its own revision (self.rev): every commit is evaluated again"
            )
        return results

    def _frozen(self) -> tuple[Fingerprint, str]:
        """A copy of the flake and the fingerprint that surely belongs to it: equal before and after."""
        before = self.fingerprint
        for _ in range(_TRIES):
            reference = freeze(self._nix, before, deadline=_FREEZE_SECONDS, sink=self._reporting.sink)
            after = self._recheck() if self._recheck else before
            if after.value == before.value:
                return before, reference
            before = after
        raise NixaError(
            "the flake kept changing while it was read", hint="try again when nothing writes into it any more"
        )


def _unpacked(host: str, result: Result) -> Output:
    if isinstance(result, Output):
        return result
    own = type(result).__new__(type(result))  # hosts share an attribute, or an error of the whole flake
    own.args = result.args
    own.__dict__.update(result.__dict__, host=host)
    raise own from result
