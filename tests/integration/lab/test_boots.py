"""Old Linux, kexec, installer, reboot, installed system: what travels, what stays, what is wiped."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from nixa_tasks.lab import Lab, LabError, Machine, Stage

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="the lab needs root")]

OTHER_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBB other"
UNPACK = 'mkdir -p "$HOME/kexec" && tar -C "$HOME/kexec" -xzf -'
RUN = 'TMPDIR="$HOME/kexec" setsid --wait "$HOME/kexec/kexec/run" --kexec-extra-flags ""'


@dataclass(frozen=True)
class Practice:
    """A lab, and what a person would do with it by hand."""

    lab: Lab

    def ssh(
        self, machine: Machine, command: str, *, data: bytes = b"", user: str = "root"
    ) -> subprocess.CompletedProcess[bytes]:
        argv = (
            "ssh", "-F", "none", "-i", str(self.lab.identity), "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes",
            "-o", "UserKnownHostsFile=/dev/null", "-o", "StrictHostKeyChecking=no", "-o", "LogLevel=ERROR",
            "-o", "ConnectTimeout=2", f"{user}@{machine.address}", command,
        )  # fmt: skip
        return subprocess.run(argv, input=data, capture_output=True, timeout=60, check=False)

    def shown_key(self, machine: Machine) -> str:
        """The host key that the machine shows now."""
        done = subprocess.run(
            ("ssh-keyscan", "-t", "ed25519", machine.address),
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
        keys = [line.split() for line in done.stdout.splitlines() if not line.startswith("#")]
        return " ".join(keys[0][1:3]) if keys else ""

    def nix(self, *args: str) -> str:
        done = subprocess.run(
            ("nix", *args), env=self.lab.env(), capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def built(self, host: str, part: str) -> str:
        said = self.nix(
            "build",
            "--json",
            "--no-link",
            f"{self.lab.flake}#nixosConfigurations.{host}.config.system.build.{part}",
        )
        return str(json.loads(said)[0]["outputs"]["out"])

    def unpack(self, machine: Machine) -> None:
        machine.wait_for(Stage.OLD)
        done = self.ssh(machine, UNPACK, data=self.lab.image.read_bytes())
        assert done.returncode == 0, done.stderr

    def kexec(self, machine: Machine) -> None:
        self.unpack(machine)
        done = self.ssh(machine, RUN)
        assert (done.returncode, b"machine will boot into nixos" in done.stdout) == (0, True), done
        machine.wait_for(Stage.INSTALLER)

    def copy(self, machine: Machine, path: str, *, store: str = "", scheme: str = "ssh") -> None:
        options = " ".join((
            "-i", str(self.lab.identity), "-o", "UserKnownHostsFile=/dev/null", "-o", "StrictHostKeyChecking=no",
            "-o", "LogLevel=ERROR",
        ))  # fmt: skip
        done = subprocess.run(
            ("nix", "copy", "--no-check-sigs", "--to", f"{scheme}://root@{machine.address}{store}", path),
            env={**self.lab.env(), "NIX_SSHOPTS": options}, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    def install(self, machine: Machine, *, keys: bool = True) -> str:
        """From the installer to the installed system; returns its store path."""
        disko, system = (self.built(machine.name, part) for part in ("diskoScript", "toplevel"))
        self.copy(machine, disko)
        assert self.ssh(machine, disko).returncode == 0
        self.copy(machine, system, store="?remote-store=local%3Froot=%2Fmnt")
        if keys:
            assert (
                self.ssh(
                    machine, "mkdir -p /mnt/etc/ssh && cp -a /etc/ssh/ssh_host_* /mnt/etc/ssh"
                ).returncode
                == 0
            )
        done = self.ssh(machine, f"nixos-install --no-root-passwd --no-channel-copy --system {system}")
        assert done.returncode == 0, done.stderr
        self.ssh(machine, "umount -Rv /mnt; nohup sh -c 'sleep 0.2 && reboot' >/dev/null 2>&1 &")
        machine.wait_for(Stage.INSTALLED)
        return system


@pytest.fixture(scope="module")
def practice(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Practice]:
    with Lab(tmp_path_factory.mktemp("lab"), image_mb=1, boot_delay=0.05, kexec_delay=0.2) as lab:
        lab.up(2)
        yield Practice(lab)


@pytest.fixture
def machine(practice: Practice) -> Machine:
    made = practice.lab.machines["web1"]
    made.reset()
    return made


def _release(machine: Machine) -> list[str]:
    return machine.exec(("cat", "/etc/os-release")).stdout.splitlines()


def test_an_old_linux_has_no_nix_and_its_own_key(practice: Practice, machine: Machine) -> None:
    assert "ID=debian" in _release(machine)
    assert practice.ssh(machine, "command -v nix nix-store nix-env nix-daemon; ls -A /nix").stdout == b""
    assert practice.shown_key(machine) == " ".join(machine.host_key_public.split()[:2])
    assert (
        practice.ssh(
            machine, "for tool in tar gzip cpio setsid; do command -v $tool || exit 1; done"
        ).returncode
        == 0
    )
    assert practice.ssh(machine, "id -un", user="admin").stdout == b"admin\n"
    assert machine.current_system() is None


def test_each_boot_has_an_identity_that_lies_where_linux_keeps_it(
    practice: Practice, machine: Machine
) -> None:
    seen = practice.ssh(machine, "cat /proc/sys/kernel/random/boot_id").stdout.decode().strip()
    other = practice.lab.machines["web2"].exec(("cat", "/proc/sys/kernel/random/boot_id")).stdout.strip()

    assert seen == machine.boot_id
    assert seen != other
    machine.power_cycle()
    assert machine.boot_id not in {seen, other, None}


def test_a_reboot_keeps_what_the_old_linux_has_on_its_disk(practice: Practice, machine: Machine) -> None:
    practice.ssh(machine, "echo kept >/root/note; echo lost >/run/note")
    boots = machine.boots
    practice.ssh(machine, "reboot")
    machine.wait(lambda: machine.boots > boots and machine.is_up, "reboot")

    assert practice.ssh(machine, "cat /root/note; ls /run/note").stdout == b"kept\n"


def test_every_way_to_reboot_works(practice: Practice, machine: Machine) -> None:
    for command in ("reboot", "/sbin/reboot -f", "systemctl reboot", "busybox reboot -f"):
        boots = machine.boots
        practice.ssh(machine, command)
        machine.wait(lambda boots=boots: machine.boots > boots and machine.is_up, command)  # type: ignore[misc]
    practice.ssh(machine, "poweroff")
    machine.wait_for(Stage.OFF)
    machine.power_cycle()
    assert machine.stage is Stage.OLD


def test_who_the_machine_is_travels_through_the_kexec(practice: Practice, machine: Machine) -> None:
    practice.ssh(machine, f"echo 'no-pty {OTHER_KEY}' >>/root/.ssh/authorized_keys; echo left >/root/note")
    number = practice.ssh(machine, "cat /etc/machine-id").stdout
    before = machine.boot_id
    practice.kexec(machine)

    assert {"ID=nixos", "VARIANT_ID=installer"} <= set(_release(machine))
    assert machine.boot_id not in {before, None}
    assert practice.shown_key(machine) == " ".join(machine.host_key_public.split()[:2])
    keys = practice.ssh(machine, "cat /root/.ssh/authorized_keys").stdout.decode().splitlines()
    assert keys[-1] == OTHER_KEY, "the options of a key must stay behind"
    assert practice.ssh(machine, "cat /etc/machine-id").stdout == number
    addresses = json.loads(practice.ssh(machine, "cat /root/network/addrs.json").stdout)
    assert machine.address in str(addresses)
    assert practice.ssh(machine, "ls /root/note").returncode != 0, "the installer's root must be an empty one"
    assert practice.ssh(machine, "command -v nix nix-store nixos-install").returncode == 0


def test_an_address_that_the_initrd_does_not_name_is_gone_after_the_kexec(
    practice: Practice, machine: Machine
) -> None:
    practice.unpack(machine)
    practice.ssh(machine, "printf '#!/bin/sh\\necho []\\n' >/root/kexec/kexec/ip")
    practice.ssh(machine, RUN)
    machine.wait_for(Stage.INSTALLER)

    assert machine.exec(("ip", "-4", "-o", "addr", "show", "dev", "eth0")).stdout == ""


@pytest.mark.parametrize(
    "damage",
    [
        "truncate -s -100000 initrd",
        "printf '\\377\\377\\377\\377' | dd of=initrd bs=1 seek=200000 conv=notrunc",
        "printf x | dd of=bzImage bs=1 seek=200000 conv=notrunc",
        "echo '<html>' >initrd",
    ],
    ids=["cut initrd", "changed initrd", "changed kernel", "web page"],
)
def test_a_damaged_image_boots_nothing(practice: Practice, machine: Machine, damage: str) -> None:
    practice.unpack(machine)
    assert practice.ssh(machine, f"cd /root/kexec/kexec && {damage}").returncode == 0
    practice.ssh(machine, RUN)
    machine.wait_for(Stage.DARK)

    with pytest.raises(LabError):
        machine.exec(("true",))
    assert practice.ssh(machine, "true").returncode == 255
    machine.power_cycle()
    assert machine.stage is Stage.OLD


def test_an_installation_is_what_runs_after_the_reboot(practice: Practice, machine: Machine) -> None:
    practice.kexec(machine)
    assert machine.wipes() == 0
    system = practice.install(machine)

    assert machine.wipes() == 1
    assert machine.current_system() == system
    assert practice.ssh(machine, "readlink -f /run/booted-system").stdout.decode().strip() == system
    assert practice.ssh(machine, "cat /etc/lab-message").stdout == b"hello\n"
    assert "ID=nixos" in _release(machine)
    assert not any("VARIANT_ID" in line for line in _release(machine))
    assert practice.shown_key(machine) == " ".join(machine.host_key_public.split()[:2])
    closure = practice.nix("path-info", "-r", system).split()
    assert practice.ssh(machine, f"nix-store --check-validity {' '.join(closure)}").returncode == 0

    practice.ssh(machine, "echo kept | tee /root/note /var/lib/note /etc/note >/run/note")
    machine.power_cycle()
    assert machine.stage is Stage.INSTALLED
    assert machine.wipes() == 1
    assert (
        practice.ssh(machine, "cat /root/note /var/lib/note /etc/note; ls /run/note").stdout == b"kept\n" * 3
    )


def test_host_keys_that_nobody_copied_are_new_in_the_installed_system(
    practice: Practice, machine: Machine
) -> None:
    practice.kexec(machine)
    practice.install(machine, keys=False)
    new = practice.shown_key(machine)

    assert new not in {"", " ".join(machine.host_key_public.split()[:2])}
    machine.power_cycle()
    assert practice.shown_key(machine) == new


def test_an_installed_system_is_switched_and_boots_what_it_was_switched_to(
    practice: Practice, machine: Machine
) -> None:
    practice.kexec(machine)
    first = practice.install(machine)
    host = practice.lab.flake / "hosts/web1.nix"
    host.write_text('{\n  message = "changed";\n}\n')
    try:
        second = practice.built("web1", "toplevel")
        assert practice.built("web2", "toplevel") != second
    finally:
        host.write_text('{\n  message = "hello"; # a comment\n}\n')
    assert practice.built("web1", "toplevel") == first, "a comment must change nothing"
    assert second != first

    for scheme in ("ssh", "ssh-ng"):
        practice.copy(machine, second, scheme=scheme)
    profile = "/nix/var/nix/profiles/system"
    assert practice.ssh(machine, f"nix-env -p {profile} --set {second}").returncode == 0
    assert machine.current_system() == first
    done = practice.ssh(machine, f"{profile}/bin/switch-to-configuration switch")
    assert done.returncode == 0, done.stderr
    assert machine.current_system() == second
    assert practice.ssh(machine, "cat /etc/lab-message").stdout == b"changed\n"
    assert practice.ssh(machine, "readlink -f /run/booted-system").stdout.decode().strip() == first
    machine.power_cycle()
    assert machine.current_system() == second


def test_a_reset_machine_is_as_new(practice: Practice, machine: Machine) -> None:
    practice.kexec(machine)
    practice.install(machine)
    machine.fault("silent")
    key = machine.host_key_public
    machine.reset()

    assert (machine.stage, machine.wipes(), machine.faults(), machine.host_key_public) == (
        Stage.OLD,
        0,
        {},
        key,
    )
    machine.power_cycle()
    assert machine.stage is Stage.OLD
