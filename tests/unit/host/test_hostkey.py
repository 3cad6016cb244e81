"""Who a machine is: pins, remembered keys, and what is said of a wrong one."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from nixa_tasks.errors import NixaError
from nixa_tasks.host.host_key import HostKey, KnownHosts, Trust, expectation, mismatch
from nixa_tasks.manifest.model import Host, InstallPolicy


def key(fill: int) -> HostKey:
    kind = b"ssh-ed25519"
    blob = len(kind).to_bytes(4) + kind + (32).to_bytes(4) + bytes([fill]) * 32
    return HostKey("ssh-ed25519", base64.b64encode(blob).decode())


@pytest.fixture
def known(tmp_path: Path) -> KnownHosts:
    return KnownHosts(tmp_path / "state" / "known_hosts")


HOST = Host("web1", "203.0.113.1")


def test_a_remembered_key_belongs_to_the_address_not_to_the_name(known: KnownHosts) -> None:
    known.remember(HOST, key(1))
    assert known.find(Host("other", "203.0.113.1")) == key(1)
    assert known.find(Host("web1", "203.0.113.2")) is None
    assert known.find(Host("web1", "203.0.113.1", port=2222)) is None


def test_a_pin_is_not_weakened_by_a_key_that_was_merely_seen(known: KnownHosts) -> None:
    known.remember(HOST, key(1))
    pinned = Host("web1", "203.0.113.1", host_key=key(2).text)
    assert expectation(pinned, known).keys == (key(2),)
    assert expectation(pinned, known).trust is Trust.PINNED


def test_a_trusted_key_stands_beside_the_pin_until_it_is_taken_back(known: KnownHosts) -> None:
    pinned = Host("web1", "203.0.113.1", host_key=key(2).text)
    known.trust_beside_pin(pinned, key(3))
    assert expectation(pinned, known).keys == (key(2), key(3))
    known.trust_beside_pin(pinned, None)
    assert expectation(pinned, known).keys == (key(2),)


def test_a_throwaway_machine_may_show_anything_unless_it_is_pinned(known: KnownHosts) -> None:
    known.remember(HOST, key(1))
    throwaway = Host("web1", "203.0.113.1", install=InstallPolicy.ALWAYS)
    assert expectation(throwaway, known).trust is Trust.ANY
    pinned = Host("web1", "203.0.113.1", install=InstallPolicy.ALWAYS, host_key=key(2).text)
    assert expectation(pinned, known).trust is Trust.PINNED


def test_a_damaged_memory_of_keys_stops_everything(known: KnownHosts) -> None:
    """To take it for empty would make every wrong machine look new."""
    known.remember(HOST, key(1))
    known.path.write_text("rubbish\n")
    with pytest.raises(NixaError, match="damaged"):
        known.find(HOST)


def test_a_wrong_key_is_told_with_both_fingerprints_and_the_ways_on(known: KnownHosts) -> None:
    known.remember(HOST, key(1))
    text = mismatch(HOST, expectation(HOST, known), key(2)).render()
    assert key(1).fingerprint in text
    assert key(2).fingerprint in text
    assert "doit trust:web1" in text
    assert "nothing was sent" in text


def test_what_is_no_key_is_refused() -> None:
    for bad in ("", "ssh-ed25519", "ssh-ed25519 !!!!", "ssh-rsa " + key(1).blob):
        with pytest.raises(ValueError, match="not a public key"):
            HostKey.parse(bad)
