"""A controller: a computer that runs nixa's own deploy code against the simulated machines."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nixa_tasks.deploy.decide import Asked
from nixa_tasks.deploy.deploy import carry_out
from nixa_tasks.deploy.turn import Done, Started, Suppliers, Turn, Uplink
from nixa_tasks.errors import Interrupted, NixaError
from nixa_tasks.files import read_json
from nixa_tasks.flake.output import Output
from nixa_tasks.host.host_key import KnownHosts
from nixa_tasks.host.reach import Access
from nixa_tasks.host.sudo import Passwords
from nixa_tasks.image.delivery.neighbours import Neighbours
from nixa_tasks.image.obtain import Obtained
from nixa_tasks.image.tarball import Summary
from nixa_tasks.manifest.model import Fleet, Host, Manifest, UrlImage
from nixa_tasks.state.journal import Event, Journal, Kind, RunLog
from nixa_tasks.state.layout import Layout
from nixa_tasks.state.receipt import Receipt
from tests.simulation.machine import Machine
from tests.simulation.network import Connection, Link, Session, SimulatedClock, SimulatedProcesses
from tests.simulation.scheduler import Killed, Task
from tests.simulation.world import World

_SYSTEM = "x86_64-linux"


class MemoryJournal(Journal):
    """A journal that stays in memory and tells the story."""

    def __init__(self, world: World, name: str, number: int, clock: SimulatedClock) -> None:
        super().__init__(Path("/nonexistent"), clock)
        self.run = f"{number:012x}"
        self.steps: list[str] = []
        self._world, self._name = world, name

    def emit(self, event: Event) -> None:  # type: ignore[explicit-override]  # 3.11 has no `override`
        match event.kind:
            case Kind.BEGIN:
                self.steps.append(event.step)
                self._world.say(self._name, f"begins to {event.step}")
            case Kind.END:
                self.steps.pop()
                if event.outcome != "done":
                    self._world.say(self._name, f"{event.step}: {event.outcome}: {event.text}")
            case Kind.NOTE:
                self._world.say(self._name, f"{event.step}: {event.text}")
            case _:
                pass


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


@dataclass(slots=True)
class Controller:
    """A computer with a checkout. `wanted` is what its flake says; `folder` holds its `.nixa` and its
    known hosts; `recorded` is its history as it was last seen, `has_seen` whether it knew a host key."""

    world: World
    name: str
    wanted: str
    folder: Path
    clock_offset: float = 0.0
    frozen_until: float = 0.0
    calls: int = 0
    links: dict[int, Link] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    recorded: str = ""
    has_seen: bool = False
    at_call: dict[int, list[Callable[[Run], None]]] = field(default_factory=dict)
    at_answer: dict[int, list[Callable[[Session], None]]] = field(default_factory=dict)

    @property
    def is_frozen(self) -> bool:
        return self.frozen_until > self.world.now

    @property
    def current(self) -> Run | None:
        """The run that is under way."""
        return self.runs[-1] if self.runs and not self.runs[-1].task.is_over else None

    def lose_state(self) -> None:
        """`.nixa/` is gone, or this is a fresh clone."""
        shutil.rmtree(self.folder / ".nixa", ignore_errors=True)
        self.recorded = ""

    def lose_keys(self) -> None:
        """A fresh CI runner: it has the pins, and no host key that was seen."""
        (self.folder / "known_hosts").unlink(missing_ok=True)
        self.has_seen = False

    def lost_records(self, run: Run) -> str | None:
        """What was recorded here and is not there any more, or never was, after that run."""
        place = Layout(self.folder).host(run.host.name)
        before, self.recorded = self.recorded, _text(place.history)
        if not self.recorded.startswith(before):
            return "its history has lost lines"
        had_seen, self.has_seen = self.has_seen, bool(_text(self.folder / "known_hosts"))
        if had_seen and not self.has_seen:
            return "it has forgotten the host key that it had seen"
        receipt = run.done.receipt if run.done is not None else None
        if receipt is not None and (here := read_json(place.deployed)) is not None:
            said = Receipt.from_json(here)
            if said != receipt:
                return f"its receipt is {said}, not {receipt}"
        return None


@dataclass(slots=True)
class Run:
    """One `doit deploy:HOST`, from its beginning to its end."""

    controller: Controller
    host: Host
    asked: Asked
    machine: Machine
    begun: float
    before: tuple[str | None, str | None, str | None]
    wanted: str
    sessions: list[Session] = field(default_factory=list)
    connections: dict[str, Connection] = field(default_factory=dict)
    is_stopping: bool = False
    done: Done | None = None
    error: Exception | None = None
    what: str = ""
    knows_machine: bool = False
    task: Task = field(init=False)
    journal: MemoryJournal = field(init=False)

    expected_errors = (NixaError,)

    @property
    def world(self) -> World:
        return self.controller.world

    @property
    def name(self) -> str:
        return self.controller.name

    def link(self, machine: Machine) -> Link:
        return self.controller.links.setdefault(id(machine), Link())

    def is_cut(self, machine: Machine) -> bool:
        return self.link(machine).cut_until > self.world.now

    def slowness(self, machine: Machine) -> float:
        link = self.link(machine)
        return link.slowness if link.slow_until > self.world.now else 1.0

    def check_stop(self) -> None:
        if self.task.is_killed:
            raise Killed
        if self.is_stopping:
            raise Interrupted("stopped")

    def begin_call(self, what: str) -> None:
        """A process is about to be started: the faults that wait for this one strike."""
        self.what = what
        self.controller.calls += 1
        for strike in self.controller.at_call.pop(self.controller.calls, ()):
            strike(self)
        self.check_stop()

    def strike_answer(self, session: Session) -> None:
        """A command is on its way: the faults that wait for its answer strike."""
        for strike in self.controller.at_answer.pop(self.controller.calls, ()):
            strike(session)

    @property
    def step(self) -> str:
        return self.journal.steps[-1] if self.journal.steps else "begin"

    def disconnect(self, control: str) -> None:
        """`ssh -O exit`: every session over that connection ends."""
        connection = self.connections.pop(control, None)
        if connection is not None:
            for session in [one for one in self.sessions if one.boot is connection.boot and one.is_shared]:
                session.drop(is_noticed=True)

    def kill(self) -> None:
        """`kill -9`: nixa's helper ends what it has started."""
        self.task.kill()
        for session in list(self.sessions):
            session.close()

    def interrupt(self) -> None:
        """Ctrl-C, or SIGTERM."""
        if not self.task.is_over:
            self.is_stopping = True
            self.task.throw(Interrupted("stopped"))

    def start(self) -> None:
        controller, world = self.controller, self.world
        controller.runs.append(self)
        seen = KnownHosts(controller.folder / "known_hosts").find(self.host)
        self.knows_machine = self.host.host_key is not None or seen == self.machine.usual_key
        number = world.runs = world.runs + 1
        self.journal = MemoryJournal(world, self.name, number, SimulatedClock(self))
        turn = self._turn()
        self.task = Task(
            world.scheduler, lambda: self._main(turn), frozen_until=lambda: controller.frozen_until
        )

    def _main(self, turn: Turn) -> None:
        try:
            self.done = carry_out(turn)
            self.world.say(self.name, f"done: {self.done.action}: it {self.done.judgement.text}")
        except Killed:
            self.world.say(self.name, "is killed")
        except NixaError as error:
            self.error = error
            self.world.say(self.name, f"fails: {error.what}")
        except Exception as error:  # noqa: BLE001 -- a traceback is a finding
            self.error = error
        for session in list(self.sessions):
            session.close()
        self.world.run_ended(self)

    def _turn(self) -> Turn:
        controller, world = self.controller, self.world
        processes, clock = SimulatedProcesses(self), SimulatedClock(self)
        folder = controller.folder / "run"
        folder.mkdir(parents=True, exist_ok=True)
        image = UrlImage(_SYSTEM, "https://example.org/kexec.tar.gz", world.image.sha256)
        manifest = Manifest(
            controller.folder / "hosts.toml",
            Fleet(".", nixos_anywhere=("nixos-anywhere",)),
            {_SYSTEM: image},
            {self.host.name: self.host},
        )
        obtained = Obtained(image, world.image.path, world.image.sha256, _SUMMARY)
        access = Access(processes, clock, folder, KnownHosts(controller.folder / "known_hosts"),
                        Passwords(processes.is_stopping))  # fmt: skip
        return Turn(
            manifest=manifest,
            host=self.host,
            output=Output(self.host.name, _SYSTEM, "/nix/store/" + "d" * 32 + "-system.drv", self.wanted,
                          "/nix/store/" + "e" * 32 + "-disko.drv", DISKO),
            flake=None,
            layout=Layout(controller.folder),
            journal=self.journal,
            log=RunLog(controller.folder / "log", self.asked, self.journal.run, clock),
            access=access,
            suppliers=Suppliers(
                system=lambda _turn: self._build(self.wanted),
                disko=lambda _turn: self._build(DISKO),
                image=lambda _turn: obtained,
                there=self._no_remote_build,
            ),
            neighbours=Neighbours(clock),
            uplink=Uplink(8, clock),
            started=Started.now(clock),
            asked=self.asked,
            again=True,
        )  # fmt: skip

    def _build(self, path: str) -> Path:
        """Building takes no time, or hours."""
        rng = self.world.rng
        self.begin_call("build")
        self.task.wait(rng.uniform(0, rng.choice(self.world.builds_take)))
        self.check_stop()
        return Path(path)

    def _no_remote_build(self, _turn: Any, _ssh: Any) -> str:
        raise AssertionError("build_on = remote is not simulated")


DISKO = "/nix/store/" + "f" * 32 + "-disko"
_SUMMARY = Summary("x86_64-linux", "gz", 320, 320, 100, 100, 3, "0" * 64)


@contextlib.contextmanager
def clean_folder(folder: Path) -> Any:
    """An empty folder in memory."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
