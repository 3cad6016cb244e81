"""A host key that was made before the host: installed with it, pinned, there from the first boot."""

from __future__ import annotations

import subprocess

import pytest

from nixa_tasks.manifest.load import load
from tests.integration.deploy.conftest import Fleet

pytestmark = pytest.mark.lab

KEY = "secrets/web1/etc/ssh/ssh_host_ed25519_key"


def test_the_installed_system_has_the_key_that_was_made_before_it(fleet: Fleet) -> None:
    manifest = fleet.flake / "hosts.toml"
    section = "[hosts.web1]\n"
    manifest.write_text(manifest.read_text().replace(section, section + 'extra_files = "secrets/web1"\n'))
    with (fleet.flake / ".gitignore").open("a") as ignored:
        ignored.write("secrets/\n")
    assert "git does not ignore" not in fleet.doit("keys:web1", "--to", KEY, "--pin")
    said = fleet.doit("deploy:web1", status=1)
    assert "doit trust:web1" in said, "the machine as it is shows another key"
    fleet.doit("trust:web1")
    fleet.doit("deploy:web1")
    pinned = load(manifest).hosts["web1"].host_key
    address = fleet.lab.machines["web1"].address
    scanned = subprocess.run(
        ("ssh-keyscan", "-t", "ed25519", address), capture_output=True, text=True, check=True, timeout=60
    )
    assert scanned.stdout.split(" ", 1)[1].strip() == pinned
    fleet.change("web1", '{ message = "second"; }\n')
    assert "switched" in fleet.doit("deploy:web1"), "the pin alone decides from now on"
