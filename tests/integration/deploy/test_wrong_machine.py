"""The wrong machine at the right address: nothing is sent to it, whatever it runs."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nixa_tasks.host.host_key import HostKey
from nixa_tasks.lab import Lab
from nixa_tasks.lab.machine import Machine
from tests.integration.deploy.background import Background
from tests.integration.deploy.conftest import Fleet

pytestmark = [pytest.mark.lab, pytest.mark.xdist_group("wrong-machine")]

STAGES = {"web1": "installed", "web2": "old", "web3": "installer"}


@dataclass(frozen=True)
class Replaced:
    """Our project, whose manifest pins nothing, and the key that each machine showed us once."""

    fleet: Fleet
    manifest: str
    keys: dict[str, HostKey]


def without_pins(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.startswith("host_key")) + "\n"


def replace_machine(machine: Machine) -> None:
    """Another machine at the same address: its own key, its own empty disk."""
    for path in (machine.paths.host_key, machine.paths.host_key.with_suffix(".pub")):
        path.unlink()
    subprocess.run(
        ("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(machine.paths.host_key)),
        check=True,
        timeout=30,
    )
    machine.reset()


@pytest.fixture(scope="module")
def replaced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replaced]:
    """Three machines that we have seen, then others in their places: somebody else's NixOS, a
    Debian, and one that somebody else has booted into the installer."""
    place = tmp_path_factory.mktemp("wrong")
    with Lab(place / "lab", boot_delay=0.1, kexec_delay=0) as lab:
        lab.up(3)
        ours = Fleet(lab, place / "ours")
        manifest = ours.flake / "hosts.toml"
        manifest.write_text(without_pins(manifest.read_text()))
        keys = {name: HostKey.parse(machine.host_key_public) for name, machine in lab.machines.items()}
        ours.doit("reach:web*")
        for machine in lab.machines.values():
            replace_machine(machine)
        _let_others_have_them(lab, place)
        assert {name: str(machine.stage) for name, machine in lab.machines.items()} == STAGES
        yield Replaced(ours, manifest.read_text(), keys)


def _let_others_have_them(lab: Lab, place: Path) -> None:
    """Another user, with a checkout of his own, deploys to two of the machines."""
    project = place / "others/flake"
    shutil.copytree(lab.flake, project, ignore=shutil.ignore_patterns(".nixa"), symlinks=True)
    environment = Fleet(lab, place / "others").environment()
    first = Background.begin(project, environment, "deploy:web1", output=place / "others/web1")
    second = Background.begin(project, environment, "deploy:web3", output=place / "others/web3")
    second.await_step("copy disko")
    second.signal(signal.SIGKILL)
    second.end()
    assert first.end() == 0, first.said
    lab.machines["web3"].wait_for("installer")


def logins(machine: Machine) -> int:
    return machine.paths.sshd_log.read_text(errors="replace").count("Accepted ")


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("trust", ["seen", "pinned key", "pinned fingerprint"])
def test_it_is_refused_before_anything_is_sent(replaced: Replaced, trust: str, name: str) -> None:
    fleet, expected = replaced.fleet, replaced.keys[name]
    pin = {"seen": "", "pinned key": expected.text, "pinned fingerprint": expected.fingerprint}[trust]
    head = f"[hosts.{name}]\n"
    manifest = fleet.flake / "hosts.toml"
    manifest.write_text(replaced.manifest.replace(head, head + (f'host_key = "{pin}"\n' if pin else "")))
    machine = fleet.lab.machines[name]
    before = (machine.stage, machine.boot_id, machine.current_system(), machine.wipes(), logins(machine))
    commands: list[tuple[str, ...]] = [(f"deploy:{name}",)]
    if trust == "seen":
        commands += [(f"reinstall:{name}", "--yes-wipe", name), (f"rollback:{name}",)]
    for command in commands:
        said = fleet.doit(*command, status=1)
        shown = HostKey.parse(machine.host_key_public)
        where = "seen before" if trust == "seen" else "pinned in hosts.toml"
        assert f"{name}: {machine.address} shows another host key than the one {where}" in said
        assert f"expected {expected.fingerprint}" in said
        assert f"shown    {shown.fingerprint}" in said
        assert "correct `target`" in said
        assert f"doit trust:{name}" in said
        after = (machine.stage, machine.boot_id, machine.current_system(), machine.wipes(), logins(machine))
        assert after == before, "nobody has even logged in"


def test_the_word_of_a_person_is_the_way_on(replaced: Replaced) -> None:
    """`doit trust` takes the new key, and the machine is deployed to as any other."""
    fleet = replaced.fleet
    (fleet.flake / "hosts.toml").write_text(replaced.manifest)
    machine = fleet.lab.machines["web2"]
    said = fleet.doit("trust:web2")
    assert replaced.keys["web2"].fingerprint in said
    assert HostKey.parse(machine.host_key_public).fingerprint in said
    fleet.doit("deploy:web2")
    assert (machine.stage, machine.wipes()) == ("installed", 1)
