"""From a task to a deploy: what the deploy may ask for, and how its end is told."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

from nixa_tasks.deploy import preflight, remote_build
from nixa_tasks.deploy.decide import Action, Asked
from nixa_tasks.deploy.deploy import carry_out as carry_out_order
from nixa_tasks.deploy.order import Back, Done, Order, Suppliers
from nixa_tasks.deploy.work import Work
from nixa_tasks.errors import Interrupted, NixaError
from nixa_tasks.files import now as stamp_now
from nixa_tasks.flake import build
from nixa_tasks.fleet.reporter import FAILED, Result
from nixa_tasks.host import reach
from nixa_tasks.image.obtain import Obtained
from nixa_tasks.manifest.model import Image
from nixa_tasks.state.run_log import RunLog
from nixa_tasks.tasks import images, run
from nixa_tasks.tasks.doit import outcome

_SAID = {
    Action.CURRENT: "current",
    Action.PENDING: "pending",
    Action.SWITCH: "switched",
    Action.BOOT: "booted",
    Action.INSTALL: "installed",
}
_builds = threading.BoundedSemaphore(2)  # Nix itself builds in parallel; more clients only queue


@dataclass(frozen=True, slots=True)
class Turn:
    """A host's turn in this run: when it began (RFC 3339, UTC), and what was done; None for one
    that failed."""

    asked: Asked
    started_at: str
    done: Done | None = None


def carry_out(host: str, asked: Asked, back: Back | None = None) -> None:
    """Do what is asked of one host, and record how it ended for the table."""
    now = run.current()
    started = time.monotonic()
    now.turns[host] = Turn(asked, stamp_now())
    order = Order(
        manifest=now.manifest,
        host=now.manifest.hosts[host],
        output=now.evaluation.of(host),
        flake=now.fingerprint.revision,
        layout=now.layout,
        journal=now.journal,
        access=now.access,
        suppliers=Suppliers(_system, _disko, _image, build_there),
        neighbours=now.neighbours,
        uplink=now.uplink,
        asked=asked,
        back=back,
    )
    try:
        done = carry_out_order(order)
    except Interrupted:
        outcome.record(Result(host, "stopped", "stopped before its end", time.monotonic() - started))
        raise
    except NixaError as error:
        outcome.record(Result(host, FAILED, error.what, time.monotonic() - started))
        raise
    now.turns[host] = replace(now.turns[host], done=done)
    outcome.record(Result(host, _word(done, asked), f"it {done.reason}", time.monotonic() - started))


def _word(done: Done, asked: Asked) -> str:
    if done.action is Action.BOOT and done.receipt.is_pending:
        return "pending"
    changed = done.action in (Action.SWITCH, Action.BOOT)
    return "rolled back" if asked is Asked.ROLLBACK and changed else _SAID[done.action]


def _system(work: Work) -> Path:
    return _built(work, "toplevel")


def _disko(work: Work) -> Path:
    return _built(work, "disko")


def _built(work: Work, what: build.What) -> Path:
    name = work.host.name
    if build.is_built(work.layout, name, work.output, what):
        return build.build(work.layout, name, work.output, what, sink=work.log)
    with _builds, work.journal.step(name, "build" if what == "toplevel" else "build disko"):
        try:
            return build.build(work.layout, name, work.output, what, sink=work.log)
        except build.DerivationGone:
            again = run.current().evaluation.again(name)
            return build.build(work.layout, name, again, what, sink=work.log)


def build_there(work: Work) -> str:
    """Have the host build its own system."""
    with work.journal.step(work.host.name, "remote build"):
        try:
            return remote_build.build_there(work)
        except build.DerivationGone:
            again = run.current().evaluation.again(work.host.name)
            return remote_build.build_there(replace(work, output=again))


def build_alone(host: str, *, on_host: bool) -> None:
    """`doit build:HOST`: the closure in the local store; on the host, where it builds its own
    system and is a NixOS already."""
    now = run.current()
    with contextlib.closing(RunLog(now.layout.host(host).logs, "build", now.journal.run)) as log:
        if on_host and _is_built_there(host, log):
            return
        with now.journal.step(host, "build"):
            build.build(now.layout, host, now.evaluation.of(host), "toplevel", sink=log)


def _is_built_there(host: str, log: RunLog) -> bool:
    """Have the host build; false where it can't yet."""
    now = run.current()
    declared, output = now.manifest.hosts[host], now.evaluation.of(host)
    with now.journal.step(host, "reach"):
        reached = run.connect(declared)
    try:
        if not remote_build.is_remote(declared, reached.facts.os):
            now.journal.note(host, "build", "it does not run NixOS yet, so its first system is built here")
            return False
        flake = now.fingerprint.revision
        reached = reach.as_root(
            reached, now.access.passwords, lambda text: now.journal.note(host, "sudo", text)
        )
        work = Work(
            now.manifest, declared, output, flake, reached, now.layout, now.journal, log, now.access, now.uplink
        )  # fmt: skip
        preflight.check_root(work)
        build_there(work)
        return True
    finally:
        reached.ssh.disconnect()


def _image(work: Work) -> Obtained:
    obtained = images.obtain(image_for(work))
    obtained.check_architecture(work.output.system, host=work.host.name)
    work.journal.note(work.host.name, "image", obtained.summary.line())
    return obtained


def image_for(work: Work) -> Image:
    """The image that hosts.toml names for the host, or the one named like its system."""
    known = work.manifest.images
    name = work.host.kexec or work.output.system
    if name not in known:
        raise NixaError(
            f"hosts.toml has no kexec image for {work.output.system}",
            host=work.host.name,
            hint=f"add [kexec.{work.output.system}] with url and sha256, or name one by `kexec`",
        )
    return known[name]
