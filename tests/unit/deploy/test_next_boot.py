"""What is said where nobody knows how setting up the next boot ended."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nixa_tasks.deploy import next_boot
from nixa_tasks.deploy.receipts import Started
from nixa_tasks.deploy.switch import RolledBack
from nixa_tasks.errors import NixaError
from nixa_tasks.host.probe import Facts, Os
from nixa_tasks.manifest.model import Host, Mode
from nixa_tasks.process.clock import SystemClock
from nixa_tasks.state.layout import Layout
from nixa_tasks.state.receipt import How, Receipt

OLD, NEW = (f"/nix/store/{letter * 32}-nixos-system-web1" for letter in "ab")


def set_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcome: str, theirs: Receipt | None) -> Receipt:
    guard = SimpleNamespace(logs=tuple, receipt=lambda: theirs)
    monkeypatch.setattr(next_boot, "launch", lambda *_args, **_more: guard)
    monkeypatch.setattr(next_boot, "await_outcome", lambda *_args, **_more: (outcome, ""))
    facts = Facts(os=Os.NIXOS, system=OLD, profile=OLD)
    work: Any = SimpleNamespace(
        host=Host("web1", "192.0.2.1", mode=Mode.BOOT),
        reached=SimpleNamespace(facts=facts, ssh=None, key=SimpleNamespace(text="k")),
        journal=SimpleNamespace(
            run="r", note=lambda *_words: None, step=lambda *_words: contextlib.nullcontext()
        ),
        layout=Layout(tmp_path),
        log=SimpleNamespace(path=tmp_path / "log"),
        flake=None, wanted=NEW, drv=None,
    )  # fmt: skip
    return next_boot.boot_into(work, NEW, How.BOOT, Started.now(SystemClock(threading.Event())), drv=None)


BEFORE = Receipt.from_json({
    "target": "t", "host_key": "k", "out": OLD, "wanted": OLD, "drv": None, "mode": "switch", "kexec_sha256": None,
    "flake": None, "started_at": "t", "seconds": 1, "operator": "o", "outcome": "done",
})  # fmt: skip


@pytest.mark.parametrize(("outcome", "says"), [("gone", "restarted"), ("", "can't be asked")])
def test_it_is_not_said_to_boot_what_it_did_where_nobody_knows(
    outcome: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NixaError, match=says) as caught:
        set_up(tmp_path, monkeypatch, outcome, BEFORE)
    assert not isinstance(caught.value, RolledBack)
    assert "one system or the other" in (caught.value.hint or "")
    assert not Layout(tmp_path).host("web1").deployed.exists(), "the receipt from before says nothing of it"


def test_a_host_that_says_that_nothing_was_changed_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RolledBack, match="could not be set up"):
        set_up(tmp_path, monkeypatch, "failed", BEFORE)
