"""With the image cached and the closures built, an installation needs the way to the host and nothing
else: no route, no name, no web server."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nixa_tasks.lab import Lab, network
from tests.integration.deploy.conftest import Fleet

pytestmark = [pytest.mark.lab, pytest.mark.xdist_group("deploy-offline")]

HOST_NUMBER = 250  # of the lab's subnet: no machine has it
LINK_NUMBER = 999  # the lab takes away at its end what is named like its links


@contextlib.contextmanager
def island(lab: Lab, machine: str) -> Iterator[tuple[str, ...]]:
    """A network namespace whose one route leads to one machine; gives what a command there begins with."""
    outer = network.veth(lab.paths.id, LINK_NUMBER)
    holder = subprocess.Popen(
        ("unshare", "--net", "sh", "-c", "echo; exec cat"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        enter = ("nsenter", f"--target={holder.pid}", "--net", "--")
        own = lab.image_url.partition("//")[2].split(":")[0].rpartition(".")[0] + f".{HOST_NUMBER}"
        network.batch(
            f"link add {outer} type veth peer name eth0 netns {holder.pid}\n"
            f"link set {outer} master {lab.paths.bridge} up\n"
        )
        commands = (
            f"link set lo up\nlink set eth0 up\naddr add {own}/32 dev eth0\n"
            f"route add {lab.machines[machine].address}/32 dev eth0 scope link\n"
        )
        subprocess.run((*enter, "ip", "-batch", "-"), input=commands.encode(), check=True, timeout=20)
        yield enter
    finally:
        holder.communicate(timeout=10)


def reaches(enter: tuple[str, ...], address: str, port: int) -> bool:
    code = f"import socket; socket.create_connection(({address!r}, {port}), 5)"
    done = subprocess.run(
        (*enter, sys.executable, "-c", code), stderr=subprocess.DEVNULL, check=False, timeout=20
    )
    return done.returncode == 0


def test_an_installation_needs_no_network_but_the_way_to_the_host(tmp_path: Path, home: Path) -> None:
    with Lab(tmp_path / "lab", boot_delay=0.1, kexec_delay=0) as lab:
        lab.up(1)
        fleet = Fleet(lab, home)
        fleet.doit("build:web1", "kexec")
        asked = lab.requests()
        assert asked
        server, _, port = lab.image_url.partition("//")[2].partition("/")[0].partition(":")
        with island(lab, "web1") as enter:
            assert not reaches(enter, server, int(port))
            done = subprocess.run(
                (*enter, sys.executable, "-m", "doit", "deploy:web1"),
                cwd=fleet.flake, env=fleet.environment(), capture_output=True, text=True, timeout=240, check=False,
            )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert lab.machines["web1"].stage == "installed"
        assert lab.requests() == asked
