"""The lab's own files: keys, configuration, firmware, the image, the wrapper of the stand-in."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nixa_tasks.lab import image, requirements
from nixa_tasks.lab.paths import FILES, LabPaths, read_json, system, write_bytes, write_json

_SECONDS = 60.0
STAND_IN = Path(__file__).with_name("nixos_anywhere.py")  # in a checkout; the wheel leaves it out
_NOTICE = "The lab's stand-in for nixos-anywhere: for practice machines only."
_NIX_CONF = """\
# For root without a daemon, offline: export NIX_USER_CONF_FILES={path}
experimental-features = nix-command flakes
build-users-group =
sandbox = false
sandbox-paths =
substituters =
flake-registry =
"""


def write(paths: LabPaths, config: Mapping[str, Any]) -> None:
    """Make what is missing or old; the same again changes nothing."""
    for folder in (paths.www, paths.bin, paths.machines, paths.firmware):
        folder.mkdir(exist_ok=True)
    key(paths.identity, "nixa-lab")
    paths.nix_conf.write_text(_NIX_CONF.format(path=paths.nix_conf))
    busybox = requirements.busybox()
    assert busybox is not None  # noqa: S101  checked by requirements
    programs = {program.name: program for program in (FILES / "firmware").iterdir()}
    for name, program in {**programs, "busybox.real": busybox}.items():
        target, data = paths.firmware / name, program.read_bytes()
        if not target.exists() or target.read_bytes() != data:
            write_bytes(target, data, 0o755)
    wrapper = (
        f"#!/bin/sh\n# {_NOTICE}\n"
        f"PYTHONPATH={shlex.quote(str(Path(__file__).parents[2]))}${{PYTHONPATH:+:$PYTHONPATH}} "
        f'exec {shlex.quote(sys.executable)} -m nixa_tasks.lab.nixos_anywhere "$@"\n'
    )
    if STAND_IN.exists():
        write_bytes(paths.bin / "nixos-anywhere", wrapper.encode(), 0o755)
    run = hashlib.sha256((FILES / "run.sh").read_bytes()).hexdigest()
    made = {"megabytes": config["image_mb"], "system": system(), "run": run}
    note = paths.root / "image.json"
    if not paths.image.exists() or read_json(note) != made:
        image.write(paths.image, system=system(), megabytes=int(config["image_mb"]))
        write_json(note, made)


def stand_in(paths: LabPaths) -> Path | None:
    """The command of the lab's stand-in, where no real nixos-anywhere is on PATH and this is a checkout."""
    wrapper = paths.bin / "nixos-anywhere"
    return wrapper if _real_nixos_anywhere() is None and wrapper.exists() else None


def _real_nixos_anywhere() -> Path | None:
    """The nixos-anywhere on PATH, unless that is a lab's stand-in."""
    found = shutil.which("nixos-anywhere")
    if found is None or _NOTICE.encode() in Path(found).read_bytes()[:200]:
        return None
    return Path(found)


def key(path: Path, comment: str) -> None:
    """An ed25519 key pair, if there is none yet."""
    if path.exists():
        return
    new = path.with_name(f".{path.name}")
    for half in (new, new.with_name(f"{new.name}.pub")):
        half.unlink(missing_ok=True)
    subprocess.run(
        ("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(new)),
        stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS, check=True,
    )  # fmt: skip
    new.with_name(f"{new.name}.pub").rename(path.with_name(f"{path.name}.pub"))
    new.rename(path)  # last: where it is, the pair is whole


def python_environment() -> dict[str, str]:
    """So that a child finds this very package, wherever it lies."""
    path = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
