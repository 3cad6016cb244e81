"""What one run of doit shares: the manifest, where state lies, the journal, the flake's outputs.

Made on first use, so that `doit list` makes none of it.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from nixa_tasks.files import read_json
from nixa_tasks.manifest.load import is_found_valid, load
from nixa_tasks.manifest.model import Host, Manifest
from nixa_tasks.process import run as process
from nixa_tasks.state.journal import Journal
from nixa_tasks.state.layout import Layout
from nixa_tasks.state.receipt import Receipt

if TYPE_CHECKING:
    from nixa_tasks.deploy.uplink import Uplink
    from nixa_tasks.flake.evaluate import Evaluation, Output
    from nixa_tasks.flake.fingerprint import Fingerprint
    from nixa_tasks.host.reach import Access, Reached
    from nixa_tasks.image.delivery.neighbours import Neighbours
    from nixa_tasks.tasks.work import Turn

MANIFEST = "hosts.toml"
_CHECK_SECONDS = 300.0


@dataclass(slots=True)
class Run:
    """One run. `asked` names the hosts that this run is about: they are evaluated together;
    `deploys` those of them whose deploy was asked for: these keep the order of the waves.
    `turns`: those that the run has begun, each host's last one; many threads write, a key is one's.
    """

    manifest: Manifest
    layout: Layout
    journal: Journal
    asked: tuple[str, ...] = ()
    deploys: tuple[str, ...] = ()
    turns: dict[str, Turn] = field(default_factory=dict)
    _open: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _access: Access | None = None
    _fingerprint: Fingerprint | None = None
    _evaluation: Evaluation | None = None
    _uplink: Uplink | None = None
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

                local = process.local()
                folder = self._open.enter_context(run_folder(local))
                passwords = Passwords(local.is_stopping)
                self._access = Access(local, local.clock, folder, KnownHosts(), passwords)
            return self._access

    @property
    def uplink(self) -> Uplink:
        """What all hosts of this run share to send closures and images."""
        with self._lock:
            if self._uplink is None:
                from nixa_tasks.deploy.uplink import Uplink

                self._uplink = Uplink(self.manifest.fleet.copy_jobs, process.local().clock)
            return self._uplink

    @property
    def neighbours(self) -> Neighbours:
        """The hosts of this run that hand the image on to each other."""
        with self._lock:
            if self._neighbours is None:
                from nixa_tasks.image.delivery.neighbours import Neighbours

                self._neighbours = Neighbours()
            return self._neighbours

    @property
    def fingerprint(self) -> Fingerprint:
        """The flake's content now; asked once a run. Raises NixaError."""
        with self._lock:
            if self._fingerprint is None:
                self._fingerprint = self._read_fingerprint()
            return self._fingerprint

    def _read_fingerprint(self) -> Fingerprint:
        from nixa_tasks.flake.fingerprint import fingerprint

        fleet = self.manifest.fleet
        return fingerprint(fleet.flake, self.layout, excluded=(fleet.cache,) if fleet.cache else ())

    @property
    def evaluation(self) -> Evaluation:
        """The outputs of the hosts that this run is about, evaluated together when first asked for."""
        with self._lock:
            if self._evaluation is None:
                wanted = {name: self.manifest.hosts[name].flake_attr for name in self.asked}
                fleet = self.manifest.fleet
                from nixa_tasks.flake.evaluate import Evaluation

                self._evaluation = Evaluation(
                    self.layout,
                    self.fingerprint,
                    wanted,
                    workers=fleet.eval_workers,
                    memory=fleet.eval_memory,
                    note=lambda text: self.journal.note("", "evaluate", text),
                    step=lambda: self.journal.step("", "evaluate", f"{len(wanted)} hosts"),
                    recheck=self._read_fingerprint,
                )
            return self._evaluation

    def remembered_output(self, host: str) -> Output | None:
        """What output.json says, whether or not the flake has changed since."""
        from nixa_tasks.flake.output import remembered

        return remembered(self.layout, host)

    def receipt(self, host: str) -> Receipt | None:
        """The receipt of the last deploy, as remembered here."""
        return Receipt.from_json(read_json(self.layout.host(host).deployed))

    def close(self) -> None:
        self._open.close()


_made: list[Run] = []


@functools.cache
def manifest() -> Manifest:
    """The manifest in doit's working directory. Raises ManifestError.

    A changed file is checked in a process of its own, once, so that not even then this one has to
    import jsonschema; only where that finds fault, it is checked here, for its errors.
    """
    path = Path.cwd() / MANIFEST
    stamp = Layout(path.parent).manifest_stamp
    if not is_found_valid(path, stamp):
        argv = (sys.executable, "-m", "nixa_tasks.tasks.validate", str(path))
        process.run(argv, deadline=_CHECK_SECONDS, check=False, what="the check of hosts.toml")
    return load(path, stamp)


def layout() -> Layout:
    """Where this project's state lies."""
    return Layout(manifest().root)


def begin(asked: tuple[str, ...], deploys: tuple[str, ...] = ()) -> Run:
    """Make this process's run. The manifest was found valid by then."""
    place = layout()
    place.make()
    run = Run(manifest(), place, Journal(place.journal), asked, deploys)
    _made[:] = [run]
    return run


def current() -> Run:
    return _made[0]


def connect(host: Host) -> Reached:
    """Reach a host for this run; whoever asks ends the connection. Raises as reach.connect does."""
    from nixa_tasks.host import reach

    now = current()
    return reach.connect(host, now.access, lambda text: now.journal.note(host.name, "reach", text))


def peek() -> Run | None:
    """The run, if there is one."""
    return _made[0] if _made else None


def close() -> None:
    """Remove what this run left outside `.nixa/`."""
    if _made:
        _made[0].close()
