"""Where a rollback leads: the system that ran before, by whoever remembers it."""

from __future__ import annotations

from dataclasses import dataclass

from nixa_tasks.deploy import receipts
from nixa_tasks.deploy.decide import boots_another
from nixa_tasks.deploy.receipts import PACKAGE
from nixa_tasks.deploy.turn import Turn
from nixa_tasks.errors import NixaError
from nixa_tasks.host.probe import Os
from nixa_tasks.host.reach import Reached
from nixa_tasks.host.ssh import Ssh, script
from nixa_tasks.nix.command import is_store_path
from nixa_tasks.state.receipt import Receipt

_IS_SYSTEM = '[ -x "$1/bin/switch-to-configuration" ]'


@dataclass(frozen=True, slots=True)
class Generation:
    """One generation of the host's system profile. `made_at`: seconds since 1970, 0 where the host
    does not say; `is_current`: the profile leads to it."""

    number: int
    made_at: int
    system: str
    is_current: bool


def generations(ssh: Ssh) -> tuple[Generation, ...]:
    """The host's generations that can be rolled back to, oldest first. Raises Unreachable."""
    done = ssh.run(script("generations", PACKAGE), deadline=60, check=False, what="generations")
    return parse_generations(done.stdout)


def parse_generations(answer: str) -> tuple[Generation, ...]:
    """From lines of `NUMBER TIME SYSTEM [*]`; what is no such line is left out."""
    found = []
    for line in answer.splitlines():
        match line.split():
            case [number, made_at, system, *mark] if _is_number(number) and _is_number(made_at):
                if is_store_path(system):
                    found.append(Generation(int(number), int(made_at), system, mark == ["*"]))
            case _:
                pass
    return tuple(found)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 16


def find_earlier(turn: Turn, reached: Reached) -> str | None:
    """The system to go back to: by the turn itself, the host's own history, or its generations; None
    where there is none. Raises NixaError for a generation that the host does not have."""
    if turn.undo is not None:
        return turn.undo.to
    ssh, facts = reached.ssh, reached.facts
    if facts.os is not Os.NIXOS:
        return None
    if turn.generation is not None:
        return _numbered(ssh, turn.generation)
    theirs = Receipt.from_json(facts.receipt)
    if theirs is not None and theirs.is_pending and boots_another(facts):
        return facts.system  # what was set up for the next boot is taken back
    for receipt in reversed(receipts.read_history(ssh, root=True)):
        if receipt.out is None or receipt.out == facts.system or not is_store_path(receipt.out):
            continue
        if ssh.run(_IS_SYSTEM, receipt.out, deadline=30, check=False, what="history").is_ok:
            return receipt.out
    others = [one.system for one in generations(ssh) if one.system != facts.system]
    return others[-1] if others else None


def _numbered(ssh: Ssh, number: int) -> str:
    known = {one.number: one.system for one in generations(ssh)}
    if number not in known:
        numbers = ", ".join(str(one) for one in known) or "none"
        raise NixaError(
            f"it has no generation {number}; it has: {numbers}",
            host=ssh.host.name,
            hint=f"doit generations:{ssh.host.name} lists them",
        )
    return known[number]
