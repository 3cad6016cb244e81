"""What inhibits a switch, by the files of two systems."""

from __future__ import annotations

import pytest

from nixa_tasks.deploy.inhibitors import changed, inhibitors

OLD = "/nix/store/" + "a" * 32
NEW = "/nix/store/" + "b" * 32


def test_the_file_of_a_system_is_a_json_object() -> None:
    assert inhibitors('{"dbus": "broker", "systemd": "258"}') == {"dbus": "broker", "systemd": "258"}


def test_the_file_of_an_earlier_system_holds_store_paths() -> None:
    text = f"{OLD}-systemd-257.6\n{OLD}-dbus-implementation"
    assert inhibitors(text) == {
        "systemd": f"{OLD}-systemd-257.6",
        "dbus-implementation": f"{OLD}-dbus-implementation",
    }


@pytest.mark.parametrize("text", ["", "[]", "7", "null", "no path", '{"dbus":'])
def test_what_is_neither_inhibits_nothing(text: str) -> None:
    assert inhibitors(text) == {}


def test_only_names_of_both_systems_count() -> None:
    running = {"dbus": "dbus", "systemd": "257", "gone": "1", "same": "1"}
    new = {"dbus": "broker", "systemd": "258", "added": "1", "same": "1"}
    assert changed(running, new) == ("dbus", "systemd")


def test_another_version_of_a_store_path_counts() -> None:
    assert changed(inhibitors(f"{OLD}-systemd-257.6"), inhibitors(f"{NEW}-systemd-258.1")) == ("systemd",)
