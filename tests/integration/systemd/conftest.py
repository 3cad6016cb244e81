"""A machine with a real systemd that runs NixOS, and doit on this computer with a fleet of that one machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from nixa_tasks.lab import requirements
from nixa_tasks.lab.paths import system
from tests.integration.systemd.machine import SystemdMachine

FLAKE: Final = Path(__file__).with_name("flake")
_NIX_CONF: Final = """\
experimental-features = nix-command flakes
build-users-group =
sandbox = false
sandbox-paths =
substituters =
flake-registry =
"""


def _toml(value: Any) -> str:
    """Numbers, booleans, text, lists and inline tables."""
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{json.dumps(key)} = {_toml(item)}' for key, item in value.items())} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value)


@dataclass(frozen=True)
class Site:
    """The machine, and the folder with its flake and hosts.toml."""

    machine: SystemdMachine
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        own = {
            "NIX_USER_CONF_FILES": str(self.folder / "nix.conf"),
            "XDG_STATE_HOME": str(self.folder / "state"),
            "NIXA_CACHE": str(self.folder / "cache"),
            "NO_COLOR": "1",
            "COLUMNS": "140",
        }
        return {**os.environ, **own}

    @property
    def flake(self) -> Path:
        return self.folder / "flake"

    def configure(self, **host: Any) -> None:
        """Another configuration of the machine; flake.nix says what can be in it."""
        (self.flake / "hosts" / "web1.json").write_text(json.dumps(host))

    def declare(self, **keys: Any) -> None:
        """hosts.toml, with these keys for the host."""
        machine = self.machine
        host = {
            "target": machine.address, "identity": str(machine.identity), "install": "never", "confirm_timeout": 6,
            "host_key": machine.host_key.with_suffix(".pub").read_text().strip(), **keys,
        }  # fmt: skip
        lines = ["version = 1", "[fleet]", 'flake = "."', "[hosts.web1]"]
        lines += [f"{key} = {_toml(value)}" for key, value in host.items()]
        (self.flake / "hosts.toml").write_text("\n".join(lines) + "\n")

    def built(self) -> str:
        """The store path of the configuration as it is."""
        attribute = f"{self.flake}#nixosConfigurations.web1.config.system.build.toplevel"
        done = subprocess.run(
            ("nix", "build", "--no-link", "--json", attribute),
            env=self.environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        path: str = json.loads(done.stdout)[0]["outputs"]["out"]
        return path

    def doit(self, *words: str, status: int | None = 0, secrets: dict[str, str] | None = None) -> str:
        """Run doit; its output. Fails the test where the exit status is another."""
        done = subprocess.run(
            (sys.executable, "-m", "doit", *words), cwd=self.flake, env=self.environment | (secrets or {}),
            capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip
        output = done.stdout + done.stderr
        assert "Traceback" not in output, output
        assert status is None or done.returncode == status, output
        return output


@pytest.fixture(scope="package")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SystemdMachine]:
    made = SystemdMachine(tmp_path_factory.mktemp("systemd") / "machine")
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
def site(machine: SystemdMachine, tmp_path: Path) -> Site:
    """The machine runs a system without units and has no receipt, whatever a test before did to it."""
    made = Site(machine, tmp_path)
    (tmp_path / "nix.conf").write_text(_NIX_CONF)
    for folder in ("bin", "hosts"):
        (made.flake / folder).mkdir(parents=True)
    (made.flake / "flake.nix").write_text((FLAKE / "flake.nix").read_text().replace("@system@", system()))
    (made.flake / "switch-to-configuration").write_text((FLAKE / "switch-to-configuration").read_text())
    (made.flake / "dodo.py").write_text("from nixa_tasks.dodo import *\n")
    busybox = requirements.busybox()
    assert busybox is not None
    (made.flake / "bin" / "busybox").write_bytes(busybox.read_bytes())
    (made.flake / "bin" / "busybox").chmod(0o755)
    made.configure(message="first")
    made.declare()
    first = made.built()
    machine.import_closure(first, made.environment)
    machine.ssh("rm -rf /var/lib/nixa; systemctl reset-failed")
    machine.adopt(first)
    return made
