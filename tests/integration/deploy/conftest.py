"""Practice machines for the deploy tests: one lab a test, gone afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nixa_tasks.lab import Lab


@dataclass
class Fleet:
    """A lab, and doit in its flake."""

    lab: Lab
    home: Path

    @property
    def flake(self) -> Path:
        return Path(self.lab.flake)

    def environment(self) -> dict[str, str]:
        own = {
            "XDG_STATE_HOME": str(self.home / "state"),
            "NIXA_CACHE": str(self.home / "cache"),
            "NO_COLOR": "1",
            "COLUMNS": "140",
        }
        return {**os.environ, **self.lab.env(), **own}

    def doit(self, *args: str, status: int | None = 0, timeout: float = 240) -> str:
        """Run doit; its output. Fails the test where the exit status is another."""
        done = subprocess.run(
            (sys.executable, "-m", "doit", *args),
            cwd=self.flake,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        said = done.stdout + done.stderr
        assert "Traceback" not in said, said
        if status is not None:
            assert done.returncode == status, said
        return said

    def change(self, host: str, text: str) -> None:
        """Another configuration for one host."""
        (self.flake / "hosts" / f"{host}.nix").write_text(text)

    def contacts(self) -> dict[str, int]:
        return {name: machine.contacts() for name, machine in self.lab.machines.items()}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def fleet(tmp_path: Path, home: Path) -> Iterator[Fleet]:
    lab = Lab(tmp_path / "lab")
    try:
        lab.up(3)
        yield Fleet(lab, home)
    finally:
        lab.down()
