"""The lab's command line: `python -m nixa_tasks.lab [--dir DIR] up N | status | reset | down | …`."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from nixa_tasks.lab import Lab, LabError, Machine
from nixa_tasks.lab.faults import FAULTS


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m nixa_tasks.lab", description="Practice machines on this computer, for nixa."
    )
    parser.add_argument("--dir", help="the lab's folder (default: $NIXA_LAB, else the user's state folder)")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start machines, and print a hosts.toml for them")
    up.add_argument("count", nargs="?", type=int, default=None, help="how many: web1, web2, …")
    up.add_argument("--names", help="machines by these names instead, separated by commas")
    up.add_argument("--image-mb", type=int, help="how large the installer's image is, about")
    up.add_argument("--disk-mb", type=int, help="how large a machine's disk is")
    up.add_argument("--boot-delay", type=float, help="seconds that a boot takes at least")
    up.add_argument("--kexec-delay", type=float, help="seconds between kexec/run and the jump")
    status = commands.add_parser("status", help="what the machines are at the moment")
    status.add_argument("--json", action="store_true", dest="as_json")
    reset = commands.add_parser("reset", help="machines as new: old Linux, empty disk, no faults")
    reset.add_argument("names", nargs="*")
    commands.add_parser("down", help="end everything; the files stay")
    fault = commands.add_parser("fault", help="let something go wrong", epilog="faults: " + ", ".join(FAULTS))
    for name in ("name", "fault"):
        fault.add_argument(name)
    fault.add_argument("value", nargs="?")
    for command, text in (
        ("clear", "take a machine's faults back"),
        ("power", "cycle its power"),
        ("log", "its console and sshd"),
    ):
        commands.add_parser(command, help=text).add_argument("name")
    run = commands.add_parser("exec", help="run a command in a machine: exec NAME -- CMD…")
    run.add_argument("name")
    run.add_argument("argv", nargs=argparse.REMAINDER)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 1 for what can't be done, 2 for a wrong command line."""
    options = _parser().parse_args(arguments)
    try:
        return _run(options)
    except LabError as error:
        print(error.render(), file=sys.stderr)
        return 1


def _run(options: argparse.Namespace) -> int:
    settings = {
        name: getattr(options, name, None) for name in ("image_mb", "disk_mb", "boot_delay", "kexec_delay")
    }
    lab = Lab(options.dir, **settings)
    match options.command:
        case "up":
            return _up(lab, options)
        case "down":
            lab.down()
            return 0
        case "status":
            return _status(lab, as_json=options.as_json)
        case "reset":
            for name in options.names or lab.machines:
                _machine(lab, name).reset()
            return 0
    machine = _machine(lab, options.name)
    match options.command:
        case "fault":
            machine.fault(options.fault, options.value)
        case "clear":
            machine.clear()
        case "power":
            machine.power_cycle()
        case "log":
            for path in (machine.paths.console, machine.paths.sshd_log):
                print(f"== {path}")
                print(path.read_text(errors="replace") if path.exists() else "", end="")
        case "exec":
            return _exec(machine, [word for n, word in enumerate(options.argv) if (n, word) != (0, "--")])
    return 0


def _up(lab: Lab, options: argparse.Namespace) -> int:
    names = [name for name in (options.names or "").split(",") if name]
    if not names and options.count is None:
        raise LabError("how many machines?", hint="python -m nixa_tasks.lab up 3")
    lab.up(names or options.count, say=lambda text: print(text, file=sys.stderr))
    print(f"the flake of the machines, with this hosts.toml in it: {lab.flake}", file=sys.stderr)
    print(lab.hosts_toml(), end="")
    return 0


def _status(lab: Lab, *, as_json: bool) -> int:
    rows: list[dict[str, Any]] = [
        {
            "name": m.name,
            "address": m.address,
            "stage": str(m.stage),
            "up": m.is_up,
            "boots": m.boots,
            "boot_id": m.boot_id if m.is_supervised else None,
            "faults": m.faults(),
            "wipes": m.wipes(),
            "contacts": m.contacts(),
        }
        for m in lab.machines.values()
    ]
    if as_json:
        print(json.dumps(rows, indent=1))
        return 0
    for row in rows:
        set_faults = " ".join(f"{name}{':' if value else ''}{value}" for name, value in row["faults"].items())
        print(
            f"{row['name']:12} {row['address']:15} {row['stage']:10} boots {row['boots']:<3} {set_faults}".rstrip()
        )
    if not rows:
        print(f"no machines in {lab.root}", file=sys.stderr)
    return 0


def _machine(lab: Lab, name: str) -> Machine:
    try:
        return lab.machines[name]
    except KeyError:
        known = ", ".join(lab.machines) or "none"
        raise LabError(f"there is no machine {name!r} in {lab.root}", hint=f"machines: {known}") from None


def _exec(machine: Machine, argv: list[str]) -> int:
    from nixa_tasks.lab.effects import enter

    pid = machine.state.get("pid")
    if not machine.is_up or pid is None:
        raise LabError(f"it is {machine.stage}", host=machine.name)
    return subprocess.run((*enter(pid), *(argv or ["/bin/sh"])), check=False).returncode


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `status | head` is no error
    sys.exit(main())
