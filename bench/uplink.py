"""What crosses the controller's uplink when eight machines are installed: `upload` against `pull`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from bench.measure import DEADLINE, Row
from nixa_tasks.lab import Lab

HOSTS = 8


def uplink(work: Path, megabytes: int) -> Row:
    """Both ways on the same lab of practice machines; their image is a file of this computer, so that
    the hosts can have it from the controller or from each other only."""
    if os.geteuid() != 0:
        return Row(_what(), "≤ 1/7", "needs root, for practice machines", None)
    with Lab(work / "lab", image_mb=megabytes) as lab:
        lab.up(HOSTS)
        sent = {deliver: _sent_by_deploy(lab, work, deliver) for deliver in ("upload", "pull")}
    ratio = sent["pull"] / sent["upload"]
    got = f"1/{1 / ratio:.1f} ({sent['pull'] / 1e6:.0f} against {sent['upload'] / 1e6:.0f} MB)"
    return Row(_what(), "≤ 1/7", got, ratio <= 1 / 7)


def _what() -> str:
    return f"uplink bytes of installing {HOSTS} hosts: `pull` from a neighbour, against {HOSTS} uploads"


def _sent_by_deploy(lab: Lab, work: Path, deliver: str) -> int:
    """Bytes that this computer has sent to the machines in a first deploy, closures and all."""
    for machine in lab.machines.values():
        machine.reset()
    manifest = lab.flake / "hosts.toml"
    url = f'url = "{lab.image}"\ndeliver = "{deliver}"'
    manifest.write_text(re.sub(r"(?m)^url = .*$", url, lab.hosts_toml(jobs=HOSTS)))
    own = {"NIXA_CACHE": str(work / "uplink-cache"), "XDG_STATE_HOME": str(work / "state")}
    before = _counted(lab)
    subprocess.run(
        (sys.executable, "-m", "doit", "-a", "deploy"),
        cwd=lab.flake, env={**lab.env(), **own}, check=True, timeout=DEADLINE * 2,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert all(machine.stage == "installed" for machine in lab.machines.values())
    return _counted(lab) - before


def _counted(lab: Lab) -> int:
    return int(Path(f"/sys/class/net/{lab.paths.bridge}/statistics/tx_bytes").read_text())
