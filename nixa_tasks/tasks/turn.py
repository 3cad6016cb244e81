"""One host's turn: what a deploy may ask this run for, and how its end is recorded."""

from __future__ import annotations

import contextlib
import functools
import time
from dataclasses import replace
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
from nixa_tasks.tasks import images
from nixa_tasks.tasks.run import Run, Turn

_SAID = {
    Action.CURRENT: "current",
    Action.PENDING: "pending",
    Action.SWITCH: "switched",
    Action.BOOT: "booted",
    Action.INSTALL: "installed",
}


def carry_out(run: Run, host: str, asked: Asked, back: Back | None = None) -> None:
    """Do what is asked of one host, and record how it ended for the table."""
    started = time.monotonic()
    run.turns[host] = Turn(asked, stamp_now())
    order = Order(
        manifest=run.manifest,
        host=run.manifest.hosts[host],
        output=run.output(host),
        flake=run.fingerprint.revision,
        layout=run.layout,
        journal=run.journal,
        access=run.access,
        suppliers=Suppliers(
            system=functools.partial(_built, run, what="toplevel"),
            disko=functools.partial(_built, run, what="disko"),
            image=functools.partial(_image, run),
            there=functools.partial(build_there, run),
        ),
        neighbours=run.neighbours,
        uplink=run.uplink,
        asked=asked,
        back=back,
    )
    try:
        done = carry_out_order(order)
    except Interrupted:
        run.results.record(Result(host, "stopped", "stopped before its end", time.monotonic() - started))
        raise
    except NixaError as error:
        run.results.record(Result(host, FAILED, error.what, time.monotonic() - started))
        raise
    run.turns[host] = replace(run.turns[host], done=done)
    run.results.record(Result(host, _word(done, asked), f"it {done.reason}", time.monotonic() - started))


def _word(done: Done, asked: Asked) -> str:
    if done.action is Action.BOOT and done.receipt.is_pending:
        return "pending"
    changed = done.action in (Action.SWITCH, Action.BOOT)
    return "rolled back" if asked is Asked.ROLLBACK and changed else _SAID[done.action]


def _built(run: Run, work: Work, *, what: build.What) -> Path:
    name = work.host.name
    if build.is_built(work.layout, name, work.output, what):
        return build.build(run.nix, work.layout, name, work.output, what, sink=work.log)
    with run.builds, work.journal.step(name, "build" if what == "toplevel" else "build disko"):
        try:
            return build.build(run.nix, work.layout, name, work.output, what, sink=work.log)
        except build.DerivationGone:
            again = run.evaluated_again(name)
            return build.build(run.nix, work.layout, name, again, what, sink=work.log)


def build_there(run: Run, work: Work) -> str:
    """Have the host build its own system."""
    with work.journal.step(work.host.name, "remote build"):
        try:
            return remote_build.build_there(work)
        except build.DerivationGone:
            again = run.evaluated_again(work.host.name)
            return remote_build.build_there(replace(work, output=again))


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
    declared, output = run.manifest.hosts[host], run.output(host)
    with run.journal.step(host, "reach"):
        reached = run.connect(declared)
    try:
        if not remote_build.is_remote(declared, reached.facts.os):
            run.journal.note(host, "build", "it does not run NixOS yet, so its first system is built here")
            return False
        flake = run.fingerprint.revision
        reached = reach.as_root(
            reached, run.access.passwords, lambda text: run.journal.note(host, "sudo", text)
        )
        work = Work(
            run.manifest, declared, output, flake, reached, run.layout, run.journal, log, run.access, run.uplink
        )  # fmt: skip
        preflight.check_root(work)
        build_there(run, work)
        return True
    finally:
        reached.ssh.disconnect()


def _image(run: Run, work: Work) -> Obtained:
    obtained = images.obtain(run, image_for(work))
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
