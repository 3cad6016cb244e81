"""Attributes of `nixosConfigurations`, evaluated together in few processes.

One evaluation of many hosts shares what they have in common, but one host that fails can end it,
and it needs memory for all of them. So: an error that Nix can catch marks its host alone; any
other splits the batch until the bad host is alone; and how many hosts go into one process follows
from the memory that the ones before them took.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nixa_tasks.errors import DeadlinePassed, Interrupted, NixaError
from nixa_tasks.flake.output import Output
from nixa_tasks.nix.command import Nix, command
from nixa_tasks.nix.errors import NixFailed, Reason
from nixa_tasks.process.pump import Sink
from nixa_tasks.text import suggestion

FIRST_MIB_PER_HOST = 512  # a guess for the first batch; the later ones follow what was measured
MOST_AT_ONCE = 10_000
_MOST_BYTES = 100_000  # the names of all go into one argument, which Linux limits to 128 KiB
EXPLAINED = 8
_FILL = 0.7
_GROWTH = 125  # a batch that does not fit after all is split: that costs one process
# Errors of the flake as a whole: no smaller batch would fare better.
_WIDE = frozenset(
    {Reason.NO_FLAKE, Reason.LOCK_FILE, Reason.OWNER, Reason.SYMLINK, Reason.DISK_FULL, Reason.BUILD_USERS}
)

# The system is the one the host runs on; a plain derivation knows only that which builds it.
_APPLY = """configurations: let
  names = builtins.fromJSON NAMES;
  read = attr: let
    host = configurations.${attr};
    build = host.config.system.build;
    pair = what: { drv = what.drvPath; out = what.outPath; };
  in {
    system = host.pkgs.stdenv.hostPlatform.system or host.config.pkgs.system or build.toplevel.system;
    toplevel = pair build.toplevel;
    disko = if build ? diskoScript then pair build.diskoScript else null;
  };
  caught = value: let tried = builtins.tryEval (builtins.deepSeq value value); in
    if tried.success then tried.value else "failed";
in {
  known = if builtins.all (attr: configurations ? ${attr}) names then [ ]
    else builtins.attrNames configurations;
  outputs = builtins.listToAttrs (map (attr: {
    name = attr;
    value = if !(configurations ? ${attr}) then "missing" else CATCH (read attr);
  }) names);
}"""

Result = Output | NixaError


@dataclass(frozen=True, slots=True)
class Limits:
    """`workers` processes at a time, each bounded to `memory` MiB of heap; `seconds` for all.
    `impure`: the flake may read what lies outside of it."""

    workers: int = 1
    memory: int = 4096
    seconds: float = 3600.0
    impure: bool = False


def next_size(size: int, used: int, memory: int) -> int:
    """How many hosts fit into the next process, after `size` of them took `used` bytes."""
    fitting = int(size * _FILL * memory * (1 << 20) / max(used, 1))
    return max(1, min(fitting, size * _GROWTH, MOST_AT_ONCE))


class Batch:
    """One evaluation of `attrs` at a fixed reference. `done` gets results as they come, from any
    worker's thread, so that what is finished outlives whatever happens to the rest."""

    def __init__(
        self,
        nix: Nix,
        reference: str,
        attrs: tuple[str, ...],
        limits: Limits,
        done: Callable[[Mapping[str, Result]], None],
        sink: Sink | None = None,
    ) -> None:
        self._nix = nix
        self._reference = reference
        self._waiting = deque(attrs)
        self._limits = limits
        self._done = done
        self._sink = sink
        self._size = max(1, min(MOST_AT_ONCE, limits.memory // FIRST_MIB_PER_HOST))
        self._until = time.monotonic() + limits.seconds
        self._lock = threading.Lock()
        self._is_sound = False
        self._wide: NixaError | None = None
        self._explained: list[NixaError] = []

    def run(self) -> None:
        """Evaluate all. Raises Interrupted; every other error is a result."""
        workers = max(1, min(self._limits.workers, len(self._waiting)))
        with ThreadPoolExecutor(workers, thread_name_prefix="evaluate") as pool:
            for worker in [pool.submit(self._work) for _ in range(workers)]:
                worker.result()

    def _work(self) -> None:
        while part := self._take():
            self._settle(part)

    def _take(self) -> tuple[str, ...]:
        with self._lock:
            share = -(-len(self._waiting) // max(1, self._limits.workers))
            part: list[str] = []
            length = 0
            while len(part) < min(self._size, share) and (not part or length < _MOST_BYTES):
                part.append(self._waiting.popleft())
                length += len(json.dumps(part[-1])) + 4
            return tuple(part)

    def _settle(self, attrs: tuple[str, ...]) -> None:
        """Give every attribute of `attrs` its result."""
        if self._wide is not None:
            self._done(dict.fromkeys(attrs, self._wide))
            return
        try:
            found = self._ask(attrs)
        except Interrupted:
            raise
        except NixaError as error:
            self._split(attrs, error)
            return
        failed = tuple(attr for attr, result in found.items() if result is None)
        self._done({attr: result for attr, result in found.items() if result is not None})
        for attr in failed:
            self._explain(attr)

    def _split(self, attrs: tuple[str, ...], error: NixaError) -> None:
        reason = error.reason if isinstance(error, NixFailed) else None
        if reason is Reason.MEMORY:
            with self._lock:
                self._size = max(1, len(attrs) // 2)
        wide = error if reason in _WIDE else None if len(attrs) == 1 else self._wide_error()
        if wide is not None:
            self._wide = wide
        if wide is not None or len(attrs) == 1:
            self._done(dict.fromkeys(attrs, wide or error))
            return
        middle = len(attrs) // 2
        self._settle(attrs[:middle])
        self._settle(attrs[middle:])

    def _wide_error(self) -> NixaError | None:
        """What is wrong with the flake before any host is looked at: asked once."""
        with self._lock:
            if self._wide is None and not self._is_sound:
                try:
                    self._eval("builtins.attrNames", self._left(), None)
                    self._is_sound = True
                except Interrupted:
                    raise
                except NixaError as error:
                    self._wide = error
            return self._wide

    def _explain(self, attr: str) -> None:
        """A host that failed in a batch, by itself, for its own words; only the first few."""
        with self._lock:
            is_known_by_now = len(self._explained) >= EXPLAINED
        if is_known_by_now:
            said = f"nixosConfigurations.{attr} fails to evaluate, as {EXPLAINED} others before it"
            first = self._explained[0]
            self._done({attr: NixaError(f"{said}: {first.what}", tail=first.tail, hint=first.hint)})
            return
        try:
            result = self._ask((attr,))[attr]
            assert result is not None  # noqa: S101 - alone, nothing is caught
            self._done({attr: result})
        except Interrupted:
            raise
        except NixaError as error:
            with self._lock:
                self._explained.append(error)
            self._done({attr: error})

    def _ask(self, attrs: tuple[str, ...]) -> dict[str, Result | None]:
        """One process; None for a host whose evaluation threw."""
        is_alone = len(attrs) == 1
        apply = _APPLY.replace("NAMES", nix_string(json.dumps(attrs)))
        apply = apply.replace("CATCH", "" if is_alone else "caught")
        with tempfile.TemporaryDirectory(prefix="nixa-eval-") as folder:
            stats = Path(folder) / "stats.json"
            # Half of what is left, so that there is time to find a host that never ends.
            said = self._eval(apply, self._left() if is_alone else self._left() / 2, stats)
            self._learn(len(attrs), stats)
        try:
            value = json.loads(said)
            outputs, known = value["outputs"], value["known"]
            return {attr: _result(attr, outputs[attr], known) for attr in attrs}
        except (ValueError, KeyError, TypeError) as error:
            raise NixaError(
                f"evaluation: Nix printed unexpected JSON: {error!r}", tail=(said[:200],)
            ) from error

    def _eval(self, apply: str, seconds: float, stats: Path | None) -> str:
        # With --apply nothing comes from Nix's evaluation cache, so its database need not be opened.
        argv = command(
            "eval", "--json", "--no-update-lock-file", "--option", "eval-cache", "false",
            *(("--impure",) if self._limits.impure else ()),
            f"{self._reference}#nixosConfigurations", "--apply", apply,
        )  # fmt: skip
        env = {"GC_MAXIMUM_HEAP_SIZE": str(self._limits.memory << 20)}
        if stats is not None:
            env |= {"NIX_SHOW_STATS": "1", "NIX_SHOW_STATS_PATH": str(stats)}
        return self._nix.run(argv, deadline=seconds, sink=self._sink, what="evaluation", env=env).stdout

    def _left(self) -> float:
        left = self._until - time.monotonic()
        if left <= 0:
            raise DeadlinePassed(f"evaluation: timed out after {self._limits.seconds:g} s")
        return left

    def _learn(self, count: int, stats: Path) -> None:
        try:
            said: dict[str, Any] = json.loads(stats.read_bytes())["gc"]
            used = min(int(said["heapSize"]), int(said["totalBytes"]))
        except (OSError, ValueError, KeyError, TypeError):
            return  # no figures: the size stays
        with self._lock:
            self._size = next_size(count, used, self._limits.memory)


def _result(attr: str, value: object, known: list[str]) -> Result | None:
    if value == "failed":
        return None
    if value == "missing":
        near = suggestion(attr, known)
        some = ", ".join(known[:12]) + (", …" if len(known) > 12 else "")
        said = f"did you mean `{near}`? " if near else f"it has: {some or 'none'}; "
        return NixaError(
            f"the flake has no nixosConfigurations.{attr}",
            hint=f"{said}set `flake_attr` for the host, or add it to the flake and `git add` its files",
        )
    output = Output.from_json({"attr": attr, **value}) if isinstance(value, dict) else None
    return output or NixaError(f"nixosConfigurations.{attr} has no system")


def nix_string(text: str) -> str:
    """A Nix string literal: nothing in it is read as code."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("${", "\\${") + '"'
