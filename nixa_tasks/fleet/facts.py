"""What a machine is, as lines for people."""

from __future__ import annotations

from nixa_tasks import text
from nixa_tasks.host.host_key import Trust
from nixa_tasks.host.probe import Os
from nixa_tasks.host.reach import Reached
from nixa_tasks.state.receipt import Receipt

_TRUST = {
    Trust.PINNED: "as pinned in hosts.toml",
    Trust.SEEN: "as seen before",
    Trust.FIRST: "first contact, remembered",
    Trust.ANY: "not checked: a throwaway machine",
}
_ROOT = {
    "yes": "logged in as root",
    "sudo": "root by sudo",
    "doas": "root by doas",
    "password": "sudo asks for a password",
    "no": "no way to root",
}
_OS = {
    Os.NIXOS: "NixOS",
    Os.INSTALLER: "the NixOS installer",
    Os.INITRD: "waiting in its initrd",
    Os.OTHER: "not NixOS",
}


def describe(host: str, reached: Reached) -> list[str]:
    """A reached host in a few aligned lines."""
    facts = reached.facts
    rows = [
        ("host key", f"{reached.key.fingerprint} ({reached.key.kind}), {_TRUST[reached.trust]}"),
        ("system", f"{facts.os_name or '?'} ({_OS[facts.os]}), {facts.kernel}, {facts.arch}"),
        ("runs", facts.system or "no NixOS system"),
        ("login", f"{facts.user}, {_ROOT.get(facts.root, facts.root)}"),
        ("memory", f"{text.size(facts.memory)}, {text.size(facts.memory_available)} available"),
        ("free", f"{text.size(facts.free)} in {facts.home}"),
        ("tools", " ".join(facts.tools)),
    ]
    receipt = Receipt.from_json(facts.receipt)
    if receipt is not None:
        rows.append(("deployed", f"{receipt.started_at} by {receipt.operator}"))
    return [f"{host}: {name:<9} {value}" for name, value in rows]
