"""A small project with a real flake, whose hosts nobody can reach."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

FLAKE = """{
  outputs = { self }: let
    system = "@SYSTEM@";
    make = name: { config.system.build = rec {
      toplevel = derivation {
        name = "nixos-system-${name}"; inherit system; builder = "${./bin}/busybox";
        args = [ "sh" "-c" "${./bin}/busybox mkdir $out; echo ${import (./hosts + "/${name}.nix")} >$out/message" ];
      };
      diskoScript = toplevel;
    }; };
  in { nixosConfigurations = { web1 = make "web1"; web2 = make "web2"; broken = throw "it is broken"; }; };
}
"""
HOSTS = """version = 1

[hosts.web1]
target = "127.0.0.1"
port = 1
tags = ["web"]

[hosts.web2]
target = "127.0.0.2"
port = 1
tags = ["web"]
"""
NIX_CONF = """experimental-features = nix-command flakes
build-users-group =
sandbox = false
substituters =
flake-registry =
"""

Doit = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    (root / "bin").mkdir(parents=True)
    (root / "hosts").mkdir()
    busybox = shutil.which("busybox")
    assert busybox, "busybox-static must be installed"
    shutil.copy(busybox, root / "bin/busybox")
    (root / "flake.nix").write_text(FLAKE.replace("@SYSTEM@", f"{os.uname().machine}-linux"))
    for name in ("web1", "web2"):
        (root / "hosts" / f"{name}.nix").write_text(f'"{name}"\n')
    (root / "hosts.toml").write_text(HOSTS)
    (root / "dodo.py").write_text("from nixa_tasks.dodo import *\n")
    (tmp_path / "nix.conf").write_text(NIX_CONF)
    for args in (
        ("init", "-q"),
        ("add", "."),
        ("-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "x"),
    ):
        subprocess.run(("git", "-C", str(root), *args), check=True, capture_output=True)
    return root


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return os.environ | {
        "NIX_USER_CONF_FILES": str(tmp_path / "nix.conf"),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "NIXA_CACHE": str(tmp_path / "cache"),
        "NO_COLOR": "1",
        "COLUMNS": "100",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


@pytest.fixture
def doit(project: Path, environment: dict[str, str]) -> Doit:
    def run(*args: str, timeout: float = 120, **env: str) -> subprocess.CompletedProcess[str]:
        argv = (sys.executable, "-m", "doit", *args)
        return subprocess.run(
            argv,
            cwd=project,
            env=environment | env,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run
