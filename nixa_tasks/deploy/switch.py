"""A later deploy: the closure is copied, then switched to under a dead-man's switch on the host.

The host goes back by itself (guard.sh) unless it hears in time, over a *new* ssh connection, that
all is well. So a system that breaks the network or sshd, or a controller that dies, leaves the
machine as it was.
"""

from __future__ import annotations

from nixa_tasks.deploy import checks, receipts
from nixa_tasks.deploy.checks import CheckFailed
from nixa_tasks.deploy.guard import (
    ENDS,
    GO_BACK_SECONDS,
    LIMIT_FACTOR,
    POLL_SECONDS,
    Guard,
    await_outcome,
    beating,
    launch,
    try_to_say,
)
from nixa_tasks.deploy.receipts import Started
from nixa_tasks.deploy.work import Work
from nixa_tasks.errors import Interrupted, NixaError
from nixa_tasks.host.ssh import Unreachable
from nixa_tasks.state.receipt import How, Outcome, Receipt

_CONFIRMED_SECONDS = 30.0
_LIVE = "readlink -f /run/current-system"


class RolledBack(NixaError):
    """The new system did not prove itself; the host runs the one before again."""


def switch(work: Work, new: str, how: How, started: Started, *, wanted: str, drv: str | None) -> Receipt:
    """Switch the host to the system `new`, whose closure it has. The host's lock is held.

    Returns the receipt that now lies on the host. Raises RolledBack (the host runs what it ran
    before; the receipt says so on both sides), NixaError.
    """
    ssh, host = work.reached.ssh, work.host
    failed_before = checks.failed_units(ssh) if host.checks else frozenset()
    done = receipts.make(work, started, how, out=new, outcome=Outcome.DONE, wanted=wanted, drv=drv)
    back = receipts.make(work, started, how, out="@OUT@", outcome=Outcome.ROLLED_BACK, wanted=wanted, drv=drv)
    with work.journal.step(work.host.name, "switch"):
        guard = launch(work, ssh, new, {"done": done, "back": back})
        trouble = _watch(work, guard, new, failed_before)
        outcome, reason = await_outcome(
            guard, seconds=_CONFIRMED_SECONDS if trouble is None else host.confirm_timeout + GO_BACK_SECONDS
        )
        theirs = guard.receipt() if outcome in ENDS else None
        for line in guard.logs() if outcome else ():
            work.log(line)
    ended = Outcome(outcome) if outcome in ENDS else Outcome.FAILED
    out = {Outcome.DONE: new, Outcome.ROLLED_BACK: work.reached.facts.system}.get(ended)
    receipt = theirs or receipts.make(work, started, how, out=out, outcome=ended, wanted=wanted, drv=drv)
    receipts.write_local(work, receipt)
    if ended is Outcome.DONE:
        return receipt
    raise _error(work, outcome, reason or trouble or "")


def _watch(work: Work, guard: Guard, new: str, failed_before: frozenset[str]) -> str | None:
    """Until the activation ended and proved itself: None if all is well and confirmed, else why not."""
    host = work.host
    until = guard.ssh.clock.monotonic() + host.confirm_timeout * (LIMIT_FACTOR + 1)
    seen = guard.ssh.clock.monotonic()
    while guard.ssh.clock.monotonic() < until:
        try:
            state = guard.look()
            seen = guard.ssh.clock.monotonic()
        except Interrupted:
            raise
        except NixaError as error:  # whatever ssh ends with: the host decides, not this connection
            if guard.ssh.clock.monotonic() - seen > host.confirm_timeout:
                return f"the host could not be reached after the switch ({error.what})"
            guard.ssh.clock.sleep(POLL_SECONDS)
            continue
        if "outcome" in state:
            return state.get("reason", "the host went back")
        if "activated" in state:
            return prove(work, guard, new, failed_before)
        guard.ssh.clock.sleep(POLL_SECONDS)
    return "the activation did not end"


def prove(work: Work, guard: Guard, new: str, failed_before: frozenset[str]) -> str | None:
    """What runs is what was wanted, and the checks pass: then confirm, else tell the host to go back."""
    try:
        live = guard.ssh.run(_LIVE, deadline=20, what="switch").stdout.strip()
        if live != new:
            raise CheckFailed(f"the host runs {live or 'nothing'} after the activation, not {new}")
        with beating(guard, work.host.confirm_timeout / 4):
            checks.run_all(
                work.host.checks,
                guard.ssh,
                failed_before=failed_before,
                note=lambda text: work.journal.note(work.host.name, "check", text),
                before_each_try=guard.show_life,
            )
    except NixaError as error:
        if isinstance(error, Interrupted):
            raise
        if not isinstance(error, Unreachable):
            try_to_say(guard, "abort", error.what, work.host.confirm_timeout)
        return error.what
    return try_to_say(guard, "confirm", "yes", work.host.confirm_timeout)


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
