"""The controller's side of guard.sh: started on the host, looked at, told how it went."""

from __future__ import annotations

import contextlib
import importlib.resources
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from nixa_tasks.deploy import receipts
from nixa_tasks.deploy.work import Work
from nixa_tasks.errors import CommandFailed, DeadlinePassed, Interrupted, NixaError
from nixa_tasks.host.ssh import Ssh, Unreachable, environment
from nixa_tasks.process.run import Heartbeat, Output, Place
from nixa_tasks.state.receipt import Outcome, Receipt

LIMIT_FACTOR = 5  # an activation that is seen to be alive may take so many confirm_timeouts
POLL_SECONDS = 1.0
GO_BACK_SECONDS = 120.0
_BEAT_START_SECONDS = 20.0
ENDS = (Outcome.DONE, Outcome.ROLLED_BACK)  # after these the host has written a receipt
_SCRIPTS = ("guard.sh", "boot_once.sh")

_LAUNCH = """
set -eu; umask 077; mkdir -p /run/nixa; folder=/run/nixa/switch-$1; mkdir "$folder"; cd "$folder"
tar -xf -
if [ -d /run/systemd/system ] && command -v systemd-run >/dev/null 2>&1; then
  systemd-run --quiet --collect --no-ask-password --unit="nixa-switch-$1" sh "$folder/guard.sh" "$folder"
else
  setsid sh "$folder/guard.sh" "$folder" </dev/null >guard.log 2>&1 &
fi
"""
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
_RECEIPT = "head -c 65536 /var/lib/nixa/receipt.json"


@dataclass(frozen=True, slots=True)
class Guard:
    """The host's side of one switch, looked at over connections that are new each time."""

    ssh: Ssh
    run: str

    def look(self) -> dict[str, str]:
        done = self.ssh.run(_LOOK, self.run, root=True, deadline=20, what="switch")
        return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)

    def show_life(self) -> None:
        """Tell the host that somebody still looks at it, if it can be told."""
        with contextlib.suppress(CommandFailed, DeadlinePassed, Unreachable):
            self.look()

    def say(self, word: str, text: str) -> None:
        self.ssh.run(_SAY, self.run, word, text, root=True, deadline=20, what="switch")

    def receipt(self) -> Receipt | None:
        """The receipt that the host wrote; None where it can't be had or read."""
        done = self.ssh.run(_RECEIPT, root=True, deadline=20, check=False, what="switch")
        return receipts.parse(done.stdout)

    def logs(self) -> tuple[str, ...]:
        done = self.ssh.run(_LOGS, self.run, root=True, deadline=20, check=False, what="switch")
        return tuple(done.stdout.splitlines())


def launch(work: Work, ssh: Ssh, new: str, templates: Mapping[str, Receipt], **more: str) -> Guard:
    """Start the guard for the system `new` in a unit of its own, or a session where there is no
    systemd. `templates`: the receipts that it may write, by file name. `more`: files besides, with
    one word each. Raises NixaError."""
    moment = round(ssh.clock.now().timestamp() * 1000)
    guard = Guard(ssh.unshared(), f"{work.journal.run}-{moment}")
    timeout = max(1, int(work.host.confirm_timeout))
    folder = importlib.resources.files("nixa_tasks.deploy")
    files = {name: folder.joinpath(name).read_text() for name in _SCRIPTS}
    files |= {name: f"{word}\n" for name, word in more.items()}
    files |= {f"{name}.json": _template(receipt) for name, receipt in templates.items()}
    files |= {"new": f"{new}\n", "timeout": f"{timeout}\n", "limit": f"{timeout * LIMIT_FACTOR}\n"}
    ssh.run(
        _LAUNCH,
        guard.run,
        root=True,
        deadline=60,
        stdin=_archive(files),
        output=Output(sink=work.log),
        what="switch",
    )
    return guard


def _template(receipt: Receipt) -> str:
    """The receipt with the duration left to the host, which alone knows when it ended."""
    seconds = f'"seconds": {receipt.seconds}'
    return receipts.line(receipt).replace(seconds, '"seconds": "@SECONDS@"')


def _archive(files: dict[str, str]) -> bytes:
    import io
    import tarfile

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


def try_to_say(guard: Guard, word: str, text: str, seconds: float) -> str | None:
    """Say it until it is heard; after `seconds` the host has gone back anyway. None if heard."""
    until = guard.ssh.clock.monotonic() + seconds
    while True:
        try:
            guard.say(word, text)
        except Interrupted:
            raise
        except NixaError as error:
            if guard.ssh.clock.monotonic() > until:
                return f"the host could not be reached to {word}: {error.what}"
            guard.ssh.clock.sleep(POLL_SECONDS)
        else:
            return None


def await_outcome(guard: Guard, *, seconds: float) -> tuple[str, str]:
    """What the host itself says that became of it, and why: `gone` where it was restarted meanwhile,
    ("", "") where it can't be asked in time."""
    until = guard.ssh.clock.monotonic() + seconds
    while guard.ssh.clock.monotonic() < until:
        try:
            state = guard.look()
        except Interrupted:
            raise
        except NixaError:
            guard.ssh.clock.sleep(POLL_SECONDS)
            continue
        if "outcome" in state:
            return state["outcome"].strip(), state.get("reason", "").strip()
        guard.ssh.clock.sleep(POLL_SECONDS / 2)
    return "", ""
