"""A later deploy: the system is activated under a dead-man's switch on the host.

The host goes back by itself (guard.sh) unless it hears in time, over a *new* ssh connection, that
all is well. So a system that breaks the network or sshd, or a controller that dies, leaves the
machine as it was.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from nixa_tasks.deploy import checks, receipts
from nixa_tasks.deploy.checks import CheckFailed
from nixa_tasks.deploy.guard import (
    GO_BACK_SECONDS,
    LIMIT_FACTOR,
    POLL_SECONDS,
    Ending,
    Errand,
    Guard,
    Task,
    Word,
    await_ending,
    beating,
    launch,
    try_to_tell,
)
from nixa_tasks.deploy.turn import Turn
from nixa_tasks.errors import Interrupted, NixaError
from nixa_tasks.host.reach import Reached
from nixa_tasks.host.ssh import Unreachable
from nixa_tasks.manifest.model import OnFailedUnits, OnInhibitor
from nixa_tasks.state.journal import Journal
from nixa_tasks.state.receipt import How, Outcome, Receipt

_LIVE = "readlink -f /run/current-system"


class RolledBack(NixaError):
    """The new system did not prove itself; the host runs the one before again."""


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """One host's way to the system `new`, whose closure it has. `drv` is None where the flake does
    not say it; `left`: the output that a rollback takes back."""

    turn: Turn
    reached: Reached
    new: str
    how: How
    drv: str | None = None
    left: str | None = None

    def receipt(self, out: str | None, outcome: Outcome) -> Receipt:
        made = receipts.make(
            self.turn, self.reached, self.how, out=out, outcome=outcome, wanted=self.new, drv=self.drv
        )
        return dataclasses.replace(made, left=self.left)

    @property
    def ways_back(self) -> dict[str, Receipt]:
        """The receipts that the host writes where it goes back, and where it can't, by file name."""
        begun = dataclasses.replace(self.receipt("@OUT@", Outcome.FAILED), left=None)
        stuck = dataclasses.replace(begun, left=self.reached.facts.system, why="@WHY@")
        unconfirmed = dataclasses.replace(self.back, left=None)  # which says nothing against the output
        return {"begun": begun, "back": self.back, "unconfirmed": unconfirmed, "stuck": stuck}

    @property
    def back(self) -> Receipt:
        """What the host writes where it goes back because of what the new system did: that is held."""
        return dataclasses.replace(self.receipt("@OUT@", Outcome.ROLLED_BACK), left=self.new, why="@WHY@")


def switch(change: Change) -> Receipt:
    """Switch the host to the new system. The host's lock is held.

    Returns the receipt that now lies on the host. Raises Stale, RolledBack (the host runs what it ran
    before; the receipt says so on both sides), NixaError.
    """
    turn, ssh, host = change.turn, change.reached.ssh, change.turn.host
    failed_before = checks.failed_units(ssh) if host.checks else frozenset()
    kept = dataclasses.replace(change.receipt(change.new, Outcome.FAILED), why="@WHY@")
    templates = {"done": change.receipt(change.new, Outcome.DONE), "kept": kept, **change.ways_back}
    with turn.journal.step(turn.name, "switch"):
        errand = Errand(
            change.new,
            Task.SWITCH,
            templates,
            keeps_failed_units=host.on_failed_units is OnFailedUnits.KEEP,
            is_forced=host.on_inhibitor is OnInhibitor.FORCE,
        )
        guard = launch(ssh, errand, run=turn.journal.run, log=turn.log)
        trouble = _watch(guard, change.new, failed_before, turn.journal)
        limit = host.confirm_timeout * LIMIT_FACTOR if trouble is None else host.confirm_timeout
        ending, reason = await_ending(guard, seconds=limit + GO_BACK_SECONDS)
        theirs = guard.receipt() if ending.has_receipt else None
        units = guard.failed_units() if ending is not Ending.UNKNOWN else ()
        for line in guard.logs() if ending is not Ending.UNKNOWN else ():
            turn.log(line)
    why = reason or trouble or "the host does not say why"
    receipt = theirs or _receipt_of(change, ending, why)
    receipts.remember(turn, receipt)
    if ending is Ending.DONE:
        return receipt
    error = _error(turn.name, turn.log.path, ending, why, receipt.out)
    error.tail = units
    raise error


def _receipt_of(change: Change, ending: Ending, why: str) -> Receipt:
    """Of a switch that the host has not written one of."""
    if ending is Ending.DONE:
        return change.receipt(change.new, Outcome.DONE)
    out = change.reached.facts.system if ending in (Ending.FAILED, Ending.ROLLED_BACK) else None
    outcome = Outcome.ROLLED_BACK if ending is Ending.ROLLED_BACK else Outcome.FAILED
    return receipts.failed(change.receipt(out, outcome), why)


def _watch(guard: Guard, new: str, failed_before: frozenset[str], journal: Journal) -> str | None:
    """Until the activation ended and proved itself: None if all is well and confirmed, else why not."""
    clock, timeout = guard.ssh.clock, guard.ssh.host.confirm_timeout
    until = clock.monotonic() + timeout * (LIMIT_FACTOR + 1)
    seen = clock.monotonic()
    while clock.monotonic() < until:
        try:
            state = guard.look()
            seen = clock.monotonic()
        except Interrupted:
            raise
        except NixaError as error:  # whatever ssh ends with: the host decides, not this connection
            if clock.monotonic() - seen > timeout:
                return f"the host could not be reached after the switch ({error.what})"
            clock.sleep(POLL_SECONDS)
            continue
        if "outcome" in state:
            return state.get("reason", "the host went back")
        if "activated" in state:
            return prove(guard, new, failed_before, journal)
        clock.sleep(POLL_SECONDS)
    return "the activation timed out"


def prove(guard: Guard, new: str, failed_before: frozenset[str], journal: Journal) -> str | None:
    """What runs is what was wanted, and the checks pass: then confirm, else tell the host to go back.
    None if confirmed, else why not."""
    host = guard.ssh.host
    try:
        live = guard.ssh.run(_LIVE, deadline=20, what="switch").stdout.strip()
        if live != new:
            raise CheckFailed(f"the host runs {live or 'nothing'} after the activation, not {new}")
        with beating(guard, host.confirm_timeout / 4):
            checks.run_all(
                host.checks,
                guard.ssh,
                failed_before=failed_before,
                note=lambda text: journal.note(host.name, "check", text),
                before_each_try=guard.show_life,
            )
    except Interrupted:
        raise
    except NixaError as error:
        if not isinstance(error, Unreachable):
            try_to_tell(guard, Word.ABORT, error.what, host.confirm_timeout)
        return error.what
    return try_to_tell(guard, Word.CONFIRM, "yes", host.confirm_timeout)


def _error(host: str, log: Path, ending: Ending, reason: str, out: str | None) -> NixaError:
    match ending:
        case Ending.ROLLED_BACK:
            return rolled_back(host, log, reason)
        case Ending.STUCK:
            return stuck(host, log, reason, out)
        case Ending.KEPT:
            what = f'{reason}; the new system stays, as on_failed_units = "keep" says'
            hint = f"repair these units, then let the checks confirm it: doit deploy:{host}"
        case Ending.GONE:
            what = "the host was restarted in the middle of the switch, so that nobody watched it to its end"
            hint = f"to look what it runs now, and go on from there: doit deploy:{host}"
        case Ending.FAILED:
            what = f"the switch failed: {reason}"
            hint = f"look at the log, then ask the host again: doit -a deploy:{host}"
        case _:
            what = f"the switch was begun, but the host can't be asked how it ended: {reason}"
            hint = (
                "it goes back by itself unless it was confirmed; see its console if it stays away,\n"
                f"then: doit -a deploy:{host}"
            )
    return NixaError(what, host=host, log=log, hint=hint)


def rolled_back(host: str, log: Path, reason: str) -> RolledBack:
    return RolledBack(
        f"rolled back: {reason}; it runs the system before again",
        host=host,
        log=log,
        hint=f"fix the configuration, then: doit deploy:{host}",
    )


def stuck(host: str, log: Path, reason: str, out: str | None) -> NixaError:
    """The host tried to go back and could not."""
    return NixaError(
        f"failed: could not roll back: {reason}; it runs {out or 'an unknown system'}",
        host=host,
        log=log,
        hint="log in or open its console, and look at `systemctl --failed`; to go back by hand:\n"
        "/nix/var/nix/profiles/system/bin/switch-to-configuration switch, or choose the generation\n"
        f"before in its boot menu; then: doit -a deploy:{host}",
    )
