"""The practice machines' flake: the shape that the tools expect, and no nixpkgs."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from nixa_tasks.lab.errors import LabError
from nixa_tasks.lab.paths import FILES, LabPaths, system, write_bytes

_SOURCE = FILES / "flake"
_IGNORED = ".nixa/\n.deploy_cache/\nresult\n__pycache__/\n.doit.db*\n"
_SECONDS = 60.0


def write(lab: LabPaths, names: Iterable[str], busybox: Path) -> None:
    """Make what is not there yet; what the user has changed stays as it is."""
    base = lab.flake
    for folder in ("bin", "hosts", "keys", "system"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    _once(base / "flake.nix", (_SOURCE / "flake.nix").read_text().replace("@system@", system()))
    _once(base / "dodo.py", "from nixa_tasks.dodo import *\n")
    _once(base / ".gitignore", _IGNORED)
    for part in (_SOURCE / "system").iterdir():
        _once(base / "system" / part.name, part.read_text())
    _once(base / "keys" / "lab.pub", lab.identity.with_suffix(".pub").read_text())
    if not (base / "bin" / "busybox").exists():
        write_bytes(base / "bin" / "busybox", busybox.read_bytes(), 0o755)
    for name in names:
        _once(base / "hosts" / f"{name}.nix", '{\n  message = "hello";\n}\n')


def commit(lab: LabPaths, message: str) -> None:
    """Record what is there. A repository of somebody's own inside of which the lab may lie is none
    of its business. Raises LabError."""
    if (lab.flake / ".git").is_dir() and not _has_commit(lab.flake):
        shutil.rmtree(lab.flake / ".git")  # whoever made it was killed
    if not (lab.flake / ".git").is_dir():
        _git(lab.flake, "init", "-q", "-b", "main")
    _git(lab.flake, "add", "-A")
    if _git(lab.flake, "status", "--porcelain"):
        _git(lab.flake, "commit", "-q", "-m", message)


def _has_commit(folder: Path) -> bool:
    return any((folder / ".git" / "refs" / "heads").glob("*")) or (folder / ".git" / "packed-refs").exists()


def _once(path: Path, text: str) -> None:
    if not path.exists():
        write_bytes(path, text.encode())


def _git(folder: Path, *args: str) -> str:
    argv = (
        "git", "-c", "user.name=nixa lab", "-c", "user.email=lab@localhost", "-c", "commit.gpgsign=false",
        "-c", "core.hooksPath=/dev/null", *args,
    )  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(
        argv, cwd=folder, env=environment, capture_output=True, text=True, timeout=_SECONDS, check=False
    )  # fmt: skip
    if done.returncode:
        raise LabError(f"git {args[0]} in {folder} failed: {done.stderr.strip()}")
    return done.stdout
