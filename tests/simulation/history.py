"""A history: who does what when. Drawn from a seed, played, shrunk, and told as a story."""

from __future__ import annotations

import contextlib
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from nixa_tasks.deploy.decide import Asked
from nixa_tasks.deploy.deploy import Refused
from nixa_tasks.host.host_key import HostKeyMismatch
from nixa_tasks.manifest.model import Check, CommandCheck, Host, InstallPolicy, Mode, UnitsCheck
from tests.simulation.controller import Controller, Run, clean_folder
from tests.simulation.machine import Content, Fate, Kind, Machine, Root, System, store_path
from tests.simulation.network import Link, Session
from tests.simulation.scheduler import Scheduler, TooLong
from tests.simulation.scripts import HEALTH
from tests.simulation.world import PERSON, Violation, World

TARGET = "203.0.113.10"
_PATIENCE = 20_000.0  # seconds of simulated time for all that happens, before the last deploy
_LAST = 6_000.0


class Fault(StrEnum):
    """What goes wrong, or what somebody does."""

    # the controller
    KILL = "kill -9"
    INTERRUPT = "Ctrl-C"
    FREEZE = "suspended"
    LOSE_STATE = "lost .nixa"
    LOSE_KEYS = "lost known keys"
    WRONG_CLOCK = "wrong clock"
    # the network
    LOSE_ANSWER = "answer lost"
    CUT = "network cut"
    SLOW = "slow network"
    # people, and the machine
    REBOOT = "reboot"
    POWER = "pulled plug"
    RESCUE = "rescue boot"
    INSTALLER = "booted an installer"
    HAND_SWITCH = "switch by hand"
    HAND_TEST = "test by hand"
    HAND_INSTALL = "reinstalled by hand"
    REUSE = "address reused"


AT_CALL = (Fault.KILL, Fault.INTERRUPT, Fault.FREEZE, Fault.CUT, Fault.LOSE_ANSWER, Fault.REBOOT, Fault.POWER,
           Fault.RESCUE, Fault.HAND_SWITCH, Fault.HAND_TEST, Fault.INSTALLER)  # fmt: skip
AT_TIME = (Fault.LOSE_STATE, Fault.LOSE_KEYS, Fault.WRONG_CLOCK, Fault.SLOW, Fault.REBOOT, Fault.POWER,
           Fault.RESCUE, Fault.INSTALLER, Fault.HAND_SWITCH, Fault.HAND_TEST, Fault.HAND_INSTALL, Fault.REUSE)  # fmt: skip


BY_HAND = {
    Fault.REBOOT,
    Fault.POWER,
    Fault.RESCUE,
    Fault.INSTALLER,
    Fault.HAND_SWITCH,
    Fault.HAND_TEST,
    Fault.HAND_INSTALL,
    Fault.REUSE,
}


@dataclass(frozen=True, slots=True)
class Deploy:
    """Controller `who` deploys the system of that index at the moment `at`."""

    at: float
    who: int
    system: int
    asked: Asked = Asked.DEPLOY

    def told(self) -> str:
        return f"at {self.at:.0f} s controller {self.who} is asked to {self.asked}, system {self.system}"


@dataclass(frozen=True, slots=True)
class Strike:
    """A fault: at the moment `at`, or (with `call`) at that process which controller `who` starts."""

    fault: Fault
    who: int
    at: float = 0.0
    call: int = 0
    amount: float = 0.0

    def told(self) -> str:
        when = f"at the {self.call}th process of" if self.call else f"at {self.at:.0f} s, for"
        return f"{when} controller {self.who}: {self.fault}" + (
            f" ({self.amount:.0f} s)" if self.amount else ""
        )


Happening = Deploy | Strike


@dataclass(frozen=True, slots=True)
class History:
    """A whole history. `seed` also decides how long everything takes."""

    seed: int
    start: Content
    systems: tuple[System, ...]
    controllers: int
    happenings: tuple[Happening, ...]
    is_pinned: bool = False
    is_ephemeral: bool = False
    is_encrypted: bool = False
    has_same_keys: bool = False
    checks: bool = True
    install: InstallPolicy = InstallPolicy.IF_NOT_NIXOS
    mode: Mode = Mode.SWITCH
    reboot: bool = False
    loader: str = ""

    def described(self) -> str:
        what = [f"seed {self.seed}: a machine with {self.start}, {self.controllers} controllers"]
        what += [
            f"  system {number}: {system}" for number, system in enumerate(self.systems) if not system.is_good
        ]
        flags = [name for name in ("is_pinned", "is_ephemeral", "is_encrypted", "has_same_keys", "reboot")
                 if getattr(self, name)]  # fmt: skip
        what += [f"  {self.mode}, install = {self.install}, {' '.join(flags)}"]
        return "\n".join(what + [f"  {one.told()}" for one in self.happenings])


def draw(seed: int) -> History:
    """The history of a seed."""
    rng = random.Random(seed)
    systems = [System(store_path("g0", 0), switches=rng.choices((Fate.GOOD, Fate.FAILS), (9, 1))[0])]
    for number in range(1, 4):
        path = store_path(f"g{number}", number)
        systems.append(System(path) if rng.random() < 0.6 else _bad_system(rng, path))
    count = rng.choice((1, 1, 1, 2, 2, 3))
    happenings: list[Happening] = []
    at = 0.0
    for _ in range(rng.choice((1, 1, 2, 2, 3))):
        asked = rng.choices((Asked.DEPLOY, Asked.REINSTALL, Asked.ROLLBACK), (10, 1, 1))[0]
        happenings.append(Deploy(round(at, 1), rng.randrange(count), rng.randrange(4), asked))
        at += rng.choice((rng.uniform(0, 60), rng.uniform(0, 3000)))
    happenings += [_strike(rng, count, at) for _ in range(rng.choice((0, 1, 1, 2, 2, 3)))]
    return History(
        seed=seed,
        start=rng.choice((Content.LINUX, Content.NIXOS, Content.NIXOS)),
        systems=tuple(systems),
        controllers=count,
        happenings=tuple(happenings),
        is_pinned=rng.random() < 0.3,
        is_ephemeral=rng.random() < 0.25,
        is_encrypted=rng.random() < 0.15,
        has_same_keys=rng.random() < 0.4,
        install=rng.choices(tuple(InstallPolicy), (16, 1, 1))[0],
        mode=rng.choice((Mode.SWITCH, Mode.SWITCH, Mode.SWITCH, Mode.BOOT)),
        reboot=rng.random() < 0.6,
        loader=rng.choice(("", "systemd-boot", "grub")),
    )


def _bad_system(rng: random.Random, path: str) -> System:
    """One that is broken in one way."""
    return rng.choice((
        System(path, switches=Fate.FAILS),
        System(path, switches=Fate.HANGS),
        System(path, boots=Fate.HANGS),
        System(path, has_network=False),
        System(path, has_sshd=False),
        System(path, is_healthy=False),
    ))  # fmt: skip


def _strike(rng: random.Random, count: int, until: float) -> Strike:
    who = rng.randrange(count)
    amount = round(rng.choice((rng.uniform(1, 8), rng.uniform(8, 60), rng.uniform(60, 900))), 1)
    if rng.random() < 0.7:
        return Strike(rng.choice(AT_CALL), who, call=rng.randint(1, 40), amount=amount)
    return Strike(rng.choice(AT_TIME), who, at=round(rng.uniform(0, until + 200), 1), amount=amount)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a history came to."""

    violation: Violation | None
    met: Counter[tuple[str, str]]
    said: tuple[tuple[float, str, str], ...]

    def story(self) -> str:
        return "\n".join(f"{when:9.1f}  {who:<14}  {what}" for when, who, what in self.said)


def scratch() -> Path:
    """Where this process's controllers keep their files: in memory."""
    return Path("/dev/shm") / f"nixa-simulation-{os.getpid()}"


@contextlib.contextmanager
def clean_environment() -> Iterator[None]:
    """Nothing of the real computer decides anything, and there is little to copy for every process."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update({"PATH": before.get("PATH", os.defpath), "HOME": "/root", "USER": "root",
                       "NIX_REMOTE": "daemon", "XDG_STATE_HOME": "/nonexistent"})  # fmt: skip
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def play(history: History) -> Outcome:
    """Let it happen."""
    with clean_folder(scratch()) as folder, clean_environment():
        world = World(random.Random(history.seed ^ 0x5EED), folder, Scheduler())
        Play(history, world).run()
        return Outcome(world.violation, world.met, tuple(world.said))


class Play:
    """One history being played."""

    def __init__(self, history: History, world: World) -> None:
        self.history, self.world = history, world
        world.systems |= {system.path: system for system in history.systems}
        self.machine = self._machine()
        self.excuses: set[str] = set()
        for number in range(history.controllers):
            self._controller(f"controller {number}")

    def _machine(self) -> Machine:
        history, world = self.history, self.world
        root = None
        if history.start is Content.NIXOS:
            root = Root.installed(history.systems[0].path, is_ephemeral=history.is_ephemeral,
                                  is_encrypted=history.is_encrypted)  # fmt: skip
            root.has_run = True
        machine = Machine(
            world, "web1", history.start, root,
            has_same_key_in_initrd=history.has_same_keys, has_same_key_in_rescue=history.has_same_keys,
            loader=history.loader,
        )  # fmt: skip
        world.machines.append(machine)
        world.addresses[TARGET] = machine
        if root is not None:
            machine.start(Kind.NIXOS, root.default)
        else:
            machine.start(Kind.LINUX)
        return machine

    def _controller(self, name: str) -> Controller:
        folder = self.world.folder / name.replace(" ", "-")
        folder.mkdir()
        controller = Controller(self.world, name, "", folder)
        self.world.controllers.append(controller)
        return controller

    def host(self) -> Host:
        history = self.history
        checks = (Check(CommandCheck(HEALTH), deadline=10.0), Check(UnitsCheck())) if history.checks else ()
        return Host(
            "web1", TARGET,
            host_key=self.machine_key if history.is_pinned else None,
            install=history.install, mode=history.mode, reboot=history.reboot, checks=checks,
            confirm_timeout=self.machine.confirm_timeout,
        )  # fmt: skip

    @property
    def faults(self) -> set[Fault]:
        return {one.fault for one in self.history.happenings if isinstance(one, Strike)}

    @property
    def machine_key(self) -> str:
        from tests.simulation.machine import key_of

        return key_of(self.machine.name).text

    def run(self) -> None:
        world, history = self.world, self.history
        for happening in history.happenings:
            self._arrange(happening)
        try:
            world.scheduler.run(_PATIENCE, is_over=world.is_over)
            if world.violation is None:
                self._end_well()
        except TooLong as error:
            world.violate("ends", str(error))
        for controller in world.controllers:
            for run in controller.runs:
                run.kill()

    def _arrange(self, happening: Happening) -> None:
        world = self.world
        controller = world.controllers[happening.who]
        match happening:
            case Deploy(at=at):
                world.scheduler.after(at, lambda: self._deploy(controller, happening))
            case Strike(fault=Fault.LOSE_ANSWER, call=call):
                controller.at_answer.setdefault(call, []).append(
                    lambda session: self._lose(session, happening)
                )
            case Strike(call=0, at=at):
                world.scheduler.after(at, lambda: self._strike(controller, None, happening))
            case Strike(call=call):
                controller.at_call.setdefault(call, []).append(
                    lambda run: self._strike(controller, run, happening)
                )

    def _deploy(self, controller: Controller, deploy: Deploy) -> None:
        if controller.current is not None or controller.is_frozen:
            return
        system = self.history.systems[deploy.system]
        self.begin(controller, system.path, deploy.asked)

    def begin(self, controller: Controller, path: str, asked: Asked) -> Run:
        world = self.world
        machine = world.addresses[TARGET]
        world.say(controller.name, f"is asked to {asked}: {world.systems[path].name}")
        run = Run(controller, self.host(), asked, self.machine, world.now, machine.snapshot(), path)
        run.start()
        return run

    def _met(self, run: Run | None, strike: Strike) -> None:
        step = run.step if run is not None and not run.task.is_over else "idle"
        self.world.met[step, strike.fault] += 1
        self.world.say("FAULT", f"{strike.fault} of {self.world.controllers[strike.who].name} during {step}")

    def _lose(self, session: Session, strike: Strike) -> None:
        self._met(session.run, strike)
        session.run.link(session.machine).cut_until = self.world.now + max(10.0, strike.amount)
        session.drop(is_noticed=False)

    def _strike(self, controller: Controller, run: Run | None, strike: Strike) -> None:
        world, machine = self.world, self.machine
        run = run or controller.current
        self._met(run, strike)
        match strike.fault:
            case Fault.KILL:
                if run is not None:
                    world.scheduler.after(0.0, run.kill)
            case Fault.INTERRUPT:
                if run is not None:
                    run.is_stopping = True
            case Fault.FREEZE:
                controller.frozen_until = world.now + strike.amount
                if run is not None:
                    run.task.wait(strike.amount)
            case Fault.CUT:
                self._cut(controller, strike.amount)
            case Fault.SLOW:
                link = controller.links.setdefault(id(machine), Link())
                link.slowness, link.slow_until = 40.0, world.now + strike.amount
            case Fault.LOSE_STATE:
                controller.lose_state()
            case Fault.LOSE_KEYS:
                controller.lose_keys()
            case Fault.WRONG_CLOCK:
                controller.clock_offset = world.rng.choice((-1e8, -3600.0, 3600.0, 1e8))
            case _:
                self._by_hand(machine, strike)

    def _cut(self, controller: Controller, seconds: float) -> None:
        world, machine = self.world, self.machine
        controller.links.setdefault(id(machine), Link()).cut_until = world.now + seconds
        if seconds >= 9 and controller.current is not None:
            for session in list(controller.current.sessions):
                session.drop(is_noticed=False)

    def _by_hand(self, machine: Machine, strike: Strike) -> None:
        world = self.world
        world.changed(machine, PERSON)
        match strike.fault:
            case Fault.REBOOT:
                machine.reboot()
            case Fault.POWER:
                machine.reboot(is_clean=False, seconds=5 + strike.amount)
            case Fault.RESCUE | Fault.INSTALLER:
                kind = Kind.RESCUE if strike.fault is Fault.RESCUE else Kind.INSTALLER
                machine.reboot(kind)
                number = machine.boots
                world.scheduler.after(strike.amount * 5 + 100, lambda: self._leave_rescue(machine, number))
            case Fault.HAND_SWITCH | Fault.HAND_TEST:
                self._hand(machine, "switch" if strike.fault is Fault.HAND_SWITCH else "test")
            case Fault.HAND_INSTALL:
                self._reinstall(machine)
            case Fault.REUSE:
                self._reuse(strike)
            case _:
                raise AssertionError(strike)

    def _leave_rescue(self, machine: Machine, number: int) -> None:
        if (
            machine.boot is not None
            and machine.boot.kind in (Kind.RESCUE, Kind.INSTALLER)
            and machine.boots <= number + 2
        ):
            self.world.changed(machine, PERSON)
            machine.reboot()

    def _hand(self, machine: Machine, action: str) -> None:
        """`nixos-rebuild switch` (or test) by hand, with a good system of one's own, or one of the flake's."""
        boot, root = machine.boot, machine.root
        if boot is None or root is None or boot.kind is not Kind.NIXOS:
            return
        good = [system.path for system in self.history.systems if system.is_good]
        path = self.world.rng.choice([store_path("hand", 9), *good])
        self.world.systems.setdefault(path, System(path))
        root.store.add(path)
        if action == "switch":
            root.set_profile(path)
        self.excuses.add("drift")
        self.world.scheduler.spawn(
            machine.activate(path, action, is_guarded=False), is_alive=machine.alive(boot)
        )

    def _reinstall(self, machine: Machine) -> None:
        """Somebody installs a NixOS of their own on it: it has another host key then."""
        path = store_path("own", 6)
        self.world.systems[path] = System(path)
        machine.content, machine.root = Content.NIXOS, Root.installed(path)
        machine.root.has_run, machine.is_given_up = True, False
        machine.installs += 1
        self.excuses.add("reinstalled")
        machine.reboot()

    def _reuse(self, strike: Strike) -> None:
        """The address belongs to somebody else's machine for a while."""
        world = self.world
        path = store_path("theirs", 8)
        world.systems[path] = System(path)
        root = Root.installed(path)
        root.has_run = True
        is_nixos = world.rng.random() < 0.5
        other = Machine(
            world, "theirs", Content.NIXOS if is_nixos else Content.LINUX, root if is_nixos else None
        )
        world.machines.append(other)
        other.start(Kind.NIXOS if is_nixos else Kind.LINUX, path if is_nixos else None)
        world.addresses[TARGET] = other
        for controller in world.controllers:
            if controller.current is not None:
                for session in list(controller.current.sessions):
                    session.drop(is_noticed=False)

        def back() -> None:
            world.addresses[TARGET] = self.machine

        world.scheduler.after(max(60.0, strike.amount), back)

    def _is_left_on_bad(self) -> bool:
        """Whether a deploy that was to be watched has left the machine on a system that is not good.
        A first boot that can't be reached is left to whoever cuts the power (docs/safety.md)."""
        world, machine = self.world, self.machine
        system = world.systems.get(machine.live or "")
        return (
            system is not None
            and system is not world.systems[self.history.systems[0].path]
            and not (system.is_healthy and (machine.is_reachable() or self.history.mode is Mode.BOOT))
            and self.history.checks
            and not machine.wiped
            and not self.faults & BY_HAND
            and not any("is not watched" in text for _, _, text in world.said)
        )

    def _end_well(self) -> None:
        """After all of it nothing disturbs any more: one more deploy of a good system ends well."""
        world, machine = self.world, self.machine
        for controller in world.controllers:
            controller.links.clear()
            controller.frozen_until = 0.0
            controller.at_call.clear()
            controller.at_answer.clear()
            if controller.current is not None:
                world.violate("ends", f"{controller.name} is not done after {_PATIENCE:g} s")
                return
        if self._is_left_on_bad() and not machine.is_stuck:
            world.violate("taken back", f"{machine.name} still runs {machine.live}, which is not good")
            return
        if (
            machine.boot is None
            or machine.boot.kind in (Kind.RESCUE, Kind.INITRD)
            or not machine.is_reachable()
        ):
            world.say(PERSON, "looks after the machine, and restarts it")
            machine.reboot()
            world.scheduler.run(world.now + 1000, is_over=world.is_over)
        if not machine.is_reachable():
            return  # what it boots does not boot, or can't be reached: it needs somebody at its console
        path = store_path("last", 7)
        world.systems[path] = System(path)
        live = world.systems.get(machine.live or "")
        if (
            live is not None
            and live.is_good
            and machine.content is Content.NIXOS
            and world.rng.random() < 0.3
        ):
            path = live.path
        world.builds_take = (0.0,)
        run = self.begin(world.controllers[0], path, Asked.DEPLOY)
        world.scheduler.run(world.now + _LAST, is_over=lambda: world.is_over() or run.task.is_over)
        if world.violation is None:
            self._judge(run, path)

    def _judge(self, run: Run, path: str) -> None:
        world, machine = self.world, self.machine
        if run.done is not None or self.excuses or self.history.install is InstallPolicy.NEVER:
            return
        if isinstance(run.error, HostKeyMismatch) and Fault.REUSE in self.faults:
            return  # the first contact was with the other machine at this address
        is_half_reinstalled = (
            machine.boot is not None
            and machine.boot.kind is Kind.INSTALLER
            and machine.content is Content.NIXOS
        )
        if is_half_reinstalled and isinstance(run.error, Refused):
            return  # a reinstallation died before it wrote anything: only another one may go on with it
        world.violate("ends well", f"the last deploy of {machine.name} fails: {run.error}")


def shrink(history: History, fails: Callable[[History], bool]) -> History:
    """The shortest history that still fails: happenings are dropped one at a time."""
    is_shorter = True
    while is_shorter:
        is_shorter = False
        for number in reversed(range(len(history.happenings))):
            rest = history.happenings[:number] + history.happenings[number + 1 :]
            shorter = replace(history, happenings=rest)
            if fails(shorter):
                history, is_shorter = shorter, True
    return history


def failing(seeds: Iterable[int]) -> Iterable[tuple[History, Outcome]]:
    """The histories among these seeds that break an invariant."""
    for seed in seeds:
        history = draw(seed)
        outcome = play(history)
        if outcome.violation is not None:
            yield history, outcome
