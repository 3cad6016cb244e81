"""Each fault does to a practice machine what its name says, and `clear` takes it back."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nixa_tasks.lab import ADMIN_PASSWORD, Lab, LabError, Machine, Stage

pytestmark = [
    pytest.mark.lab,
    pytest.mark.xdist_group("lab-faults"),
    pytest.mark.skipif(os.geteuid() != 0, reason="the lab needs root"),
]

_LOAD = "/root/kexec/kexec --load /root/kexec/bzImage --initrd=/root/kexec/initrd --command-line x"
_BANNER_SECONDS = 10.0
_RUN = "TMPDIR=/root/kexec setsid --wait /root/kexec/run"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp("lab"), image_mb=1, boot_delay=0.05, kexec_delay=0.1) as made:
        made.up(1)
        yield made


@pytest.fixture
def machine(lab: Lab) -> Machine:
    made = lab.machines["web1"]
    made.reset()
    return made


def _ssh(lab: Lab, machine: Machine, command: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    argv = (
        "ssh", "-F", "none", "-i", str(lab.identity), "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes",
        "-o", "UserKnownHostsFile=/dev/null", "-o", "StrictHostKeyChecking=no", "-o", "LogLevel=ERROR",
        "-o", "ConnectTimeout=2", f"root@{machine.address}", command,
    )  # fmt: skip
    return subprocess.run(argv, input=data, capture_output=True, timeout=60, check=False)


def _shown_key(machine: Machine) -> str:
    done = subprocess.run(
        ("ssh-keyscan", "-t", "ed25519", machine.address),
        capture_output=True, text=True, timeout=10, check=True,
    )  # fmt: skip
    return " ".join(done.stdout.split()[1:3])


def _connects(machine: Machine, seconds: float = 0.5) -> str:
    """How a connection goes: "banner", or the name of the error. A banner may take its time on a busy
    computer, so whoever awaits one asks with more `seconds`."""
    try:
        with socket.create_connection((machine.address, 22), timeout=seconds) as line:
            line.settimeout(seconds)
            return "banner" if line.recv(4) == b"SSH-" else "nothing"
    except OSError as error:
        return type(error).__name__


def _kexec(lab: Lab, machine: Machine) -> subprocess.CompletedProcess[str]:
    """Start the installer's image, without any network."""
    unpacked = machine.exec(("tar", "-C", "/root", "-xzf", "-"), input=lab.image.read_bytes())
    assert unpacked.returncode == 0, unpacked.stderr
    return machine.exec(("sh", "-c", _RUN))


def _to_installer(lab: Lab, machine: Machine) -> None:
    assert "machine will boot into nixos" in _kexec(lab, machine).stdout
    machine.wait_for(Stage.INSTALLER)


def test_unreachable_answers_nothing_until_cleared(machine: Machine) -> None:
    assert _connects(machine, _BANNER_SECONDS) == "banner"
    machine.fault("unreachable")
    assert _connects(machine) == "TimeoutError"
    machine.power_cycle()
    assert _connects(machine) == "TimeoutError", "it must hold for the next boot too"
    machine.clear()
    assert _connects(machine, _BANNER_SECONDS) == "banner"


def test_refuse_refuses_and_cuts_what_runs(lab: Lab, machine: Machine) -> None:
    with socket.create_connection((machine.address, 22), timeout=5) as running:
        assert running.recv(4) == b"SSH-"
        machine.fault("refuse")
        running.settimeout(5)
        rest = b"x"
        while rest:  # the rest of the banner and the key exchange, then the end
            try:
                rest = running.recv(4096)
            except ConnectionResetError:
                break
    assert _connects(machine) == "ConnectionRefusedError"
    machine.power_cycle()
    assert _connects(machine) == "ConnectionRefusedError"
    machine.clear()
    assert _ssh(lab, machine, "true").returncode == 0


def test_slow_limits_what_goes_in_and_comes_out(lab: Lab, machine: Machine) -> None:
    data = os.urandom(300_000)
    begun = time.monotonic()
    assert _ssh(lab, machine, "cat", data).stdout == data
    quick = time.monotonic() - begun
    machine.fault("slow", "2mbit")
    begun = time.monotonic()
    assert _ssh(lab, machine, "cat >/root/in", data).returncode == 0
    there = time.monotonic() - begun
    begun = time.monotonic()
    assert _ssh(lab, machine, "cat /root/in").stdout == data
    back = time.monotonic() - begun
    assert min(there, back) > 0.9, f"300 kB at 2 Mbit/s take 1.2 s, not {there:.2f} and {back:.2f}"
    machine.clear()
    begun = time.monotonic()
    assert _ssh(lab, machine, "cat", data).stdout == data
    assert time.monotonic() - begun < max(0.9, 3 * quick)


def test_a_rate_that_is_none_is_refused_and_not_kept(machine: Machine) -> None:
    with pytest.raises(LabError, match="slow"):
        machine.fault("slow", "fast")
    assert machine.faults() == {}


@pytest.mark.parametrize("command", ["reboot", "busybox reboot -f", f"{_LOAD} && /root/kexec/kexec -e"])
@pytest.mark.parametrize("is_silent", [False, True])
def test_silent_goes_down_without_closing_its_connections(
    lab: Lab, machine: Machine, command: str, is_silent: bool
) -> None:
    machine.exec(("tar", "-C", "/root", "-xzf", "-"), input=lab.image.read_bytes())
    if is_silent:
        machine.fault("silent")
    before = machine.boots
    with socket.create_connection((machine.address, 22), timeout=5) as line:
        while line.recv(4096)[-1:] != b"\n":  # the whole banner
            pass
        line.settimeout(2)
        machine.exec(("setsid", "sh", "-c", f"sleep 0.1; {command}"))
        machine.wait(lambda: machine.boots > before and machine.is_up, "back")
        if is_silent:
            with pytest.raises(TimeoutError):
                line.recv(1)
        else:
            with contextlib.suppress(ConnectionResetError):
                assert line.recv(1) == b""


def test_drop_after_cuts_an_upload_once(lab: Lab, machine: Machine) -> None:
    data = os.urandom(6 << 20)
    machine.fault("drop-after:2000000")
    cut = _ssh(lab, machine, "cat >/root/in", data)
    arrived = int(machine.exec(("stat", "-c", "%s", "/root/in")).stdout)

    assert cut.returncode == 255
    assert 1_000_000 < arrived < 4_000_000
    assert machine.faults() == {}
    assert _ssh(lab, machine, "cat >/root/in", data).returncode == 0


def test_kexec_fails_at_the_load_and_the_old_linux_runs_on(lab: Lab, machine: Machine) -> None:
    machine.fault("kexec-fails")
    before = machine.boot_id
    done = _kexec(lab, machine)

    assert done.returncode != 0
    assert "machine will boot into nixos" not in done.stdout
    assert "Operation not permitted" in done.stderr
    assert machine.boot_id == before
    machine.clear()
    _to_installer(lab, machine)


def test_kexec_hangs_never_comes_back(lab: Lab, machine: Machine) -> None:
    machine.fault("kexec-hangs")
    assert "machine will boot into nixos" in _kexec(lab, machine).stdout
    machine.wait_for(Stage.DARK)
    assert _connects(machine) == "TimeoutError"
    machine.power_cycle()
    assert machine.stage is Stage.OLD


def test_boot_fails_never_comes_back_after_a_reboot_but_after_a_kexec(lab: Lab, machine: Machine) -> None:
    machine.fault("boot-fails")
    _to_installer(lab, machine)
    machine.exec(("reboot",))
    machine.wait_for(Stage.DARK)
    machine.clear()
    machine.power_cycle()
    assert machine.stage is Stage.OLD


def test_new_hostkey_is_another_one_in_the_installer(lab: Lab, machine: Machine) -> None:
    machine.fault("new-hostkey")
    _to_installer(lab, machine)
    assert _shown_key(machine) not in {"", machine.host_key_public}


def test_installer_as_debian_lets_in_but_is_none(lab: Lab, machine: Machine) -> None:
    machine.fault("installer-as-debian")
    _to_installer(lab, machine)
    said = _ssh(lab, machine, "cat /etc/os-release").stdout
    assert b"ID=debian" in said
    assert b"installer" not in said


def test_install_fails_says_why_and_leaves_no_system(lab: Lab, machine: Machine) -> None:
    _to_installer(lab, machine)
    machine.fault("install-fails")
    done = machine.exec(("nixos-install", "--no-root-passwd", "--system", "/nix/store/x"))
    assert (done.returncode, "boot loader" in done.stderr) == (1, True)


@pytest.mark.parametrize("stage", [Stage.OLD, Stage.INSTALLER])
def test_disk_full_lets_nothing_be_written(lab: Lab, machine: Machine, stage: Stage) -> None:
    if stage is Stage.INSTALLER:
        _to_installer(lab, machine)
    machine.fault("disk-full")
    full = _ssh(lab, machine, "cat >/root/in", os.urandom(1 << 20))
    assert full.returncode != 0
    assert b"No space left" in full.stderr
    machine.clear()
    assert _ssh(lab, machine, "cat >/root/in", os.urandom(1 << 20)).returncode == 0


def test_low_memory_is_what_the_machine_says_of_itself(lab: Lab, machine: Machine) -> None:
    total = "awk '/^MemTotal/ { print $2 }' /proc/meminfo"
    before = int(_ssh(lab, machine, total).stdout)
    machine.fault("low-memory", "300")
    assert int(_ssh(lab, machine, total).stdout) == 300 << 10
    machine.power_cycle()
    assert int(_ssh(lab, machine, total).stdout) == 300 << 10
    machine.clear()
    assert int(_ssh(lab, machine, total).stdout) == before


def test_no_nix_holds_in_the_installer(lab: Lab, machine: Machine) -> None:
    machine.fault("no-nix")
    _to_installer(lab, machine)
    ask = "command -v nix nix-store nix-env nix-daemon"
    assert _ssh(lab, machine, f"{ask}; sh -c '{ask}'").stdout == b""
    machine.clear()
    assert _ssh(lab, machine, "nix --version").returncode == 0


@pytest.mark.skipif(shutil.which("sudo") is None, reason="there is no sudo on this computer")
def test_no_sudo_takes_it_away_and_gives_it_back(machine: Machine) -> None:
    ask = ("setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "sudo", "-n", "id", "-u")
    assert machine.exec(ask).stdout.strip() == "0"
    machine.fault("no-sudo")
    assert machine.exec(("sh", "-c", "command -v sudo")).returncode != 0
    machine.clear()
    assert machine.exec(ask).stdout.strip() == "0"


@pytest.mark.skipif(shutil.which("sudo") is None, reason="there is no sudo on this computer")
def test_sudo_password_makes_it_ask(machine: Machine) -> None:
    admin = ("setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "sudo")
    machine.fault("sudo-password")
    assert machine.exec((*admin, "-k", "-n", "true")).returncode != 0
    asked = (*admin, "-k", "-S", "-p", "", "id", "-u")
    assert machine.exec(asked, input=f"{ADMIN_PASSWORD}\n").stdout.strip() == "0"
    assert machine.exec(asked, input="wrong\n").returncode != 0
    machine.clear()
    assert machine.exec((*admin, "-k", "-n", "true")).returncode == 0


def test_contacts_count_connections_and_nothing_else(lab: Lab, machine: Machine) -> None:
    before = machine.contacts()
    assert machine.exec(("true",)).returncode == 0
    assert machine.contacts() == before
    assert _connects(machine, _BANNER_SECONDS) == "banner"
    assert _ssh(lab, machine, "true").returncode == 0
    machine.wait(lambda: machine.contacts() >= before + 2, "both in the log")
    assert machine.contacts() == before + 2


def test_faults_end_with_a_reset(machine: Machine, tmp_path: Path) -> None:
    machine.fault("unreachable")
    machine.fault("low-memory")
    assert machine.faults() == {"unreachable": "", "low-memory": "512"}
    machine.reset()
    assert machine.faults() == {}
    assert _connects(machine, _BANNER_SECONDS) == "banner"
