"""The command `nixa`: doit without a dodo.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.tasks.conftest import Doit


@pytest.fixture
def nixa(project: Path, environment: dict[str, str]) -> Doit:
    (project / "dodo.py").unlink()

    def run(*args: str, timeout: float = 120, **env: str) -> subprocess.CompletedProcess[str]:
        argv = (sys.executable, "-m", "nixa_tasks.tasks.loader", *args)
        return subprocess.run(
            argv,
            cwd=env.pop("cwd", str(project)),
            env=environment | env,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


def test_it_works_where_there_is_only_a_manifest(nixa: Doit) -> None:
    assert "bring hosts to what the flake says" in nixa("list").stdout
    rows = json.loads(nixa("plan", "--json").stdout)["hosts"]
    assert [row["host"] for row in rows] == ["web1", "web2"]
    only = json.loads(nixa("plan:web2", "--json").stdout)["hosts"]
    assert [row["host"] for row in only] == ["web2"]
    done = nixa("deploy", "--on", "@web and not web2")
    assert done.returncode == 1
    assert "web1: reach: failed" in done.stdout
    assert "web2" not in done.stdout
    assert "nothing to do: evaluate:web1" in nixa("evaluate:web1").stdout
    assert "action" in nixa().stdout, "alone it plans"


def test_it_gives_the_same_as_doit_with_the_one_line_dodo(nixa: Doit, doit: Doit, project: Path) -> None:
    ours = {words: nixa(*words.split()) for words in ("list --all", "status", "deploy:wbe1", "rollback")}
    (project / "dodo.py").write_text("from nixa_tasks.dodo import *\n")
    for words, done in ours.items():
        theirs = doit(*words.split())
        assert (done.returncode, done.stdout) == (theirs.returncode, theirs.stdout), words
        assert done.stderr == theirs.stderr, words


def test_the_tasks_of_a_dodo_file_beside_the_manifest_are_there_too(nixa: Doit, project: Path) -> None:
    (project / "dodo.py").write_text(
        "from nixa_tasks.dodo import *\n"
        "def task_release():\n    return {'actions': ['echo released'], 'task_dep': ['evaluate:web1']}\n"
    )
    done = nixa("-v", "2", "release")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "released" in done.stdout


def test_it_finds_the_manifest_above_or_says_that_there_is_none(nixa: Doit, project: Path) -> None:
    (project / "sub/deeper").mkdir(parents=True)
    assert "web1" in nixa("list", "--all", cwd=str(project / "sub/deeper")).stdout
    assert "web1" in nixa("-d", str(project), "list", "--all", cwd="/").stdout
    lost = nixa("plan", cwd="/")
    assert lost.returncode == 3
    assert lost.stderr == "ERROR: there is no hosts.toml in /, nor in a folder above it\n"


@pytest.mark.parametrize("words", ["--help", "-h", "help"])
def test_help_is_for_people(nixa: Doit, words: str) -> None:
    done = nixa(words)
    assert done.returncode == 0
    assert done.stdout.startswith("usage: nixa ")
    for text in ("deploy", "--on '@web'", "hosts.toml", "reinstall", "-a "):
        assert text in done.stdout


@pytest.mark.parametrize("words", ["deploy --help", "deploy:web1 -h", "help deploy", "-a deploy --help"])
def test_help_on_a_family(nixa: Doit, words: str) -> None:
    done = nixa(*words.split())
    assert done.returncode == 0
    assert "nixa deploy:HOST" in done.stdout
    assert "--on=ON" in done.stdout
    assert "reach" not in done.stdout, "nothing is run"


def test_mistakes_end_with_status_3_and_a_way_on(nixa: Doit) -> None:
    for words, says in ((("deploy", "--on", ""), "an argument is empty"), (("delpoy",), "did you mean deploy?"),
                        (("deploy", "web1"), "doit deploy:web1"), (("reinstall",), "reinstall:HOST")):  # fmt: skip
        done = nixa(*words)
        assert done.returncode == 3, words
        assert says in done.stderr
        assert "Traceback" not in done.stderr


def test_completion_for_fish(nixa: Doit) -> None:
    done = nixa("tabcompletion", "--shell", "fish")
    assert done.returncode == 0
    assert "complete -c $program" in done.stdout
