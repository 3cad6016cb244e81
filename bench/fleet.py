"""What nixa costs where there is nothing to do, against an empty `doit list`: `python -m bench.fleet`.

Fleets of 10 to 10,000 hosts that are settled: evaluated by real Nix, each with a receipt, none is ever
contacted. Prints a Markdown table of ratios of medians of interleaved runs, and draws the fleet's size
against the ratio with `--plot FILE.svg`. Options: `--rounds N`, `--sizes 10,100,1000,10000`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.measure import DEADLINE, interleaved, medians, seconds

DOIT = (sys.executable, "-m", "doit")
EMPTY = "doit list, empty"
FLAKE = """{
  outputs = { self }: let
    make = number: let name = "n${toString number}"; in {
      inherit name;
      value.config.system.build = rec {
        toplevel = derivation { name = "nixos-system-${name}"; system = "@SYSTEM@"; builder = "/none"; };
        diskoScript = toplevel;
      };
    };
  in { nixosConfigurations = builtins.listToAttrs (builtins.genList make @COUNT@); };
}
"""
NIX_CONF = """experimental-features = nix-command flakes
build-users-group =
sandbox = false
substituters =
flake-registry =
"""


@dataclass(frozen=True, slots=True)
class Command:
    """One row: `most` is the highest ratio that is good enough, by the fleet's size."""

    name: str
    argv: tuple[str, ...]
    most: Mapping[int, float]


COMMANDS = (
    Command("doit list", ("list",), {10: 1.15}),
    Command("doit deploy", ("deploy",), {1000: 1.6, 10000: 4}),
    Command("doit deploy:n1", ("deploy:n1",), {1000: 1.25, 10000: 1.6}),
    Command("doit status", ("status",), {1000: 3}),
    Command("doit plan", ("plan",), {1000: 3}),
)
MEMORY_MB = {1000: 40, 10000: 120}


class Fleet:
    """A settled project of so many hosts."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = folder, size
        self.env = {
            "NIX_USER_CONF_FILES": str(folder / "nix.conf"),
            "XDG_STATE_HOME": str(folder / "state"),
            "NIXA_CACHE": str(folder / "cache"),
        }
        folder.mkdir()
        (folder / "nix.conf").write_text(NIX_CONF)
        flake = FLAKE.replace("@COUNT@", str(size)).replace("@SYSTEM@", f"{os.uname().machine}-linux")
        (folder / "flake.nix").write_text(flake)
        (folder / "dodo.py").write_text("from nixa_tasks.dodo import *\n")
        (folder / "hosts.toml").write_text("version = 1\n" + "".join(map(_host, range(size))))
        for words in (("init", "-q"), ("add", "flake.nix", "dodo.py", "hosts.toml")):
            subprocess.run(("git", "-C", str(folder), *words), check=True, timeout=DEADLINE)
        self._run("evaluate")
        for number in range(size):
            self._deployed(number)
        self._run("reset-dep", "deploy")
        done = self._run("deploy")
        if "nothing to do" not in done:
            raise SystemExit(f"{size} hosts are not settled:\n{done[-2000:]}")

    def _deployed(self, number: int) -> None:
        """The receipt that a deploy of this host would have left."""
        place = self.folder / ".nixa" / "hosts" / f"n{number}"
        toplevel = json.loads((place / "output.json").read_text())["toplevel"]
        receipt = {
            "target": _address(number),
            "host_key": "",
            "out": toplevel["out"],
            "wanted": toplevel["out"],
            "drv": toplevel["drv"],
            "mode": "switch",
            "kexec_sha256": None,
            "flake": None,
            "started_at": "2026-01-01T00:00:00Z",
            "seconds": 1.0,
            "operator": "bench",
            "outcome": "done",
        }
        (place / "deployed.json").write_text(json.dumps(receipt))

    def _run(self, *words: str) -> str:
        done = subprocess.run(
            (*DOIT, *words), cwd=self.folder, env={**os.environ, **self.env}, timeout=DEADLINE,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"doit {' '.join(words)} of {self.size} hosts:\n{done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    def seconds(self, words: tuple[str, ...]) -> float:
        return seconds((*DOIT, *words), env=self.env, cwd=self.folder)

    def memory_mb(self, words: tuple[str, ...]) -> float:
        """The most resident memory of a run and its children."""
        code = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL); print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
        done = subprocess.run(
            (sys.executable, "-c", code, *DOIT, *words), cwd=self.folder,
            env={**os.environ, **self.env}, capture_output=True, text=True, check=True, timeout=DEADLINE,
        )  # fmt: skip
        return int(done.stdout.split()[-1]) / 1024

    def first_list_after_an_edit(self) -> float:
        """The whole manifest is checked again."""
        path = self.folder / "hosts.toml"
        path.write_text(path.read_text() + "# edited\n")
        return self.seconds(("list",))


def _host(number: int) -> str:
    return f'\n[hosts.n{number}]\ntarget = "{_address(number)}"\ntags = ["rack{number % 40}"]\n'


def _address(number: int) -> str:
    return f"198.18.{number // 250}.{number % 250 + 1}"


def _measured(fleet: Fleet, empty: Path, rounds: int) -> dict[str, float]:
    """The ratio of each command to an empty `doit list` of the same rounds."""
    runs = {EMPTY: lambda: seconds((*DOIT, "list"), cwd=empty)}
    for command in COMMANDS:
        runs[command.name] = lambda words=command.argv: fleet.seconds(words)
    runs["first doit list after an edit"] = fleet.first_list_after_an_edit
    found = medians(interleaved(runs, rounds))
    return {name: value / found[EMPTY] for name, value in found.items() if name != EMPTY}


def _table(size: int, ratios: Mapping[str, float], memory: float) -> bool:
    goals = {command.name: command.most.get(size) for command in COMMANDS}
    goals["first doit list after an edit"] = 15 if size == 10000 else None
    reached = True
    for name, ratio in ratios.items():
        goal = goals[name]
        good = goal is None or ratio <= goal
        reached = reached and good
        print(
            f"| {size:,} | {name} | {f'≤ {goal:g}' if goal else ''} | {ratio:.2f}{'' if good else ' **no**'} |",
            flush=True,
        )
    most = MEMORY_MB.get(size)
    good = most is None or memory <= most
    print(
        f"| {size:,} | peak memory of doit deploy | {f'≤ {most} MB' if most else ''} | {memory:.0f} MB{'' if good else ' **no**'} |",
        flush=True,
    )
    return reached and good


def plot(found: Mapping[int, Mapping[str, float]]) -> str:
    """An SVG of ratio against fleet size, both axes logarithmic."""
    import math

    width, height, left, bottom = 640, 360, 56, 40
    sizes = sorted(found)
    top = max(2.0, *(ratio for ratios in found.values() for ratio in ratios.values()))
    low, high = math.log10(sizes[0]), math.log10(max(sizes[-1], sizes[0] * 10))
    tall = math.log2(top) * 1.05

    def at(size: float, ratio: float) -> tuple[float, float]:
        x = left + (math.log10(size) - low) / (high - low) * (width - left - 170)
        return x, height - bottom - math.log2(max(ratio, 1.0)) / tall * (height - bottom - 20)

    colours = ("#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860")
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for step in range(int(tall) + 1):
        x, y = at(sizes[0], 2.0**step)
        lines += [
            f'<line x1="{left}" x2="{width - 170}" y1="{y:.0f}" y2="{y:.0f}" stroke="#ddd"/>',
            f'<text x="{left - 8}" y="{y + 4:.0f}" text-anchor="end">{2**step} times</text>',
        ]
    for size in sizes:
        x, _ = at(size, 1)
        lines.append(
            f'<text x="{x:.0f}" y="{height - bottom + 18}" text-anchor="middle">{size:,} hosts</text>'
        )
    names = list(found[sizes[0]])
    ends = sorted((at(sizes[-1], found[sizes[-1]][name])[1], name) for name in names)
    label_y = 0.0
    for y, name in ends:
        colour = colours[names.index(name) % len(colours)]
        points = " ".join("{:.0f},{:.0f}".format(*at(size, found[size][name])) for size in sizes)
        label_y = max(y, label_y + 14)
        lines += [
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>',
            f'<text x="{width - 164}" y="{label_y + 4:.0f}" fill="{colour}">{name}</text>',
        ]
    return "\n".join([*lines, "</svg>", ""])


def main() -> int:
    """Print the table; status 1 where a goal is not reached."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sizes", default="10,100,1000,10000")
    parser.add_argument("--plot", type=Path)
    chosen = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    resource.setrlimit(resource.RLIMIT_STACK, (hard if hard > 0 else soft, hard))  # Nix recurses
    version = importlib.metadata.version("doit")
    print(f"Against an empty `doit list` (doit {version}); medians of {chosen.rounds} interleaved runs;")
    print(f"{os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}\n")
    print("| hosts | what | goal | measured |\n|---|---|---|---|")
    found: dict[int, dict[str, float]] = {}
    reached = True
    with tempfile.TemporaryDirectory(prefix="nixa-bench-") as work:
        empty = Path(work) / "empty"
        empty.mkdir()
        (empty / "dodo.py").write_text("")
        for size in map(int, chosen.sizes.split(",")):
            fleet = Fleet(Path(work) / f"fleet-{size}", size)
            found[size] = _measured(fleet, empty, chosen.rounds)
            reached = _table(size, found[size], fleet.memory_mb(("deploy",))) and reached
            shutil.rmtree(fleet.folder)
    if chosen.plot:
        chosen.plot.write_text(plot(found))
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
