"""Real small values for the steps of a deploy."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nixa_tasks.deploy.turn import Started, Suppliers, Turn, Uplink
from nixa_tasks.flake.output import Output
from nixa_tasks.host.host_key import HostKey, KnownHosts, Trust
from nixa_tasks.host.probe import Facts
from nixa_tasks.host.reach import Access, Reached
from nixa_tasks.host.sudo import Passwords
from nixa_tasks.image.delivery.neighbours import Neighbours
from nixa_tasks.manifest.model import Fleet, Host, Manifest
from nixa_tasks.process.clock import SystemClock
from nixa_tasks.process.run import LocalProcesses, Processes
from nixa_tasks.state.journal import Journal, RunLog
from nixa_tasks.state.layout import Layout

KEY = HostKey("ssh-ed25519", "AAAAC3NzaC1lZDI1NTE5AAAAIA==")


def _never(*_args: Any) -> Any:
    raise AssertionError("nothing is built here")


def make_turn(
    tmp_path: Path, host: Host, output: Output, facts: Facts, processes: Processes
) -> tuple[Turn, Reached]:
    """A turn of one host, and the host as it was reached with these facts."""
    clock = SystemClock(threading.Event())
    access = Access(
        processes, clock, tmp_path, KnownHosts(tmp_path / "known_hosts"), Passwords(lambda: False)
    )
    layout, journal = Layout(tmp_path), Journal(tmp_path / "journal.jsonl", clock)
    turn = Turn(
        Manifest(tmp_path / "hosts.toml", Fleet("."), {}, {host.name: host}), host, output, None, layout,
        journal, RunLog(tmp_path / "log", "deploy", "run", clock), access,
        Suppliers(_never, _never, _never, _never), Neighbours(clock), Uplink(1, clock), Started.now(clock),
    )  # fmt: skip
    return turn, Reached(access.ssh(host), KEY, Trust.SEEN, facts)


@pytest.fixture
def turn_of(tmp_path: Path) -> Callable[..., tuple[Turn, Reached]]:
    def make(host: Host, output: Output, facts: Facts, processes: Processes | None = None) -> Any:
        return make_turn(tmp_path, host, output, facts, processes or LocalProcesses())

    return make
