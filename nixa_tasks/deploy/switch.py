"""A later deploy: the closure is copied, then switched to under a dead-man's switch on the host.

The host goes back by itself (guard.sh) unless it hears in time, over a *new* ssh connection, that
all is well. So a system that breaks the network or sshd, or a controller that dies, leaves the
machine as it was.
"""

from __future__ import annotations

import contextlib
import importlib.resources
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from nixa_tasks import process
from nixa_tasks.deploy import checks, receipts
from nixa_tasks.deploy.checks import CheckFailed
from nixa_tasks.deploy.receipts import Started
from nixa_tasks.deploy.work import Work
from nixa_tasks.errors import Interrupted, NixaError
from nixa_tasks.state.receipt import How, Outcome, Receipt
from nixa_tasks.target.ssh import Ssh, Unreachable

_LIMIT_FACTOR = 5  # an activation that is seen to be alive may take so many confirm_timeouts
_POLL_SECONDS = 1.0
_GO_BACK_SECONDS = 120.0
_ENDS = (Outcome.DONE, Outcome.ROLLED_BACK)  # after these the host has written a receipt

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
_SAY = 'cd "/run/nixa/switch-$1" && printf "%s\\n" "$3" >"$2.new" && mv -f "$2.new" "$2"'
_LOGS = 'cd "/run/nixa/switch-$1" && tail -n 40 activation.log rollback.log guard.log 2>/dev/null; true'
_RECEIPT = "head -c 65536 /var/lib/nixa/receipt.json"
_LIVE = "readlink -f /run/current-system"


class RolledBack(NixaError):
    """The new system did not prove itself; the host runs the one before again."""


@dataclass(frozen=True, slots=True)
class _Guard:
    """The host's side of one switch, looked at over connections that are new each time."""

    ssh: Ssh
    run: str

    def look(self) -> dict[str, str]:
        done = self.ssh.run(_LOOK, self.run, root=True, shared=False, deadline=20, what="switch")
        return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)

    def say(self, word: str, text: str) -> None:
        self.ssh.run(_SAY, self.run, word, text, root=True, shared=False, deadline=20, what="switch")

    def receipt(self) -> Receipt | None:
        """The receipt that the host wrote; None where it can't be had or read."""
        done = self.ssh.run(_RECEIPT, root=True, shared=False, deadline=20, check=False, what="switch")
        return receipts.parse(done.stdout)

    def logs(self) -> tuple[str, ...]:
        done = self.ssh.run(_LOGS, self.run, root=True, shared=False, deadline=20, check=False, what="switch")
        return tuple(done.stdout.splitlines())


def switch(work: Work, new: str, how: How, started: Started, *, wanted: str, drv: str | None) -> Receipt:
    """Switch the host to the system `new`, whose closure it has. The host's lock is held.

    Returns the receipt that now lies on the host. Raises RolledBack (the host runs what it ran
    before; the receipt says so on both sides), NixaError.
    """
    ssh = work.reached.ssh
    failed_before = checks.failed_units(ssh) if work.host.checks else frozenset()
    done = receipts.make(work, started, how, out=new, outcome=Outcome.DONE, wanted=wanted, drv=drv)
    back = receipts.make(work, started, how, out="@OUT@", outcome=Outcome.ROLLED_BACK, wanted=wanted, drv=drv)
    guard = _Guard(ssh, f"{work.journal.run}-{int(time.time())}")
    with work.journal.step(work.host.name, "switch"):
        _launch(work, guard, new, done, back)
        trouble = _watch(work, guard, new, failed_before)
        outcome, reason = _await_outcome(work, guard, confirmed=trouble is None)
        theirs = guard.receipt() if outcome in _ENDS else None
        for line in guard.logs() if outcome else ():
            work.log(line)
    ended = Outcome(outcome) if outcome in _ENDS else Outcome.FAILED
    out = {Outcome.DONE: new, Outcome.ROLLED_BACK: work.reached.facts.system}.get(ended)
    receipt = theirs or receipts.make(work, started, how, out=out, outcome=ended, wanted=wanted, drv=drv)
    receipts.write_local(work, receipt)
    if ended is Outcome.DONE:
        return receipt
    raise _error(work, outcome, reason or trouble or "")


def _launch(work: Work, guard: _Guard, new: str, done: Receipt, back: Receipt) -> None:
    timeout = max(1, int(work.host.confirm_timeout))
    script = importlib.resources.files("nixa_tasks.deploy").joinpath("guard.sh").read_text()
    files = {
        "guard.sh": script,
        "new": f"{new}\n",
        "timeout": f"{timeout}\n",
        "limit": f"{timeout * _LIMIT_FACTOR}\n",
        "done.json": _template(done),
        "back.json": _template(back),
    }
    guard.ssh.run(
        _LAUNCH, guard.run, root=True, deadline=60, stdin=_archive(files), sink=work.log, what="switch"
    )


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


def _watch(work: Work, guard: _Guard, new: str, failed_before: frozenset[str]) -> str | None:
    """Until the activation ended and proved itself: None if all is well and confirmed, else why not."""
    host = work.host
    until = time.monotonic() + host.confirm_timeout * (_LIMIT_FACTOR + 1)
    seen = time.monotonic()
    while time.monotonic() < until:
        try:
            state = guard.look()
            seen = time.monotonic()
        except Interrupted:
            raise
        except NixaError as error:  # whatever ssh ends with: the host decides, not this connection
            if time.monotonic() - seen > host.confirm_timeout:
                return f"the host could not be reached after the switch ({error.what})"
            process.sleep(_POLL_SECONDS)
            continue
        if "outcome" in state:
            return state.get("reason", "the host went back")
        if "activated" in state:
            return _prove(work, guard, new, failed_before)
        process.sleep(_POLL_SECONDS)
    return "the activation did not end"


def _prove(work: Work, guard: _Guard, new: str, failed_before: frozenset[str]) -> str | None:
    """What runs is what was wanted, and the checks pass: then confirm, else tell the host to go back."""
    try:
        live = guard.ssh.run(_LIVE, deadline=20, shared=False, what="switch").stdout.strip()
        if live != new:
            raise CheckFailed(f"the host runs {live or 'nothing'} after the activation, not {new}")
        with _beating(guard, work.host.confirm_timeout / 4):
            checks.run_all(
                work.host.checks,
                guard.ssh,
                failed_before=failed_before,
                note=lambda text: work.journal.note(work.host.name, "check", text),
            )
    except NixaError as error:
        if isinstance(error, Interrupted):
            raise
        if not isinstance(error, Unreachable):
            _try_to_say(guard, "abort", error.what, work.host.confirm_timeout)
        return error.what
    return _try_to_say(guard, "confirm", "yes", work.host.confirm_timeout)


@contextlib.contextmanager
def _beating(guard: _Guard, every: float) -> Iterator[None]:
    """Signs of life for the host while the checks run, each over a connection of its own."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(every):
            with contextlib.suppress(NixaError):
                guard.look()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _try_to_say(guard: _Guard, word: str, text: str, seconds: float) -> str | None:
    """Say it until it is heard; after `seconds` the host has gone back anyway. None if heard."""
    until = time.monotonic() + seconds
    while True:
        try:
            guard.say(word, text)
        except Interrupted:
            raise
        except NixaError as error:
            if time.monotonic() > until:
                return f"the host could not be reached to {word}: {error.what}"
            process.sleep(_POLL_SECONDS)
        else:
            return None


def _await_outcome(work: Work, guard: _Guard, *, confirmed: bool) -> tuple[str, str]:
    """What the host itself says that became of it: `gone` where it was restarted meanwhile; ("", "")
    where it can't be asked in time."""
    until = time.monotonic() + (30 if confirmed else work.host.confirm_timeout + _GO_BACK_SECONDS)
    while time.monotonic() < until:
        try:
            state = guard.look()
        except Interrupted:
            raise
        except NixaError:
            process.sleep(_POLL_SECONDS)
            continue
        if "outcome" in state:
            return state["outcome"].strip(), state.get("reason", "").strip()
        process.sleep(_POLL_SECONDS / 2)
    return "", ""


def _error(work: Work, outcome: str, reason: str) -> NixaError:
    host = work.host.name
    if outcome == "rolled-back":
        return RolledBack(
            f"rolled back: {reason}; it runs the system before again",
            host=host,
            log=work.log.path,
            hint=f"mend the configuration, then: doit deploy:{host}",
        )
    if outcome == "gone":
        return NixaError(
            "the host was restarted in the middle of the switch, so that nobody watched it to its end",
            host=host,
            log=work.log.path,
            hint=f"to look what it runs now, and go on from there: doit deploy:{host}",
        )
    if outcome == "failed":
        return NixaError(
            f"the switch failed: {reason}",
            host=host,
            log=work.log.path,
            hint=f"look at the log, then ask the host again: doit -a deploy:{host}",
        )
    return NixaError(
        f"the switch was begun, but the host can't be asked how it ended: {reason}",
        host=host,
        log=work.log.path,
        hint="it goes back by itself unless it was confirmed; see its console if it stays away,\n"
        f"then: doit -a deploy:{host}",
    )
