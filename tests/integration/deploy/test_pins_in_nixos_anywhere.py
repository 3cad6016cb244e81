"""What nixos-anywhere does over ssh under nixa: every connection held to the pin, one login for all.

With NIXA_REAL_NIXOS_ANYWHERE=PATH the real script goes through the same.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nixa_tasks.lab import Lab
from tests.integration.deploy.conftest import Fleet

pytestmark = pytest.mark.lab

REAL = os.environ.get("NIXA_REAL_NIXOS_ANYWHERE", "")
SCRIPTS = [pytest.param((sys.executable, "-m", "nixa_tasks.lab.nixos_anywhere"), id="stand-in")]
if REAL:
    SCRIPTS.append(pytest.param(("bash", REAL), id="real"))

# The pin of the run is replaced by another key before nixos-anywhere begins, and the shared
# connection ended, as if the machine had been exchanged at this very moment.
_EXCHANGED = """#!/bin/sh
for target; do :; done
file=$(ssh -G "$target" | sed -n 's/^userknownhostsfile //p')
ssh -O exit "$target" 2>/dev/null
sed "s|ssh-ed25519 .*|$(cat {other})|" "$file" >"$file.new" && mv "$file.new" "$file"
exec {command} "$@"
"""
# Who listened on the machine when nixos-anywhere began and ended.
_COUNTED = """#!/bin/sh
grep -c 'Connection from ' {sshd_log} >>{counts}
{command} "$@"; status=$?
grep -c 'Connection from ' {sshd_log} >>{counts}
exit $status
"""


@pytest.fixture
def one(tmp_path: Path, home: Path) -> Iterator[Fleet]:
    lab = Lab(tmp_path / "lab")
    try:
        lab.up(1)
        yield Fleet(lab, home)
    finally:
        lab.down()


def _run_by(fleet: Fleet, tmp_path: Path, text: str) -> None:
    """Let hosts.toml name a script of ours, with a deadline for what never gives up by itself."""
    script = tmp_path / "nixos-anywhere-here"
    script.write_text(text)
    script.chmod(0o755)
    manifest = fleet.lab.hosts_toml(nixos_anywhere=[str(script)])
    (fleet.flake / "hosts.toml").write_text(
        manifest.replace("[defaults]", "[defaults]\ninstall_timeout = 20")
    )


@pytest.mark.parametrize("command", SCRIPTS)
def test_nixos_anywhere_itself_refuses_a_host_key_that_is_not_the_pin(
    one: Fleet, tmp_path: Path, command: tuple[str, ...]
) -> None:
    other = tmp_path / "other.pub"
    other.write_text("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJLXyOhrmAUMR6DLa7E1CDZgP7ZmDvPGVGWFYxrN4gF1\n")
    _run_by(one, tmp_path, _EXCHANGED.format(other=other, command=shlex.join(command)))
    said = one.doit("deploy", status=1)
    log = "".join(path.read_text() for path in (one.flake / ".nixa/hosts/web1/log").iterdir())
    assert "host key verification failed" in (said + log).lower()
    assert one.lab.machines["web1"].wipes() == 0


@pytest.mark.parametrize("command", SCRIPTS)
def test_its_logins_become_one_with_nixa_s_own(one: Fleet, tmp_path: Path, command: tuple[str, ...]) -> None:
    counts = tmp_path / "counts"
    sshd_log = one.lab.machines["web1"].paths.sshd_log
    _run_by(one, tmp_path, _COUNTED.format(sshd_log=sshd_log, counts=counts, command=shlex.join(command)))
    one.doit("deploy")
    begun = [int(line) for line in counts.read_text().split()]
    assert len(begun) == 4, "the disko phase and the install phase"
    assert begun[1] - begun[0] == 0
    assert begun[3] - begun[2] == 0
    receipt = json.loads((one.flake / ".nixa/hosts/web1/deployed.json").read_text())
    assert receipt["outcome"] == "done"
