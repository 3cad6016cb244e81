"""Whatever a host answers, the probe gives facts of the right kinds and never raises."""

from __future__ import annotations

import base64
import json

from hypothesis import given
from hypothesis import strategies as st

from nixa_tasks.host.probe import TOOLS, Os, parse
from nixa_tasks.state.receipt import Receipt

KEYS = st.sampled_from(
    [
        "os_id",
        "variant_id",
        "system",
        "boot_id",
        "memory_kib",
        "tool",
        "receipt",
        "root",
        "home",
        "etc_nixos",
        "x",
    ]
)
LINES = st.lists(st.tuples(KEYS, st.text(max_size=300)).map("=".join), max_size=30).map("\n".join)


@given(LINES | st.text() | st.binary().map(lambda raw: raw.decode("utf-8", "replace")))
def test_any_answer_gives_facts_of_their_kinds(answer: str) -> None:
    facts = parse(answer)
    assert facts.os in Os
    assert facts.system is None or facts.system.startswith("/nix/store/")
    assert facts.memory >= 0
    assert set(facts.tools) <= set(TOOLS)
    assert facts.receipt is None or isinstance(facts.receipt, dict)
    Receipt.from_json(facts.receipt)


@given(
    st.recursive(
        st.none() | st.text() | st.integers() | st.floats(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_any_receipt_is_a_receipt_or_nothing(value: object) -> None:
    encoded = base64.b64encode(json.dumps(value).encode()).decode()
    facts = parse(f"receipt={encoded}")
    assert Receipt.from_json(facts.receipt) is None or isinstance(value, dict)


def test_a_path_with_more_in_it_is_not_taken_for_a_store_path() -> None:
    good = "/nix/store/" + "a" * 32 + "-nixos-system-x-25.11"
    assert parse(f"system={good}").system == good
    for bad in (f"{good};rm -rf /", f"{good}\x07", "/etc/passwd", f"{good}/../../x", good + "$(id)"):
        assert parse(f"system={bad}").system is None


def test_what_nixos_and_its_installer_say_of_themselves() -> None:
    assert parse("os_id=nixos").os is Os.NIXOS
    assert parse("os_id=nixos\nvariant_id=installer").os is Os.INSTALLER
    assert parse("os_id=debian").os is Os.OTHER


def test_a_nixos_by_another_name_is_a_nixos() -> None:
    """What would be taken for another Linux is wiped."""
    live = "/nix/store/" + "a" * 32 + "-nixos-system-x-25.11"
    assert parse(f"os_id=acme\nsystem={live}").os is Os.NIXOS
    assert parse(f"os_id=acme\nvariant_id=installer\nsystem={live}").os is Os.INSTALLER
    assert parse("os_id=guix\nsystem=/gnu/store/" + "a" * 32 + "-system").os is Os.OTHER
