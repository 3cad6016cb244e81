"""What a decision on a host depends on: its situation, and for a rollback the system from before."""

from __future__ import annotations

from nixa_tasks.deploy import receipts
from nixa_tasks.deploy.decide import Asked, Situation
from nixa_tasks.deploy.order import Back
from nixa_tasks.deploy.work import Work
from nixa_tasks.errors import CommandFailed
from nixa_tasks.files import read_json
from nixa_tasks.host.probe import Os
from nixa_tasks.nix.command import is_store_path
from nixa_tasks.state.receipt import Receipt

_IS_SYSTEM = '[ -x "$1/bin/switch-to-configuration" ]'
_GENERATIONS = """
cd /nix/var/nix/profiles && live=$(readlink -f /run/current-system) &&
ls -d system-*-link 2>/dev/null | sort -t- -k2 -n -r | while read -r link; do
  path=$(readlink -f "$link"); [ "$path" = "$live" ] || { echo "$path"; break; }
done
"""


def situation(work: Work, asked: Asked, wanted: str | None) -> Situation:
    """What the table decides on."""
    facts, host = work.reached.facts, work.host
    return Situation(
        asked=asked,
        wanted=wanted,
        os=facts.os,
        live=facts.system,
        is_expected_key=True,  # reach.connect has ended otherwise
        receipt=Receipt.from_json(facts.receipt),
        local=Receipt.from_json(read_json(work.layout.host(host.name).deployed)),
        install=host.install,
        on_drift=host.on_drift,
        profile=facts.profile,
        mode=host.mode,
        reboot=host.reboot,
    )


def earlier(work: Work, back: Back | None) -> str | None:
    """The system that ran before the live one: by the order itself, the host's own history, or its
    profile; None where there is none."""
    if back is not None:
        return back.to
    ssh, live = work.reached.ssh, work.reached.facts.system
    if work.reached.facts.os is not Os.NIXOS:
        return None
    if situation(work, Asked.ROLLBACK, live).boots_elsewhere:
        return live  # what was set up for the next boot is taken back
    for receipt in reversed(receipts.read_history(ssh, root=True)):
        if receipt.out is None or receipt.out == live or not is_store_path(receipt.out):
            continue
        if ssh.run(_IS_SYSTEM, receipt.out, deadline=30, check=False, what="history").is_ok:
            return receipt.out
    try:
        found = ssh.run(_GENERATIONS, deadline=60, what="generations").stdout.strip()
    except CommandFailed:
        return None
    return found if is_store_path(found) else None
