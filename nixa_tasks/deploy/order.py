"""What one host's turn is given and gives back, as values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nixa_tasks.deploy.decide import Action, Asked
from nixa_tasks.deploy.uplink import Uplink
from nixa_tasks.deploy.work import Work
from nixa_tasks.flake.evaluate import Output
from nixa_tasks.host.reach import Access
from nixa_tasks.image.delivery.neighbours import Neighbours
from nixa_tasks.image.obtain import Obtained
from nixa_tasks.manifest.model import Host, Manifest
from nixa_tasks.state.journal import Journal
from nixa_tasks.state.layout import Layout
from nixa_tasks.state.receipt import Receipt


@dataclass(frozen=True, slots=True)
class Suppliers:
    """What a deploy asks for only when its decision needs it: built closures and a kexec image.

    `system` and `disko` build and root a closure; `image` gives a verified tarball,
    looked into for the host's architecture. `there` has the host build its own system.
    """

    system: Callable[[Work], Path]
    disko: Callable[[Work], Path]
    image: Callable[[Work], Obtained]
    there: Callable[[Work], str]


@dataclass(frozen=True, slots=True)
class Back:
    """The way back of one switch: to the system `to` that ran before it, and only while what it
    switched to, `since`, still runs."""

    to: str
    since: str


@dataclass(frozen=True, slots=True)
class Order:
    """One host's turn. `flake`: the locked reference that `output` was evaluated from; `neighbours`:
    the hosts of this run; `back`: for a rollback that undoes one switch and nothing else (without
    it, the host's history says to where)."""

    manifest: Manifest
    host: Host
    output: Output
    flake: str | None
    layout: Layout
    journal: Journal
    access: Access
    suppliers: Suppliers
    neighbours: Neighbours
    uplink: Uplink
    asked: Asked = Asked.DEPLOY
    back: Back | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """How a host's turn ended well. `before` is the system that ran when it began."""

    action: Action
    reason: str
    receipt: Receipt
    before: str | None
