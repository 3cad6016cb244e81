"""Ways to break nixa that the simulator must notice: what shows that its invariants have teeth.

Each takes one safeguard away, either in nixa's own code or in the model of a script on the host.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from nixa_tasks.deploy import decide, deploy, guard, preflight, reboot, receipts, rollback, switch
from nixa_tasks.deploy.disks import Disks
from nixa_tasks.host import host_key, lock, probe, reach
from nixa_tasks.host.host_key import Expectation
from nixa_tasks.host.probe import Facts
from nixa_tasks.host.ssh import Fence, Kind, Ssh, Unreachable
from tests.simulation import scripts
from tests.simulation.guard_model import Guard
from tests.simulation.history import Fault, History, Strike, draw, play
from tests.simulation.machine import Content
from tests.simulation.scheduler import Process

Break = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True, slots=True)
class Mutation:
    """A safeguard that is missing. `most`: within how many histories it must be noticed, of those that
    `suits` says may tell; `invariants`: those that tell."""

    name: str
    broken: Break
    invariants: tuple[str, ...]
    suits: Callable[[History], bool] = lambda _history: True
    most: int = 800


def find(mutation: Mutation) -> tuple[int, int, str] | None:
    """The first seed that notices it, how many histories that took, and what breaks; None where none of
    them does. A history that breaks without the mutation, too, does not count."""
    tried = 0
    for seed in range(1_000_000):
        history = draw(seed)
        if not mutation.suits(history):
            continue
        tried += 1
        if tried > mutation.most:
            return None
        with mutation.broken():
            violation = play(history).violation
        if violation is None or violation.invariant not in mutation.invariants:
            continue
        if play(history).violation is None:
            return seed, tried, f"{violation.invariant}: {violation.text}"
    return None


def has(*faults: Fault) -> Callable[[History], bool]:
    """Histories in which one of these faults strikes."""
    return lambda history: any(isinstance(one, Strike) and one.fault in faults for one in history.happenings)


# -- on the host -----------------------------------------------------------------------------------


def _fence_without(**parts: str) -> Break:
    """The fence does not compare these: they are what is there, whatever it is."""
    real = scripts.fenced

    def fenced(host: scripts.Context, fence: Fence, process: scripts.Model) -> scripts.Model:
        here = Fence(
            host.boot.id, "", scripts.INSTALLER_SYSTEM if host.boot.kind == "installer" else host.boot.system
        )
        return real(host, replace(fence, **{name: getattr(here, name) for name in parts}), process)

    return lambda: patch.object(scripts, "fenced", fenced)


def _no_fence() -> AbstractContextManager[Any]:
    return patch.object(scripts, "fenced", lambda _host, _fence, process: process)


def _receipt_first() -> AbstractContextManager[Any]:
    real = Guard.switch

    def switch_(self: Guard, new: str) -> Process:
        yield from self.write_receipt("done.json", "done")
        yield from real(self, new)

    return patch.object(Guard, "switch", switch_)


def _never_waits_for_a_word() -> AbstractContextManager[Any]:
    real = Guard.switch

    def switch_(self: Guard, new: str) -> Process:
        self.files["confirm"] = "yes"
        yield from real(self, new)

    return patch.object(Guard, "switch", switch_)


def _waits_for_ever() -> AbstractContextManager[Any]:
    real = Guard.switch

    def switch_(self: Guard, new: str) -> Process:
        self.files["timeout"] = "100000"
        yield from real(self, new)

    return patch.object(Guard, "switch", switch_)


def _rollback_is_believed() -> AbstractContextManager[Any]:
    """Whatever the old system's activation says, and whatever runs then."""
    real = Guard.write_receipt

    def write_receipt(self: Guard, file: str, outcome: str, system: str | None = None) -> Process:
        if file == "stuck.json":
            file, outcome = "back.json", "rolled-back"
        yield from real(self, file, outcome, system)

    return patch.object(Guard, "write_receipt", write_receipt)


# -- on the controller -----------------------------------------------------------------------------


@contextlib.contextmanager
def _decides_before_the_lock() -> Iterator[None]:
    """What is decided before the lock counts: the fence compares nothing but the lock, and nobody looks
    at the disks again."""
    seen: dict[Path, Facts] = {}

    def connect(*args: Any) -> Any:
        reached = reach.connect(*args)
        seen[reached.ssh.folder] = reached.facts
        return reached

    early = SimpleNamespace(connect=connect, as_root=reach.as_root, ask_again=lambda ssh: seen[ssh.folder])
    with patch.object(deploy, "reach", early), _fence_without(boot_id="", system="")(), _no_look_at_disks():
        yield


def _initrd_is_nixos() -> AbstractContextManager[Any]:
    real = probe.parse
    return patch.object(probe, "parse", lambda answer: real(answer.replace("initrd=yes\n", "")))


def _no_look_at_disks() -> AbstractContextManager[Any]:
    return patch.object(preflight, "look_at_disks", lambda _ssh: Disks())


@contextlib.contextmanager
def _no_trace_of_nixos() -> Iterator[None]:
    """Neither the disks nor the receipt here tell of a NixOS."""
    with _no_look_at_disks(), patch.object(decide, "has_run_nixos", lambda _now: False):
        yield


@contextlib.contextmanager
def _any_host_key() -> Iterator[None]:
    def prepare(ssh: Ssh, _expected: Expectation) -> Ssh:
        ssh.known_hosts.unlink(missing_ok=True)
        return replace(ssh, strict=False)

    with patch.object(reach, "prepare", prepare):
        yield


def _lock_is_let_go() -> AbstractContextManager[Any]:
    """The lock is free again as soon as it was taken, and nobody compares its token."""
    real = lock.held

    @contextlib.contextmanager
    def held(*args: Any, **options: Any) -> Iterator[Any]:
        with real(*args, **options) as taken:
            pass
        yield replace(taken, token="")

    return patch.object(lock, "held", held)


def _old_connection() -> AbstractContextManager[Any]:
    """A switch is confirmed over the connection of before it."""
    return patch.object(Ssh, "unshared", lambda ssh: replace(ssh, fence=None))


@contextlib.contextmanager
def _what_runs_is_enough() -> Iterator[None]:
    with (
        patch.object(decide, "boots_another", lambda _facts: False),
        patch.object(rollback, "boots_another", lambda _facts: False),
    ):
        yield


def _any_boot() -> AbstractContextManager[Any]:
    return patch.object(reboot, "_is_awaited", lambda facts, awaited: awaited.is_right(facts))


def _initrds_key_is_final() -> AbstractContextManager[Any]:
    real = probe.ask

    def ask(ssh: Ssh) -> Facts:
        try:
            return real(ssh)
        except Unreachable as error:
            if error.kind is Kind.HOSTKEY:
                raise SystemError("another host key") from error
            raise

    return patch.object(reboot, "probe", SimpleNamespace(ask=ask))


def _checks_are_skipped() -> AbstractContextManager[Any]:
    return patch.object(
        switch, "prove", lambda its_guard, *_rest: guard.try_to_tell(its_guard, guard.Word.CONFIRM, "yes", 60)
    )


def _history_is_overwritten() -> AbstractContextManager[Any]:
    return patch.object(receipts, "_append", lambda path, text: path.write_text(text))


def _forgets_keys() -> AbstractContextManager[Any]:
    return patch.object(host_key.KnownHosts, "remember", lambda *_args: None)


_SUSPENDED = has(Fault.FREEZE, Fault.CUT, Fault.LOSE_ANSWER)
_AWAY = has(Fault.RESCUE, Fault.INSTALLER)

MUTATIONS = (
    Mutation("no fence", _no_fence, ("lock", "no wipe"), _SUSPENDED),
    Mutation("the fence does not look at the lock", _fence_without(token=""), ("lock", "one writer"), _SUSPENDED),
    Mutation("decides once, before the lock", _decides_before_the_lock, ("no wipe", "one writer"),
             lambda one: one.start is Content.LINUX and one.controllers > 1),
    Mutation("no look at the disks", _no_look_at_disks, ("no wipe",), _AWAY),
    Mutation("no trace of a NixOS counts", _no_trace_of_nixos, ("no wipe",), _AWAY),
    Mutation("any host key is taken", _any_host_key, ("right machine",), has(Fault.REUSE)),
    Mutation("an initrd is taken for NixOS", _initrd_is_nixos, ("ends well",), lambda one: one.is_encrypted),
    Mutation("the initrd's host key is final", _initrds_key_is_final, ("traceback",), lambda one: one.is_encrypted),
    Mutation("the lock is let go at once", _lock_is_let_go, ("lock",)),
    Mutation("confirmed over the old connection", _old_connection, ("reachable", "taken back"),
             lambda one: any(not system.has_sshd for system in one.systems)),
    Mutation("the guard does not wait for a word", _never_waits_for_a_word, ("reachable", "taken back")),
    Mutation("the guard waits for ever", _waits_for_ever, ("reachable", "taken back")),
    Mutation("the receipt comes first", _receipt_first, ("receipt",)),
    Mutation("a rollback is believed", _rollback_is_believed, ("receipt", "exit status"),
             lambda one: not one.systems[0].is_good and one.start is Content.NIXOS),
    Mutation("what runs is enough", _what_runs_is_enough, ("exit status",), has(Fault.HAND_TEST)),
    Mutation("any boot is the awaited one", _any_boot, ("exit status", "ends well", "traceback")),
    Mutation("the checks are skipped", _checks_are_skipped, ("taken back",)),
)  # fmt: skip


def main() -> None:
    """Print how each is noticed."""
    for mutation in MUTATIONS:
        print(f"{mutation.name}: {find(mutation)}", flush=True)


if __name__ == "__main__":
    main()
