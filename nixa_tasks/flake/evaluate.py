"""From the flake to store paths: all hosts of a run in one evaluation, and only those.

What was evaluated is remembered in `flake.json`; a host's `output.json` changes only when its
output does, so that everything that depends on it stays as it is.
"""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from nixa_tasks import nix
from nixa_tasks.errors import Interrupted, NixaError
from nixa_tasks.flake.fingerprint import Fingerprint
from nixa_tasks.process import Sink
from nixa_tasks.state.layout import Layout
from nixa_tasks.state.stamps import read_json, write_json, write_json_if_changed

EVALUATION_SECONDS = 3600.0

# `derivation` gives every derivation its `system`, with and without nixpkgs.
_APPLY = """configurations: {
  known = builtins.attrNames configurations;
  outputs = builtins.listToAttrs (map (attr: {
    name = attr;
    value = if !(configurations ? ${attr}) then null else
      let build = configurations.${attr}.config.system.build; in {
        system = build.toplevel.system;
        toplevel = { drv = build.toplevel.drvPath; out = build.toplevel.outPath; };
        disko = if build ? diskoScript
          then { drv = build.diskoScript.drvPath; out = build.diskoScript.outPath; } else null;
      };
  }) (builtins.fromJSON NAMES));
}"""


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
        try:
            disko = value["disko"] or {"drv": None, "out": None}
            found = cls(
                value["attr"],
                value["system"],
                value["toplevel"]["drv"],
                value["toplevel"]["out"],
                disko["drv"],
                disko["out"],
            )
        except (KeyError, TypeError):
            return None
        paths = (found.toplevel_drv, found.toplevel_out, found.disko_drv, found.disko_out)
        return found if all(path is None or isinstance(path, str) for path in paths) else None


class Evaluation:
    """The outputs of the hosts that a run is about. Safe to ask from many threads: the first one
    evaluates for all."""

    def __init__(
        self,
        layout: Layout,
        fingerprint: Fingerprint,
        wanted: Mapping[str, str],
        *,
        workers: int = 1,
        step: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
        sink: Sink | None = None,
        recheck: Callable[[], Fingerprint] | None = None,
    ) -> None:
        self._layout = layout
        self.fingerprint = fingerprint
        self._wanted = dict(wanted)
        self._workers = max(1, workers)
        self._step = step
        self._sink = sink
        self._recheck = recheck
        self._results: dict[str, Output | NixaError] | None = None
        self._lock = threading.Lock()

    def of(self, host: str) -> Output:
        """One host's output, from the stamps or evaluated now. Raises what its evaluation raised."""
        with self._lock:
            if self._results is None:
                self._results = self._all()
        result = self._results[host]
        if isinstance(result, NixaError):
            raise result
        return result

    def _all(self) -> dict[str, Output | NixaError]:
        results: dict[str, Output | NixaError] = {}
        for host, attr in self._wanted.items():
            found = current(self._layout, self.fingerprint, host, attr)
            if found is not None:
                results[host] = found
        stale = {host: attr for host, attr in self._wanted.items() if host not in results}
        if not stale:
            return results
        with self._step():
            parts = [dict(list(stale.items())[start :: self._workers]) for start in range(self._workers)]
            with ThreadPoolExecutor(self._workers) as pool:
                for part in pool.map(self._some, filter(None, parts)):
                    results |= part
        is_same = self._recheck is None or self._recheck().value == self.fingerprint.value
        record(self._layout, self.fingerprint, {host: results[host] for host in stale}, is_same=is_same)
        return results

    def _some(self, wanted: dict[str, str]) -> dict[str, Output | NixaError]:
        """One batch; where it fails, each host by itself, so that one bad host spoils no other."""
        try:
            return _evaluate(self.fingerprint.reference, wanted, self._sink)
        except Interrupted:
            raise
        except NixaError as error:
            if len(wanted) == 1:
                return dict.fromkeys(wanted, error)
        results: dict[str, Output | NixaError] = {}
        for host, attr in wanted.items():
            results |= self._some({host: attr})
        return results


def _evaluate(reference: str, wanted: Mapping[str, str], sink: Sink | None) -> dict[str, Output | NixaError]:
    attrs = sorted(set(wanted.values()))
    apply = _APPLY.replace("NAMES", _nix_string(json.dumps(attrs)))
    argv = nix.command(
        "eval", "--json", "--no-write-lock-file", f"{reference}#nixosConfigurations", "--apply", apply
    )
    host = next(iter(wanted)) if len(wanted) == 1 else None
    done = nix.run(argv, deadline=EVALUATION_SECONDS, sink=sink, what="evaluation", host=host)
    try:
        said = json.loads(done.stdout)
        outputs, known = said["outputs"], said["known"]
    except (ValueError, KeyError, TypeError) as error:
        raise NixaError(f"evaluation: nix's answer can't be read: {error!r}", tail=done.tail) from error
    return {name: _output(name, attr, outputs[attr], known) for name, attr in wanted.items()}


def _output(host: str, attr: str, value: Mapping[str, Any] | None, known: list[str]) -> Output | NixaError:
    if value is None:
        near = difflib.get_close_matches(attr, known, n=1)
        hint = (
            f"did you mean {near[0]!r}? set flake_attr"
            if near
            else f"it has: {', '.join(known[:12]) or 'none'}"
        )
        return NixaError(f"the flake has no nixosConfigurations.{attr}", host=host, hint=hint)
    found = Output.from_json({"attr": attr, **value})
    return found or NixaError(f"nixosConfigurations.{attr} gave no system", host=host)


def _nix_string(text: str) -> str:
    """A Nix string literal: nothing in it is read as code."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("${", "\\${") + '"'


def current(layout: Layout, fingerprint: Fingerprint, host: str, attr: str) -> Output | None:
    """The host's output, if it was evaluated at this very content; else None."""
    said = read_json(layout.flake) or {}
    evaluated = said.get("evaluated")
    if said.get("fingerprint") != fingerprint.value or not isinstance(evaluated, dict):
        return None
    value = read_json(layout.host(host).output)
    if evaluated.get(host) != attr or value is None:
        return None
    return Output.from_json(value)


def record(
    layout: Layout,
    fingerprint: Fingerprint,
    results: Mapping[str, Output | NixaError],
    *,
    is_same: bool = True,
) -> None:
    """Write down what was evaluated. Two runs side by side lose nothing of each other's.

    `is_same` false: the flake was edited meanwhile, so what was read is of neither content, and the
    next run evaluates again.
    """
    good = {host: output for host, output in results.items() if isinstance(output, Output)}
    for host, output in good.items():
        write_json_if_changed(layout.host(host).output, output.to_json())
    with _locked(layout):
        said = read_json(layout.flake) or {}
        evaluated = said.get("evaluated") if said.get("fingerprint") == fingerprint.value else {}
        evaluated = {
            **(evaluated if isinstance(evaluated, dict) else {}),
            **{h: o.attr for h, o in good.items()},
        }
        write_json(
            layout.flake,
            {
                "fingerprint": fingerprint.value,
                "locked": fingerprint.reference,
                "revision": fingerprint.revision,
                "evaluated": evaluated,
            },
        )


@contextlib.contextmanager
def _locked(layout: Layout) -> Iterator[None]:
    layout.locks.mkdir(parents=True, exist_ok=True)
    with (layout.locks / "flake.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
