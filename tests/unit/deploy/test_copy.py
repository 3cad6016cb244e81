"""The command line that sends a closure to a host."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nixa_tasks.deploy.copy import copy_command, store_url
from nixa_tasks.host.ssh import Ssh
from nixa_tasks.manifest.model import Host
from nixa_tasks.process.run import LocalProcesses

HOST = Host("web1", "203.0.113.1")
SYSTEM = ("/nix/store/rh2mfwp17kr751yaxllsv68q2a6yqjch-system",)


def ssh_to(host: Host) -> Ssh:
    local = LocalProcesses()
    return Ssh.to(host, Path("/run/x"), local, local.clock)


def test_a_host_substitutes_what_it_can_unless_it_must_not() -> None:
    assert "--substitute-on-destination" in copy_command(ssh_to(HOST), SYSTEM)
    own = replace(HOST, substitute_on_destination=False)
    assert "--substitute-on-destination" not in copy_command(ssh_to(own), SYSTEM)


def test_paths_come_last_and_the_store_before_them() -> None:
    assert copy_command(ssh_to(HOST), SYSTEM)[-2:] == ("ssh-ng://root@203.0.113.1", *SYSTEM)


@pytest.mark.parametrize(
    ("target", "url"), [("2001:db8::1", "[2001:db8::1]"), ("web1.example", "web1.example")]
)
def test_an_address_is_written_as_a_url_wants_it(target: str, url: str) -> None:
    assert store_url(ssh_to(replace(HOST, target=target))) == f"ssh-ng://root@{url}"


def test_an_installation_copies_into_the_new_systems_own_store() -> None:
    assert store_url(ssh_to(HOST), root="/mnt").endswith("?remote-store=local%3Froot%3D%2Fmnt")
