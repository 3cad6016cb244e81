"""Receipts: written on the host and beside the manifest, the same on both sides."""

from __future__ import annotations

import json
from dataclasses import dataclass

from nixa_tasks.deploy.work import Work
from nixa_tasks.files import write_json
from nixa_tasks.host import lock
from nixa_tasks.host.ssh import Ssh
from nixa_tasks.process.clock import Clock, rfc3339
from nixa_tasks.state.receipt import How, Outcome, Receipt

_WRITE = """
set -eu; umask 022; mkdir -p /var/lib/nixa; cd /var/lib/nixa
cat >.receipt.new
[ -z "$1" ] || cat .receipt.new >>history.jsonl
sync; mv -f .receipt.new receipt.json
"""
# The first line may be cut by the limit; it is no receipt then.
_HISTORY = "tail -n 200 /var/lib/nixa/history.jsonl 2>/dev/null | tail -c 262144"


@dataclass(frozen=True, slots=True)
class Started:
    """The beginning of a deploy: what a receipt says of its time."""

    at: str
    clock: Clock
    since: float

    @classmethod
    def now(cls, clock: Clock) -> Started:
        return cls(rfc3339(clock.now()), clock, clock.monotonic())

    @property
    def seconds(self) -> float:
        return round(self.clock.monotonic() - self.since, 1)


def make(
    work: Work,
    started: Started,
    how: How,
    *,
    out: str | None,
    outcome: Outcome,
    kexec_sha256: str | None = None,
    wanted: str | None = None,
    drv: str | None = None,
) -> Receipt:
    """A receipt of what `work` did. `out` runs now; `wanted` defaults to the flake's output."""
    return Receipt(
        target=work.host.target,
        host_key=work.reached.key.text,
        out=out,
        wanted=wanted or work.wanted,
        drv=drv if wanted else work.drv,
        mode=how,
        kexec_sha256=kexec_sha256,
        flake=work.flake,
        started_at=started.at,
        seconds=started.seconds,
        operator=lock.operator(),
        outcome=outcome,
    )


def line(receipt: Receipt) -> str:
    return json.dumps(receipt.to_json(), ensure_ascii=False) + "\n"


def write_remote(ssh: Ssh, receipt: Receipt, *, history: bool = True) -> None:
    """Put the receipt on the host, in one step; with `history`, add its line there too."""
    ssh.run(
        _WRITE, "yes" if history else "", root=True, deadline=60, stdin=line(receipt).encode(), what="receipt"
    )


def parse(text: str) -> Receipt | None:
    """One receipt as a host sent it: None where it is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return Receipt.from_json(value) if isinstance(value, dict) else None


def read_history(ssh: Ssh, *, root: bool) -> list[Receipt]:
    """The host's last receipts, oldest first. Raises Unreachable."""
    done = ssh.run(_HISTORY, root=root, deadline=60, check=False, what="history")
    return parse_history(done.stdout.splitlines())


def parse_history(lines: list[str]) -> list[Receipt]:
    return [receipt for line in lines if (receipt := parse(line)) is not None]


def write_local(work: Work, receipt: Receipt) -> None:
    """Put the receipt beside the manifest, and its line into the local history."""
    place = work.layout.host(work.host.name)
    place.folder.mkdir(parents=True, exist_ok=True)
    with place.history.open("a", encoding="utf-8") as file:
        file.write(line(receipt))
    write_json(place.deployed, receipt.to_json())
