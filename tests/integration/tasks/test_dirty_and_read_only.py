"""A tree with uncommitted changes, an edited hosts.toml, and a folder that can't be written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Doit


def dirty(project: Path) -> None:
    (project / "hosts/web1.nix").write_text('"changed"\n')


def policy(project: Path, word: str) -> None:
    manifest = project / "hosts.toml"
    manifest.write_text(
        manifest.read_text().replace("version = 1\n", f'version = 1\n[fleet]\ndirty = "{word}"\n')
    )


def test_a_deploy_of_a_dirty_tree_warns_once(doit: Doit, project: Path) -> None:
    assert "uncommitted" not in doit("deploy").stdout
    dirty(project)
    assert doit("deploy").stdout.count("the flake has uncommitted changes") == 1


def test_a_dirty_tree_is_refused_or_allowed_as_hosts_toml_says(doit: Doit, project: Path) -> None:
    policy(project, "refuse")
    done = doit("deploy")
    assert done.returncode == 1
    assert done.stdout.count("the flake has uncommitted changes") >= 1
    assert "web1, web2: the flake has uncommitted changes" in done.stdout
    assert "reach" not in done.stdout, "no host was contacted"
    manifest = project / "hosts.toml"
    manifest.write_text(manifest.read_text().replace("refuse", "allow"))
    assert "uncommitted" not in doit("deploy").stdout
    assert "uncommitted" not in doit("plan").stdout


def test_an_edit_of_hosts_toml_evaluates_nothing_again(doit: Doit, project: Path) -> None:
    assert "evaluate …" in doit("evaluate").stdout
    manifest = project / "hosts.toml"
    manifest.write_text(manifest.read_text() + 'user = "root"\n')
    assert "evaluate …" not in doit("evaluate").stdout
    dirty(project)
    assert "evaluate …" in doit("evaluate").stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
@pytest.mark.parametrize("is_known", [True, False], ids=["evaluated", "fresh"])
def test_looking_works_in_a_folder_that_can_not_be_written_and_changing_says_one_line(
    doit: Doit, project: Path, environment: dict[str, str], tmp_path: Path, is_known: bool
) -> None:
    if is_known:
        doit("status")
    page = tmp_path / "page.html"

    def read_only(*args: str) -> subprocess.CompletedProcess[str]:
        script = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && cd "$1" && shift && exec "$@"'
        argv = (
            "unshare",
            "--mount",
            "sh",
            "-c",
            script,
            "sh",
            str(project),
            sys.executable,
            "-m",
            "doit",
            *args,
        )
        return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=240, check=False)

    for words in (
        ("list",),
        ("status",),
        ("status:web1", "--json"),
        ("history:web1",),
        ("report", "-o", str(page)),
    ):
        done = read_only(*words)
        assert (words, done.returncode, done.stderr) == (words, 0, "")
    planned = read_only("plan")
    assert "web1" in planned.stdout
    assert "Traceback" not in planned.stdout + planned.stderr
    assert "Read-only" not in planned.stdout
    for words in (("deploy:web1",), *([] if is_known else [("evaluate:web1",)])):
        done = read_only(*words)
        said = done.stdout + done.stderr
        assert done.returncode == 1, said
        assert "Read-only file system" in said
        assert "Traceback" not in said
