"""One run of doit as one value: everything that its tasks, its reporter and its end share."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nixa_tasks.errors import NixaError
from nixa_tasks.files import read_json
from nixa_tasks.manifest.model import Dirty, Host, Manifest
from nixa_tasks.process.run import LocalProcesses
from nixa_tasks.state.journal import Journal
from nixa_tasks.state.layout import Layout
from nixa_tasks.state.receipt import Receipt
from nixa_tasks.tasks.results import Results
from nixa_tasks.tasks.selection import Request

if TYPE_CHECKING:
    from nixa_tasks.deploy.decide import Asked
    from nixa_tasks.deploy.turn import Done, Uplink
    from nixa_tasks.flake.evaluate import Evaluation, Output
    from nixa_tasks.flake.fingerprint import Fingerprint
    from nixa_tasks.host.reach import Access, Reached
    from nixa_tasks.image.cache.cache import Cache
    from nixa_tasks.image.delivery.neighbours import Neighbours
    from nixa_tasks.nix.command import Nix

_BUILDS_AT_ONCE = 2  # Nix itself builds in parallel; more clients only queue


@dataclass(frozen=True, slots=True)
class Turn:
    """A host's turn in this run: when it began (RFC 3339, UTC), and what was done; None for one
    that failed."""

    asked: Asked
    started_at: str
    done: Done | None = None


@dataclass(slots=True)
class Run:
    """One run. What costs something is made on first use, so that `doit list` makes none of it.

    `request`: the tasks that were made. `asked`: the hosts that the run is about, as doit's graph
    says; they are evaluated together. `deploys`: those of them whose deploy was asked for, which keep
    the order of the waves. `reporting_process`: the one that nixa's reporter runs in.
    `settled`: hosts that were asked for, and of which the index says that there is nothing to do.
    `is_plain_deploy`: the command deploys, by the usual rules, and nothing else.
    `held`: why a host that was rolled back is left alone, by its name.
    `options`: those of the tasks that were selected, by the tasks' names. `turns`:
    each host's last turn; many threads write, each to its own key.
    """

    manifest: Manifest
    layout: Layout
    journal: Journal
    request: Request = field(default_factory=Request)
    asked: tuple[str, ...] = ()
    deploys: tuple[str, ...] = ()
    reporting_process: int = 0
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    processes: LocalProcesses = field(default_factory=LocalProcesses)
    results: Results = field(default_factory=Results)
    settled: tuple[str, ...] = ()
    is_plain_deploy: bool = False
    held: dict[str, str] = field(default_factory=dict)
    turns: dict[str, Turn] = field(default_factory=dict)
    builds: threading.BoundedSemaphore = field(
        default_factory=lambda: threading.BoundedSemaphore(_BUILDS_AT_ONCE)
    )
    image_locks: defaultdict[str, threading.Lock] = field(default_factory=lambda: defaultdict(threading.Lock))
    _open: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _access: Access | None = None
    _nix: Nix | None = None
    _fingerprint: Fingerprint | None = None
    _evaluation: Evaluation | None = None
    _evaluated: frozenset[str] | None = None
    _later: dict[str, Evaluation] = field(default_factory=dict)
    _uplink: Uplink | None = None
    _is_dirty_noted: bool = False
    _neighbours: Neighbours | None = None
    _lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def access(self) -> Access:
        """What this run reaches hosts with, and its private folder for sockets, keys and scripts."""
        with self._lock:
            if self._access is None:
                from nixa_tasks.host.host_key import KnownHosts
                from nixa_tasks.host.reach import Access, run_folder
                from nixa_tasks.host.sudo import Passwords

                folder = self._open.enter_context(run_folder(self.processes))
                passwords = Passwords(self.processes.is_stopping)
                self._access = Access(self.processes, self.processes.clock, folder, KnownHosts(), passwords)
            return self._access

    @property
    def cache(self) -> Cache:
        """The image cache that this manifest uses."""
        from nixa_tasks.image.cache.cache import Cache, cache_dir

        return Cache(cache_dir(self.manifest.fleet.cache), self.processes.clock)

    @property
    def nix(self) -> Nix:
        """The local Nix, with what it has learnt of its version."""
        with self._lock:
            if self._nix is None:
                from nixa_tasks.nix.command import Nix

                self._nix = Nix(self.processes)
            return self._nix

    @property
    def uplink(self) -> Uplink:
        """What all hosts of this run share to send closures and images."""
        with self._lock:
            if self._uplink is None:
                from nixa_tasks.deploy.turn import Uplink

                self._uplink = Uplink(self.manifest.fleet.copy_jobs, self.processes.clock)
            return self._uplink

    @property
    def neighbours(self) -> Neighbours:
        """The hosts of this run that hand the image on to each other."""
        with self._lock:
            if self._neighbours is None:
                from nixa_tasks.image.delivery.neighbours import Neighbours

                self._neighbours = Neighbours(self.processes.clock)
            return self._neighbours

    @property
    def fingerprint(self) -> Fingerprint:
        """The flake's content now; asked once a run. Raises NixaError."""
        with self._lock:
            if self._fingerprint is None:
                self._fingerprint = self.read_fingerprint()
            return self._fingerprint

    def read_fingerprint(self) -> Fingerprint:
        """The flake's content, asked anew. Raises NixaError."""
        from nixa_tasks.flake.fingerprint import fingerprint

        fleet = self.manifest.fleet
        return fingerprint(
            self.nix,
            fleet.flake,
            self.layout,
            excluded=(fleet.cache,) if fleet.cache else (),
            impure=fleet.impure,
            manifest=self.manifest.path,
        )

    def check_dirty(self, host: str) -> None:
        """Before the host is changed: what `[fleet] dirty` says of a flake with uncommitted changes; a warning
        once a run. Raises NixaError."""
        policy = self.manifest.fleet.dirty
        if policy is Dirty.ALLOW or not self.fingerprint.is_dirty:
            return
        what = "the flake has uncommitted changes: what is deployed is in no commit"
        if policy is Dirty.REFUSE:
            raise NixaError(
                f'{what}, and hosts.toml says dirty = "refuse"',
                host=host,
                hint="commit them, or stash them: git status",
            )
        with self._lock:
            is_new, self._is_dirty_noted = not self._is_dirty_noted, True
        if is_new:
            self.journal.note("", "flake", f'{what} (`dirty = "allow"` in [fleet] silences this)')

    def output(self, host: str) -> Output:
        """What the flake says of the host, evaluated together with the others that were asked for.
        Raises NixaError."""
        return self.evaluation_for(host).of(host)

    def evaluated_again(self, host: str) -> Output:
        """The same, evaluated anew: its derivation has left the store. Raises NixaError."""
        return self.evaluation_for(host).again(host)

    def evaluation_for(self, host: str) -> Evaluation:
        """The evaluation that the host is in: of all that were asked for, or, for a host that a task
        came to depend on while doit ran, its own."""
        with self._lock:
            if host in self.asked:
                return self.evaluation
            if host not in self._later:
                self._later[host] = self._evaluate((host,))
            return self._later[host]

    @property
    def evaluation(self) -> Evaluation:
        """The outputs of the hosts that this run is about, evaluated together when first asked for."""
        with self._lock:
            if self._evaluation is None:
                self._evaluation = self._evaluate(self.asked)
            return self._evaluation

    def _evaluate(self, hosts: tuple[str, ...]) -> Evaluation:
        from nixa_tasks.flake.evaluate import Evaluation, Limits, Reporting

        fleet = self.manifest.fleet
        return Evaluation(
            self.nix,
            self.layout,
            self.fingerprint,
            {name: self.manifest.hosts[name].flake_attr for name in hosts},
            limits=Limits(fleet.eval_workers, fleet.eval_memory),
            recheck=self.read_fingerprint,
            reporting=Reporting(
                step=lambda: self.journal.step("", "evaluate", f"{len(hosts)} hosts"),
                note=lambda text: self.journal.note("", "evaluate", text),
            ),
        )

    @property
    def evaluated(self) -> frozenset[str]:
        """The hosts that the run is about, or all, for which the flake was evaluated as it is; read once.
        Raises NixaError."""
        with self._lock:
            if self._evaluated is None:
                from nixa_tasks.flake.output import current_of

                names = self.asked or tuple(self.manifest.hosts)
                attributes = {name: self.manifest.hosts[name].flake_attr for name in names}
                self._evaluated = frozenset(current_of(self.layout, self.fingerprint, attributes))
            return self._evaluated

    def remembered_output(self, host: str) -> Output | None:
        """What output.json says, whether or not the flake has changed since."""
        from nixa_tasks.flake.output import remembered

        return remembered(self.layout, host)

    def receipt(self, host: str) -> Receipt | None:
        """The receipt of the last deploy, as remembered here."""
        return Receipt.from_json(read_json(self.layout.host(host).deployed))

    def connect(self, host: Host) -> Reached:
        """Reach a host; the caller ends the connection. Raises as reach.connect does."""
        from nixa_tasks.host import reach

        return reach.connect(host, self.access, lambda text: self.journal.note(host.name, "reach", text))

    @property
    def is_reported(self) -> bool:
        return self.reporting_process == os.getpid()

    def close(self) -> None:
        """Remove what this run left outside `.nixa/`."""
        self._open.close()


def begin(manifest: Manifest, request: Request) -> Run:
    """A run of this manifest's fleet. Creates `.nixa/`: the manifest must have been found valid."""
    layout = Layout(manifest.root)
    with contextlib.suppress(OSError):  # a folder that can't be written can still be looked at
        layout.make()
    processes = LocalProcesses()
    return Run(manifest, layout, Journal(layout.journal, processes.clock), request, processes=processes)
