"""`doit keys:HOST`: a host's key before the host."""

from __future__ import annotations

import subprocess
from pathlib import Path

from nixa_tasks.manifest.load import load
from tests.integration.tasks.conftest import Doit

KEY = "secrets/web1/etc/ssh/ssh_host_ed25519_key"


def _public(path: Path) -> str:
    done = subprocess.run(("ssh-keygen", "-y", "-f", str(path)), capture_output=True, text=True, check=True)
    kind, blob, *_ = done.stdout.split()
    return f"{kind} {blob}"


def test_a_key_is_made_in_a_file_of_its_own_and_pinned(project: Path, doit: Doit) -> None:
    before = (project / "hosts.toml").read_text()
    done = doit("keys:web1", "--to", KEY, "--pin")
    assert done.returncode == 0, done.stderr
    private = project / KEY
    assert private.stat().st_mode & 0o777 == 0o600
    assert load(project / "hosts.toml").hosts["web1"].host_key == _public(private)
    assert _public(private) in done.stdout
    assert "doit trust:web1" in done.stdout
    assert "git does not ignore" in done.stdout + done.stderr
    assert before.replace("port = 1", "", 1).split()[-4:] == (project / "hosts.toml").read_text().split()[-4:]


def test_a_key_goes_to_a_commands_standard_input_and_nowhere_else(project: Path, doit: Doit) -> None:
    done = doit("keys:web1", "--into", "cp /dev/stdin sealed")
    assert done.returncode == 0, done.stderr
    sealed = project / "sealed"
    sealed.chmod(0o600)
    assert _public(sealed) in done.stdout
    assert "PRIVATE KEY" not in done.stdout + done.stderr
    found = subprocess.run(
        ("grep", "-rl", "PRIVATE KEY", str(project)), capture_output=True, text=True, check=False
    )
    assert found.stdout.split() == [str(sealed)]


def test_a_key_that_exists_is_not_overwritten(project: Path, doit: Doit) -> None:
    (project / "key").write_text("mine")
    done = doit("keys:web1", "--to", "key")
    assert done.returncode == 3
    assert "never overwritten" in done.stderr + done.stdout
    assert (project / "key").read_text() == "mine"


def test_without_a_place_for_it_no_key_is_made(doit: Doit) -> None:
    done = doit("keys:web1")
    assert done.returncode == 3
    assert "--to secrets/web1" in done.stderr + done.stdout


def test_a_command_that_fails_fails_the_task(doit: Doit) -> None:
    done = doit("keys:web1", "--into", "false")
    assert done.returncode == 1
