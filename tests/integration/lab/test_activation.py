"""What an installed practice machine does when a bad configuration is activated, and how it heals."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from nixa_tasks.lab import Lab, Machine, Stage

pytestmark = [
    pytest.mark.lab,
    pytest.mark.xdist_group("lab-activation"),
    pytest.mark.skipif(os.geteuid() != 0, reason="the lab needs root"),
]


@dataclass(frozen=True)
class Installed:
    """A lab whose one machine runs `good`."""

    lab: Lab
    good: str

    @property
    def machine(self) -> Machine:
        return self.lab.machines["web1"]

    def system(self, activation: str) -> str:
        """A system with this fault, in the machine's store."""
        host = self.lab.flake / "hosts/web1.nix"
        host.write_text(f'{{\n  message = "bad";\n  activation = "{activation}";\n}}\n')
        built = _built(self.lab, "toplevel")
        _copy(self.lab, self.machine, built)
        return built

    def switch(self, system: str, deadline: float = 20) -> subprocess.CompletedProcess[str]:
        profile = "/nix/var/nix/profiles/system"
        command = f"nix-env -p {profile} --set {system} && exec {system}/bin/switch-to-configuration switch"
        return self.machine.exec(("sh", "-c", command), deadline=deadline)


def _built(lab: Lab, part: str) -> str:
    attribute = f"{lab.flake}#nixosConfigurations.web1.config.system.build.{part}"
    done = subprocess.run(
        ("nix", "build", "--json", "--no-link", attribute),
        env=lab.env(), capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return str(json.loads(done.stdout)[0]["outputs"]["out"])


def _copy(lab: Lab, machine: Machine, path: str, store: str = "/") -> None:
    """Over nix-store's own stream, without ssh."""
    closure = subprocess.run(
        ("nix-store", "-qR", path), env=lab.env(), capture_output=True, text=True, timeout=20, check=True
    ).stdout.split()
    stream = subprocess.run(
        ("nix-store", "--export", *closure), env=lab.env(), capture_output=True, timeout=20, check=True
    ).stdout
    done = machine.exec(("nix-store", "--store", f"local?root={store}", "--import"), input=stream)
    assert done.returncode == 0, done.stderr


def _banner(machine: Machine) -> bool:
    try:
        with socket.create_connection((machine.address, 22), timeout=0.5) as line:
            line.settimeout(0.5)
            return line.recv(4) == b"SSH-"
    except OSError:
        return False


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    with Lab(tmp_path_factory.mktemp("lab"), image_mb=1, boot_delay=0.05, kexec_delay=0.1) as lab:
        lab.up(1)
        machine = lab.machines["web1"]
        machine.exec(("tar", "-C", "/root", "-xzf", "-"), input=lab.image.read_bytes())
        machine.exec(("setsid", "--wait", "/root/kexec/run"))
        machine.wait_for(Stage.INSTALLER)
        disko, good = _built(lab, "diskoScript"), _built(lab, "toplevel")
        _copy(lab, machine, disko)
        assert machine.exec((disko,)).returncode == 0
        _copy(lab, machine, good, "/mnt")
        done = machine.exec(("nixos-install", "--no-root-passwd", "--no-channel-copy", "--system", good))
        assert done.returncode == 0, done.stderr
        machine.exec(("reboot",))
        machine.wait_for(Stage.INSTALLED)
        yield Installed(lab, good)


@pytest.fixture
def healthy(installed: Installed) -> Installed:
    """Before each test the good system runs, whatever the one before left."""
    assert installed.switch(installed.good).returncode == 0
    assert _banner(installed.machine)
    return installed


def test_a_failing_activation_says_so_and_has_switched(healthy: Installed) -> None:
    bad = healthy.system("fail")
    done = healthy.switch(bad)

    assert (done.returncode, "units failed" in done.stderr) == (4, True)
    assert healthy.machine.current_system() == bad
    assert healthy.machine.exec(("cat", "/etc/lab-message")).stdout == "bad\n"


@pytest.mark.parametrize("activation", ["break-network", "break-sshd"])
def test_a_system_that_locks_everyone_out_is_healed_by_the_one_before(
    healthy: Installed, activation: str
) -> None:
    healthy.switch(healthy.system(activation))
    assert not _banner(healthy.machine)

    assert healthy.switch(healthy.good).returncode == 0

    assert _banner(healthy.machine)
    assert healthy.machine.current_system() == healthy.good


@pytest.mark.parametrize("activation", ["break-network", "break-sshd"])
def test_a_system_that_locks_everyone_out_does_so_after_a_boot_too(
    healthy: Installed, activation: str
) -> None:
    healthy.switch(healthy.system(activation))
    healthy.machine.power_cycle()

    assert not _banner(healthy.machine)


def test_a_hanging_activation_hangs_before_anything_changed(healthy: Installed) -> None:
    bad = healthy.system("hang")
    with pytest.raises(subprocess.TimeoutExpired):
        healthy.switch(bad, deadline=1.5)

    assert healthy.machine.current_system() == healthy.good
    healthy.machine.exec(("sh", "-c", f"kill $(ps axo pid,args | awk '/{bad[11:30]}/ {{ print $1 }}')"))


def test_a_slow_activation_takes_its_time_and_works(healthy: Installed) -> None:
    bad = healthy.system("slow")
    begun = time.monotonic()
    assert healthy.switch(bad).returncode == 0

    assert time.monotonic() - begun > 4
    assert healthy.machine.current_system() == bad


def test_an_sshd_that_an_activation_started_outlives_it(healthy: Installed) -> None:
    healthy.machine.exec(("/run/lab/fw/stop-sshd", "all"))
    assert not _banner(healthy.machine)
    # What a dead-man's switch does when it ends an activation: its whole process group is killed.
    command = (
        f"setsid sh -c '{healthy.good}/bin/switch-to-configuration switch; sleep 60' & sleep 1; kill -9 -$!"
    )
    healthy.machine.exec(("bash", "-c", command))

    assert _banner(healthy.machine)


def test_test_and_dry_activate_leave_what_boots_next(healthy: Installed) -> None:
    other = healthy.system("")
    assert other != healthy.good
    script = f"{other}/bin/switch-to-configuration"
    assert "would" in healthy.machine.exec((script, "dry-activate")).stdout
    assert healthy.machine.current_system() == healthy.good
    assert healthy.machine.exec((script, "test")).returncode == 0
    assert healthy.machine.current_system() == other
    assert healthy.machine.exec((script, "nonsense")).returncode == 1
    healthy.machine.power_cycle()
    assert healthy.machine.current_system() == healthy.good


def test_a_full_disk_is_full_for_the_installed_system_and_can_be_emptied(healthy: Installed) -> None:
    write = ("sh", "-c", "head -c 1000000 /dev/zero >/root/in")
    healthy.machine.fault("disk-full")
    full = healthy.machine.exec(write)
    assert (full.returncode != 0, "No space left" in full.stderr) == (True, True), full
    healthy.machine.power_cycle()
    assert healthy.machine.exec(write).returncode != 0
    healthy.machine.clear()
    assert healthy.machine.exec(write).returncode == 0


def test_no_nix_holds_in_the_installed_system(healthy: Installed) -> None:
    healthy.machine.fault("no-nix")
    assert healthy.machine.exec(("nix", "--version")).returncode != 0
    healthy.machine.power_cycle()
    assert healthy.machine.exec(("nix", "--version")).returncode != 0
    healthy.machine.clear()
    assert healthy.machine.exec(("nix", "--version")).returncode == 0
