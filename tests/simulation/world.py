"""The simulated world, and what must hold in it at every step."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nixa_tasks.deploy.decide import Action, Asked, State
from nixa_tasks.deploy.switch import RolledBack
from nixa_tasks.manifest.model import InstallPolicy
from nixa_tasks.state.receipt import Outcome
from tests.simulation.machine import Boot, Content, Kind, Machine, System
from tests.simulation.scheduler import Scheduler
from tests.simulation.scripts import INSTALLER_SYSTEM, Context

if TYPE_CHECKING:
    from tests.simulation.controller import Controller, Run

GRACE_SECONDS = 30.0
PERSON = "somebody"


@dataclass(frozen=True, slots=True)
class Violation:
    """An invariant that does not hold: its name, and what happened."""

    invariant: str
    text: str


@dataclass(slots=True)
class Image:
    """The kexec image: a small file that stands for a large one."""

    path: Path
    data: bytes = b"kexec" * 64

    @property
    def size(self) -> int:
        return len(self.data)

    @property
    def sha256(self) -> str:
        return self.digest(self.size)

    def digest(self, count: int) -> str:
        return hashlib.sha256(self.data[:count]).hexdigest()


@dataclass(slots=True)
class World:
    """Everything. `addresses`: which machine answers where; `said`: the story so far; `met`: how often
    a fault struck at a step."""

    rng: random.Random
    folder: Path
    scheduler: Scheduler = field(default_factory=Scheduler)
    systems: dict[str, System] = field(default_factory=lambda: {INSTALLER_SYSTEM: System(INSTALLER_SYSTEM)})
    machines: list[Machine] = field(default_factory=list)
    addresses: dict[str, Machine] = field(default_factory=dict)
    controllers: list[Controller] = field(default_factory=list)
    said: list[tuple[float, str, str]] = field(default_factory=list)
    met: Counter[tuple[str, str]] = field(default_factory=Counter)
    violation: Violation | None = None
    runs: int = 0
    builds_take: tuple[float, ...] = (0.0, 30.0, 4000.0)
    image: Image = field(init=False)
    _writers: dict[int, tuple[Run, str]] = field(default_factory=dict)
    _changes: list[tuple[float, int, object]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.image = Image(self.folder / "image.tar.gz")
        self.image.path.write_bytes(self.image.data)

    @property
    def now(self) -> float:
        return self.scheduler.now

    def say(self, who: str, text: str) -> None:
        self.said.append((self.now, who, text))

    def violate(self, invariant: str, text: str) -> None:
        """Record the first broken invariant; the history ends with it."""
        if self.violation is None:
            self.violation = Violation(invariant, text)
            self.say("INVARIANT", f"{invariant}: {text}")

    def machine_number(self, machine: Machine) -> int:
        return self.machines.index(machine)

    def lets_in(self, machine: Machine, user: str) -> bool:
        return user == "root"

    # -- what happens on machines --------------------------------------------------------------------

    def changed(self, machine: Machine, who: object) -> None:
        self._changes.append((self.now, id(machine), who))

    def is_touched(self, machine: Machine, run: Run) -> bool:
        """Whether somebody else changed the machine since that run began."""
        return any(when >= run.begun and where == id(machine) and who is not run
                   for when, where, who in self._changes)  # fmt: skip

    def destructive(self, host: Context, what: str) -> None:
        """A step that changes the machine begins: its run must hold the machine's lock, or have held it
        when the step's fence let it through, and nobody else been let in since."""
        run, machine = host.run, host.machine
        self.changed(machine, run)
        machine.is_given_up |= run.asked is Asked.REINSTALL and run.machine is machine
        if run.knows_machine and machine is not run.machine:
            self.violate(
                "right machine", f"{run.name} begins {what} on {machine.name}, whose key is not the known one"
            )
        holder = host.boot.lock
        if host.fence is not None and host.fence == host.boot.fence:
            return
        if holder is None or holder.run is not run:
            whose = f"{holder.run.name} holds it" if holder else "nobody holds it"
            self.violate("lock", f"{run.name} begins {what} on {machine.name} without its lock: {whose}")

    @contextlib.contextmanager
    def writing(self, host: Context, what: str) -> Iterator[None]:
        """A step that writes to a machine's disks: one at a time."""
        self.destructive(host, what)
        key = id(host.machine)
        if key in self._writers:
            other, their = self._writers[key]
            self.violate(
                "one writer",
                f"{host.run.name} begins {what} on {host.machine.name} during {other.name}'s {their}",
            )
        self._writers[key] = (host.run, what)
        try:
            yield
        finally:
            self._writers.pop(key, None)

    def wipe(self, host: Context) -> None:
        """The machine's disks are formatted."""
        machine, run = host.machine, host.run
        machine.say(f"is wiped by {run.name}")
        is_told = run.host.install is InstallPolicy.ALWAYS or machine.is_given_up
        if machine.content is Content.NIXOS and machine.root is not None and not is_told:
            if machine.root.has_run:
                self.violate(
                    "no wipe", f"{run.name} wiped the NixOS of {machine.name} without a word about it"
                )
        elif machine.content is Content.LINUX and not is_told and run.machine is not machine:
            self.violate("no wipe", f"{run.name} wiped {machine.name}, which is another machine")
        machine.content, machine.root, machine.is_given_up = Content.BLANK, None, False
        machine.wiped += 1

    def expect_reachable(self, machine: Machine, boot: Boot) -> None:
        """A switch broke the network: the machine must be back in time."""
        since = boot.broken_since
        limit = machine.confirm_timeout + GRACE_SECONDS

        def check() -> None:
            if machine.boot is boot and boot.broken_since == since and not machine.is_stuck:
                self.violate("reachable", f"{machine.name} can't be reached {limit:g} s after a bad switch")

        self.scheduler.after(limit, check)

    def receipt_written(self, machine: Machine, receipt: Mapping[str, Any]) -> None:
        """A receipt on the machine says only what is true there."""
        live, profile, default = machine.snapshot()
        out, outcome = receipt["out"], receipt["outcome"]
        is_going_back = outcome == Outcome.ROLLED_BACK and out == profile == default
        machine.say(f"has the receipt {outcome}: {self._name(out)}")
        ran_just_now = machine.ran(out, self.now - 1.0)  # a person may switch it between a look and a word
        if out != live and not is_going_back and not ran_just_now:
            self.violate(
                "receipt",
                f"the receipt on {machine.name} says {outcome}: {self._name(out)}, it runs {self._name(live)}",
            )
        elif outcome == Outcome.ROLLED_BACK and out == receipt["wanted"]:
            self.violate(
                "receipt", f"the receipt on {machine.name} says rolled back; it runs what was to be left"
            )
        elif outcome == Outcome.DONE and out != receipt["wanted"] and profile != receipt["wanted"]:
            self.violate("receipt", f"the receipt on {machine.name} promises a system that won't boot")

    def _name(self, path: str | None) -> str:
        return self.systems[path].name if path in self.systems else str(path)

    # -- how runs end --------------------------------------------------------------------------------

    def run_ended(self, run: Run) -> None:
        """What a run says of its host is true."""
        machine, error = run.machine, run.error
        if error is not None and not isinstance(error, run.expected_errors):
            self.violate("traceback", f"{run.name} ended with {type(error).__name__}: {error}")
            return
        if (lost := run.controller.lost_records(run)) is not None:
            self.violate("recorded", f"{run.name}: {lost}")
            return
        if (
            run.task.is_killed
            or self.is_touched(machine, run)
            or self.addresses.get(run.host.target) is not machine
        ):
            return
        live, profile, default = machine.snapshot()
        if run.done is not None:
            self._check_done(run, machine)
        elif isinstance(error, RolledBack) and not (run.before[0] == live and profile == default):
            self.violate(
                "exit status",
                f"{run.name} says rolled back; {machine.name} runs {self._name(live)} and boots {self._name(default)}, "
                f"it ran {self._name(run.before[0])} before",
            )

    def _check_done(self, run: Run, machine: Machine) -> None:
        done = run.done
        assert done is not None
        live, profile, default = machine.snapshot()
        if machine.boot is None or machine.boot.kind is not Kind.NIXOS:
            self.violate("exit status", f"{run.name} says {done.action}; {machine.name} does not run NixOS")
            return
        receipt = done.receipt
        if receipt is None or done.action is Action.HOLD:
            return
        if done.judgement.state is State.PENDING or receipt.is_pending:
            if default != receipt.wanted:
                self.violate(
                    "exit status", f"{run.name} says pending; {machine.name} boots {self._name(default)}"
                )
        elif not live == profile == default == receipt.out:
            self.violate(
                "exit status",
                f"{run.name} says {done.action} to {self._name(receipt.out)}; {machine.name} runs {self._name(live)}, "
                f"its profile is {self._name(profile)}, it boots {self._name(default)}",
            )

    def is_over(self) -> bool:
        return self.violation is not None
