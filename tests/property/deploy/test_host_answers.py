"""Whatever a host sends back: of bounded size, of its kind or not taken, and harmless on a terminal."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixa_tasks.deploy import receipts
from nixa_tasks.errors import NixaError, plain
from nixa_tasks.fleet import status
from nixa_tasks.host import probe
from nixa_tasks.host.ssh import Ssh
from nixa_tasks.image.delivery import on_host as onhost
from nixa_tasks.image.delivery.pull import serving_urls
from nixa_tasks.manifest.model import Host
from nixa_tasks.process.run import LocalProcesses
from nixa_tasks.state.journal import Journal
from nixa_tasks.state.receipt import How, Outcome, Receipt

HOST = Host("web1", "203.0.113.1")
LOCAL = LocalProcesses()
SSH = Ssh.to(HOST, Path("/run/x"), LOCAL, LOCAL.clock)
GOOD = Receipt(
    "203.0.113.1", "ssh-ed25519 AAAA", "/nix/store/x", "/nix/store/x", None, How.SWITCH, None, "github:x/y",
    "2026-01-01T00:00:00Z", 3.5, "a@b", Outcome.DONE,
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.text() | st.integers() | st.floats() | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
CHANGES = st.dictionaries(st.sampled_from(sorted(GOOD.to_json())), JSON | st.text(), max_size=3)
NUMBERS = st.integers().map(str) | st.text("0123456789-+_.e٣ ", max_size=30) | st.just("9" * 5000)


def is_harmless(text: str) -> bool:
    return all(char.isprintable() or char in "\n\t" for char in text)


@given(CHANGES)
def test_a_receipt_is_sound_or_none_and_can_be_shown(changes: dict[str, object]) -> None:
    one = receipts.parse(json.dumps(GOOD.to_json() | changes))
    if one is None:
        return
    assert 0 <= one.seconds < float("inf")
    assert one.out is None or one.out.startswith("/")
    assert is_harmless(status.render_history("web1", [one], "the host's own record", 200, as_json=False))
    json.loads(status.render_history("web1", [one], "x", 80, as_json=True), parse_constant=pytest.fail)
    row = status.remembered(HOST, None, one)
    assert is_harmless(status.render([row], 200))


@pytest.mark.parametrize(
    "changes",
    [
        {"seconds": float("inf")},
        {"seconds": float("nan")},
        {"seconds": -1},
        {"operator": "\x1b[2J"},
        {"operator": "a\nweb2: installed"},
        {"out": "--option"},
        {"drv": "-x"},
        {"flake": "x" * 10_000},
        {"wanted": 3},
        {"mode": "wipe"},
    ],
)
def test_what_no_nixa_writes_is_no_receipt(changes: dict[str, object]) -> None:
    assert receipts.parse(json.dumps(GOOD.to_json())) == GOOD
    assert receipts.parse(json.dumps(GOOD.to_json() | changes)) is None


@given(st.lists(st.text() | st.just(receipts.line(GOOD).strip()) | st.just("[" * 100_000), max_size=6))
def test_a_history_is_what_can_be_read_of_it(lines: list[str]) -> None:
    assert receipts.parse_history(lines).count(GOOD) >= lines.count(receipts.line(GOOD).strip())


@given(NUMBERS, st.text(max_size=80), NUMBERS, st.text(max_size=30) | st.just("/root/.nixa-kexec"))
def test_what_is_there_of_an_image_is_numbers_and_a_path_or_nothing(
    size: str, digest: str, free: str, folder: str
) -> None:
    found = onhost.parse(f"{size}\n{digest}  -\n/dev/vda 1 1 {free} 1% /\n{folder}\n")
    assert found is None or (found.size >= 0 and found.free >= 0 and found.folder.startswith("/"))


def test_an_honest_answer_about_an_image_is_taken() -> None:
    found = onhost.parse("12\nabc  -\n/dev/vda 100 50 40 50% /\n/root/.nixa-kexec\n")
    assert found == onhost.Look(12, "abc", 40 * 1024, "/root/.nixa-kexec")


@given(st.lists(NUMBERS | st.text(max_size=20) | st.ip_addresses().map(str), max_size=6).map(" ".join))
def test_where_a_host_serves_the_image_is_an_address_or_an_error(said: str) -> None:
    with contextlib.suppress(NixaError):
        for url in serving_urls(replace(SSH, target="203.0.113.1"), f"serving {said}", "token"):
            assert url.startswith("http://")
            assert url.endswith("/token")
            ipaddress.ip_address(urlsplit(url).hostname or "")
            assert 0 < int(urlsplit(url).port or 0) < 65536


@given(st.text() | st.text("\x1b[2J\x07\r\x00\u202e\x9b", min_size=1), st.integers(0, 2000))
def test_what_it_said_is_shown_without_its_control_characters(said: str, repeated: int) -> None:
    error = NixaError(f"it {said}", host="web1", tail=(said * repeated, said))
    assert is_harmless(error.render())
    assert len(plain(said * repeated)) <= 500


def test_a_note_of_its_words_holds_no_control_characters(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl", LocalProcesses().clock)
    told: list[str] = []
    journal.subscribe(lambda event: told.append(event.text))
    journal.note("web1", "lock", "held by \x1b]0;x\x07\nweb2: installed")
    assert is_harmless("".join(told))
    assert "\n" not in told[0]


@pytest.mark.parametrize("flood", ["exec cat /dev/zero", "exec yes os_id=nixos", "exec yes >&2"])
def test_a_host_that_answers_without_end_is_cut_off(
    flood: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long before the deadline, without the memory that it would fill."""
    ssh = tmp_path / "ssh"
    ssh.write_text(f"#!/bin/sh\n{flood}\n")
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    started = time.monotonic()
    with pytest.raises(NixaError, match="printed more than"):
        probe.ask(Ssh.to(HOST, tmp_path, LOCAL, LOCAL.clock))
    assert time.monotonic() - started < 30
