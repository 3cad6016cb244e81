"""One host's turn: what a deploy may ask this run for, and how its end is recorded."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from nixa_tasks.deploy import copy, preflight
from nixa_tasks.deploy.decide import Action, Asked, Reason, State
from nixa_tasks.deploy.deploy import carry_out as carry_out_turn
from nixa_tasks.deploy.turn import Done, Started, Suppliers, Turn, Undo
from nixa_tasks.errors import Interrupted, NixaError
from nixa_tasks.files import now as stamp_now
from nixa_tasks.flake import build
from nixa_tasks.fleet.reporter import FAILED, Result
from nixa_tasks.host import reach
from nixa_tasks.host.ssh import Ssh
from nixa_tasks.image.obtain import Obtained
from nixa_tasks.manifest.model import Image
from nixa_tasks.state.journal import Journal, RunLog
from nixa_tasks.tasks import images
from nixa_tasks.tasks.run import Run
from nixa_tasks.tasks.run import Turn as Ended

_SAID: Final[Mapping[Action, str]] = {
    Action.CURRENT: "current",
    Action.VERIFY: "current",
    Action.SWITCH: "switched",
    Action.BOOT: "booted",
    Action.INSTALL: "installed",
    Action.HOLD: "held",
}


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of a host. `undo`: of a rollback, the one switch that is taken back;
    `generation`: the one to go back to. `again`: deploy an output that was rolled back."""

    asked: Asked
    undo: Undo | None = None
    generation: int | None = None
    again: bool = False


def carry_out(run: Run, host: str, request: Request) -> None:
    """Do what is asked of one host, and record how it ended for the table."""
    started = time.monotonic()
    asked = request.asked
    run.turns[host] = Ended(asked, stamp_now())
    clock = run.access.clock
    turn = Turn(
        manifest=run.manifest,
        host=run.manifest.hosts[host],
        output=run.output(host),
        flake=run.fingerprint.revision,
        layout=run.layout,
        journal=run.journal,
        log=RunLog(run.layout.host(host).logs, asked, run.journal.run, clock),
        access=run.access,
        suppliers=Suppliers(
            system=functools.partial(_built, run, what="toplevel"),
            disko=functools.partial(_built, run, what="disko"),
            image=functools.partial(_image, run),
            there=functools.partial(_built_there, run),
        ),
        neighbours=run.neighbours,
        uplink=run.uplink,
        started=Started.now(clock),
        asked=asked,
        undo=request.undo,
        generation=request.generation,
        again=request.again,
    )
    try:
        done = carry_out_turn(turn)
    except Interrupted:
        run.results.record(Result(host, "stopped", "stopped before its end", time.monotonic() - started))
        raise
    except NixaError as error:
        run.results.record(Result(host, FAILED, error.what, time.monotonic() - started))
        raise
    run.turns[host] = replace(run.turns[host], done=done)
    is_new = done.judgement.reason is Reason.NOT_NIXOS and done.was
    said = f"it was {done.was}" if is_new else f"it {done.judgement.text}"  # it runs NixOS by now
    run.results.record(Result(host, _word(done, asked), said, time.monotonic() - started))


def _word(done: Done, asked: Asked) -> str:
    is_pending = done.receipt is not None and done.receipt.is_pending
    if done.judgement.state is State.PENDING or (done.action is Action.BOOT and is_pending):
        return "pending"
    changed = done.action in (Action.SWITCH, Action.BOOT)
    return "rolled back" if asked is Asked.ROLLBACK and changed else _SAID[done.action]


def _built(run: Run, turn: Turn, *, what: build.What) -> Path:
    name = turn.name
    if build.is_built(turn.layout, name, turn.output, what):
        return build.build(run.nix, turn.layout, name, turn.output, what, sink=turn.log)
    with run.builds, turn.journal.step(name, "build" if what == "toplevel" else "build disko"):
        try:
            return build.build(run.nix, turn.layout, name, turn.output, what, sink=turn.log)
        except build.DerivationGone:
            again = run.evaluated_again(name)
            return build.build(run.nix, turn.layout, name, again, what, sink=turn.log)


def _built_there(run: Run, turn: Turn, ssh: Ssh) -> str:
    return build_there(run, ssh, turn.journal, turn.log)


def build_there(run: Run, ssh: Ssh, journal: Journal, log: RunLog) -> str:
    """Have the host build its own system."""
    host = ssh.host.name
    with journal.step(host, "remote build"):
        try:
            return copy.build_there(ssh, run.layout, run.output(host), log)
        except build.DerivationGone:
            return copy.build_there(ssh, run.layout, run.evaluated_again(host), log)


def build_alone(run: Run, host: str, *, on_host: bool) -> None:
    """`doit build:HOST`: the closure in the local store; on the host, where it builds its own
    system and is a NixOS already."""
    with contextlib.closing(
        RunLog(run.layout.host(host).logs, "build", run.journal.run, run.journal.clock)
    ) as log:
        if on_host and _is_built_there(run, host, log):
            return
        with run.journal.step(host, "build"):
            build.build(run.nix, run.layout, host, run.output(host), "toplevel", sink=log)


def _is_built_there(run: Run, host: str, log: RunLog) -> bool:
    """Have the host build; false where it can't yet."""
    declared = run.manifest.hosts[host]
    with run.journal.step(host, "reach"):
        reached = run.connect(declared)
    try:
        if not copy.builds_itself(declared, reached.facts.os):
            run.journal.note(host, "build", "it does not run NixOS yet, so its first system is built here")
            return False
        reached = reach.as_root(
            reached, run.access.passwords, lambda text: run.journal.note(host, "sudo", text)
        )
        preflight.check_root(reached)
        build_there(run, reached.ssh, run.journal, log)
        return True
    finally:
        reached.ssh.disconnect()


def _image(run: Run, turn: Turn) -> Obtained:
    system = turn.output.system
    obtained = images.obtain(run, image_for(turn))
    obtained.check_architecture(system, host=turn.name)
    turn.note("image", obtained.summary.line())
    return obtained


def image_for(turn: Turn) -> Image:
    """The image that hosts.toml names for the host, or the one named like its system."""
    known, system = turn.manifest.images, turn.output.system
    name = turn.host.kexec or system
    if name not in known:
        raise NixaError(
            f"hosts.toml has no kexec image for {system}",
            host=turn.name,
            hint=f"add [kexec.{system}] with url and sha256, or name one by `kexec`",
        )
    return known[name]
