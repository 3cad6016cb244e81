"""Waves on practice machines: a failed one stops the rest and takes its own back; on_finish hears of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration.deploy.conftest import Fleet

pytestmark = pytest.mark.lab

FLEET_KEYS = """[fleet]
waves = [["web1", "web2"], ["web3"]]
rollback_wave = true
copy_jobs = 1
on_finish = ["{}"]"""
CHECK = """[defaults]
confirm_timeout = 10
checks = [{ command = "! grep -qs broken /run/current-system/etc/lab-message /etc/lab-message", retries = 0 }]"""


def arrange(fleet: Fleet) -> Path:
    """Waves, a check that a system can fail, and where on_finish leaves what it was given."""
    fleet.home.mkdir()
    notify, told = fleet.home / "notify", fleet.home / "told.json"
    notify.write_text(f'#!/bin/sh\ncat >"{told}"; echo heard; exit $(cat "{fleet.home}/status")\n')
    notify.chmod(0o755)
    (fleet.home / "status").write_text("0")
    manifest = fleet.flake / "hosts.toml"
    text = manifest.read_text().replace("[fleet]", FLEET_KEYS.format(notify))
    manifest.write_text(text.replace("[defaults]", CHECK))
    return told


def heard(told: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """What on_finish was given, and the hosts' outcomes in it; the next run starts afresh."""
    document = json.loads(told.read_text())
    told.unlink()
    return document, {row["host"]: row["outcome"] for row in document["hosts"]}


def turns(fleet: Fleet) -> dict[str, tuple[int, int]]:
    """Where in the last run's journal each host's deploy begins and ends."""
    events = [json.loads(line) for line in (fleet.flake / ".nixa/journal.jsonl").read_text().splitlines()]
    found: dict[str, tuple[int, int]] = {}
    for number, event in enumerate(events):
        if event["run"] == events[-1]["run"] and event["step"] == "deploy" and event["event"] != "note":
            begin = number if event["event"] == "begin" else found[event["host"]][0]
            found[event["host"]] = (begin, number)
    return found


def most_copies(fleet: Fleet) -> int:
    """How many closures were on their way at the same time, at most."""
    running, most = 0, 0
    for line in (fleet.flake / ".nixa/journal.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["step"] in ("copy", "copy disko") and event["event"] != "note":
            running += 1 if event["event"] == "begin" else -1
            most = max(most, running)
    return most


def test_a_failed_wave_holds_the_next_takes_its_own_back_and_is_finished_later(fleet: Fleet) -> None:
    told = arrange(fleet)
    machines = fleet.lab.machines
    fleet.change("web3", '{ message = "broken"; }\n')
    fleet.doit("deploy", status=1)
    document, outcomes = heard(told)
    assert outcomes == {"web1": "installed", "web2": "installed", "web3": "failed"}
    assert document["exit_status"] == 1
    assert [row["wave"] for row in document["hosts"]] == [1, 1, 2]
    order = turns(fleet)
    assert order["web3"][0] > max(order["web1"][1], order["web2"][1])
    assert most_copies(fleet) == 1, "copy_jobs = 1"

    said = fleet.doit("deploy:web3", status=1)
    assert "verify: it failed to deploy last time" in said
    assert "check failed" in said, "what it runs has never passed its checks"
    assert heard(told)[1] == {"web3": "failed"}

    before = {name: machine.current_system() for name, machine in machines.items()}
    contacts = fleet.contacts()
    for name, message in {"web1": "broken", "web2": "new", "web3": "new"}.items():
        fleet.change(name, f'{{ message = "{message}"; }}\n')
    said = fleet.doit("deploy", status=1)
    assert fleet.contacts()["web3"] == contacts["web3"], "the wave behind is not even contacted"
    assert "web3: deploy: not started: wave 1 failed (web1)" in said
    assert {name: machine.current_system() for name, machine in machines.items()} == before
    receipt = json.loads(machines["web2"].exec(["cat", "/var/lib/nixa/receipt.json"]).stdout)
    assert (receipt["mode"], receipt["outcome"]) == ("rollback", "done")
    document, outcomes = heard(told)
    assert outcomes == {"web1": "failed", "web2": "rolled back", "web3": "not started"}
    assert document["exit_status"] == 1
    assert {row["host"]: row["out"] for row in document["hosts"]} == before | {"web3": None}
    assert all(row["wanted"] not in (None, row["out"]) for row in document["hosts"])

    fleet.change("web1", '{ message = "mended"; }\n')
    fleet.doit("deploy")
    assert heard(told)[1] == dict.fromkeys(("web1", "web2", "web3"), "switched")
    order = turns(fleet)
    assert order["web3"][0] > max(order["web1"][1], order["web2"][1])
    assert "nothing to do" in fleet.doit("deploy")
    fleet.doit("plan")
    assert not told.exists(), "nothing happened, so nothing is told"

    (fleet.home / "status").write_text("7")
    said = fleet.doit("rollback:web2", status=1)
    assert "on_finish: ended with status 7" in said
    assert "    | heard" in said
    assert machines["web2"].current_system() == before["web2"], "what is done is done"
    assert heard(told)[0]["exit_status"] == 0, "as it stood before"
