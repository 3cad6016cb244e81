"""doit killed in the middle of each step: the next run finishes the job, and wipes nothing twice
that was finished."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.deploy.conftest import Fleet

pytestmark = pytest.mark.lab


def kill_in(fleet: Fleet, step: str, *, seconds: float = 60) -> None:
    """Start a deploy of web1, and kill doit's process once that step has begun."""
    journal = fleet.flake / ".nixa/journal.jsonl"
    start = journal.stat().st_size if journal.exists() else 0
    child = subprocess.Popen(
        (sys.executable, "-m", "doit", "deploy:web1"),
        cwd=fleet.flake,
        env=fleet.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        until = time.monotonic() + seconds
        while not has_begun(fleet, start, step):
            assert child.poll() is None, f"the deploy ended before {step}"
            assert time.monotonic() < until, step
            time.sleep(0.01)
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()


def has_begun(fleet: Fleet, start: int, step: str) -> bool:
    journal = fleet.flake / ".nixa/journal.jsonl"
    if not journal.exists():
        return False
    with journal.open("rb") as file:
        file.seek(start)
        lines = file.read().splitlines()
    return any(one["event"] == "begin" and one["step"] == step for one in map(json.loads, lines))


@pytest.mark.parametrize(
    "step", ["evaluate", "build", "kexec", "upload", "copy disko", "disko", "copy", "install", "verify"]
)
def test_an_installation_that_was_killed_is_finished_by_the_next_run(fleet: Fleet, step: str) -> None:
    kill_in(fleet, step)
    fleet.doit("deploy:web1")
    web1 = fleet.lab.machines["web1"]
    assert web1.stage == "installed"
    output = json.loads((fleet.flake / ".nixa/hosts/web1/output.json").read_text())
    assert web1.current_system() == output["toplevel"]["out"]
    if step == "verify":
        assert web1.wipes() == 1
    assert "nothing to do" in fleet.doit("deploy:web1")


@pytest.mark.parametrize("step", ["evaluate", "build", "copy", "switch"])
def test_a_switch_that_was_killed_is_finished_by_the_next_run(fleet: Fleet, step: str) -> None:
    manifest = fleet.flake / "hosts.toml"
    manifest.write_text(manifest.read_text().replace("[defaults]", "[defaults]\nconfirm_timeout = 5"))
    fleet.doit("deploy:web1")
    fleet.change("web1", '{ message = "another"; }\n')
    kill_in(fleet, step)
    fleet.doit("deploy:web1")
    web1 = fleet.lab.machines["web1"]
    output = json.loads((fleet.flake / ".nixa/hosts/web1/output.json").read_text())
    assert web1.current_system() == output["toplevel"]["out"]
    assert web1.wipes() == 1


def test_a_system_that_was_not_confirmed_is_not_taken_for_deployed(fleet: Fleet) -> None:
    """Killed after the activation and before the word that keeps it: the host is about to go back,
    so the next run waits for that and switches again."""
    manifest = fleet.flake / "hosts.toml"
    text = manifest.read_text().replace("[defaults]", "[defaults]\nconfirm_timeout = 6")
    manifest.write_text(text.replace("[hosts.web1]", '[hosts.web1]\nchecks = [{ command = "sleep 2" }]'))
    fleet.doit("deploy:web1")
    web1 = fleet.lab.machines["web1"]
    old = web1.current_system()
    fleet.change("web1", '{ message = "another"; }\n')
    child = subprocess.Popen(
        (sys.executable, "-m", "doit", "deploy:web1"),
        cwd=fleet.flake,
        env=fleet.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    until = time.monotonic() + 60
    while web1.current_system() == old:
        assert time.monotonic() < until
        time.sleep(0.05)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert "the host itself still watches" in fleet.doit("deploy:web1")
    output = json.loads((fleet.flake / ".nixa/hosts/web1/output.json").read_text())
    time.sleep(7)  # longer than any guard may still wait
    assert web1.current_system() == output["toplevel"]["out"] != old
    outcomes = [one["outcome"] for one in json.loads(fleet.doit("history:web1", "--json"))["deploys"]]
    assert outcomes == ["done", "rolled-back", "done"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("step", ["kexec", "disko", "install"])
def test_a_signal_ends_everything_in_order(
    fleet: Fleet, step: str, number: signal.Signals, status: int
) -> None:
    """No traceback, no orphan, the right exit status; and the next run goes on."""
    child = subprocess.Popen(
        (sys.executable, "-m", "doit", "deploy:web1"),
        cwd=fleet.flake,
        env=fleet.environment() | {"NIXA_TEST_MARK": str(fleet.home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    until = time.monotonic() + 60
    while not has_begun(fleet, 0, step):
        assert time.monotonic() < until
        time.sleep(0.01)
    child.send_signal(number)
    said, _ = child.communicate(timeout=30)
    assert child.returncode == status, said
    assert "Traceback" not in said
    assert "stopped" in said
    assert not processes_of(fleet), "what was started has ended"
    lines = (fleet.flake / ".nixa/journal.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["event"] == "end"
    fleet.doit("deploy:web1")
    assert fleet.lab.machines["web1"].stage == "installed"


def processes_of(fleet: Fleet) -> list[str]:
    """The command lines of what still runs with this test's mark in its environment."""
    mark = f"NIXA_TEST_MARK={fleet.home}".encode()
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (place / "environ").read_bytes().split(b"\0"):
                found.append((place / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found
