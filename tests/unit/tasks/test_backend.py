"""doit's database: what `Dependency`, of the doit that is installed, stores and finds again."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from doit.dependency import Dependency, SqliteDB
from doit.task import Task

from nixa_tasks.tasks.backend import NixaDB


def manager(path: Path, backend: type = NixaDB) -> Dependency:
    return Dependency(backend, str(path))


@pytest.fixture
def task(tmp_path: Path) -> Task:
    (tmp_path / "dep").write_text("x")
    made = Task("deploy:web1", [], file_dep=[str(tmp_path / "dep")])
    made.values = {"out": "/nix/store/x"}
    return made


def test_a_finished_task_is_known_to_the_next_run_though_this_one_is_killed(
    tmp_path: Path, task: Task
) -> None:
    manager(tmp_path / "db").save_success(task)  # and never closed
    again = manager(tmp_path / "db")
    assert again.get_status(task, {}).status == "up-to-date"
    assert again.get_value("deploy:web1", "out") == "/nix/store/x"
    (tmp_path / "dep").write_text("other")
    assert again.get_status(task, {}).status == "run"


def test_forgotten_ignored_and_failed_tasks(tmp_path: Path, task: Task) -> None:
    first = manager(tmp_path / "db")
    first.save_success(task)
    first.ignore(task)
    assert manager(tmp_path / "db").status_is_ignore(task)
    first.remove_success(task)
    second = manager(tmp_path / "db")
    assert not second.status_is_ignore(task)
    assert second.get_status(task, {}).status == "run"
    second.save_success(task)
    second.remove_all()
    assert manager(tmp_path / "db").get_status(task, {}).status == "run"


def test_two_runs_side_by_side_lose_nothing(tmp_path: Path, task: Task) -> None:
    one, two = manager(tmp_path / "db"), manager(tmp_path / "db")
    other = Task("deploy:web2", [], file_dep=list(task.file_dep))
    one.save_success(task)
    two.save_success(other)
    one.close()
    two.close()
    after = manager(tmp_path / "db")
    assert after.get_status(task, {}).status == after.get_status(other, {}).status == "up-to-date"


def test_it_reads_what_doits_own_backend_wrote_and_the_other_way_round(tmp_path: Path, task: Task) -> None:
    theirs = manager(tmp_path / "db", SqliteDB)
    theirs.save_success(task)
    theirs.close()
    ours = manager(tmp_path / "db")
    assert ours.get_status(task, {}).status == "up-to-date"
    ours.save_success(task)
    ours.close()
    assert manager(tmp_path / "db", SqliteDB).get_status(task, {}).status == "up-to-date"


def test_a_damaged_file_is_begun_anew_and_a_missing_folder_is_no_obstacle(tmp_path: Path, task: Task) -> None:
    (tmp_path / "db").write_bytes(b"no database at all" * 100)
    first = manager(tmp_path / "db")
    assert first.get_status(task, {}).status == "run"
    first.save_success(task)
    assert sqlite3.connect(tmp_path / "db").execute("select count(*) from doit").fetchone() == (1,)
    lost = manager(tmp_path / "no" / "db")
    lost.save_success(task)
    assert lost.get_status(task, {}).status == "up-to-date"
    lost.close()
    assert not (tmp_path / "no").exists()


def test_it_has_what_doit_calls() -> None:
    """The calls that `Dependency` makes of a backend, in the doit that is installed."""
    used = {"set", "get", "remove", "remove_all", "in_", "dump"}
    assert used <= {name for name in dir(SqliteDB) if not name.startswith("__")}
    assert used <= set(dir(NixaDB))
