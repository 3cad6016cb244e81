"""What is recorded of a host at which nothing was to be done."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nixa_tasks.deploy.adopt import adopt, is_deployed
from nixa_tasks.deploy.receipts import Started
from nixa_tasks.flake.output import Output
from nixa_tasks.host.probe import Facts, Os
from nixa_tasks.manifest.model import Host, Mode
from nixa_tasks.process.clock import SystemClock
from nixa_tasks.state.layout import Layout

OLD, NEW = (f"/nix/store/{letter * 32}-nixos-system-web1" for letter in "ab")
HOST = Host("web1", "192.0.2.1", mode=Mode.BOOT)
OUTPUT = Output("web1", "x86_64-linux", "/nix/store/new.drv", NEW)


@pytest.mark.parametrize(("live", "drv", "is_done"), [(NEW, "/nix/store/new.drv", True), (OLD, None, False)])
def test_a_system_that_is_not_the_flakes_is_not_recorded_as_waiting_for_it(
    live: str, drv: str | None, is_done: bool, tmp_path: Path
) -> None:
    """A wave is taken back, and somebody has taken this host back already."""
    work: Any = SimpleNamespace(
        host=HOST, layout=Layout(tmp_path), flake=None, wanted=NEW, drv=OUTPUT.toplevel_drv,
        reached=SimpleNamespace(
            facts=Facts(os=Os.NIXOS, system=live), can_be_root=False, key=SimpleNamespace(text="k")
        ),
    )  # fmt: skip
    receipt = adopt(work, Started.now(SystemClock(threading.Event())))
    assert (receipt.out, receipt.wanted, receipt.drv) == (live, live, drv)
    assert not receipt.is_pending
    assert is_deployed(HOST, OUTPUT, receipt) is is_done
