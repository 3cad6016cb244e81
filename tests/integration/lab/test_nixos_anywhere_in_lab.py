"""The stand-in for nixos-anywhere against practice machines: old system, installer, installed system.

With NIXA_REAL_NIXOS_ANYWHERE=PATH the real script goes through the same.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nixa_tasks.lab.lab import Lab
from nixa_tasks.lab.machine import Machine

pytestmark = [pytest.mark.lab, pytest.mark.xdist_group("nixos-anywhere-in-lab")]

REAL = os.environ.get("NIXA_REAL_NIXOS_ANYWHERE", "")
IMPLEMENTATIONS = [pytest.param((sys.executable, "-m", "nixa_tasks.lab.nixos_anywhere"), id="stand-in")]
if REAL:
    IMPLEMENTATIONS.append(pytest.param(("bash", REAL), id="real"))


@dataclass(frozen=True)
class Ran:
    """How a run ended; None: it was still running and was killed."""

    status: int | None
    out: str
    err: str

    @property
    def steps(self) -> list[str]:
        return re.findall(r"^### (.+) ###$", self.out, re.MULTILINE)


@dataclass(frozen=True)
class Field:
    """A lab with one machine, its two closures, and the program under test."""

    lab: Lab
    disko: Path
    system: Path
    command: tuple[str, ...]

    @property
    def machine(self) -> Machine:
        return self.lab.machines["web1"]

    def run(self, *options: str, seconds: float = 90) -> Ran:
        argv = (
            *self.command, "--store-paths", str(self.disko), str(self.system), "--build-on", "local",
            "-i", str(self.lab.identity), *options, f"root@{self.machine.address}",
        )  # fmt: skip
        started = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
            env={
                **self.lab.env(),
                "PYTHONPATH": str(Path(__file__).parents[3]),
                "TMPDIR": str(self.lab.root),  # what a killed run leaves there goes with the lab
            },
        )  # fmt: skip
        status: int | None
        try:
            out, err = started.communicate(timeout=seconds)
            status = started.returncode
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)
            out, err = started.communicate(timeout=30)  # a poll of at most 10 s may still hold the pipes
            status = None
        return Ran(status, out.decode(), err.decode())


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    # A machine that is back within some 1.5 s is never seen down by either.
    with Lab(tmp_path_factory.mktemp("lab"), image_mb=2, boot_delay=3) as made:
        made.up(1)
        yield made


@pytest.fixture(scope="module")
def closures(lab: Lab) -> tuple[Path, Path]:
    built = []
    for name in ("diskoScript", "toplevel"):
        link = lab.root / f"built-{name}"
        subprocess.run(
            ("nix", "build", "-o", str(link), f"{lab.flake}#nixosConfigurations.web1.config.system.build.{name}"),
            env=lab.env(), timeout=60, check=True,
        )  # fmt: skip
        built.append(link.resolve())
    return built[0], built[1]


@pytest.fixture(params=IMPLEMENTATIONS)
def field(request: pytest.FixtureRequest, lab: Lab, closures: tuple[Path, Path]) -> Field:
    found = Field(lab, *closures, command=tuple(request.param))
    if found.machine.boots > 1 or found.machine.stage != "old" or found.machine.faults():
        found.machine.reset()
    return found


def test_an_old_linux_becomes_the_wanted_system(field: Field) -> None:
    key = field.machine.host_key_public
    ran = field.run("--kexec", str(field.lab.image), "--copy-host-keys")
    assert ran.status == 0, ran.err
    assert ran.steps[-1] == "Done!"
    field.machine.wait_for("installed")
    assert field.machine.current_system() == str(field.system)
    assert field.machine.wipes() == 1
    assert field.machine.exec(("cat", "/etc/ssh/ssh_host_ed25519_key.pub")).stdout.startswith(key)


def test_phases_can_be_run_one_after_the_other(field: Field, tmp_path: Path) -> None:
    ran = field.run("--phases", "kexec", "--kexec", str(field.lab.image))
    assert ran.status == 0, ran.err
    assert field.machine.stage == "installer"
    assert field.machine.wipes() == 0
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "brought").write_text("along")
    ran = field.run("--phases", "disko,install", "--extra-files", str(tmp_path))
    assert ran.status == 0, ran.err
    assert ran.steps[-1] == "Done!"
    assert field.machine.stage == "installer"
    assert field.machine.wipes() == 1
    assert field.machine.exec(("cat", "/mnt/etc/brought")).stdout == "along"
    assert field.machine.exec(("test", "-e", f"/mnt{field.system}")).returncode == 0


def test_a_machine_in_the_dark_is_tried_for_ever(field: Field) -> None:
    field.machine.fault("unreachable")
    ran = field.run("--phases", "disko", seconds=6)
    assert ran.status is None
    assert ran.steps == ["Uploading install SSH keys"]


def test_a_broken_image_runs_whatever_was_unpacked(field: Field, tmp_path: Path) -> None:
    """There is no check: with the second half missing, tar complains and the kexec is tried all the same."""
    broken = tmp_path / "image.tar.gz"
    whole = field.lab.image.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    ran = field.run("--phases", "kexec", "--kexec", str(broken), seconds=60)
    assert ran.status == 1
    assert "Kexec failed" in ran.err
    assert field.machine.stage == "old"
    log = field.machine.exec(("cat", "/root/kexec/nixos-anywhere.log")).stdout
    assert re.search(r"(?i)unexpected end|unexpected eof", log)
    assert re.search(r"kexec/run.*(not found|No such file)|setsid", log), log


def test_an_image_whose_system_is_no_installer_ends_it(field: Field) -> None:
    field.machine.fault("installer-as-debian")
    ran = field.run("--kexec", str(field.lab.image))
    assert ran.status == 1
    assert "aborted: Failed to kexec into NixOS installer" in ran.err
    assert field.machine.wipes() == 0


def test_a_kexec_that_is_refused_fails_with_the_machines_log(field: Field) -> None:
    field.machine.fault("kexec-fails")
    ran = field.run("--kexec", str(field.lab.image))
    assert ran.status == 1
    assert "Remote output log:" in ran.err
    assert "Kexec failed" in ran.err


def test_an_installation_that_fails_is_not_rebooted(field: Field) -> None:
    field.machine.fault("install-fails")
    ran = field.run("--kexec", str(field.lab.image))
    assert ran.status not in (0, None)
    assert ran.steps[-1] == "Installing NixOS"
    assert field.machine.stage == "installer"


def test_a_machine_that_falls_silent_and_is_soon_back_is_never_seen_down(field: Field) -> None:
    field.machine.fault("silent")
    ran = field.run("--phases", "kexec", "--kexec", str(field.lab.image), seconds=20)
    assert field.machine.stage == "installer"
    assert ran.status is None
    assert ran.steps[-1] == "Switching system into kexec"


def test_a_url_is_fetched_by_the_machine_itself(field: Field) -> None:
    before = len(field.lab.requests())
    ran = field.run("--phases", "kexec", "--kexec", field.lab.image_url)
    assert ran.status == 0, ran.err
    asked = field.lab.requests()[before:]
    assert len(asked) == 1
    assert asked[0]["client"].startswith(field.machine.address)


def test_the_labs_own_command_says_what_it_is(lab: Lab) -> None:
    done = subprocess.run(
        (lab.paths.bin / "nixos-anywhere", "--help"), capture_output=True, timeout=30, check=True
    )
    assert b"stand-in" in done.stderr.splitlines()[0]
