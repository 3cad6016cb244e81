"""The image to the host and the jump into it: what goes wrong on the way, and what is left out."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator

import pytest

from nixa_tasks.deploy import reboot as boot
from nixa_tasks.errors import DeadlinePassed
from nixa_tasks.host import probe, reach
from nixa_tasks.host.host_key import Expectation, Trust
from nixa_tasks.host.ssh import Kind, Ssh, Unreachable
from nixa_tasks.lab import Lab, network
from nixa_tasks.lab.machine import Machine
from nixa_tasks.manifest.model import Host
from nixa_tasks.process.run import LocalProcesses
from nixa_tasks.state import private_dir as private
from tests.integration.deploy.conftest import Fleet

LOCAL = LocalProcesses()
pytestmark = [pytest.mark.lab, pytest.mark.xdist_group("deploy-delivery")]

IMAGE_MB = 12


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    place = tmp_path_factory.mktemp("delivery")
    lab = Lab(place / "lab", image_mb=IMAGE_MB, boot_delay=0.1)
    try:
        lab.up(1)
        fleet = Fleet(lab, place / "home")
        fleet.doit("build:web1", "kexec")
        yield fleet
    finally:
        lab.down()


@pytest.fixture
def one(shared: Fleet) -> Iterator[Fleet]:
    """The fleet with its one machine as new, and the manifest as it was afterwards."""
    manifest = shared.flake / "hosts.toml"
    text = manifest.read_text()
    shared.lab.machines["web1"].reset()
    yield shared
    manifest.write_text(text)


def web1(fleet: Fleet) -> Machine:
    return fleet.lab.machines["web1"]


def set_key(fleet: Fleet, *lines: str) -> None:
    manifest = fleet.flake / "hosts.toml"
    manifest.write_text(manifest.read_text().replace("[hosts.web1]", "\n".join(("[hosts.web1]", *lines))))


def steps(fleet: Fleet) -> dict[str, str]:
    """The steps of web1 in the last run, each with how it ended."""
    lines = [json.loads(line) for line in (fleet.flake / ".nixa/journal.jsonl").read_text().splitlines()]
    return {
        line["step"]: line["outcome"]
        for line in lines
        if line["run"] == lines[-1]["run"] and line["host"] == "web1" and line["event"] == "end"
    }


def is_untouched(machine: Machine, boot_id: str | None) -> bool:
    return machine.stage == "old" and machine.boot_id == boot_id and machine.wipes() == 0


def test_an_upload_that_is_cut_goes_on_where_it_ended(one: Fleet) -> None:
    machine = web1(one)
    size = one.lab.image.stat().st_size
    link = network.veth(one.lab.paths.id, machine.index)
    machine.fault("kexec-fails")  # so that the machine is there to be counted at
    before = network.received(link)
    machine.fault("drop-after", str(size * 3 // 4))
    said = one.doit("-a", "deploy:web1", status=1)
    assert "the upload was cut" in said
    going_on = re.search(r"going on at (\d+) MiB", said)
    assert going_on is not None, said
    assert int(going_on[1]) >= IMAGE_MB // 2
    assert "kexec_load failed" in said, "it came there whole"
    again = network.received(link) - before - size
    assert again < 3 << 20, "headers, and what was in the pipe when it was cut"


@pytest.mark.parametrize(
    ("fault", "says", "failed"),
    [
        ("low-memory", ["512 MiB of memory; the installer needs 1 GiB", "more memory"], "deploy"),
        ("disk-full", ["in /root/.nixa-kexec, and 0 MiB are free", "make room"], "upload"),
        ("kexec-fails", ["kexec_load failed", "kexec_extra_flags", "Secure Boot"], "kexec"),
    ],
)
def test_a_machine_that_can_not_boot_the_installer_stays_what_it_was(
    one: Fleet, fault: str, says: list[str], failed: str
) -> None:
    machine = web1(one)
    boot_id = machine.boot_id
    machine.fault(fault)
    said = one.doit("-a", "deploy:web1", status=1)
    assert all(text in said for text in says), said
    assert next(step for step, outcome in steps(one).items() if outcome == "failed") == failed
    assert is_untouched(machine, boot_id)
    if failed != "kexec":
        sent = machine.exec(["sh", "-c", "cat /root/.nixa-kexec/* | wc -c"]).stdout
        assert sent.strip() == "0"


def test_a_user_with_sudo_can_try_again_after_what_root_left_there(one: Fleet) -> None:
    set_key(one, 'user = "admin"')
    web1(one).fault("kexec-fails")
    for _ in range(2):
        said = one.doit("-a", "deploy:web1", status=1)
        assert "kexec_load failed" in said
        assert "denied" not in said
    log = max((one.flake / ".nixa/hosts/web1/log").iterdir()).read_text()
    assert "denied" not in log
    space = web1(one).exec(["sh", "-c", "du -sm /home/admin/.nixa-kexec | cut -f1"]).stdout
    assert int(space) < 2 * IMAGE_MB, "the file for the next try, and no more"


def test_a_machine_that_never_comes_back_is_told_with_what_to_try(one: Fleet) -> None:
    set_key(one, "install_timeout = 5")
    web1(one).fault("kexec-hangs")
    said = one.doit("-a", "deploy:web1", status=1)
    assert "the installer: timed out after 5 s; last seen: no ssh banner" in said
    assert all(text in said for text in ("console", "kexec_extra_flags", "memory", "post_kexec_target"))
    assert web1(one).wipes() == 0


def test_one_that_comes_back_as_something_else_is_not_wiped(one: Fleet) -> None:
    web1(one).fault("installer-as-debian")
    said = one.doit("-a", "deploy:web1", status=1)
    assert "it came back as Debian" in said
    assert web1(one).wipes() == 0


def test_a_machine_that_falls_silent_is_noticed_and_one_in_the_installer_needs_no_image(
    one: Fleet,
) -> None:
    """It closes no connection when it jumps; then the installation fails, and goes on from there."""
    machine = web1(one)
    machine.fault("silent")
    machine.fault("install-fails")
    one.doit("-a", "deploy:web1", status=1)
    assert steps(one)["kexec"] == "done"
    assert machine.stage == "installer"
    boots = machine.boots
    machine.clear()
    machine.fault("silent")
    source = one.lab.image
    source.rename(source.with_suffix(".away"))
    try:
        one.doit("clean:kexec")
        one.doit("-a", "deploy:web1")
    finally:
        source.with_suffix(".away").rename(source)
    assert machine.stage == "installed"
    assert machine.boots == boots + 1
    assert not {"upload", "kexec"} & set(steps(one))


def test_a_machine_that_jumps_before_it_could_say_so_is_waited_for(one: Fleet) -> None:
    """Its answer was lost with the connection."""
    machine = web1(one)
    machine.fault("kexec-at-once")
    one.doit("-a", "deploy:web1")
    assert machine.stage == "installed"
    assert machine.wipes() == 1


def test_a_machine_that_lost_the_connection_and_stays_up_is_told_of(
    one: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boot, "_STAYS_SECONDS", 0.5)
    machine = web1(one)
    host = Host("web1", machine.address, identity=one.lab.identity)
    lost = Unreachable(Kind.LOST, "the connection was lost", host="web1")
    with private.folder(private.temporary(), LOCAL) as folder:
        ssh = reach.prepare(Ssh.to(host, folder, LOCAL, LOCAL.clock), Expectation(Trust.ANY))
        before = probe.ask(ssh).boot_id
        with pytest.raises(Unreachable) as caught:
            boot.await_boot(ssh, boot.Awaited(before, 60, "the installer", "", lost))
        assert caught.value is lost
        with pytest.raises(DeadlinePassed, match="the one before"):
            boot.await_boot(ssh, boot.Awaited(before, 3, "the installer", ""))


class Door(socketserver.ThreadingTCPServer):
    """A port that leads to a machine's sshd, but only while `is_open`: what a router in front of it
    does."""

    def __init__(self, address: str, to: str, is_open: Callable[[], bool]) -> None:
        super().__init__((address, 0), Through)
        self.to, self.is_open = to, is_open
        self.port = int(self.socket.getsockname()[1])
        self.passed = 0
        threading.Thread(target=self.serve_forever, args=(0.05,)).start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class Through(socketserver.BaseRequestHandler):
    """One connection through a door."""

    def handle(self) -> None:  # type: ignore[explicit-override] # not in 3.11
        door = self.server
        assert isinstance(door, Door)
        if not door.is_open():
            return
        with contextlib.suppress(OSError), socket.create_connection((door.to, 22), 5) as far:
            far.settimeout(None)
            door.passed += 1
            back = threading.Thread(target=_pump, args=(far, self.request))
            back.start()
            _pump(self.request, far)
            back.join()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def test_the_installer_may_answer_at_another_address_and_port(one: Fleet) -> None:
    machine = web1(one)
    home = Door("127.0.0.1", machine.address, lambda: machine.stage != "installer")
    away = Door("127.0.0.2", machine.address, lambda: machine.stage == "installer")
    manifest = one.flake / "hosts.toml"
    manifest.write_text(manifest.read_text().replace(f'"{machine.address}"', '"127.0.0.1"'))
    there = ('post_kexec_target = "127.0.0.2"', f"post_kexec_port = {away.port}")
    set_key(one, "install_timeout = 60", f"port = {home.port}", *there)
    try:
        one.doit("-a", "deploy:web1")
    finally:
        home.close()
        away.close()
    assert machine.stage == "installed"
    assert machine.wipes() == 1
    assert home.passed and away.passed
