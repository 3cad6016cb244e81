"""What the README shows is true: its manifest is valid, its commands exist."""

from __future__ import annotations

import re
from pathlib import Path

from nixa_tasks.manifest.load import load
from nixa_tasks.tasks.families import NAMES

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_manifest_that_the_readme_shows_is_valid(tmp_path: Path) -> None:
    shown = re.search(r"```toml\n(.*?)```", README, re.DOTALL)
    assert shown is not None
    lines = [line.removeprefix("   ") for line in shown[1].splitlines()]
    (tmp_path / "hosts.toml").write_text("\n".join(lines))
    manifest = load(tmp_path / "hosts.toml")
    assert manifest.hosts["web1"].checks


def test_the_projects_own_example_is_valid() -> None:
    assert load(ROOT / "hosts.toml").images


def test_every_command_of_the_readme_is_one_of_ours() -> None:
    words = set(re.findall(r"(?:`|\$ )doit (?:-\w+ )?([a-z]+)[:`\s]", README))
    assert words
    assert words <= NAMES.keys()


def test_the_documents_that_the_readme_names_are_there() -> None:
    for name in re.findall(r"\]\((docs/[^)#]+|[A-Z]+\.md)\)", README):
        assert (ROOT / name).exists(), name


def test_the_dodo_file_is_the_one_line_that_users_write() -> None:
    assert (ROOT / "dodo.py").read_text().split("#")[0].strip() == "from nixa_tasks.dodo import *"
