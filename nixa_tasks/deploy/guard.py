"""The controller's side of guard.sh: started on the host, watched, and given its answer."""

from __future__ import annotations

import contextlib
import io
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from nixa_tasks.deploy import receipts
from nixa_tasks.deploy.receipts import PACKAGE
from nixa_tasks.errors import CommandFailed, DeadlinePassed, Interrupted, NixaError
from nixa_tasks.host.ssh import Ssh, Unreachable, environment, script
from nixa_tasks.process.pump import Sink
from nixa_tasks.process.run import Heartbeat, Output, Place
from nixa_tasks.state.receipt import Receipt

LIMIT_FACTOR = 5  # an activation that is seen to be alive may take so many confirm_timeouts
POLL_SECONDS = 1.0
GO_BACK_SECONDS = 120.0
_BEAT_START_SECONDS = 20.0

_LOOK = """
cd "/run/nixa/switch-$1" 2>/dev/null || { echo outcome=gone; exit; }
: >alive
for file in activated outcome reason; do [ ! -e $file ] || echo "$file=$(head -c 300 $file)"; done
"""
_BEAT = """
cd "/run/nixa/switch-$1" || exit 1
echo beating
while read -r line; do : >alive; done
"""
_SAY = 'cd "/run/nixa/switch-$1" && printf "%s\\n" "$3" >"$2.new" && mv -f "$2.new" "$2"'
_LOGS = 'cd "/run/nixa/switch-$1" && tail -n 40 activation.log rollback.log guard.log 2>/dev/null; true'
_FAILED_UNITS = 'cat "/run/nixa/switch-$1/failed-units" 2>/dev/null; true'
_RECEIPT = "head -c 65536 /var/lib/nixa/receipt.json"


class Task(StrEnum):
    """What the guard does; see guard.sh."""

    SWITCH = "switch"
    BOOT = "boot"
    PROVE = "prove"


class Word(StrEnum):
    """What the controller tells the guard."""

    CONFIRM = "confirm"
    ABORT = "abort"


class Ending(StrEnum):
    """How a guard ended, by its own account."""

    DONE = "done"
    ARMED = "armed"  # set up to be booted once
    KEPT = "kept"  # the new system stays, although units failed
    ROLLED_BACK = "rolled-back"
    FAILED = "failed"  # nothing was changed
    STUCK = "stuck"  # it could not roll back
    GONE = "gone"  # the host was restarted meanwhile
    UNKNOWN = ""  # it can't be asked in time

    @property
    def has_receipt(self) -> bool:
        """Whether the host has written a receipt by then."""
        return self not in (Ending.FAILED, Ending.GONE, Ending.UNKNOWN)


@dataclass(frozen=True, slots=True)
class Guard:
    """The host's side of one change, looked at over connections that are new each time."""

    ssh: Ssh
    run: str

    def look(self) -> dict[str, str]:
        """What it has written by now, by file; a sign of life for it. Raises as Ssh.run does."""
        done = self.ssh.run(_LOOK, self.run, root=True, deadline=20, what="switch")
        return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)

    def show_life(self) -> None:
        """Tell the host that somebody still looks at it, if it can be told."""
        with contextlib.suppress(CommandFailed, DeadlinePassed, Unreachable):
            self.look()

    def tell(self, word: Word, text: str) -> None:
        self.ssh.run(_SAY, self.run, word, text, root=True, deadline=20, what="switch")

    def receipt(self) -> Receipt | None:
        """The receipt that the host wrote; None where there is none that can be read."""
        done = self.ssh.run(_RECEIPT, root=True, deadline=20, check=False, what="switch")
        return receipts.parse(done.stdout)

    def failed_units(self) -> tuple[str, ...]:
        """The units that the activation left failed, each with the end of its journal."""
        done = self.ssh.run(_FAILED_UNITS, self.run, root=True, deadline=20, check=False, what="switch")
        return tuple(done.stdout.splitlines())

    def logs(self) -> tuple[str, ...]:
        """The last lines of what the activation printed."""
        done = self.ssh.run(_LOGS, self.run, root=True, deadline=20, check=False, what="switch")
        return tuple(done.stdout.splitlines())


@dataclass(frozen=True, slots=True)
class Errand:
    """What a guard is started for: to the system `new`. `templates`: the receipts that it may write,
    by file name. `restart`: for Task.BOOT, who restarts the host. `keeps_failed_units`: a system whose
    units failed stays. `is_forced`: the checks before a switch are skipped."""

    new: str
    task: Task
    templates: Mapping[str, Receipt]
    restart: str = ""
    keeps_failed_units: bool = False
    is_forced: bool = False


def launch(ssh: Ssh, errand: Errand, *, run: str, log: Sink) -> Guard:
    """Start the guard, behind the fence. `run` names this run. Raises Stale, NixaError."""
    moment = round(ssh.clock.now().timestamp() * 1000)
    guard = Guard(ssh.unshared(), f"{run}-{moment}")
    timeout = max(1, int(ssh.host.confirm_timeout))
    files = {f"{name}.sh": script(name, PACKAGE) for name in ("guard", "boot_once")}
    files |= {f"{name}.json": _template(receipt) for name, receipt in errand.templates.items()}
    files |= {"new": f"{errand.new}\n", "task": f"{errand.task}\n"}
    files |= {"timeout": f"{timeout}\n", "limit": f"{timeout * LIMIT_FACTOR}\n"}
    files |= {"keep-failed-units": ""} if errand.keeps_failed_units else {}
    files |= {"force": ""} if errand.is_forced else {}
    if errand.restart:
        files["reboot"] = f"{errand.restart}\n"
    ssh.run(
        script("launch", PACKAGE),
        guard.run,
        root=True,
        deadline=60,
        stdin=_archive(files),
        output=Output(sink=log),
        what="switch",
    )
    return guard


def _template(receipt: Receipt) -> str:
    """The receipt with the duration left to the host, which alone knows when it ended."""
    seconds = f'"seconds": {receipt.seconds}'
    return receipts.line(receipt).replace(seconds, '"seconds": "@SECONDS@"')


def _archive(files: Mapping[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, text in files.items():
            data = text.encode()
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o600
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


@contextlib.contextmanager
def beating(guard: Guard, every: float) -> Iterator[None]:
    """Signs of life for the host while the checks run, over a connection of their own.

    Where that connection breaks, only the looks between the checks are left: a check that takes
    longer than `confirm_timeout` then makes the host go back.
    """
    ssh = guard.ssh
    with contextlib.ExitStack() as held:
        with contextlib.suppress(CommandFailed, DeadlinePassed):
            held.enter_context(
                ssh.processes.hold(
                    ssh.command("sh", "-c", _BEAT, "nixa", guard.run, root=True),
                    is_ready=lambda line: line == "beating",
                    deadline=_BEAT_START_SECONDS,
                    heartbeat=Heartbeat(b"beat\n", every, ssh.password.preamble if ssh.password else b""),
                    place=Place(env=environment()),
                    host=ssh.host.name,
                    what="signs of life",
                )
            )
        yield


def try_to_tell(guard: Guard, word: Word, text: str, seconds: float) -> str | None:
    """Tell it until it is heard; after `seconds` the host has gone back anyway. None if heard, else
    why not."""
    clock = guard.ssh.clock
    until = clock.monotonic() + seconds
    while True:
        try:
            guard.tell(word, text)
        except Interrupted:
            raise
        except NixaError as error:
            if clock.monotonic() > until:
                return f"the host could not be reached to {word}: {error.what}"
            clock.sleep(POLL_SECONDS)
        else:
            return None


def await_ending(guard: Guard, *, seconds: float) -> tuple[Ending, str]:
    """What the host itself says became of it, and why."""
    clock = guard.ssh.clock
    until = clock.monotonic() + seconds
    while clock.monotonic() < until:
        try:
            state = guard.look()
        except Interrupted:
            raise
        except NixaError:
            clock.sleep(POLL_SECONDS)
            continue
        outcome = state.get("outcome", "").strip()
        if outcome in tuple(Ending) and outcome:
            return Ending(outcome), state.get("reason", "").strip()
        clock.sleep(POLL_SECONDS / 2)
    return Ending.UNKNOWN, ""
