"""on_finish as a process: what it is given, when it is not run, and how it ends with the run."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.integration.tasks.conftest import Doit


def declare(project: Path, script: str) -> Path:
    """An on_finish outside of the flake; where it leaves what it is given."""
    program, told = project.parent / "with a blank; $(touch x)", project.parent / "told.json"
    program.write_text(f"#!/bin/sh\ncat >{told}.new; mv {told}.new {told}; {script}\n")
    program.chmod(0o755)
    manifest = project / "hosts.toml"
    command = json.dumps([str(program), "$HOME; exit 9"])
    manifest.write_text(
        manifest.read_text().replace("version = 1", f"version = 1\nfleet.on_finish = {command}")
    )
    return told


def test_it_hears_of_hosts_that_failed_and_of_nothing_that_only_looks(doit: Doit, project: Path) -> None:
    told = declare(project, 'pwd; echo "$1"')
    for looking in ("plan", "status", "evaluate", "reach:web1", "list"):
        doit(looking)
        assert not told.exists(), looking
    done = doit("deploy:web1")
    assert done.returncode == 1
    document = json.loads(told.read_text())
    (row,) = document["hosts"]
    assert (row["host"], row["outcome"], row["out"], row["wave"]) == ("web1", "failed", None, None)
    assert row["wanted"].startswith("/nix/store/")
    assert document["exit_status"] == 1
    assert document["started_at"].endswith("Z")
    assert document["seconds"] >= row["seconds"]
    assert f"on_finish: {project}\n" in done.stdout, "it runs beside hosts.toml, and its words are shown"
    assert "on_finish: $HOME; exit 9\n" in done.stdout, (
        "an argument is handed over whole, and read by no shell"
    )


def test_a_signal_ends_it_with_the_run(doit: Doit, project: Path, environment: dict[str, str]) -> None:
    told = declare(project, "sleep 300")
    doit("evaluate")
    run = subprocess.Popen(
        (sys.executable, "-m", "doit", "deploy:web1"),
        cwd=project, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    until = time.monotonic() + 60
    while not told.exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert told.exists()
    run.send_signal(signal.SIGTERM)
    said, _ = run.communicate(timeout=60)
    assert run.returncode == 143, said
    assert "stopped" in said
    assert "Traceback" not in said
    assert "web1: " in said
