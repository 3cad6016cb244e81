"""The main job, on practice machines: installed, found current, switched, taken back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from nixa_tasks.lab import Lab
from tests.integration.deploy.conftest import Fleet

pytestmark = pytest.mark.lab


def wanted(fleet: Fleet, host: str) -> str:
    value = json.loads((fleet.flake / ".nixa/hosts" / host / "output.json").read_text())
    return str(value["toplevel"]["out"])


def gets(fleet: Fleet) -> int:
    return sum(1 for one in fleet.lab.requests() if one["method"] == "GET")


def test_old_linuxes_become_nixos_and_stay_alone_afterwards(fleet: Fleet) -> None:
    """One download for three installations; then nothing is asked until something changes."""
    fleet.doit("deploy")
    for name, machine in fleet.lab.machines.items():
        assert machine.stage == "installed"
        assert machine.current_system() == wanted(fleet, name)
        assert machine.wipes() == 1
        there = json.loads(machine.exec(["cat", "/var/lib/nixa/receipt.json"]).stdout)
        here = json.loads((fleet.flake / ".nixa/hosts" / name / "deployed.json").read_text())
        assert there == here
        assert here["mode"] == "install"
        assert here["outcome"] == "done"
    assert gets(fleet) == 1

    before = fleet.contacts()
    assert "nothing to do" in fleet.doit("deploy")
    (fleet.flake / "flake.nix").touch()
    (fleet.flake / "untracked").write_text("x")
    with (fleet.flake / "hosts.toml").open("a") as file:
        file.write("\n# a comment in a tracked file\n")
    assert "nothing to do" in fleet.doit("deploy")
    assert fleet.contacts() == before

    fleet.change("web2", '{ message = "changed"; }\n')
    fleet.doit("deploy")
    after = fleet.contacts()
    assert {name for name in after if after[name] != before[name]} == {"web2"}
    assert fleet.lab.machines["web2"].current_system() == wanted(fleet, "web2")
    assert fleet.lab.machines["web2"].wipes() == 1

    shutil.rmtree(fleet.flake / ".nixa")
    said = fleet.doit("deploy")
    assert said.count("current") >= 3
    assert all(machine.wipes() == 1 for machine in fleet.lab.machines.values())
    assert gets(fleet) == 1

    earlier = json.loads(fleet.doit("history:web2", "--json"))["deploys"][0]["out"]
    fleet.doit("rollback:web2")
    assert fleet.lab.machines["web2"].current_system() == earlier


def test_a_machine_that_is_away_stops_nobody_else(fleet: Fleet) -> None:
    fleet.lab.machines["web3"].fault("unreachable")
    said = fleet.doit("deploy", status=1)
    assert [machine.stage for machine in fleet.lab.machines.values()] == ["installed", "installed", "old"]
    assert "web3" in said


def test_the_plain_form_leaves_the_kexec_to_nixos_anywhere(tmp_path: Path, home: Path) -> None:
    """Its once-a-second poll must see the machine down, so this one takes longer to boot."""
    lab = Lab(tmp_path / "lab", boot_delay=4)
    try:
        lab.up(1)
        fleet = Fleet(lab, home)
        manifest = fleet.flake / "hosts.toml"
        manifest.write_text(
            manifest.read_text().replace("[fleet]", '[fleet]\nkexec_phase = "nixos-anywhere"')
        )
        fleet.doit("deploy:web1", timeout=120)
        assert lab.machines["web1"].stage == "installed"
        assert lab.machines["web1"].current_system() == wanted(fleet, "web1")
    finally:
        lab.down()
