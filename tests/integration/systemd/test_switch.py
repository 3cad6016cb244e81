"""A switch on a real systemd: the guard in its transient unit, and units that start, fail and are slow."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from tests.integration.systemd.conftest import Site

pytestmark = [pytest.mark.lab, pytest.mark.xdist_group("systemd")]

GOOD = "[Service]\nType=exec\nExecStart=/bin/sleep infinity\n"
FAILING = "[Service]\nType=oneshot\nExecStart=/bin/sh -c 'echo the disk is on fire; exit 7'\n"
STUBBORN = "[Service]\nType=exec\nTimeoutStopSec=4\nExecStart=/bin/sh -c 'trap \"\" TERM; while :; do sleep 1; done'\n"
KEEP_NETWORK = "systemctl start ssh systemd-networkd"


def receipt(site: Site) -> dict[str, object]:
    found: dict[str, object] = json.loads(site.machine.ssh("cat /var/lib/nixa/receipt.json").stdout)
    return found


def test_a_new_unit_is_started_and_the_host_is_healthy(site: Site) -> None:
    site.configure(message="second", units={"toy.service": GOOD})
    site.declare(checks=[{"command": "test $(systemctl is-system-running) = running"}])
    site.doit("deploy:web1")
    assert site.machine.current_system() == site.built()
    assert site.machine.unit("toy.service") == "active"
    assert receipt(site)["outcome"] == "done"


@pytest.mark.parametrize(
    "disturbance",
    [
        pytest.param("systemctl daemon-reexec", id="daemon-reexec"),
        pytest.param("systemctl restart ssh", id="sshd"),
        pytest.param("systemctl restart systemd-networkd", id="networkd"),
        # systemd-logind of newer versions does not find a new dbus by itself, and logins then wait for it.
        pytest.param("systemctl restart dbus; systemctl restart systemd-logind", id="dbus"),
        pytest.param(
            "systemctl restart systemd-logind; loginctl terminate-user root", id="logind and its sessions"
        ),
    ],
)
def test_the_guard_outlives_what_an_activation_does_to_the_machine(site: Site, disturbance: str) -> None:
    site.configure(message="second", activation=f"{disturbance} || :; sleep 1")
    site.doit("deploy:web1")
    assert site.machine.current_system() == site.built()
    assert receipt(site)["outcome"] == "done"


def test_the_guard_runs_in_a_unit_outside_of_the_login(site: Site) -> None:
    script = "for p in $(pgrep -f guard.sh); do grep ^0:: /proc/$p/cgroup; done >/run/guard-cgroup"
    site.configure(message="second", activation=script)
    site.doit("deploy:web1")
    seen = site.machine.ssh("cat /run/guard-cgroup").stdout
    assert "/system.slice/nixa-switch-" in seen
    assert "user.slice" not in seen


def test_a_failed_unit_is_rolled_back(site: Site) -> None:
    before = site.machine.current_system()
    site.configure(message="second", units={"toy.service": FAILING})
    output = site.doit("deploy:web1", status=1)
    assert "rolled back: units failed (status 4): toy.service" in output
    assert "the disk is on fire" in output
    assert site.machine.current_system() == before
    assert site.machine.unit("toy.service", "LoadState") == "not-found"
    assert site.machine.ssh("systemctl is-system-running").stdout.strip() == "running"
    assert receipt(site)["outcome"] == "rolled-back"


@pytest.mark.parametrize(
    ("configuration", "words"),
    [
        pytest.param({"status": 1}, "switch-to-configuration refused to start (status 1)", id="1"),
        pytest.param({"activation": "false"}, "the activation script failed (status 2)", id="2"),
        pytest.param({"status": 3}, "systemd could not reload its configuration (status 3)", id="3"),
        pytest.param({"init": 3}, "incompatible with the running one, so that it needs a reboot", id="100"),
        pytest.param({"status": 101}, "switch-to-configuration crashed (status 101)", id="101"),
    ],
)
def test_other_bad_statuses_are_rolled_back_and_explained(
    site: Site, configuration: dict[str, object], words: str
) -> None:
    before = site.machine.current_system()
    site.configure(message="second", **configuration)
    output = site.doit("deploy:web1", status=1)
    assert f"rolled back: {words}" in output or words in output
    assert site.machine.current_system() == before
    assert receipt(site)["outcome"] == "rolled-back"


def test_failed_units_may_be_kept_and_are_confirmed_once_repaired(site: Site) -> None:
    site.configure(message="second", units={"toy.service": FAILING, "good.service": GOOD})
    site.declare(on_failed_units="keep")
    output = site.doit("deploy:web1", status=1)
    assert "units failed (status 4): toy.service; the new system stays" in output
    assert "the disk is on fire" in output
    assert site.machine.current_system() == site.built()
    assert site.machine.unit("good.service") == "active"
    assert site.machine.ssh("readlink -f /nix/var/nix/profiles/system").stdout.strip() == site.built()
    kept = receipt(site)
    assert (kept["outcome"], kept["out"]) == ("failed", site.built())
    site.machine.ssh("systemctl reset-failed toy.service")
    site.doit("deploy:web1")
    assert receipt(site)["outcome"] == "done"


def test_a_service_that_is_slow_to_stop_is_waited_for(site: Site) -> None:
    site.configure(message="second", units={"toy.service": STUBBORN})
    site.doit("deploy:web1")
    site.configure(message="third", units={"toy.service": GOOD})
    site.doit("deploy:web1")
    assert site.machine.current_system() == site.built()
    assert site.machine.unit("toy.service") == "active"


def test_a_system_without_sshd_is_rolled_back_by_the_host_itself(site: Site) -> None:
    site.configure(message="first", activation=KEEP_NETWORK)
    site.doit("deploy:web1")
    before = site.machine.current_system()
    site.configure(message="second", activation="systemctl stop ssh")
    site.doit("deploy:web1", status=1)
    assert site.machine.current_system() == before
    assert receipt(site)["outcome"] == "rolled-back"


def test_a_controller_that_dies_leaves_the_host_to_roll_back(site: Site) -> None:
    before = site.machine.current_system()
    site.configure(message="second", activation=": >/run/activating; sleep 2")
    site.machine.ssh("rm -f /run/activating")
    started = subprocess.Popen(
        (sys.executable, "-m", "doit", "deploy:web1"), cwd=site.flake, env=site.environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    site.machine.wait(
        lambda: site.machine.ssh("test -e /run/activating", check=False).returncode == 0, "a switch"
    )
    os.killpg(started.pid, signal.SIGKILL)
    started.wait(timeout=30)
    site.machine.wait(lambda: receipt(site)["outcome"] == "rolled-back", "the way back", seconds=120)
    assert site.machine.current_system() == before


def test_a_reboot_by_systemd_brings_the_new_system(site: Site) -> None:
    boot_id = site.machine.boot_id
    site.configure(message="second", units={"toy.service": GOOD})
    site.declare(mode="boot", reboot=True)
    site.doit("deploy:web1")
    assert site.machine.boot_id != boot_id
    assert site.machine.current_system() == site.built()
    assert receipt(site)["outcome"] == "done"
