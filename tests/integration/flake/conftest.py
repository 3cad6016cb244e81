"""Real Nix, real git, and a flake that needs no nixpkgs."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest

from nixa_tasks.flake.evaluate import Evaluation, Limits
from nixa_tasks.flake.fingerprint import Fingerprint, fingerprint
from nixa_tasks.nix.command import Nix
from nixa_tasks.process.run import LocalProcesses
from nixa_tasks.state.layout import Layout

CONF = """extra-experimental-features = nix-command flakes
build-users-group =
substituters =
flake-registry =
sandbox = false
sandbox-paths =
"""
SHIM = """#!/bin/sh
printf '%s\\n' "$(echo "$(basename "$0") $*" | tr '\\n' ' ')" >> "{log}"
exec "{real}" "$@"
"""
FLAKE = """{{
  outputs = {{ self }}: let
    raw = name: script: derivation {{
      inherit name; system = "x86_64-linux";
      builder = "${{./bin}}/busybox"; args = [ "sh" "-c" script ];
    }};
    host = name: {{
      config.pkgs.system = "x86_64-linux";
      config.system.build = {{
        toplevel = raw "nixos-system-${{name}}" "${{./bin}}/busybox mkdir $out; echo {token} > $out/init";
        diskoScript = raw "disko-${{name}}" "echo {token} > $out";
      }};
    }};
  in {{
    nixosConfigurations = {{
      web1 = host "web1";
      web2 = host "web2";
      bare = {{ config.system.build.toplevel = raw "bare" "echo {token} > $out"; }};
      {extra}
    }};
  }};
}}
"""


@dataclass(frozen=True)
class Project:
    """A flake in its folder, with the state beside it; `log` has a line for each nix command."""

    root: Path
    log: Path
    token: str
    nix: Nix

    @property
    def layout(self) -> Layout:
        return Layout(self.root)

    def write(self, extra: str = "", token: str | None = None) -> None:
        (self.root / "flake.nix").write_text(FLAKE.format(token=token or self.token, extra=extra))

    def git(self, *args: str) -> str:
        argv = ["git", "-c", "user.email=a@example.org", "-c", "user.name=a", "-C", str(self.root), *args]
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout

    def seen(self) -> Fingerprint:
        return fingerprint(self.nix, str(self.root), self.layout)

    def evaluation(self, *hosts: str, workers: int = 1, memory: int = 4096) -> Evaluation:
        wanted = {host: host for host in hosts}
        return Evaluation(
            self.nix, self.layout, self.seen(), wanted, limits=Limits(workers, memory), recheck=self.seen
        )  # fmt: skip

    def evaluations(self) -> list[str]:
        """The evaluations so far, as Nix was asked for them."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for line in lines if " eval " in line]


# The Nix of this machine (2.8 on Debian 12), and newer ones that scripts/setup.sh unpacks.
RELEASES = ("here", "trixie", "sid")
every_nix = pytest.mark.parametrize("nix_log", RELEASES, indirect=True)


def _folder_of(release: str) -> str | None:
    """The folder of a release's programs; None for the one on PATH."""
    if release == "here":
        return os.environ.get("NIXA_TEST_NIX")
    folder = Path(__file__).parents[3] / ".venv" / f"nix-{release}"
    if not (folder / "whole").exists():
        pytest.skip(
            f"Nix of Debian's {release} is missing: `need_nix_versions` in scripts/setup.sh fetches it"
        )
    return str(folder / "bin")


@pytest.fixture
def nix_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """Nix as it is here, or that in the folder NIXA_TEST_NIX, or of a release that the test names,
    behind a shim that logs its use."""
    log, shims = tmp_path / "nix.log", tmp_path / "shims"
    shims.mkdir()
    own = _folder_of(getattr(request, "param", "here"))
    path = f"{own}:{os.environ['PATH']}" if own else os.environ["PATH"]
    for name in ("nix", "nix-store"):
        real = shutil.which(name, path=path)
        assert real, f"{name} not found: apt-get install nix-bin"
        (shims / name).write_text(SHIM.format(log=log, real=real))
        (shims / name).chmod(0o755)
    (tmp_path / "nix.conf").write_text(CONF)
    monkeypatch.setenv("PATH", f"{shims}:{path}")
    monkeypatch.setenv("NIX_USER_CONF_FILES", str(tmp_path / "nix.conf"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return log


def _project(folder: Path, log: Path) -> Project:
    busybox = shutil.which("busybox")
    assert busybox, "busybox is not there: apt-get install busybox-static"
    (folder / "bin").mkdir(parents=True)
    shutil.copy(busybox, folder / "bin/busybox")
    project = Project(folder, log, uuid.uuid4().hex, Nix(LocalProcesses()))
    project.write()
    project.layout.make()
    return project


@pytest.fixture
def plain(tmp_path: Path, nix_log: Path) -> Project:
    """A flake in a folder without git."""
    return _project(tmp_path / "plain", nix_log)


@pytest.fixture
def project(tmp_path: Path, nix_log: Path) -> Project:
    """A flake in a git tree, committed."""
    made = _project(tmp_path / "flake", nix_log)
    made.git("init", "-q", "-b", "main")
    (made.root / "notes.txt").write_text("one\n")
    made.git("add", "-A")
    made.git("commit", "-qm", "first")
    return made
