"""A user's dodo.py with tasks and a configuration of its own, under the waves of the manifest.

Every deploy fails here, since nobody can reach the hosts: what is looked at is which ones are begun,
which ones are held, and how the run ends.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.tasks.conftest import Doit

IMPORT = "from nixa_tasks.dodo import *\n"
REFUSED = "the connection is refused"
HELD = "not started: wave 1 failed (web2)"


@pytest.fixture
def waves(project: Path) -> Path:
    """web2 comes first, web1 after it."""
    manifest = project / "hosts.toml"
    manifest.write_text(
        manifest.read_text().replace("version = 1", 'version = 1\nfleet.waves = [["web2"], ["web1"]]')
    )
    return project


def dodo(project: Path, text: str) -> None:
    (project / "dodo.py").write_text(IMPORT + text)


RELEASE = """
def task_release():
    return {"actions": ["echo released >released"], "verbosity": 2, %s}
"""


@pytest.mark.parametrize("depends", ['"task_dep": ["deploy"]', '"task_dep": ["deploy:*"]'])
def test_a_task_that_depends_on_all_deploys_is_not_run_behind_failed_ones(
    doit: Doit, waves: Path, depends: str
) -> None:
    dodo(waves, RELEASE % depends)
    done = doit("release")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "web2: reach: failed" in done.stdout
    assert f"web1: deploy: {HELD}" in done.stdout, "the waves hold for whoever selects the deploys"
    assert not (waves / "released").exists()


@pytest.mark.parametrize(
    "depends",
    [
        '"task_dep": ["deploy:web1"]',
        '"setup": ["deploy:web1"]',
        '"file_dep": [".nixa/hosts/web1/deployed.json"], "task_dep": ["deploy:web1"]',
        '"getargs": {"out": ("deploy:web1", "out")}',
        '"calc_dep": ["which"]',
    ],
)
def test_a_task_that_depends_on_one_deploy_begins_that_one_alone(
    doit: Doit, waves: Path, depends: str
) -> None:
    which = 'def task_which():\n    return {"actions": [lambda: {"task_dep": ["deploy:web1"]}]}\n'
    dodo(waves, which + RELEASE % depends)
    done = doit("release")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "web1: reach: failed" in done.stdout
    assert REFUSED in done.stdout
    assert "web2" not in done.stdout, "nobody asked for it"
    assert (waves / "released").exists() is ("setup" in depends), "doit runs a task whose setup failed"


def test_a_file_of_nixas_is_a_dependency_without_a_word_about_tasks(doit: Doit, waves: Path) -> None:
    dodo(waves, RELEASE % f'"file_dep": ["{waves}/.nixa/hosts/web1/output.json"]')
    done = doit("release")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "evaluate: done" in done.stdout
    assert ".  release" in done.stdout
    assert (waves / "released").exists()
    assert "-- release" in doit("release").stdout, "the output is the same, and the release up to date"


def test_beside_nixas_tasks_and_not_selected_at_all(doit: Doit, waves: Path) -> None:
    dodo(waves, RELEASE % '"task_dep": ["evaluate:web1"]')
    beside = doit("release", "deploy:web1", "deploy:web2")
    assert beside.returncode == 1
    assert (waves / "released").exists()
    assert f"web1: deploy: {HELD}" in beside.stdout
    (waves / "released").unlink()
    alone = doit("deploy:web1")
    assert alone.returncode == 1
    assert "web1: reach: failed" in alone.stdout
    assert "web2" not in alone.stdout
    assert not (waves / "released").exists()
    assert doit("deploy", "--on", "@nobody").returncode == 3
    chosen = doit("deploy", "--on", "web1")
    assert "web2" not in chosen.stdout, "a group has who was chosen, whoever else is there for others"


def test_values_of_nixas_tasks_reach_others(doit: Doit, waves: Path) -> None:
    dodo(
        waves,
        """
def task_show():
    return {"actions": ["echo system %(system)s"], "verbosity": 2,
            "getargs": {"system": ("evaluate:web1", "system")}}
""",
    )
    done = doit("show")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "-linux" in done.stdout
    assert doit("show").stdout == "-- show\n"


def test_a_deploy_that_only_a_setup_wants_is_not_run_for_a_task_that_is_up_to_date(
    doit: Doit, waves: Path
) -> None:
    dodo(waves, RELEASE % '"setup": ["deploy:web2"], "uptodate": [True], "targets": ["hosts.toml"]')
    done = doit("release", "deploy:web1")
    assert "web2" not in done.stdout
    assert "web1: reach: failed" in done.stdout, "the wave before has nothing to do, and holds nobody"


@pytest.mark.parametrize("by", ["creates=['release']", ""])
def test_delayed_tasks(doit: Doit, waves: Path, by: str) -> None:
    dodo(
        waves,
        f"""
from doit import create_after

@create_after(executed="evaluate", {by})
def task_release():
    yield {{"basename": "release", "name": "x", "actions": ["echo released >released"],
           "task_dep": ["evaluate:web1"]}}
    yield {{"basename": "release", "name": "y", "actions": ["false"], "task_dep": ["deploy:web1"]}}
""",
    )
    done = doit("release")
    assert done.returncode == 1, done.stdout + done.stderr
    assert (waves / "released").exists()
    assert "web1: reach: failed" in done.stdout
    assert "release" in doit("list").stdout


def test_tasks_from_classes(doit: Doit, waves: Path) -> None:
    dodo(
        waves,
        """
class Release:
    @staticmethod
    def create_doit_tasks():
        return {"basename": "release", "actions": ["true"], "task_dep": ["deploy:web1"]}
""",
    )
    done = doit("release")
    assert done.returncode == 1
    assert "web1: reach: failed" in done.stdout


CONFIG = 'DOIT_CONFIG = {**DOIT_CONFIG, "default_tasks": ["release"], "verbosity": 1, "num_process": 4}\n'


def test_a_configuration_that_adds_to_nixas(doit: Doit, waves: Path) -> None:
    dodo(waves, CONFIG + RELEASE % '"task_dep": ["deploy"]')
    done = doit()
    assert done.returncode == 1
    assert HELD in done.stdout


@pytest.mark.parametrize("config", ["{}", '{"verbosity": 2, "default_tasks": ["plan"]}'])
def test_a_configuration_wholly_their_own_says_what_is_missing(doit: Doit, waves: Path, config: str) -> None:
    dodo(waves, f"DOIT_CONFIG = {config}\n")
    for words in (("plan",), ("deploy:web1",)):
        done = doit(*words)
        assert done.returncode in (1, 2), words
        assert "nixa's tasks need nixa's reporter" in done.stdout + done.stderr
        assert REFUSED not in done.stdout + done.stderr, "nothing has begun"
    assert "nixa's tasks need nixa's reporter" in doit("-r", "json", "plan").stdout


def test_processes_are_refused_in_one_sentence_before_anything_runs(doit: Doit, waves: Path) -> None:
    dodo(waves, RELEASE % '"task_dep": ["deploy"]')
    for words in (("release",), ("deploy",), ("plan",)):
        done = doit("-n", "2", "-P", "process", *words)
        assert done.returncode == 3, done.stdout + done.stderr
        assert "leave -P process out" in done.stderr
        assert "web" not in done.stdout
    assert HELD in doit("-n", "4", "-P", "thread", "deploy").stdout
    assert HELD in doit("--process", "0", "deploy").stdout


@pytest.mark.parametrize("place", ["doit.cfg", "pyproject.toml"])
def test_configuration_files(doit: Doit, waves: Path, place: str) -> None:
    dodo(waves, RELEASE % '"task_dep": ["evaluate:web1"]')
    text = "[GLOBAL]\ndefault_tasks = x\n[list]\nstatus = 1\n[task:plan]\nas_json = True\n"
    if place == "pyproject.toml":
        text = "[tool.doit]\nverbosity = 2\n[tool.doit.tasks.plan]\nas_json = true\n"
    (waves / place).write_text(text.replace("default_tasks = x\n", ""))
    assert doit("plan").stdout.startswith("{")
    assert doit("release").returncode == 0


def test_another_file_and_another_folder(doit: Doit, waves: Path, environment: dict[str, str]) -> None:
    (waves / "other.py").write_text(IMPORT + RELEASE % '"task_dep": ["deploy"]')
    assert HELD in doit("-f", "other.py", "release").stdout
    (waves / "sub").mkdir()
    (waves / "dodo.py").rename(waves / "sub" / "dodo.py")
    argv = (sys.executable, "-m", "doit", "-f", "sub/dodo.py", "-d", ".", "deploy")
    done = subprocess.run(argv, cwd=waves, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert HELD in done.stdout


CALLS = {
    "main": "DoitMain(ModuleTaskLoader(vars(nixa_tasks.dodo))).run(words)",
    "extended": "DoitMain(ModuleTaskLoader({**vars(nixa_tasks.dodo), 'task_release': task_release})).run(words)",
    "globals": "(sys.argv.__setitem__(slice(1, None), words), doit.run({**vars(nixa_tasks.dodo), 'task_release': task_release}))",
}
CALLER = """
import sys
sys.argv[1:] = ["list"]
import doit, nixa_tasks.dodo
from doit.cmd_base import ModuleTaskLoader
from doit.doit_cmd import DoitMain
def task_release():
    return {{"actions": ["true"], "task_dep": ["deploy"]}}
for words in {all_words}:
    try:
        print("status", {call}, flush=True)
    except SystemExit as end:
        print("status", end.code, flush=True)
"""


@pytest.mark.parametrize(
    ("call", "words"),
    [("main", "deploy"), ("extended", "release"), ("extended", "deploy"), ("globals", "release")],
)
def test_what_doit_selected_counts_however_it_was_called(
    waves: Path, environment: dict[str, str], call: str, words: str
) -> None:
    code = CALLER.format(all_words=[["deploy:web1"], [words]], call=CALLS[call])
    script = waves.parent / "script.py"  # doit looks at the source of a task creator
    script.write_text(code)
    argv = (sys.executable, str(script))
    done = subprocess.run(argv, cwd=waves, env=environment, capture_output=True, text=True, check=False)
    first, second = done.stdout.split("status 1\n")[:2]
    assert "web1: reach: failed" in first, done.stderr
    assert "web2" not in first
    assert f"web1: deploy: {HELD}" in second, "each command has a run of its own"
    assert "web1: reach" not in second


def test_a_run_that_has_nothing_to_do_for_the_words_fails_loudly(doit: Doit, waves: Path) -> None:
    dodo(waves, RELEASE % '"task_dep": ["deploy"]')
    nothing = doit("relaese*")
    assert nothing.returncode == 3
    assert "no task has such a name" in nothing.stderr
    (waves / "hosts.toml").write_text("version = 1\n")
    for words in (("deploy",), ("release",)):
        done = doit(*words)
        assert done.returncode == 3
        assert "nothing to deploy" in done.stderr
        assert not (waves / "released").exists()


@pytest.mark.parametrize("family", ["rollback", "reinstall", "trust"])
def test_what_would_touch_the_whole_fleet_by_accident_asks_for_the_hosts(
    doit: Doit, waves: Path, family: str
) -> None:
    for text in ("", RELEASE % '"task_dep": ["deploy"]'):
        dodo(waves, text)
        done = doit(family)
        assert done.returncode == 3, done.stdout + done.stderr
        assert f"doit {family}:HOST" in done.stderr
        assert f"doit '{family}:*'" in done.stderr
        assert "Traceback" not in done.stderr
        assert REFUSED not in done.stdout
