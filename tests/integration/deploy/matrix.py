"""A deploy disturbed at one moment in one way, and what becomes of it: the engine of the matrix tests.

Every cell has a machine and a checkout to itself, so that several run side by side.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nixa_tasks.lab.machine import Machine
from tests.integration.deploy.background import Background
from tests.integration.deploy.conftest import Fleet

RIGHT = "right"  # the host runs what is wanted, and both receipts say so
TOLD = "told"  # stopped with a clear word, and nothing lost

_RUN_SECONDS = 200.0
_MISS_SECONDS = 20.0
_CUT_SECONDS = 13.0  # longer than ssh takes to notice (3 x 3 s)
_TRIES = 4


@dataclass(frozen=True, slots=True)
class Cell:
    """`moment` is when `fault` strikes."""

    moment: str
    fault: str


@dataclass(slots=True)
class Trial:
    """One cell being tried: its machine, its checkout, and the run that is disturbed."""

    machine: Machine
    project: Path
    environment: dict[str, str]
    run: Background
    said: list[str] = field(default_factory=list)

    @property
    def host(self) -> str:
        return self.machine.name

    def wanted(self) -> str:
        value = json.loads((self.project / f".nixa/hosts/{self.host}/output.json").read_text())
        return str(value["toplevel"]["out"])

    def remote(self, path: str) -> str:
        return self.machine.exec(["cat", path]).stdout


Moment = Callable[[Trial], bool]  # whether it has come
Prepare = Callable[[Fleet, "Place", Cell], Background]


@dataclass(slots=True)
class Place:
    """Where one worker tries its cells, one after another."""

    machine: Machine
    project: Path
    environment: dict[str, str]
    number: int = 0  # of the runs so far

    def output(self) -> Path:
        self.number += 1
        return self.project.parent / f"run-{self.number}"

    def deploy(self, *options: str) -> Background:
        return Background.begin(
            self.project, self.environment, f"deploy:{self.machine.name}", *options, output=self.output()
        )

    def want(self, message: str) -> None:
        """Another system than ever before."""
        message = f"{message}, {self.number}"
        (self.project / f"hosts/{self.machine.name}.nix").write_text(f'{{ message = "{message}"; }}\n')


@dataclass(frozen=True, slots=True)
class Ending:
    """How a cell ended: RIGHT, TOLD, or else what was wrong."""

    cell: Cell
    word: str
    seconds: float


class Missed(Exception):
    """The moment was over before the fault could strike: the cell is tried again."""


def strike(trial: Trial, fault: str) -> None:
    """Let it happen. Raises Missed."""
    match fault:
        case "kill doit":
            trial.run.signal(signal.SIGKILL)
        case "SIGTERM":
            trial.run.signal(signal.SIGTERM)
        case "SIGINT":
            trial.run.signal(signal.SIGINT)
        case "kill ssh":
            _kill_tools(trial, ("ssh", "ssh:"))
        case "kill tool":
            _kill_tools(trial, ("nix", "nix-store", "nix-env", "nixos-anywhere"))
        case "power":
            trial.machine.power_cycle(wait=False)
        case "cut":
            trial.machine.fault("unreachable")
            until = time.monotonic() + _CUT_SECONDS
            while time.monotonic() < until and trial.run.child.poll() is None:
                time.sleep(0.05)
            trial.machine.clear()
        case "disk full":
            trial.machine.fault("disk-full")
        case _:
            raise AssertionError(fault)


def _kill_tools(trial: Trial, names: Sequence[str]) -> None:
    until = time.monotonic() + _MISS_SECONDS
    while time.monotonic() < until:
        is_over = trial.run.child.poll() is not None
        found = [pid for pid, line in trial.run.processes().items() if _program(line) in names]
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if found:
            return
        if is_over:
            break
    raise Missed


def _program(line: str) -> str:
    """The program's name; of a script, the script's."""
    words = [Path(word).name for word in line.split(" ")[:3]]
    return words[1] if len(words) > 1 and words[0] in ("sh", "bash") else words[0]


def _await_moment(trial: Trial, moment: Moment) -> None:
    until = time.monotonic() + _RUN_SECONDS
    while time.monotonic() < until:
        is_over = trial.run.child.poll() is not None
        if moment(trial):
            return
        if is_over:
            raise AssertionError(f"it ended before that moment:\n{trial.run.said}")
        time.sleep(0.008)
    raise AssertionError("that moment never came")


def _is_clear(said: str, host: str) -> bool:
    """Whether an error names the host and what to do."""
    return f"{host}: " in said and "what to do: " in said and "Traceback" not in said


def _judge(place: Place, trial: Trial) -> str:
    """After the fault: the same command again, also of what was rolled back, and what the host then runs."""
    again = place.deploy("--again")
    status = again.end(seconds=_RUN_SECONDS)
    trial.said.append(again.said)
    if status != 0:
        assert status == 1 and _is_clear(again.said, trial.host), f"again: status {status}"
        return TOLD
    assert trial.machine.stage == "installed", "the machine is not installed"
    wanted = trial.wanted()
    assert trial.machine.current_system() == wanted, "it runs something else"
    there = json.loads(trial.remote("/var/lib/nixa/receipt.json"))
    here = json.loads((trial.project / f".nixa/hosts/{trial.host}/deployed.json").read_text())
    assert there == here, "the receipts differ"
    assert (here["out"], here["wanted"], here["outcome"]) == (wanted, wanted, "done"), f"receipt: {here}"
    return RIGHT


def _try(fleet: Fleet, place: Place, cell: Cell, prepare: Prepare, moment: Moment) -> str:
    trial = Trial(place.machine, place.project, place.environment, prepare(fleet, place, cell))
    wipes = place.machine.wipes()
    was_installed = place.machine.stage == "installed"
    try:
        _await_moment(trial, moment)
        strike(trial, cell.fault)
        status = trial.run.end(seconds=_RUN_SECONDS)
        trial.said.append(trial.run.said)
        _check_end(trial, cell.fault, status)
        place.machine.clear()
        place.machine.wait(lambda: place.machine.is_up, "up again")
        word = _judge(place, trial)
        if was_installed:
            assert place.machine.wipes() == wipes, "a host that ran NixOS was wiped"
        return word
    except AssertionError as error:
        return f"{error}\n" + "\n".join(trial.said)
    finally:
        place.machine.clear()
        trial.run.signal(signal.SIGKILL)
        trial.run.child.wait()


def _check_end(trial: Trial, fault: str, status: int) -> None:
    """How the disturbed run itself ended. Raises Missed where a signal came too late for it."""
    said = trial.run.said
    match fault:
        case "kill doit" | "SIGTERM" | "SIGINT" if status == 0:
            raise Missed
        case "kill doit":
            assert status == -signal.SIGKILL, f"status {status}"
        case "SIGTERM" | "SIGINT":
            assert status == (143 if fault == "SIGTERM" else 130), f"status {status}"
            assert "stopped; " in said and "Traceback" not in said, "not an orderly stop"
            assert trial.run.events()[-1]["event"] == "end", "its last step has no end"
        case _:
            assert status in (0, 1), f"status {status}"
            assert status == 0 or _is_clear(said, trial.host), "not a clear word"


def try_all(
    fleet: Fleet, cells: Iterable[Cell], prepare: Prepare, moments: dict[str, Moment]
) -> list[Ending]:
    """Every cell, as many at a time as the lab has machines."""
    waiting: queue.SimpleQueue[Cell] = queue.SimpleQueue()
    for cell in cells:
        waiting.put(cell)
    endings: list[Ending] = []

    def work(place: Place) -> None:
        while True:
            try:
                cell = waiting.get_nowait()
            except queue.Empty:
                return
            started = time.monotonic()
            word = "missed"
            for _ in range(_TRIES):
                try:
                    word = _try(fleet, place, cell, prepare, moments[cell.moment])
                    break
                except Missed:
                    place.machine.wait(lambda: place.machine.is_up, "up")
                except Exception as error:  # noqa: BLE001  one cell must not end the others
                    word = f"{type(error).__name__}: {error}"
                    break
            endings.append(Ending(cell, word, time.monotonic() - started))

    threads = [threading.Thread(target=work, args=(place,)) for place in _places(fleet)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return endings


def _places(fleet: Fleet) -> Iterator[Place]:
    for machine in fleet.lab.machines.values():
        project = fleet.home / machine.name / "flake"
        shutil.copytree(fleet.flake, project, ignore=shutil.ignore_patterns(".nixa"), symlinks=True)
        yield Place(machine, project, fleet.environment())


def table(endings: Sequence[Ending]) -> str:
    """moment x fault, with the seconds that a cell took."""
    moments = list(dict.fromkeys(ending.cell.moment for ending in endings))
    faults = list(dict.fromkeys(ending.cell.fault for ending in endings))
    by_cell = {ending.cell: ending for ending in endings}

    def text(moment: str, fault: str) -> str:
        ending = by_cell.get(Cell(moment, fault))
        if ending is None:
            return "-"
        return ending.word if ending.word in (RIGHT, TOLD) else "WRONG"

    rows = [["", *faults]] + [[moment, *(text(moment, fault) for fault in faults)] for moment in moments]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return "\n".join(lines)


def check(endings: Sequence[Ending], cells: Sequence[Cell]) -> None:
    """Every cell was tried, and each ended RIGHT or TOLD."""
    wrong = [f"{ending.cell}: {ending.word}" for ending in endings if ending.word not in (RIGHT, TOLD)]
    assert not wrong, "\n".join(wrong)
    assert {ending.cell for ending in endings} == set(cells)
