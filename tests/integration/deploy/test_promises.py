"""Promises whose worst case is a wrong disk or a false word: each of them once on a practice machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nixa_tasks.lab import Lab
from nixa_tasks.lab.machine import Machine
from tests.integration.deploy.background import Background, wait_until
from tests.integration.deploy.conftest import Fleet

pytestmark = [pytest.mark.lab, pytest.mark.xdist_group("promises")]

HIDE = """
mkdir -p /run/hidden
mv /run/current-system /run/hidden/
mv /etc/NIXOS /run/hidden/ 2>/dev/null
cp /etc/os-release /run/hidden/os-release
echo ID=debian >/etc/os-release
"""
SHOW = """
mv /run/hidden/current-system /run/current-system
mv /run/hidden/NIXOS /etc/ 2>/dev/null
cat /run/hidden/os-release >/etc/os-release
rm -f /etc/initrd-release
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One machine, installed once for this module."""
    place = tmp_path_factory.mktemp("promises")
    with Lab(place / "lab", boot_delay=0.1, kexec_delay=0) as lab:
        lab.up(1)
        fleet = Fleet(lab, place / "home")
        fleet.doit("deploy")
        yield fleet


@pytest.fixture
def machine(installed: Fleet) -> Machine:
    return installed.lab.machines["web1"]


def shell(machine: Machine, script: str) -> str:
    return machine.exec(["sh", "-c", script]).stdout


def receipt(machine: Machine) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(machine.exec(["cat", "/var/lib/nixa/receipt.json"]).stdout)
    return found


def clone(installed: Fleet, place: Path) -> Path:
    """Another controller's checkout, which remembers nothing."""
    shutil.copytree(installed.flake, place, ignore=shutil.ignore_patterns(".nixa"), symlinks=True)
    return place


def deploy(installed: Fleet, project: Path, message: str) -> Background:
    (project / "hosts/web1.nix").write_text(f'{{ message = "{message}"; }}\n')
    environment, output = installed.environment(), project.parent / f"said-{message}"
    return Background.begin(project, environment, "-a", "deploy:web1", output=output)


def test_a_nixos_that_waits_in_its_initrd_is_not_installed(
    installed: Fleet, machine: Machine, tmp_path: Path
) -> None:
    """Also where nobody remembers it, as on a fresh CI runner."""
    shell(machine, HIDE + "touch /etc/initrd-release")
    try:
        run = deploy(installed, clone(installed, tmp_path / "flake"), "initrd")
        assert run.end() == 1
    finally:
        shell(machine, SHOW)
    assert "it waits in its initrd" in run.said
    assert machine.wipes() == 1


def test_a_nixos_below_a_rescue_system_is_not_installed(
    installed: Fleet, machine: Machine, tmp_path: Path
) -> None:
    shell(machine, HIDE)
    try:
        fresh = deploy(installed, clone(installed, tmp_path / "flake"), "rescue")
        assert fresh.end() == 1
        remembered = installed.doit("-a", "deploy:web1", status=1)
    finally:
        shell(machine, SHOW)
    assert "has a NixOS on its disk" in fresh.said
    assert "its receipt says that it did" in remembered
    assert all("doit reinstall:web1" in said for said in (fresh.said, remembered))
    assert machine.wipes() == 1


def test_a_decision_that_went_stale_before_the_lock_is_made_again(
    installed: Fleet, machine: Machine, tmp_path: Path
) -> None:
    """Two decide to install; one of them does while the other still builds."""
    machine.reset()
    one, two = (clone(installed, tmp_path / name / "flake") for name in ("one", "two"))
    slow = deploy(installed, one, "slow")
    slow.await_step("build")
    slow.signal(signal.SIGSTOP)
    quick = deploy(installed, two, "quick")
    assert quick.end() == 0, quick.said
    slow.signal(signal.SIGCONT)
    assert slow.end() == 0, slow.said
    assert machine.wipes() == 1
    assert receipt(machine)["mode"] == "switch"


def test_a_controller_that_slept_through_its_lock_notices_before_it_changes_anything(
    installed: Fleet, machine: Machine, tmp_path: Path
) -> None:
    one, two = (clone(installed, tmp_path / name / "flake") for name in ("one", "two"))
    asleep = deploy(installed, one, "asleep")
    asleep.await_step("copy")
    asleep.signal(signal.SIGSTOP)
    awake = deploy(installed, two, "awake")
    assert awake.end() == 0, awake.said
    before = machine.current_system()
    asleep.signal(signal.SIGCONT)
    assert asleep.end() == 1
    assert "the host's lock was lost" in asleep.said
    assert machine.current_system() == before == receipt(machine)["out"]


def test_what_runs_but_does_not_boot_is_not_current(
    installed: Fleet, machine: Machine, tmp_path: Path
) -> None:
    """Somebody has tried the wanted system by `nixos-rebuild test`."""
    project = clone(installed, tmp_path / "flake")
    for message in ("first", "second"):
        assert (run := deploy(installed, project, message)).end() == 0, run.said
    second = machine.current_system()
    first = shell(
        machine, "readlink -f $(ls -d /nix/var/nix/profiles/system-*-link | sort -V | tail -n 2 | head -n 1)"
    )
    shell(machine, f"{first.strip()}/bin/switch-to-configuration test")
    assert machine.current_system() == first.strip() != second
    again = deploy(installed, project, "first")
    assert again.end() == 0, again.said
    assert "set to boot into another system" in again.said
    assert shell(machine, "readlink -f /nix/var/nix/profiles/system") == first
    machine.power_cycle()
    assert machine.current_system() == first.strip()


def test_a_switch_is_what_boots_next_only_once_it_is_confirmed(
    installed: Fleet, machine: Machine, tmp_path: Path
) -> None:
    before = machine.current_system()
    run = deploy(installed, clone(installed, tmp_path / "flake"), "unconfirmed")
    wait_until(lambda: machine.current_system() not in (None, before), "activated")
    run.signal(signal.SIGKILL)
    machine.power_cycle()
    run.end()
    assert machine.current_system() == before


def test_a_rollback_that_fails_is_called_that(installed: Fleet, machine: Machine, tmp_path: Path) -> None:
    before = str(machine.current_system())
    script = f"{before}/bin/switch-to-configuration"
    kept = shell(machine, f"cat {script}")
    shell(
        machine,
        f"chmod u+w {before}/bin {script}; printf '#!/bin/sh\\nexit 1\\n' >{script}; chmod 555 {script}",
    )
    project = clone(installed, tmp_path / "flake")
    (project / "hosts/web1.nix").write_text('{ message = "stuck"; activation = "fail"; }\n')
    run = Background.begin(project, installed.environment(), "deploy:web1", output=tmp_path / "said")
    status = run.end()
    machine.exec(["sh", "-c", f"chmod u+w {script}; cat >{script}; chmod 555 {script}"], input=kept)
    assert status == 1
    assert "failed: could not roll back" in run.said
    live = machine.current_system()
    here = json.loads((project / ".nixa/hosts/web1/deployed.json").read_text())
    assert live != before
    assert receipt(machine) == here
    assert (here["outcome"], here["out"]) == ("failed", live)
    machine.power_cycle()
    assert machine.current_system() == before, "what boots was never changed"
    healed = deploy(installed, project, "healed")
    assert healed.end() == 0, healed.said


@pytest.mark.parametrize("sink", ["closed pipe", "/dev/full"])
def test_no_host_depends_on_anybody_reading(
    installed: Fleet, machine: Machine, sink: str, tmp_path: Path
) -> None:
    project = clone(installed, tmp_path / "flake")
    (project / "hosts/web1.nix").write_text(f'{{ message = "unread, {sink}"; }}\n')
    before = machine.current_system()
    if sink == "/dev/full":
        stream: Any = os.open(sink, os.O_WRONLY)
    else:
        reader, stream = os.pipe()
        os.close(reader)
    child = subprocess.Popen(
        (sys.executable, "-m", "doit", "deploy:web1"), cwd=project, env=installed.environment(),
        stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
    )  # fmt: skip
    os.close(stream)
    child.wait(120)
    assert machine.current_system() != before
    assert receipt(machine)["outcome"] == "done"
    time.sleep(0.1)
