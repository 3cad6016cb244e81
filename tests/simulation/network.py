"""The network and the tools that cross it: what a controller's `Processes` and `Clock` are in the model.

Every command line that nixa makes is read here: `ssh`, `nix copy`, nixos-anywhere. An unknown one ends
the test, so that nothing is ever simulated by accident.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nixa_tasks.errors import CommandFailed, DeadlinePassed
from nixa_tasks.host.ssh import Fence
from nixa_tasks.process.run import Argv, Completed, Heartbeat, Output, Place, Stdin
from tests.simulation import scripts, tools
from tests.simulation.machine import Boot, Machine
from tests.simulation.scheduler import TIMEOUT
from tests.simulation.scripts import Refused, Unmodelled

if TYPE_CHECKING:
    from tests.simulation.controller import Run

NOTICE_SECONDS = 9.0  # 3 x 3 s without an answer: ssh gives up
_EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
_LOST = (255, "", "")
_READY = (0, "ready", "")
Answer = tuple[int, str, str]  # status, standard output, standard error


@dataclass(slots=True)
class Link:
    """The network between one controller and one machine. `cut_until`: no packet passes before then."""

    cut_until: float = 0.0
    slowness: float = 1.0
    slow_until: float = 0.0


@dataclass(eq=False, slots=True)
class Session:
    """One command on a machine over ssh. `is_open`: the client still waits for it; `is_fed`: the
    machine does not know of the client's end."""

    run: Run
    machine: Machine
    boot: Boot
    answer: Callable[[Any], None]
    every: float = 0.0
    is_ready: Callable[[str], bool] | None = None
    is_shared: bool = True
    is_open: bool = True
    is_fed: bool = True
    lines: list[str] = field(default_factory=list)

    def begin(self) -> None:
        self.boot.sessions.append(self)
        self.run.sessions.append(self)

    def line(self, text: str) -> None:
        """A line of a held command arrives at the client."""
        if self.is_open:
            self.lines.append(text)
            if self.is_ready is not None and self.is_ready(text):
                self.answer(_READY)

    def is_beating(self) -> bool:
        """Whether signs of life of the client arrive at the machine."""
        return (
            self.is_open
            and self.boot.has_network
            and not self.run.controller.is_frozen
            and not self.run.is_cut(self.machine)
        )

    def finish(self, answer: Answer) -> None:
        """The command has ended: its answer is on its way."""
        world, run = self.run.world, self.run
        if not self.is_open:
            return
        pause = world.rng.uniform(0.01, 0.1) * run.slowness(self.machine)
        cut = run.link(self.machine).cut_until - world.now
        if cut > NOTICE_SECONDS:
            world.scheduler.after(NOTICE_SECONDS, lambda: self.drop(is_noticed=True))
            return
        world.scheduler.after(max(pause, cut), lambda: self._arrive(answer))

    def _arrive(self, answer: Answer) -> None:
        if self.is_open:
            self.close()
            self.answer(answer)

    def drop(self, *, is_noticed: bool) -> None:
        """The connection is gone: the client notices at once, or by silence."""
        self.is_fed = False
        if not self.is_open:
            return
        if is_noticed:
            self.close()
            self.answer(_LOST)
        else:
            self.run.world.scheduler.after(NOTICE_SECONDS, lambda: self.drop(is_noticed=True))

    def close(self) -> None:
        """The client has ended it. The machine hears of that unless the network is cut."""
        self.is_open = False
        if self in self.run.sessions:
            self.run.sessions.remove(self)
        if self in self.boot.sessions:
            self.boot.sessions.remove(self)
        if self.boot.has_network and not self.run.is_cut(self.machine):
            self.is_fed = False
            if self.boot.lock is self:
                self.boot.lock = None


@dataclass(slots=True)
class Connection:
    """A shared connection. It outlives a new key, a new sshd and a new firewall rule, not a boot."""

    machine: Machine
    boot: Boot
    user: str

    def is_alive(self) -> bool:
        return self.machine.boot is self.boot and self.boot.has_network


class SimulatedClock:
    """Time as one controller's run sees it."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def monotonic(self) -> float:
        return self._run.world.now

    def now(self) -> datetime:
        return _EPOCH + timedelta(seconds=self._run.world.now + self._run.controller.clock_offset)

    def sleep(self, seconds: float) -> None:
        self._run.check_stop()
        self._run.task.wait(seconds)
        self._run.check_stop()


@dataclass(slots=True)
class Options:
    """What matters of an ssh command line."""

    alias: str
    known_hosts: Path
    strict: bool
    control: str | None
    kinds: str = ""

    @classmethod
    def parse(cls, argv: Argv) -> Options:
        pairs: dict[str, str] = {}
        for flag, value in pairwise(argv):
            if flag == "-o":
                name, _, rest = value.partition("=")
                pairs.setdefault(name, rest)
        control = pairs.get("ControlPath", "none")
        return cls(
            pairs["HostKeyAlias"],
            Path(pairs["UserKnownHostsFile"]),
            pairs["StrictHostKeyChecking"] == "yes",
            None if control == "none" else control,
            pairs.get("PreferredAuthentications", ""),
        )


class SimulatedProcesses:
    """The `Processes` of one run of one controller."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._shims: dict[str, Options] = {}

    def is_stopping(self) -> bool:
        return self._run.is_stopping

    def remove_at_death(self, folder: Path) -> None:
        pass

    def run(
        self,
        argv: Argv,
        *,
        deadline: float,
        stdin: Stdin | None = None,
        place: Place = Place(),  # noqa: B008 -- frozen
        output: Output = Output(),  # noqa: B008 -- frozen
        check: bool = True,
        host: str | None = None,
        what: str | None = None,
    ) -> Completed:
        """See Processes.run."""
        run = self._run
        what = what or Path(argv[0]).name
        run.check_stop()
        run.begin_call(what)
        begun = run.world.now
        try:
            status, out, err = self._dispatch(argv, place, stdin, deadline)
        except TimeoutError:
            raise DeadlinePassed(f"{what}: timed out after {deadline:g} s", host=host) from None
        run.check_stop()
        lines = tuple(err.splitlines())
        if output.sink is not None:
            for line in lines + (tuple(out.splitlines()) if output.sink_stdout else ()):
                output.sink(line)
        tail = (*lines, *out.splitlines()[-12:])[-12:]
        if check and status != 0:
            raise CommandFailed(
                f"{what}: ended with status {status}", argv=argv, status=status, host=host, tail=tail
            )
        return Completed(argv, status, out.encode(), tail, run.world.now - begun)

    def _dispatch(self, argv: Argv, place: Place, stdin: Stdin | None, deadline: float) -> Answer:
        name = argv[0].rpartition("/")[2]
        if name == "ssh":
            if argv[1] == "-G":
                return 0, f"hostname {argv[argv.index('--') + 1]}\nport 22\nproxyjump bastion\n", ""
            if "-O" in argv:
                self._run.disconnect(argv[2].partition("=")[2])
                return 0, "", ""
            return self._ssh(argv, stdin, deadline)
        tool = tools.TOOLS.get(name)
        if tool is None:
            raise Unmodelled(f"no model of {argv}")
        return tool(self, argv, place, deadline)

    # -- ssh -----------------------------------------------------------------------------------------

    def _ssh(self, argv: Argv, stdin: Stdin | None, deadline: float) -> Answer:
        split = argv.index("--")
        user, target, *remote = argv[split - 1], *argv[split + 1 :]
        options = Options.parse(argv[:split])
        until = self._run.world.now + deadline
        try:
            machine, boot = self.connect(options, user, target, until)
        except Refused as refused:
            return 255, "", str(refused)
        script, args, fence = scripts.parse(remote[0]) if remote else ("", (), None)
        data = stdin if isinstance(stdin, bytes) else b"".join(stdin) if stdin is not None else b""
        return self.execute(
            machine, boot, script, args, data, until, is_shared=options.control is not None, fence=fence
        )

    def execute(
        self,
        machine: Machine,
        boot: Boot,
        script: str,
        args: tuple[str, ...],
        stdin: bytes,
        until: float,
        *,
        is_shared: bool,
        fence: Fence | None = None,
    ) -> Answer:
        """Run the model of a script there and wait for its answer."""
        run = self._run
        model = scripts.MODELS.get(script)
        if model is None:
            raise Unmodelled(f"no model of the script {script[:200]!r}")
        session = Session(run, machine, boot, run.task.waker(), is_shared=is_shared)
        session.begin()
        host = scripts.Context(machine, boot, session, run, stdin)
        process = model(host, *args)
        if fence is not None:
            process = scripts.fenced(host, fence, process)
        run.world.scheduler.after(
            run.world.rng.uniform(0.01, 0.1) * run.slowness(machine),
            lambda: run.world.scheduler.spawn(process, is_alive=machine.alive(boot), ended=session.finish),
        )
        run.strike_answer(session)
        return self._await(session, until)

    def _await(self, session: Session, until: float) -> Answer:
        try:
            answer = self._run.task.wait(until - self._run.world.now)
        except BaseException:
            session.close()
            raise
        if answer is TIMEOUT:
            session.close()
            raise TimeoutError
        return answer  # type: ignore[no-any-return]

    def connect(self, options: Options, user: str, target: str, until: float) -> tuple[Machine, Boot]:
        """Log in, over the shared connection where there is one. Raises Refused, TimeoutError."""
        run, world = self._run, self._run.world
        if options.control is not None and (shared := run.connections.get(options.control)) is not None:
            if shared.is_alive() and not run.is_cut(shared.machine):
                return shared.machine, shared.boot
            run.disconnect(options.control)
        where = f"ssh: connect to host {target} port 22: "
        machine = world.addresses.get(target)
        if machine is None or machine.boot is None or not machine.boot.has_network or run.is_cut(machine):
            self.pause(10.0, until)
            raise Refused(f"{where}Connection timed out")
        boot = machine.boot
        self.pause(world.rng.uniform(0.02, 0.3) * run.slowness(machine), until)
        if not boot.has_sshd:
            raise Refused(f"{where}Connection refused")
        if machine.boot is not boot or run.is_cut(machine):
            raise Refused("kex_exchange_identification: Connection closed by remote host")
        self._check_key(options, machine)
        if options.kinds == "none" or not world.lets_in(machine, user):
            raise Refused(f"{user}@{target}: Permission denied (publickey).")
        if options.control is not None:
            run.connections[options.control] = Connection(machine, boot, user)
            Path(options.control).touch()
        return machine, boot

    def pause(self, seconds: float, until: float) -> None:
        """Wait as a tool does. Raises TimeoutError at the deadline."""
        left = until - self._run.world.now
        self._run.task.wait(min(seconds, left))
        if seconds >= left:
            raise TimeoutError

    def _check_key(self, options: Options, machine: Machine) -> None:
        shown = machine.key
        try:
            lines = options.known_hosts.read_text().splitlines()
        except FileNotFoundError:
            lines = []
        known = [line.partition(" ")[2] for line in lines if line.startswith(f"{options.alias} ")]
        if shown.text in known:
            return
        if known or options.strict:
            raise Refused("Host key verification failed.")
        options.known_hosts.write_text(f"{options.alias} {shown.text}\n")

    def shim(self, place: Place) -> Options:
        """The options of the `ssh` that a tool finds first on its PATH."""
        assert place.env is not None
        text = (Path(place.env["PATH"].partition(":")[0]) / "ssh").read_text()
        if text not in self._shims:
            call = next(line for line in text.splitlines() if line.startswith("exec ") and "-o" in line)
            self._shims[text] = Options.parse(tuple(shlex.split(call)))
        return self._shims[text]

    def fence(self, place: Place) -> Fence | None:
        """The fence of that `ssh`, if it has one."""
        assert place.env is not None
        text = (Path(place.env["PATH"].partition(":")[0]) / "ssh").read_text()
        call = next((line for line in text.splitlines() if line.startswith("nixa_fence ")), None)
        return scripts.parse_fence(call.replace("'\"'\"'", "'")) if call else None

    # -- held commands -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def hold(
        self,
        argv: Argv,
        *,
        is_ready: Callable[[str], bool],
        deadline: float,
        heartbeat: Heartbeat,
        place: Place = Place(),  # noqa: B008 -- frozen
        host: str | None = None,
        what: str,
    ) -> Iterator[None]:
        """See Processes.hold."""
        run = self._run
        run.check_stop()
        run.begin_call(what)
        split = argv.index("--")
        user, target, remote = argv[split - 1], argv[split + 1], argv[split + 2]
        until = run.world.now + deadline
        try:
            options = Options.parse(argv[:split])
            machine, boot = self.connect(options, user, target, until)
        except Refused as refused:
            raise CommandFailed(
                f"{what}: ended too soon", argv=argv, status=255, host=host, tail=(str(refused),)
            ) from None
        except TimeoutError:
            raise DeadlinePassed(f"{what}: timed out after {deadline:g} s", host=host) from None
        script, args, _ = scripts.parse(remote)
        model = scripts.MODELS.get(script)
        if model is None:
            raise Unmodelled(f"no model of the script {script[:200]!r}")
        is_shared = options.control is not None
        session = Session(run, machine, boot, run.task.waker(), heartbeat.every, is_ready, is_shared)
        session.begin()
        process = model(scripts.Context(machine, boot, session, run, b""), *args)
        run.world.scheduler.after(
            0.05,
            lambda: run.world.scheduler.spawn(process, is_alive=machine.alive(boot), ended=session.finish),
        )
        try:
            answer = self._await(session, until)
        except TimeoutError:
            raise DeadlinePassed(
                f"{what}: timed out after {deadline:g} s", host=host, tail=tuple(session.lines)
            ) from None
        run.check_stop()
        if answer != _READY:
            raise CommandFailed(
                f"{what}: ended too soon", argv=argv, status=answer[0], host=host, tail=tuple(session.lines)
            )
        session.answer = lambda _answer: None
        try:
            yield
        finally:
            session.close()
