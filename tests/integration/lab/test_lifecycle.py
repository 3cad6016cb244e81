"""A lab comes up quickly, goes without a trace, and gets over whatever was killed in between."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from nixa_tasks.lab import Lab, LabError, Stage

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="the lab needs root")]

PACKAGE = Path(__file__).parents[3]


def _processes(root: Path) -> list[str]:
    """The command lines of what runs for the lab in `root`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(root) in line and "pytest" not in line.split(str(root))[0]:
            found.append(line)
    return found


def _remains(root: Path, lab_id: str) -> list[str]:
    """Everything of the lab that this computer still knows of."""
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(root) in line]
    links = [p.name for p in Path("/sys/class/net").iterdir() if lab_id in p.name]
    backing = [p.read_text().strip() for p in Path("/sys/block").glob("loop*/loop/backing_file")]
    return [*_processes(root), *mounts, *links, *(path for path in backing if str(root) in path)]


def _banner(address: str) -> str:
    with socket.create_connection((address, 22), timeout=5) as connection:
        return connection.recv(64).decode()


def _command(root: Path, *args: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "nixa_tasks.lab", "--dir", str(root), *args)


def _run(root: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        _command(root, *args), capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": str(PACKAGE)},
    )  # fmt: skip


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with Lab(tmp_path / "lab", image_mb=1, boot_delay=0.1) as made:
        yield made


def test_machines_are_up_in_a_moment_and_leave_nothing(lab: Lab) -> None:
    lab.up(1)  # makes the image and the flake
    begun = time.monotonic()
    lab.up(4)
    took = time.monotonic() - begun

    assert [m.stage for m in lab.machines.values()] == [Stage.OLD] * 4
    assert all(_banner(m.address).startswith("SSH-2.0-") for m in lab.machines.values())
    assert len({m.boot_id for m in lab.machines.values()}) == 4
    assert took < 10, "three machines more took that long"
    assert _remains(lab.root, lab.paths.id), "this test would not see what remains"

    lab.down()

    assert _remains(lab.root, lab.paths.id) == []
    assert all(m.stage is Stage.OFF for m in lab.machines.values())


def test_up_again_touches_nothing_and_a_larger_number_adds(lab: Lab) -> None:
    lab.up(2)
    before = {name: (m.boot_id, m.address, m.host_key_public) for name, m in lab.machines.items()}
    toml = lab.hosts_toml()
    lab.up(2)

    assert lab.hosts_toml() == toml
    lab.up(3)
    after = {name: (m.boot_id, m.address, m.host_key_public) for name, m in lab.machines.items()}
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"web3"}
    lab.up(1)
    assert all(m.is_up for m in lab.machines.values()), "fewer than there are must take none away"


def test_down_and_up_keeps_addresses_keys_and_url(lab: Lab) -> None:
    lab.up(2)
    toml = lab.hosts_toml()
    lab.down()
    lab.up(2)

    assert lab.hosts_toml() == toml


def test_two_labs_live_side_by_side(lab: Lab, tmp_path: Path) -> None:
    lab.up(1)
    with Lab(tmp_path / "other", image_mb=1) as other:
        other.up(1)
        ours, theirs = lab.machines["web1"], other.machines["web1"]

        assert ours.address.rsplit(".", 1)[0] != theirs.address.rsplit(".", 1)[0]
        assert _banner(ours.address)
        assert _banner(theirs.address)
        other.down()
        assert ours.is_up
        assert _banner(ours.address)
    assert _remains(other.root, other.paths.id) == []


@pytest.mark.parametrize("rescue", ["down", "up"])
def test_killed_supervisors_leave_nothing_that_down_or_up_can_not_mend(lab: Lab, rescue: str) -> None:
    lab.up(2)
    for machine in lab.machines.values():
        os.kill(machine.state["supervisor"]["pid"], signal.SIGKILL)
    os.kill(int(re.findall(r'"pid": (\d+)', lab.paths.www_state.read_text())[0]), signal.SIGKILL)
    deadline = time.monotonic() + 5
    while _processes(lab.root) and time.monotonic() < deadline:
        time.sleep(0.02)

    assert _processes(lab.root) == [], "a machine outlived its supervisor"
    assert all(m.stage is Stage.OFF for m in lab.machines.values())
    if rescue == "up":
        lab.up(2)
        assert all(m.is_up and _banner(m.address) for m in lab.machines.values())
        assert urllib.request.urlopen(lab.image_url, timeout=5).status == 200
    lab.down()
    assert _remains(lab.root, lab.paths.id) == []


def test_a_killed_pid_1_is_booted_again(lab: Lab) -> None:
    lab.up(1)
    machine = lab.machines["web1"]
    before = machine.boot_id
    os.kill(machine.state["pid"], signal.SIGKILL)

    machine.wait(lambda: machine.is_up and machine.boot_id != before, "boot again")
    assert _banner(machine.address)


@pytest.mark.parametrize("seconds", [0.1, 0.25, 0.4, 0.6])
def test_an_up_killed_at_any_moment_is_finished_by_the_next(tmp_path: Path, seconds: float) -> None:
    root = tmp_path / "lab"
    begun = subprocess.Popen(
        _command(root, "up", "3", "--image-mb", "1"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(PACKAGE)}, start_new_session=True,
    )  # fmt: skip
    time.sleep(seconds)
    os.killpg(begun.pid, signal.SIGKILL)
    begun.wait(10)
    with Lab(root, image_mb=1) as lab:
        lab.up(3)
        assert all(m.is_up and _banner(m.address) for m in lab.machines.values())
        tomllib.loads((lab.flake / "hosts.toml").read_text())
    assert _remains(root, lab.paths.id) == []


def test_the_command_line_tells_a_newcomer_what_to_use(tmp_path: Path) -> None:
    root = tmp_path / "lab"
    try:
        up = _run(root, "up", "2")
        assert up.returncode == 0, up.stderr
        manifest = tomllib.loads(up.stdout)
        assert list(manifest["hosts"]) == ["web1", "web2"]
        assert str(root / "flake") in up.stderr
        assert "export NIX_USER_CONF_FILES=" in up.stdout
        assert re.search(r"^web1 +10\.\S+ +old", _run(root, "status").stdout, re.MULTILINE)
        assert _run(root, "exec", "web1", "--", "hostname").stdout.strip() == "web1"
        wrong = _run(root, "fault", "web9", "silent")
        assert (wrong.returncode, "web1" in wrong.stderr) == (1, True), wrong.stderr
        assert _run(root, "fault", "web1", "silent").returncode == 0
        assert "silent" in _run(root, "status").stdout
        assert _run(root, "reset").returncode == 0
        assert "silent" not in _run(root, "status").stdout
    finally:
        down = _run(root, "down")
    assert (down.returncode, down.stderr) == (0, "")


def test_its_manifest_is_valid_and_its_flake_is_committed(lab: Lab) -> None:
    from nixa_tasks.manifest.load import load

    lab.up(2)
    manifest = load(lab.flake / "hosts.toml")

    assert [host.target for host in manifest.hosts.values()] == [m.address for m in lab.machines.values()]
    assert [host.host_key for host in manifest.hosts.values()] == [
        m.host_key_public for m in lab.machines.values()
    ]
    status = subprocess.run(
        ("git", "-C", lab.flake, "status", "--porcelain"), capture_output=True, timeout=10, check=True
    )
    assert status.stdout == b""


def test_the_image_is_served_here_and_there_and_every_request_is_recorded(lab: Lab) -> None:
    lab.up(1)
    size = lab.image.stat().st_size
    wanted = urllib.request.Request(lab.image_url, headers={"Range": "bytes=100-199"})
    with urllib.request.urlopen(wanted, timeout=5) as answer:
        assert (answer.status, answer.headers["Content-Range"]) == (206, f"bytes 100-199/{size}")
        assert answer.read() == lab.image.read_bytes()[100:200]
        tag = answer.headers["ETag"]
    stale = urllib.request.Request(lab.image_url, headers={"Range": "bytes=100-", "If-Range": '"other"'})
    with urllib.request.urlopen(stale, timeout=5) as answer:
        assert (answer.status, answer.headers["ETag"]) == (200, tag)
        answer.read()
    inside = lab.machines["web1"].exec(
        ("/run/lab/fw/busybox", "wget", "-q", "-O", "/dev/null", lab.image_url)
    )
    assert inside.returncode == 0, inside.stderr

    deadline = time.monotonic() + 5
    while len(lab.requests()) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)  # a line is written when its answer is through
    assert [(r["method"], r["status"], r["bytes"]) for r in lab.requests()] == [
        ("GET", 206, 100), ("GET", 200, size), ("GET", 200, size),
    ]  # fmt: skip
    assert lab.requests()[2]["client"] == lab.machines["web1"].address


@pytest.mark.parametrize(
    ("machines", "said"), [(0, "1 to 200"), (201, "1 to 200"), (["../x"], "name"), (["-x"], "name")]
)
def test_machines_that_can_not_be_are_refused_before_anything_is_made(
    tmp_path: Path, machines: int | list[str], said: str
) -> None:
    lab = Lab(tmp_path / "lab")

    with pytest.raises(LabError, match=said):
        lab.up(machines)

    assert not lab.root.exists()


def test_importing_the_lab_is_cheap() -> None:
    heavy = "{'http.server', 'httpx', 'jsonschema', 'rich', 'tomlkit', 'tarfile', 'doit'}"
    code = f"import sys, nixa_tasks.lab; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run(
        (sys.executable, "-c", code), capture_output=True, text=True, timeout=20, check=True,
        env={**os.environ, "PYTHONPATH": str(PACKAGE)},
    )  # fmt: skip

    assert done.stdout.split() in ([], ["tarfile"])
