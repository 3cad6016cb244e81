"""From the flake to store paths: all hosts of a run in one evaluation, and only those.

What was evaluated is remembered in `flake.json`; a host's `output.json` changes only when its
output does, so that everything that depends on it stays as it is.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from nixa_tasks.errors import Interrupted, NixaError
from nixa_tasks.flake.batch import Batch, Limits, Result
from nixa_tasks.flake.fingerprint import Fingerprint
from nixa_tasks.flake.freeze import freeze
from nixa_tasks.flake.output import Output, current, current_of, record
from nixa_tasks.nix import errors as nix_errors
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
_REMARK = re.compile(r"(trace: )?(evaluation )?warning: |trace: ")
# What Nix says of its own doings, which is no news to whoever edits a flake.
_NO_REMARK = re.compile(r"warning: (Git tree '.*' (is dirty|has uncommitted changes)|error: |not writing )")


class _Remarks:
    """Passes on the lines that Nix prints, and notes each warning and trace of the flake once,
    however many processes print it."""

    def __init__(self, reporting: Reporting) -> None:
        self._reporting = reporting
        self._seen: set[str] = set()
        self._lock = threading.Lock()

    def __call__(self, line: str) -> None:
        if self._reporting.sink is not None:
            self._reporting.sink(line)
        text = nix_errors.plain(line)
        if _REMARK.match(text) and not _NO_REMARK.match(text):
            with self._lock:
                is_new = text not in self._seen
                self._seen.add(text)
            if is_new:
                self._reporting.note(text)


class Evaluation:
    """The outputs of the hosts that a run is about. Safe to ask from many threads: the first one
    evaluates for all.

    `wanted`: each host's attribute. `unwritten`: why what was evaluated could not be written down. `recheck` takes the fingerprint again, so that an edit while
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
        self._sink = _Remarks(reporting)
        self._results: dict[str, Result] | None = None
        self._lock = threading.Lock()
        self.unwritten: NixaError | None = None

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
        """Every host of `wanted`. Raises Interrupted; every other error is a result."""
        try:
            for _ in range(_TRIES):
                results = self._try(wanted)
                if results is not None:
                    return results
            raise NixaError(
                "the flake kept changing while it was read",
                hint="try again when nothing writes to it any more",
            )
        except Interrupted:
            raise
        except NixaError as error:
            return dict.fromkeys(wanted, error)

    def _try(self, wanted: Mapping[str, str]) -> dict[str, Result] | None:
        """One evaluation; None where the flake changed meanwhile, so that nothing is known of it.

        What Nix reads is fixed, and each good result is written down as soon as it is known; or, where
        the user's own reference had to be handed on, all of them once the flake is seen unchanged.
        """
        fingerprint = self.fingerprint
        frozen = freeze(self._nix, fingerprint, deadline=_FREEZE_SECONDS, sink=self._sink)
        if frozen.is_fixed and not self._is_unchanged():
            return None
        results: dict[str, Result] = {}
        guard = threading.Lock()

        def keep(found: Mapping[str, Result]) -> None:
            good = {host: result for host, result in found.items() if isinstance(result, Output)}
            try:
                record(self._layout, fingerprint, frozen.reference, good)
            except NixaError as error:  # a folder that can't be written can still be looked at
                self.unwritten = error

        def done(found: Mapping[str, Result]) -> None:
            mine = {host: found[attr] for host, attr in wanted.items() if attr in found}
            with guard:
                if frozen.is_fixed:
                    keep(mine)
                results.update(mine)

        attrs = tuple(sorted(set(wanted.values())))
        limits = replace(self._limits, impure=fingerprint.is_impure)
        Batch(self._nix, frozen.reference, attrs, limits, done, self._sink).run()
        if not frozen.is_fixed:
            if not self._is_unchanged():
                return None
            keep(results)
        if fingerprint.reads_revision:
            self._reporting.note(
                "the flake reads its own revision (self.rev): every commit is evaluated again"
            )
        return results

    def _is_unchanged(self) -> bool:
        """Whether the flake still is what its fingerprint says; else the new one is taken."""
        before = self.fingerprint
        if self._recheck is not None:
            self.fingerprint = self._recheck()
        return self.fingerprint.value == before.value


def _unpacked(host: str, result: Result) -> Output:
    if isinstance(result, Output):
        return result
    own = type(result).__new__(type(result))  # hosts share an attribute, or an error of the whole flake
    own.args = result.args
    own.__dict__.update(result.__dict__, host=host)
    raise own from result
