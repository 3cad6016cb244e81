"""Checks are made from where they make sense."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from nixa_tasks.deploy.checks import CheckFailed, run_all
from nixa_tasks.deploy.deploy import needs_touch
from nixa_tasks.host.ssh import Ssh
from nixa_tasks.manifest.model import Check, Host, TcpCheck
from nixa_tasks.process.run import LocalProcesses

LOCAL = LocalProcesses()
SSH = """#!/bin/sh
if [ "$1" = -G ]; then printf 'hostname %s\\nport 22\\n%s' "$ADDRESS" "$PROXY"; exit; fi
for word; do :; done
SSH_CONNECTION='10.0.0.1 5 127.0.0.1 22'; export SSH_CONNECTION
exec sh -c "$word"
"""


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ssh:
    """A host that is this computer, by an alias."""
    script = tmp_path / "ssh"
    script.write_text(SSH)
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("ADDRESS", "127.0.0.1")
    monkeypatch.setenv("PROXY", "")
    return Ssh.to(Host("web1", "an-alias"), tmp_path, LOCAL, LOCAL.clock)


def check(ssh: Ssh, port: int) -> None:
    one = Check(TcpCheck(port), retries=0, deadline=20)
    run_all((one,), ssh, failed_before=frozenset(), note=lambda _text: None)


@pytest.mark.parametrize("proxy", ["", "proxyjump bastion\n"])
def test_a_port_is_tried_at_the_address_behind_an_alias_or_from_behind_a_jump_host(
    ssh: Ssh, proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROXY", proxy)
    if proxy:
        monkeypatch.setenv("ADDRESS", "192.0.2.1")  # which can't be reached from here
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        check(ssh, port)
    with pytest.raises(CheckFailed):
        check(ssh, port)


def test_a_key_on_a_token_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "id.pub").write_text("sk-ssh-ed25519@openssh.com AAAA me")
    assert needs_touch(tmp_path / "id")
    (tmp_path / "id.pub").write_text("ssh-ed25519 AAAA me")
    assert not needs_touch(tmp_path / "id")
    assert not needs_touch(None)
