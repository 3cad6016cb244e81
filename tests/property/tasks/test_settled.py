"""The index of what is settled against doit with all tasks made, over random histories of a project.

What the index calls settled, doit would find up to date; and what doit finds up to date, the index calls
settled once it was recorded and nothing has changed since.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from doit.dependency import Dependency
from doit.loader import generate_tasks
from doit.task import Task
from hypothesis import given, settings
from hypothesis import strategies as st

from nixa_tasks.flake.output import Output, record
from nixa_tasks.process.run import LocalProcesses
from nixa_tasks.tasks import families, manifest, settled
from nixa_tasks.tasks.backend import NixaDB
from nixa_tasks.tasks.finish import record_settled
from nixa_tasks.tasks.run import Run, begin
from nixa_tasks.tasks.selection import Request

HOSTS = ("a", "b", "c")
LATER_NS = 10_000_000_000


class Project:
    """A project in git with stamps as evaluations and deploys leave them; Nix is never asked."""

    def __init__(self, root: Path) -> None:
        self.root, self.state = root, root / ".nixa"
        (root / "flake.nix").write_text("{ outputs = { self }: { }; }\n")
        self.targets = dict.fromkeys(HOSTS, "192.0.2.1")
        self.write_manifest()
        self.git("init", "-q")
        self.git("add", ".")
        self.evaluate()
        for host in HOSTS:
            self.deploy(host)

    def git(self, *words: str) -> None:
        argv = ("git", "-C", str(self.root), "-c", "user.name=t", "-c", "user.email=t@example.org", *words)
        subprocess.run(argv, check=True, capture_output=True)

    def write_manifest(self, comment: str = "") -> None:
        hosts = "".join(
            f'[hosts.{name}]\ntarget = "{target}"\nshared_target = true\n'
            for name, target in self.targets.items()
        )
        (self.root / "hosts.toml").write_text(f"version = 1\n{hosts}# {comment}\n")

    def run(self) -> Run:
        return begin(manifest.find(self.root, LocalProcesses()), Request())

    def evaluate(self, host: str | None = None, out: str = "x") -> None:
        run = self.run()
        hosts = HOSTS if host is None else (host,)
        outputs = {
            name: Output(name, "x86_64-linux", f"/nix/store/{out}.drv", f"/nix/store/{out}") for name in hosts
        }
        record(run.layout, run.fingerprint, run.fingerprint.reference, outputs)

    def deploy(self, host: str, **more: str) -> None:
        place = self.state / "hosts" / host
        out = (
            json.loads((place / "output.json").read_text())["toplevel"]["out"]
            if (place / "output.json").exists()
            else "x"
        )
        said = {
            "target": self.targets[host], "host_key": "", "out": out, "wanted": out, "drv": None, "mode": "switch",
            "kexec_sha256": None, "flake": None, "started_at": "2026-01-01T00:00:00Z", "seconds": 1.0,
            "operator": "o", "outcome": "done",
        }  # fmt: skip
        place.mkdir(parents=True, exist_ok=True)
        (place / "deployed.json").write_text(json.dumps({**said, **more}))
        if (place / "output.json").exists():
            with self.database() as database:
                database.save_success(self.tasks()[f"deploy:{host}"])

    def tasks(self) -> dict[str, Task]:
        run = self.run()
        found: dict[str, Task] = {}
        for name in ("evaluate", "deploy"):
            made = generate_tasks(name, families.tasks(families.BY_NAME[name], run))
            found |= {task.name: task for task in made}
        return found

    def database(self) -> _Database:
        return _Database(self.state / "doit.db")

    def due(self) -> frozenset[str]:
        """The hosts of which doit would run a task, with all tasks made."""
        tasks = self.tasks()
        with self.database() as database:
            return frozenset(
                host
                for host in HOSTS
                for task in (tasks[f"evaluate:{host}"], tasks[f"deploy:{host}"])
                if database.status_is_ignore(task) or database.get_status(task, tasks).status != "up-to-date"
            )

    def settled(self) -> frozenset[str] | None:
        index = settled.read(self.state)
        return None if index is None else index.settled(HOSTS)

    def record(self) -> None:
        record_settled(self.run(), frozenset(HOSTS) - self.due(), time.time_ns() + LATER_NS)
        time.sleep(0.02)  # the kernel's clock for files ticks every few milliseconds


class _Database:
    def __init__(self, path: Path) -> None:
        self._manager = Dependency(NixaDB, str(path))

    def __enter__(self) -> Dependency:
        return self._manager

    def __exit__(self, *_: object) -> None:
        self._manager.close()


def _edit_flake(project: Project, host: str) -> None:
    with (project.root / "flake.nix").open("a") as file:
        file.write(f"# {host}\n")


def _target(project: Project, host: str) -> None:
    project.targets[host] = f"192.0.2.{len(project.targets[host]) % 200 + int(project.targets[host][-1]) + 1}"
    project.write_manifest()


def _forget(project: Project, host: str) -> None:
    with project.database() as database:
        database.remove_success(project.tasks()[f"deploy:{host}"])


def _ignore(project: Project, host: str) -> None:
    with project.database() as database:
        database.ignore(project.tasks()[f"deploy:{host}"])


def _file(name: str, change: Callable[[Path], object]) -> Callable[[Project, str], None]:
    def step(project: Project, host: str) -> None:
        path = project.state / "hosts" / host / name
        if path.exists():
            change(path)

    return step


STEPS: dict[str, Callable[[Project, str], None]] = {
    "edit the flake": _edit_flake,
    "edit the flake back": lambda project, _: project.git("checkout", "-q", "--", "flake.nix"),
    "touch the flake": lambda project, _: os.utime(project.root / "flake.nix"),
    "add a file that is not tracked": lambda project, host: (project.root / f"new-{host}").touch(),
    "track it": lambda project, _: project.git("add", "."),
    "commit": lambda project, _: project.git("commit", "-q", "--allow-empty", "-am", "x"),
    "another target": _target,
    "a comment in the manifest": lambda project, host: project.write_manifest(host),
    "a failed deploy": lambda project, host: project.deploy(host, outcome="failed"),
    "a deploy of something else": lambda project, host: project.deploy(host, wanted="/nix/store/other"),
    "a deploy": lambda project, host: project.deploy(host),
    "evaluate all": lambda project, _: project.evaluate(),
    "evaluate one to something new": lambda project, host: project.evaluate(host, out="y"),
    "lose the receipt": _file("deployed.json", Path.unlink),
    "lose the output": _file("output.json", Path.unlink),
    "touch the receipt": _file("deployed.json", os.utime),
    "damage the receipt": _file("deployed.json", lambda path: path.write_text("{")),
    "forget": _forget,
    "ignore": _ignore,
    "lose doit's database": lambda project, _: (project.state / "doit.db").unlink(missing_ok=True),
    "damage the index": lambda project, _: os.truncate(project.state / "settled.json", 20),
    "record": lambda project, _: project.record(),
}
Step = tuple[str, str]


@pytest.fixture(scope="module")
def template() -> Iterator[Path]:
    """A settled project, made once."""
    with tempfile.TemporaryDirectory(prefix="nixa-settled-") as folder:
        root = Path(folder) / "project"
        root.mkdir()
        project = Project(root)
        assert project.due() == frozenset()
        yield root


@settings(max_examples=12, deadline=None)
@given(
    steps=st.lists(st.tuples(st.sampled_from(sorted(STEPS)), st.sampled_from(HOSTS)), min_size=1, max_size=4)
)
def test_what_the_index_calls_settled_doit_finds_up_to_date(template: Path, steps: list[Step]) -> None:
    with tempfile.TemporaryDirectory(prefix="nixa-settled-") as folder:
        root = Path(folder) / "project"
        shutil.copytree(template, root, symlinks=True)
        project = Project.__new__(Project)
        project.root, project.state, project.targets = root, root / ".nixa", dict.fromkeys(HOSTS, "192.0.2.1")
        project.evaluate()  # the copy is a tree of its own
        for host in HOSTS:
            project.deploy(host)
        project.record()
        assert project.settled() == frozenset(HOSTS) - project.due() == frozenset(HOSTS)
        for name, host in steps:
            STEPS[name](project, host)
            found, due = project.settled(), project.due()
            assert not found or not found & due, (name, host)
        project.record()
        recorded = project.settled()
        assert recorded is None or recorded == frozenset(HOSTS) - project.due()


def test_what_changed_a_moment_ago_is_not_taken_in(template: Path, tmp_path: Path) -> None:
    root = tmp_path / "project"
    shutil.copytree(template, root, symlinks=True)
    project = Project.__new__(Project)
    project.root, project.state, project.targets = root, root / ".nixa", dict.fromkeys(HOSTS, "192.0.2.1")
    project.evaluate()
    for host in HOSTS:
        project.deploy(host)
    record_settled(project.run(), HOSTS)
    assert project.settled() is None
    project.record()
    assert project.settled() == frozenset(HOSTS)
