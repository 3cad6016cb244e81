"""Random histories of real git trees: two states have one fingerprint if Nix reads the same of both.

Nix tells what it reads by its hash of the tree; it is asked for many trees in one process. With
NIXA_HISTORIES=1000 there are more histories than `./check` has time for.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest

from nixa_tasks.flake.fingerprint import fingerprint
from nixa_tasks.nix.command import Nix, command
from nixa_tasks.process.run import LocalProcesses
from nixa_tasks.state.layout import Layout

HISTORIES = int(os.environ.get("NIXA_HISTORIES", "40"))
STEPS = 6
TOGETHER = 40
NAMES = ("a.nix", "b.nix", "sub/c.nix", "sub/d.txt", "e.txt")
NO_HASH = "sha256-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
CONF = "extra-experimental-features = nix-command flakes\nbuild-users-group =\nsubstituters =\nflake-registry =\n"


class History:
    """One git tree, what happened to it, and for each state (what Nix reads, fingerprint)."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.seed = seed
        self.root, self.input = folder / "tree", folder / "input"
        self.layout = Layout(folder)
        self.steps: list[str] = []
        self.states: list[tuple[object, str]] = []
        for place in (self.root / "sub", self.input):
            place.mkdir(parents=True)
        self.git("init", "-q", "-b", "main")
        source: dict[str, object] = {"type": "path", "path": str(self.input)}
        node = {
            "flake": False,
            "locked": source | {"narHash": NO_HASH, "lastModified": 1},
            "original": source,
        }
        lock = {"version": 7, "root": "root", "nodes": {"root": {"inputs": {"x": "x"}}, "x": node}}
        (self.root / "flake.lock").write_text(json.dumps(lock))
        (self.root / "flake.nix").write_text(
            f'{{ inputs.x = {{ url = "path:{self.input}"; flake = false; }}; outputs = _: {{ }}; }}'
        )
        (self.input / "x").write_text("x")
        for name in NAMES[:3]:
            (self.root / name).write_text("0\n")
        self.git("add", "-A")
        if seed % 7:  # some begin without a commit
            self.git("commit", "-qm", "first")

    def git(self, *args: str, folder: Path | None = None) -> None:
        """Best effort: what git refuses in this state changes nothing."""
        argv = ("git", "-c", "user.email=a@b", "-c", "user.name=a", "-c", "protocol.file.allow=always", *args)
        subprocess.run(
            argv, cwd=folder or self.root, capture_output=True, check=False, stdin=subprocess.DEVNULL
        )

    def step(self) -> None:
        """One random thing that a person does to the tree."""
        name, path = self.a_file()
        action = self.random.choice(ACTIONS)
        self.steps.append(f"{action.__name__} {name}")
        path.parent.mkdir(parents=True, exist_ok=True) if not path.parent.is_symlink() else None
        try:
            action(self, name, path)
        except OSError:  # a folder is where a file was, or the other way round
            return

    def a_file(self) -> tuple[str, Path]:
        name = self.random.choice(NAMES)
        return name, self.root / name


def edit(of: History, _name: str, path: Path) -> None:
    path.write_text(f"{of.random.randrange(3)}\n")


def edit_with_dos_line_ends(of: History, _name: str, path: Path) -> None:
    path.write_text(f"{of.random.randrange(3)}\r\n")


def remove(_of: History, _name: str, path: Path) -> None:
    path.unlink()


def executable(_of: History, _name: str, path: Path) -> None:
    path.chmod(0o644 if path.stat().st_mode & 0o100 else 0o755)


def link(of: History, _name: str, path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(of.random.choice(["notes", "nowhere", "sub"]))


def folder_instead(_of: History, _name: str, path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()
    (path / "inside").write_text("x")


def add(of: History, name: str, _path: Path) -> None:
    of.git("add", name)


def add_all(of: History, _name: str, _path: Path) -> None:
    of.git("add", "-A")


def intend_to_add(of: History, name: str, _path: Path) -> None:
    of.git("add", "-N", name)


def untrack(of: History, name: str, _path: Path) -> None:
    of.git("rm", "-q", "--cached", name)


def move(of: History, name: str, _path: Path) -> None:
    of.git("mv", name, name.swapcase())


def commit(of: History, _name: str, _path: Path) -> None:
    of.git("commit", "-qam", "a change", "--allow-empty")


def commit_staged(of: History, _name: str, _path: Path) -> None:
    of.git("commit", "-qm", "a change")


def check_out(of: History, _name: str, _path: Path) -> None:
    of.git("checkout", "-q", of.random.choice(["HEAD~1", "main", "-", "-bside"]))


def reset(of: History, _name: str, _path: Path) -> None:
    of.git(
        "reset", "-q", of.random.choice(["--soft", "--mixed", "--hard"]), of.random.choice(["HEAD", "HEAD~1"])
    )


def stash(of: History, _name: str, _path: Path) -> None:
    of.git("stash", of.random.choice(["push", "pop"]), "-q")


def mark(of: History, name: str, _path: Path) -> None:
    bits = ["--skip-worktree", "--no-skip-worktree", "--assume-unchanged", "--no-assume-unchanged"]
    of.git("update-index", of.random.choice(bits), name)


def attributes(of: History, _name: str, _path: Path) -> None:
    lines = ["*.txt text eol=crlf\n", "*.txt export-ignore\n", "*.nix ident\n", ""]
    (of.root / ".gitattributes").write_text(of.random.choice(lines))
    of.git("add", ".gitattributes")


def settings(of: History, _name: str, _path: Path) -> None:
    of.git("config", "core.autocrlf", of.random.choice(["true", "input", "false"]))


def modes_ignored(of: History, _name: str, _path: Path) -> None:
    of.git("config", "core.fileMode", of.random.choice(["true", "false"]))


def submodule(of: History, _name: str, _path: Path) -> None:
    inside = of.root / "inside"
    if not inside.exists():
        of.git("init", "-q", str(inside))
    (inside / "f").write_text(str(of.random.randrange(3)))
    of.git("add", "-A", folder=inside)
    of.git("commit", "-qm", "x", folder=inside)
    of.git("add", "inside")


def edit_the_path_input(of: History, _name: str, _path: Path) -> None:
    (of.input / "x").write_text(str(of.random.randrange(3)))


Action = Callable[[History, str, Path], None]
_OFTEN: tuple[Action, ...] = (edit, edit, edit, add, add_all, commit, commit, check_out)
ACTIONS: tuple[Action, ...] = (
    *_OFTEN, edit_with_dos_line_ends, remove, executable, link, folder_instead, intend_to_add, untrack, move,
    commit_staged, reset, stash, mark, attributes, settings, modes_ignored, submodule, edit_the_path_input,
)  # fmt: skip


def what_nix_reads(nix: Nix, histories: list[History]) -> list[object]:
    """For each history, what Nix has for source: the hashes of the tree and of its `path:` input."""
    places = json.dumps([[f"file://{one.root}", str(one.input)] for one in histories])
    expression = f"""map (place: [
      (builtins.fetchTree {{ type = "git"; url = builtins.elemAt place 0; }}).narHash
      (builtins.fetchTree {{ type = "path"; path = builtins.elemAt place 1; }}).narHash
    ]) (builtins.fromJSON ''{places}'')"""
    argv = command("eval", "--impure", "--json", "--expr", expression)
    found: list[object] = json.loads(nix.run(argv, deadline=300).stdout)
    return found


@pytest.mark.parametrize("first", range(0, HISTORIES, TOGETHER))
def test_one_fingerprint_for_what_nix_reads_alike(
    first: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nix.conf").write_text(CONF)
    monkeypatch.setenv("NIX_USER_CONF_FILES", str(tmp_path / "nix.conf"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    if release := os.environ.get("NIXA_TEST_NIX"):
        monkeypatch.setenv("PATH", f"{release}:{os.environ['PATH']}")
    nix = Nix(LocalProcesses())
    seeds = range(first, min(first + TOGETHER, HISTORIES))
    histories = [History(tmp_path / str(seed), seed) for seed in seeds]
    for _ in range(STEPS):
        for history, read in zip(histories, what_nix_reads(nix, histories), strict=True):
            value = fingerprint(nix, str(history.root), history.layout).value
            history.states.append((read, value))
        for history in histories:
            history.step()
    for history in histories:
        compare(history)


def compare(history: History) -> None:
    for (number, (read, value)), (later, (read_later, value_later)) in combinations(
        enumerate(history.states), 2
    ):
        where = f"seed {history.seed}, states {number} and {later} of {history.steps}"
        if value == value_later:
            assert read == read_later, f"new content and the old fingerprint: {where}"
        elif read == read_later:  # Nix's own hash instead of git's costs one evaluation, and is not wrong
            assert ("sha256-" in value) != ("sha256-" in value_later), (
                f"a new fingerprint for nothing: {where}"
            )
