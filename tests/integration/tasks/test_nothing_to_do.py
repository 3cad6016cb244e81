"""A fleet with nothing to do, by the index of what is settled: the same words and the same results."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.tasks.conftest import Doit
from tests.integration.tasks.test_holds import receipt

HEAVY = ("nixa_tasks.manifest.model", "nixa_tasks.process.run", "nixa_tasks.flake.fingerprint", "tomllib")


@pytest.fixture
def settled(doit: Doit, project: Path) -> Path:
    """Both hosts have nothing to do, and the index says so."""
    doit("evaluate")
    receipt(project, "web1")
    receipt(project, "web2")
    doit("reset-dep", "deploy")
    time.sleep(2.1)  # what changed a moment ago is not taken in
    assert "2 up to date" in _counted(doit("deploy").stdout)
    assert json.loads((project / ".nixa/settled.json").read_text())["entries"].keys() == {"web1", "web2"}
    return project


def _counted(said: str) -> str:
    names = said.partition("nothing to do: ")[2].partition(" up to date")[0].split(", ")
    return f"{len(names)} up to date"


def test_the_words_and_the_list_are_the_same_with_and_without_the_index(doit: Doit, settled: Path) -> None:
    fast = doit("deploy"), doit("deploy:web1"), doit("list"), doit("deploy", "deploy:web2")
    (settled / ".nixa/settled.json").unlink()
    slow = doit("deploy"), doit("deploy:web1"), doit("list"), doit("deploy", "deploy:web2")
    for one, other in zip(fast, slow, strict=True):
        assert one.returncode == other.returncode == 0
        assert sorted(one.stdout.partition(" (")[0].split()) == sorted(
            other.stdout.partition(" (")[0].split()
        )


@pytest.mark.parametrize("words", ["deploy", "deploy:web1", "list"])
def test_nothing_is_loaded_for_nothing(settled: Path, environment: dict[str, str], words: str) -> None:
    code = (
        "import sys\nfrom doit.doit_cmd import DoitMain\n"
        f"status = DoitMain().run([{words!r}])\n"
        f"print('loaded:', [name for name in {HEAVY!r} if name in sys.modules], status)\n"
    )
    argv = (sys.executable, "-c", code)
    done = subprocess.run(argv, cwd=settled, env=environment, capture_output=True, text=True, check=True)
    assert "loaded: [] 0" in done.stdout, done.stdout


def test_only_what_is_due_is_looked_at(doit: Doit, settled: Path) -> None:
    receipt(settled, "web2", outcome="failed")
    done = doit("deploy")
    assert "web2: reach: failed" in done.stdout
    assert "web1" not in done.stdout
    assert "unchanged: 1 more" in done.stdout
    assert "nothing to do: deploy:web1 up to date" in doit("deploy:web1").stdout


@pytest.mark.parametrize(
    "words", [("-a", "deploy:web1"), ("-a", "deploy"), ("deploy:web1", "-h"), ("deploy:web1", "--again")]
)
def test_other_words_are_read_the_long_way(doit: Doit, settled: Path, words: tuple[str, ...]) -> None:
    done = doit(*words)
    if "-a" in words:
        assert "web1: reach: failed" in done.stdout
    elif "-h" in words:
        assert done.returncode == 3, "no option of doit's"
    else:
        assert "nothing to do: deploy:web1" in done.stdout


@pytest.mark.parametrize("command", ["forget", "ignore"])
def test_what_doit_was_told_counts(doit: Doit, settled: Path, command: str) -> None:
    doit(command, "deploy:web1")
    said = doit("deploy").stdout
    assert ("web1: reach: failed" in said) is (command == "forget")
    assert ("deploy:web1: ignored" in said) is (command == "ignore")


def test_an_edit_of_the_flake_or_the_manifest_is_seen_at_once(doit: Doit, settled: Path) -> None:
    manifest = settled / "hosts.toml"
    manifest.write_text(manifest.read_text().replace("127.0.0.2", "127.0.0.3"))
    assert "web2: reach: failed" in doit("deploy").stdout
    (settled / "hosts/web1.nix").write_text('"changed"\n')
    said = doit("deploy:web1").stdout
    assert "evaluate: done" in said
    assert "web1: reach: failed" in said


def test_waves_hold_for_those_that_are_due(doit: Doit, settled: Path) -> None:
    manifest = settled / "hosts.toml"
    manifest.write_text(
        manifest.read_text().replace("version = 1", 'version = 1\nfleet.waves = [["web2"], ["web1"]]')
    )
    doit("evaluate")
    time.sleep(2.1)
    doit("deploy")  # the index of the manifest with waves
    receipt(settled, "web1", outcome="failed")
    assert "web1: reach: failed" in doit("deploy").stdout, "the wave before is settled"
    receipt(settled, "web2", outcome="failed")
    assert "web1: deploy: not started: wave 1 failed (web2)" in doit("deploy").stdout


def test_processes_are_refused_here_too(doit: Doit, settled: Path) -> None:
    done = doit("-n", "2", "-P", "process", "deploy")
    assert done.returncode == 3
    assert "leave -P process out" in done.stderr


def test_tasks_of_ones_own_are_given_every_task(doit: Doit, settled: Path) -> None:
    (settled / "dodo.py").write_text(
        "from nixa_tasks.dodo import *\n"
        "def task_release():\n    return {'actions': ['true'], 'task_dep': ['deploy:web1']}\n"
    )
    assert doit("release").returncode == 0
    assert doit("deploy:web1").returncode == 0
