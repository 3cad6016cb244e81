"""The speed of evaluating, installing and switching, against the bare commands: `python -m bench.deploys`.

On the lab's practice machines; prints a Markdown table of ratios, each of medians of interleaved runs.
Options: `--rounds N`, `--hosts N` (how many at once), `--only eval,install,switch,one`. Needs root.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench.measure import DEADLINE, Row, interleaved, medians, seconds
from nixa_tasks.lab import Lab

DOIT = (sys.executable, "-m", "doit")
FLEET = 1000
Measure = Callable[[], float]


class Bench:
    """A lab with its flake, and what is run on it."""

    def __init__(self, lab: Lab, work: Path, rounds: int, hosts: int) -> None:
        self.lab, self.rounds, self.hosts = lab, rounds, hosts
        self.env = {
            **lab.env(),
            "XDG_STATE_HOME": str(work / "state"),
            "NIXA_CACHE": str(work / "cache"),
            "NIX_SSHOPTS": self._ssh_options(),
        }
        self._edits = 0

    def eval(self) -> list[Row]:
        """All of a large fleet is stale, none is reachable: `doit evaluate` against one `nix eval`."""
        names = [f"n{number}" for number in range(FLEET)]
        self._declare({name: _nobody(number) for number, name in enumerate(names)})
        attribute = "config.system.build.toplevel.drvPath"
        apply = f"all: builtins.mapAttrs (name: host: host.{attribute}) all"
        bare = ("nix", "--extra-experimental-features", "nix-command flakes", "eval", "--json")
        runs: dict[str, Measure] = {
            "nixa": lambda: self._after_an_edit(names, (*DOIT, "evaluate")),
            "nix": lambda: self._after_an_edit(names, (*bare, ".#nixosConfigurations", "--apply", apply)),
        }
        return [self._row(f"{FLEET} stale hosts evaluated, against one `nix eval`", 1.5, runs, "nixa", "nix")]

    def install(self) -> list[Row]:
        """Machines as new: all at once against one."""
        some = list(self.lab.machines)[: self.hosts]
        runs: dict[str, Measure] = {
            "one": lambda: self._installed(some[:1]),
            "all": lambda: self._installed(some),
        }
        return [self._row(f"{len(some)} hosts installed at once, against one", 2.0, runs, "all", "one")]

    def switch(self) -> list[Row]:
        """A changed message on each: all at once against one, and against the bare commands."""
        some = list(self.lab.machines)[: self.hosts]
        self._installed(some)
        runs: dict[str, Measure] = {
            "one": lambda: self._after_an_edit(some[:1], (*DOIT, "deploy")),
            "all": lambda: self._after_an_edit(some, (*DOIT, "deploy")),
            "bare": lambda: self._after_an_edit(some, self._bare(some)),
        }
        found = medians(interleaved(runs, self.rounds))
        what = f"{len(some)} hosts switched at once"
        return [
            _at_most(f"{what}, against one", 2.5, found["all"] / found["one"]),
            _at_most(f"{what}, against `xargs -P` over the bare commands", 1.1, found["all"] / found["bare"]),
        ]

    def one(self) -> list[Row]:
        """One host of a large fleet changes: from the edit to the confirmed switch."""
        name = next(iter(self.lab.machines))
        self._installed([name])
        others = {f"n{number}": _nobody(number) for number in range(FLEET - 1)}
        self._declare({name: self.lab.machines[name].address, **others})
        runs: dict[str, Measure] = {
            "nixa": lambda: self._after_an_edit([name], (*DOIT, f"deploy:{name}")),
            "bare": lambda: self._after_an_edit([name], self._bare([name])),
        }
        what = f"one host of {FLEET}: from the edit to the confirmed switch, against the bare commands"
        return [self._row(what, 1.25, runs, "nixa", "bare")]

    def _row(self, what: str, goal: float, runs: dict[str, Measure], ours: str, peer: str) -> Row:
        found = medians(interleaved(runs, self.rounds))
        return _at_most(what, goal, found[ours] / found[peer])

    def _installed(self, names: list[str]) -> float:
        for name in names:
            self.lab.machines[name].reset()
        self._declare({name: self.lab.machines[name].address for name in names})
        return self._seconds((*DOIT, "-a", "deploy"))

    def _after_an_edit(self, names: list[str], argv: tuple[str, ...]) -> float:
        """How long a command takes once each of these hosts' configurations has changed."""
        self._edits += 1
        for name in names:
            (self.lab.flake / "hosts" / f"{name}.nix").write_text(f'{{ message = "edit {self._edits}"; }}\n')
        self._git("add", "-A")
        return self._seconds(argv)

    def _bare(self, names: list[str]) -> tuple[str, ...]:
        """Build, copy, set the profile and switch, with no more safety than a script has."""
        nix = "nix --extra-experimental-features 'nix-command flakes'"
        one = f"""
set -eu
system=$({nix} build --json --no-link ".#nixosConfigurations.$1.config.system.build.toplevel" |
  sed 's/.*"out":"\\([^"]*\\)".*/\\1/')
{nix} copy --to "ssh://root@$2" "$system"
ssh $NIX_SSHOPTS "root@$2" "nix-env -p /nix/var/nix/profiles/system --set $system &&
  $system/bin/switch-to-configuration switch"
"""
        pairs = "\n".join(f"{name} {self.lab.machines[name].address}" for name in names)
        script = f"printf '%s\\n' {shlex.quote(pairs)} | xargs -P 16 -L 1 sh -c {shlex.quote(one)} sh"
        return ("sh", "-c", script)

    def _declare(self, targets: dict[str, str]) -> None:
        """Make hosts.toml name these hosts and no others."""
        for name in targets:
            path = self.lab.flake / "hosts" / f"{name}.nix"
            if not path.exists():
                path.write_text('{ message = "hello"; }\n')
        head = self.lab.hosts_toml(jobs=max(16, self.hosts)).split("\n[hosts.", 1)[0]
        hosts = "".join(f"\n[hosts.{name}]\ntarget = {json.dumps(at)}\n" for name, at in targets.items())
        # The bare commands change hosts behind nixa's back, which it would stop at.
        head = head.replace("[defaults]", '[defaults]\non_drift = "deploy"')
        (self.lab.flake / "hosts.toml").write_text(f"{head}\n{hosts}")
        self._git("add", "-A")

    def _ssh_options(self) -> str:
        own = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "BatchMode=yes")
        return " ".join(("-i", str(self.lab.identity), *(word for one in own for word in ("-o", one))))

    def _git(self, *words: str) -> None:
        subprocess.run(("git", "-C", str(self.lab.flake), *words), check=True, timeout=DEADLINE)

    def _seconds(self, argv: tuple[str, ...]) -> float:
        return seconds(argv, env=self.env, cwd=self.lab.flake)


def _nobody(number: int) -> str:
    """An address of a host that is never contacted, of the range that is set aside for benchmarks."""
    return f"198.18.{number // 250}.{number % 250 + 1}"


def _at_most(what: str, goal: float, ratio: float) -> Row:
    return Row(what, f"≤ {goal:g}", f"{ratio:.2f}", ratio <= goal)


def main() -> int:
    """Print the table; status 1 where a goal is not reached."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--hosts", type=int, default=20, help="how many at once")
    parser.add_argument("--only", default="eval,install,switch,one")
    chosen = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("the practice machines need root")
    reached = True
    print(
        f"Medians of {chosen.rounds} interleaved runs; {os.cpu_count()} cores, Linux {platform.release()}\n"
    )
    print("| what | goal | measured | reached |\n|---|---|---|---|")
    for part in chosen.only.split(","):
        with tempfile.TemporaryDirectory(prefix="nixa-bench-") as work, Lab(Path(work) / "lab") as lab:
            lab.up(chosen.hosts)
            for row in getattr(Bench(lab, Path(work), chosen.rounds, chosen.hosts), part)():
                print(row.line(), flush=True)
                reached = reached and row.is_reached is not False
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
