"""No namespaces and no shims here: a kernel that really boots another one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest

from nixa_tasks.lab import image, provision, requirements, toyflake
from nixa_tasks.lab.paths import LabPaths, system
from tests.integration.qemu import guest
from tests.integration.qemu.machine import FIRMWARE, Qemu

pytestmark = [pytest.mark.lab, pytest.mark.qemu, pytest.mark.timeout(900)]

_BOOT_SECONDS = 240.0
_DEPLOY_SECONDS = 600.0
_MANIFEST = """\
version = 1

[fleet]
flake = "."
nixos_anywhere = ["{stand_in}"]

[kexec.{system}]
url = "{image}"
sha256 = "{sha256}"

[hosts.vm]
target = "127.0.0.1"
port = {port}
user = "root"
identity = "{identity}"
host_key = "{host_key}"
# A checksum of all that was loaded, before the jump: slow where a processor is emulated.
kexec_extra_flags = "--no-checks"
"""


@dataclass(frozen=True, slots=True)
class World:
    """A machine in QEMU, and a project whose one host it is."""

    lab: LabPaths
    qemu: Qemu
    host_key: str
    image_sha256: str

    def doit(self, *args: str) -> str:
        """Run doit to its end; its output. Fails the test where it fails."""
        own = {
            "XDG_STATE_HOME": str(self.lab.root / "state"),
            "NIXA_CACHE": str(self.lab.root / "cache"),
            "NIX_USER_CONF_FILES": str(self.lab.nix_conf),
            "PATH": requirements.path(),
            "NO_COLOR": "1",
            "COLUMNS": "140",
        }
        with subprocess.Popen(
            (sys.executable, "-m", "doit", *args), cwd=self.lab.flake, env={**os.environ, **own},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        ) as process:  # fmt: skip
            try:
                said, _ = process.communicate(timeout=_DEPLOY_SECONDS)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGINT)
                said, _ = process.communicate(timeout=60)
        assert process.returncode == 0, f"{said}\n{self.qemu.tail()}"
        return said

    def reboot_began(self) -> datetime:
        """When nixa began the reboot into the installed system."""
        lines = (self.lab.flake / ".nixa/journal.jsonl").read_text().splitlines()
        (found,) = (
            entry for line in lines if (entry := json.loads(line)).get("step") == "reboot" and entry["event"] == "begin"
        )  # fmt: skip
        return datetime.fromisoformat(found["at"])

    def ask(self, command: str) -> str:
        """What a command in the machine says, which must still show the key it had at first."""
        known = self.lab.root / "known_hosts"
        known.write_text(f"[127.0.0.1]:{self.qemu.port} {self.host_key}\n")
        argv = (
            "ssh", "-F", "none", "-o", f"UserKnownHostsFile={known}", "-o", "StrictHostKeyChecking=yes",
            "-o", "BatchMode=yes", "-i", str(self.lab.identity), "-p", str(self.qemu.port),
            "root@127.0.0.1", command,
        )  # fmt: skip
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    if system() != "x86_64-linux" or not (guest.KERNEL / "whole").exists():
        pytest.skip("./check unpacks the kernel for it, on x86_64")
    requirements.check()
    lab = LabPaths(tmp_path / "lab")
    lab.root.mkdir()
    provision.write(lab, {"image_mb": 1})
    key = tmp_path / "ssh_host_ed25519_key"
    provision.key(key, "the machine")
    made = guest.make(tmp_path / "guest", lab, key)
    qemu = Qemu(tmp_path, made)
    try:
        host_key = " ".join(key.with_name(f"{key.name}.pub").read_text().split()[:2])
        sha256 = image.sri(made.tarball)
        _project(lab, qemu, made, host_key, sha256)
        qemu.await_boot(_BOOT_SECONDS)
        yield World(lab, qemu, host_key, sha256)
    finally:
        qemu.stop()


def _project(lab: LabPaths, qemu: Qemu, made: guest.Guest, host_key: str, sha256: str) -> None:
    """The lab's flake with one host, and its manifest."""
    busybox = requirements.busybox()
    assert busybox is not None
    toyflake.write(lab, ["vm"], busybox)
    text = _MANIFEST.format(
        stand_in=lab.bin / "nixos-anywhere", system=system(), image=made.tarball, sha256=sha256,
        port=qemu.port, identity=lab.identity, host_key=host_key,
    )  # fmt: skip
    (lab.flake / "hosts.toml").write_text(text)
    toyflake.commit(lab, "one machine")


def test_a_real_kernel_is_kexeced_installed_and_rebooted(world: World) -> None:
    """Old Linux, by kexec the installer, by a reset what was installed; then there is nothing to do."""
    world.doit("deploy:vm")

    boots = world.qemu.boots()
    assert [boot.stage for boot in boots] == ["old", "installer", "installed"]
    assert len({boot.boot_id for boot in boots}) == 3
    assert boots[0].cmdline == boots[2].cmdline == FIRMWARE
    assert boots[1].cmdline == "init=/init console=ttyS0", "the tarball's own kexec/run says so"
    resets = world.qemu.resets()
    assert resets, "a reboot is a reset"
    assert min(resets) >= world.reboot_began().timestamp(), "a kexec is none"
    assert world.qemu.is_running, "the same QEMU as at first"

    output = json.loads((world.lab.flake / ".nixa/hosts/vm/output.json").read_text())
    assert world.ask("readlink -f /run/current-system") == output["toplevel"]["out"]
    assert world.ask("cat /proc/sys/kernel/random/boot_id") == boots[2].boot_id
    assert world.ask("cat /etc/lab-message") == "hello"
    receipt = json.loads(world.ask("cat /var/lib/nixa/receipt.json"))
    assert receipt == json.loads((world.lab.flake / ".nixa/hosts/vm/deployed.json").read_text())
    assert (receipt["mode"], receipt["outcome"]) == ("install", "done")
    assert "nothing to do" in world.doit("deploy:vm")
    assert world.qemu.resets() == resets
