"""doit's own commands mean something for nixa's tasks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.tasks.conftest import Doit


def test_info_says_in_words_why_a_task_is_due(doit: Doit, project: Path) -> None:
    before = doit("info", "deploy:web1")
    assert before.returncode == 1
    assert "the flake was not evaluated for web1 yet" in before.stdout
    doit("evaluate")
    evaluated = doit("info", "evaluate:web1")
    assert evaluated.returncode == 0
    assert "up-to-date" in evaluated.stdout
    never = doit("info", "deploy:web1").stdout
    assert "web1 was never deployed from here" in never
    (project / "hosts/web1.nix").write_text('"something else"\n')
    assert "was not evaluated for web1 since it changed" in doit("info", "evaluate:web1").stdout
    for name in ("deploy:web1", "evaluate:web1", "build:web1", "reach:web1", "rollback:web1", "plan:web1",
                 "reinstall:web1", "plan", "status", "gc"):  # fmt: skip
        told = doit("info", name).stdout
        assert "<function" not in told, told
        assert "object at 0x" not in told, told


def test_a_forgotten_task_is_due_and_an_ignored_one_is_left_out(doit: Doit) -> None:
    doit("build:web1")
    assert "nothing to do" in doit("build:web1").stdout
    assert "forgetting build:web1" in doit("forget", "build:web1").stdout
    assert "build: done" in doit("build:web1").stdout
    assert doit("ignore", "deploy:web1").returncode == 0
    ignored = doit("deploy:web1")
    assert "deploy:web1: ignored" in ignored.stdout
    assert "reach" not in ignored.stdout
    doit("forget", "deploy:web1")
    assert "reach: failed" in doit("deploy:web1").stdout


def test_a_dry_clean_removes_nothing(doit: Doit, project: Path) -> None:
    doit("evaluate:web1")
    for words in (("deploy:web1",), ("evaluate",), ()):
        assert doit("clean", "-n", *words).returncode == 0
    assert (project / ".nixa/hosts/web1/output.json").exists()


def test_list_shows_every_task_and_its_status(doit: Doit) -> None:
    doit("evaluate")
    lines = doit("list", "--all", "--status").stdout.splitlines()
    assert any(line.startswith("U evaluate:web1") for line in lines)
    assert any(line.startswith(("R deploy:web1", "E deploy:web1")) for line in lines)
    assert not any("_wave" in line for line in lines)
    short = doit("list").stdout
    assert "web1" not in short
    assert "bring hosts to what the flake says" in short


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_tasks_and_hosts(doit: Doit, shell: str) -> None:
    done = doit("tabcompletion", "--shell", shell, "--hardcode-tasks")
    assert done.returncode == 0
    assert "deploy" in done.stdout
    assert "deploy:web1" in doit("list", "--all", "--quiet").stdout


def test_a_plugin_command_that_is_called_like_a_task_breaks_nothing(doit: Doit, project: Path) -> None:
    (project / "theirs.py").write_text(
        "from doit.cmd_base import Command\n"
        "class Status(Command):\n"
        "    doc_purpose = 'theirs'\n"
        "    def execute(self, params, args):\n"
        "        print('theirs')\n"
    )
    (project / "doit.cfg").write_text("[COMMAND]\nstatus = theirs:Status\n")
    theirs = doit("status", PYTHONPATH=str(project))
    assert theirs.stdout == "theirs\n", theirs.stderr
    ours = doit("run", "status", "--json", PYTHONPATH=str(project))
    assert ours.returncode == 0, ours.stderr
    assert ours.stdout.startswith("{")
    assert doit("evaluate", PYTHONPATH=str(project)).returncode == 0


@pytest.mark.parametrize(
    ("family", "says"),
    [
        ("deploy", ("deploy:HOST", "--on", "doit -a deploy:HOST", "deploy --on '@web and not web3'")),
        ("reinstall", ("reinstall:HOST", "--yes-wipe", "reinstall:web1 --yes-wipe web1")),
        ("plan", ("plan:HOST", "--json", "--on")),
        ("kexec", ("kexec:IMAGE", "kexec:x86_64-linux")),
    ],
)
def test_help_on_a_family_has_its_options_and_examples(
    doit: Doit, family: str, says: tuple[str, ...]
) -> None:
    done = doit("help", family)
    assert done.returncode == 0
    for text in says:
        assert text in done.stdout, done.stdout


def test_a_folder_that_can_not_be_written_can_be_looked_at(doit: Doit, project: Path) -> None:
    (project / ".nixa").write_text("in the way")
    for words in (("list",), ("plan",), ("status", "--json"), ("info", "deploy:web1")):
        done = doit(*words)
        assert done.returncode in (0, 1), words
        assert "Traceback" not in done.stdout + done.stderr, words
