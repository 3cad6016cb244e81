"""How a change takes effect: built on the host, at the next boot, by a boot that nixa watches."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nixa_tasks.lab import Lab
from nixa_tasks.lab.machine import Machine
from tests.integration.deploy.conftest import Fleet

pytestmark = [pytest.mark.lab, pytest.mark.xdist_group("modes")]

KEYS = {
    "web1": 'mode = "boot"\nreboot = true\nconfirm_timeout = 8\nchecks = [{ command = "[ ! -e /bad ]", retries = 0 }]',
    "web2": 'mode = "boot"',
    "web3": 'build_on = "remote"\nhardware = "hosts/web3/facter.json"',
}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Three installed machines, each with keys of its own."""
    folder = tmp_path_factory.mktemp("modes")
    lab = Lab(folder / "lab")
    try:
        lab.up(3)
        fleet = Fleet(lab, folder / "home")
        manifest = fleet.flake / "hosts.toml"
        text = manifest.read_text()
        for name, keys in KEYS.items():
            text = text.replace(f"[hosts.{name}]", f"[hosts.{name}]\n{keys}")
        manifest.write_text(text)
        fleet.doit("deploy")
        yield fleet
    finally:
        lab.down()


def receipt(fleet: Fleet, host: str) -> dict[str, Any]:
    """The host's own receipt, which must be the one that is remembered here."""
    there = json.loads(fleet.lab.machines[host].exec(["cat", "/var/lib/nixa/receipt.json"]).stdout)
    here = receipt_here(fleet, host)
    assert there == here
    return here


def receipt_here(fleet: Fleet, host: str) -> dict[str, Any]:
    return dict(json.loads((fleet.flake / ".nixa/hosts" / host / "deployed.json").read_text()))


def states(fleet: Fleet, *options: str) -> dict[str, str]:
    """Of the hosts web1 and web2."""
    rows = json.loads(fleet.doit("status", "--on", "web1 or web2", "--json", *options))["hosts"]
    return {row["host"]: row["state"] for row in rows}


def profile(machine: Machine) -> str:
    return machine.exec(["readlink", "-f", "/nix/var/nix/profiles/system"]).stdout.strip()


def test_a_watched_first_boot_is_confirmed_or_undone(fleet: Fleet) -> None:
    web1 = fleet.lab.machines["web1"]
    first, boots = web1.current_system(), web1.boots
    fleet.change("web1", '{ message = "second"; }\n')
    assert "not watched" not in fleet.doit("plan", "--on", "web1")
    assert "booted" in fleet.doit("deploy:web1")
    second = web1.current_system()
    assert second != first
    assert web1.boots == boots + 1
    assert profile(web1) == second
    told = receipt(fleet, "web1")
    assert (told["mode"], told["outcome"], told["out"]) == ("boot", "done", second)
    assert "nothing to do" in fleet.doit("deploy:web1")

    fleet.change("web1", '{ message = "bad"; activation = "panic"; }\n')
    said = fleet.doit("deploy:web1", status=1)
    assert "did not boot" in said
    assert web1.boots == boots + 3
    assert web1.current_system() == profile(web1) == second
    told = receipt(fleet, "web1")
    assert (told["outcome"], told["out"]) == ("rolled-back", second)
    assert states(fleet)["web1"] == "held"


def test_a_system_that_boots_and_fails_its_checks_is_left_by_another_boot(fleet: Fleet) -> None:
    """Also where no boot loader can boot a system once: then the new one is the default meanwhile."""
    web1 = fleet.lab.machines["web1"]
    good, boots = web1.current_system(), web1.boots
    fleet.change("web1", '{ message = "unhealthy"; }\n')
    web1.exec(["sh", "-c", "touch /bad; rm /usr/bin/bootctl"])  # the next boot has it again
    said = fleet.doit("deploy:web1", status=1)
    assert "not watched" in said
    assert "check failed" in said
    assert "rolled back" in said
    assert web1.boots == boots + 2
    assert web1.current_system() == profile(web1) == good
    told = receipt(fleet, "web1")
    assert (told["outcome"], told["out"]) == ("rolled-back", good)
    web1.exec(["rm", "/bad"])


def test_a_power_cycle_leads_back_from_a_system_that_stays_away(fleet: Fleet) -> None:
    web1 = fleet.lab.machines["web1"]
    good, boots = web1.current_system(), web1.boots

    def cut_power() -> None:
        until = time.monotonic() + 100
        while web1.boots == boots or not web1.is_up:
            if time.monotonic() > until:
                return
            time.sleep(0.05)
        web1.power_cycle()

    person = threading.Thread(target=cut_power)
    person.start()
    fleet.change("web1", '{ message = "silent"; activation = "break-network"; }\n')
    said = fleet.doit("deploy:web1", status=1)
    person.join()
    assert "rolled back" in said
    assert web1.current_system() == profile(web1) == good
    assert receipt(fleet, "web1")["outcome"] == "rolled-back"


def test_a_machine_that_does_not_come_back_is_told_with_a_way_out(fleet: Fleet) -> None:
    web1 = fleet.lab.machines["web1"]
    good = web1.current_system()
    web1.fault("boot-fails")
    fleet.change("web1", '{ message = "fourth"; }\n')
    manifest = fleet.flake / "hosts.toml"
    patient = manifest.read_text()
    manifest.write_text(patient.replace("[hosts.web1]", "[hosts.web1]\ninstall_timeout = 4"))
    said = fleet.doit("deploy:web1", status=1)
    manifest.write_text(patient)
    assert "last seen" in said
    assert "cut its power" in said
    assert receipt_here(fleet, "web1")["outcome"] == "failed"
    web1.clear()
    web1.power_cycle()
    assert web1.current_system() == profile(web1) == good


def test_a_boot_whose_controller_died_is_confirmed_by_the_next_deploy(fleet: Fleet) -> None:
    web1 = fleet.lab.machines["web1"]
    good, boots = web1.current_system(), web1.boots
    fleet.change("web1", '{ message = "fifth"; }\n')
    child = subprocess.Popen(
        (sys.executable, "-m", "doit", "deploy:web1"),
        cwd=fleet.flake, env=fleet.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        web1.wait(lambda: web1.boots > boots, "restart")
    finally:
        child.kill()
        child.wait()
    web1.wait(lambda: web1.is_up, "boot")
    new = web1.current_system()
    assert new != good == profile(web1), "the next restart would lead back"
    assert states(fleet, "--live")["web1"] == "unconfirmed"
    assert "confirmed" in fleet.doit("deploy:web1")
    assert web1.boots == boots + 1
    assert web1.current_system() == profile(web1) == new
    assert receipt(fleet, "web1")["outcome"] == "done"


def test_without_a_reboot_the_system_waits_for_the_next_one(fleet: Fleet) -> None:
    web2 = fleet.lab.machines["web2"]
    old, boots = web2.current_system(), web2.boots
    fleet.change("web2", '{ message = "later"; }\n')
    assert "not watched: reboot = false" in fleet.doit("plan", "--on", "web2")
    assert "pending" in fleet.doit("deploy:web2")
    new = profile(web2)
    assert (web2.current_system(), web2.boots) == (old, boots)
    assert new != old
    told = receipt(fleet, "web2")
    assert (told["mode"], told["outcome"], told["out"], told["wanted"]) == ("boot", "done", old, new)
    assert "next restart" in fleet.doit("status", "--on", "web2", "--live")
    assert states(fleet)["web2"] == "pending"
    before = web2.contacts()
    assert "nothing to do" in fleet.doit("deploy:web2")
    assert web2.contacts() == before
    assert "pending" in fleet.doit("-a", "deploy:web2")
    assert profile(web2) == new

    fleet.doit("rollback:web2")
    assert profile(web2) == web2.current_system() == old
    assert "pending" in fleet.doit("deploy:web2")
    web2.exec(["reboot"])
    web2.wait(lambda: web2.boots == boots + 1 and web2.is_up, "reboot")
    assert web2.current_system() == new
    assert states(fleet, "--live")["web2"] == "current"
    fleet.change("web2", '{ message = "later still"; }\n')
    assert "other means" not in fleet.doit("deploy:web2")


def test_a_host_builds_its_own_system(fleet: Fleet) -> None:
    web3 = fleet.lab.machines["web3"]
    fleet.change("web3", '{ message = "built there"; }\n')
    said = fleet.doit("deploy:web3")
    assert "remote build" in said
    assert "switched" in said
    output = json.loads((fleet.flake / ".nixa/hosts/web3/output.json").read_text())["toplevel"]["out"]
    assert web3.current_system() == output
    assert not Path(output).exists(), "no closure here"
    assert receipt(fleet, "web3")["outcome"] == "done"

    fleet.change("web3", '{ message = "built ahead"; }\n')
    fleet.doit("build:web3")
    output = json.loads((fleet.flake / ".nixa/hosts/web3/output.json").read_text())["toplevel"]["out"]
    assert web3.exec(["readlink", "/nix/var/nix/gcroots/nixa-built"]).stdout.strip() == output
    assert web3.exec(["test", "-e", output]).returncode == 0
    assert web3.current_system() != output


def test_the_hardware_report_is_written_once_and_only_whole(fleet: Fleet) -> None:
    web3, report = fleet.lab.machines["web3"], fleet.flake / "hosts/web3/facter.json"
    assert "nixos-facter" in fleet.doit("hardware:web3", status=1)
    tool = "/usr/local/bin/nixos-facter"
    web3.exec(["sh", "-c", f"printf '#!/bin/sh\\necho half; exit 3\\n' >{tool}; chmod 755 {tool}"])
    fleet.doit("hardware:web3", status=1)
    assert not report.exists()
    web3.exec(["ln", "-sf", "/run/lab/fw/nixos-facter", tool])
    assert "git add" in fleet.doit("hardware:web3")
    assert json.loads(report.read_text())["hostname"] == "web3"
    written = report.stat().st_mtime_ns
    assert "as it was" in fleet.doit("hardware:web3")
    assert report.stat().st_mtime_ns == written
    assert fleet.doit("hardware:web1", status=3)
