"""What each script of nixa's does on a machine, in Python: the model of the shell's side.

A script is recognised by its text. `fingerprints.py` pins the text of each of them, so that a script
that changes without its model fails a test.
"""

from __future__ import annotations

import base64
import functools
import io
import json
import random
import re
import shlex
import tarfile
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nixa_tasks.host import lock, probe
from tests.simulation import guard_model, real_scripts
from tests.simulation.machine import Boot, Kind, Machine

if TYPE_CHECKING:
    from tests.simulation.controller import Run
    from tests.simulation.network import Session
    from tests.simulation.world import World

Model = Generator[float, None, tuple[int, str, str]]
INSTALLER_SYSTEM = "/nix/store/" + "i" * 32 + "-nixos-system-installer"
HEALTH = "nixa-simulated-health"  # the command of the health check in the simulated hosts.toml


class Unmodelled(BaseException):
    """nixa did something that the model does not know. Not an Exception, so that nobody handles it."""


class Refused(Exception):
    """ssh itself failed; what it prints."""


@dataclass(slots=True)
class Context:
    """What a script runs in."""

    machine: Machine
    boot: Boot
    session: Session
    run: Run
    stdin: bytes

    @property
    def world(self) -> World:
        return self.machine.world

    @property
    def rng(self) -> random.Random:
        return self.machine.rng

    def is_abandoned(self) -> bool:
        """Whether the client is gone, so that the command ends at what it prints next."""
        return not self.session.is_fed

    @property
    def files(self) -> dict[str, str]:
        """/var/lib/nixa."""
        root = self.machine.root
        if self.boot.kind is Kind.NIXOS and root is not None:
            return root.files
        return self.boot.folders.setdefault("/var/lib/nixa", {})


def done(out: str = "") -> tuple[int, str, str]:
    return 0, out, ""


def ask(host: Context) -> Model:
    """probe.SCRIPT."""
    yield host.rng.uniform(0.01, 0.2)
    boot, machine = host.boot, host.machine
    facts: list[tuple[str, object]] = [
        ("kernel", "6.12.1"),
        ("arch", "x86_64"),
        ("hostname", machine.name),
        ("boot_id", boot.id),
        ("memory_kib", 4 << 20),
        ("available_kib", 3 << 20),
        ("free_kib", 8 << 20),
        ("home", "/root"),
        ("uid", 0),
        ("user", "root"),
        ("root", "yes"),
    ]
    facts += [("tool", tool) for tool in probe.TOOLS]
    match boot.kind:
        case Kind.LINUX:
            facts += [("os_id", "debian"), ("os_name", "Debian GNU/Linux 12 (bookworm)")]
        case Kind.RESCUE:
            facts += [("os_id", "debian"), ("os_name", "Debian rescue")]
        case Kind.INITRD:
            facts += [("os_id", "nixos"), ("os_name", "NixOS initrd")]
        case Kind.INSTALLER:
            facts += [("os_id", "nixos"), ("os_name", "NixOS"), ("variant_id", "installer")]
            facts += [("etc_nixos", "yes"), ("system", INSTALLER_SYSTEM)]
        case Kind.NIXOS:
            facts += [("os_id", "nixos"), ("os_name", "NixOS"), ("etc_nixos", "yes")]
            facts += [("system", boot.system), ("booted", boot.booted), ("loader", machine.loader)]
            if machine.root is not None:
                facts.append(("profile", machine.root.profile))
    receipt = host.files.get("receipt.json")
    if receipt is not None:
        facts.append(("receipt", base64.b64encode(receipt.encode()).decode()))
    return done("".join(f"{key}={value}\n" for key, value in facts) + "end=yes\n")


def hold_lock(host: Context, timeout: str, holder: str) -> Model:
    """lock._SCRIPT."""
    boot, session = host.boot, host.session
    until = host.world.now + int(timeout)
    if boot.lock is not None:
        session.line(f"held by {boot.holder}")
        while boot.lock is not None:
            if host.world.now >= until or not session.is_fed:
                return lock._HELD, "", ""
            yield 1.0
    boot.lock = session
    if boot.guard is not None:
        session.line("held by a switch that the host itself still watches")
        until = host.world.now + int(timeout)
        while boot.guard is not None:
            if host.world.now >= until or not session.is_fed:
                release(host)
                return lock._HELD, "", ""
            yield 1.0
    boot.holder = holder
    session.line("locked")
    silent = 0.0
    while session.is_fed and silent < lock._SILENCE_SECONDS:
        yield 5.0
        silent = 0.0 if session.is_beating() else silent + 5.0
    if boot.lock is session:
        host.machine.say("frees its lock, whose holder fell silent")
    release(host)
    return done()


def release(host: Context) -> None:
    if host.boot.lock is host.session:
        host.boot.lock = None


def write_receipt(host: Context, history: str) -> Model:
    """receipts._WRITE."""
    yield host.rng.uniform(0.01, 0.2)
    text = host.stdin.decode()
    host.files["history.jsonl"] = host.files.get("history.jsonl", "") + (text if history else "")
    host.files["receipt.json"] = text
    host.world.receipt_written(host.machine, json.loads(text))
    return done()


def read_history(host: Context) -> Model:
    """receipts._HISTORY."""
    yield 0.02
    return done(host.files.get("history.jsonl", ""))


def is_system(host: Context, path: str) -> Model:
    """situation._IS_SYSTEM."""
    yield 0.02
    root = host.machine.root
    return (0 if root is not None and path in root.store else 1), "", ""


def generations(host: Context) -> Model:
    """situation._GENERATIONS."""
    yield 0.05
    root = host.machine.root
    if root is None or host.boot.kind is not Kind.NIXOS:
        return 1, "", ""
    for path in reversed(root.generations):
        if path != host.boot.system:
            return done(f"{path}\n")
    return done()


def live(host: Context) -> Model:
    """switch._LIVE."""
    yield 0.02
    return done(f"{host.boot.system or ''}\n")


def failed_units(host: Context) -> Model:
    """checks._FAILED_UNITS."""
    yield 0.05
    return done("" if host.boot.is_healthy else "web.service\n")


def health(host: Context) -> Model:
    """The command of the health check."""
    yield host.rng.uniform(0.02, 2)
    return (0, "", "") if host.boot.is_healthy else (1, "unhealthy\n", "")


def launch(host: Context, name: str) -> Model:
    """guard._LAUNCH."""
    yield host.rng.uniform(0.01, 0.2)
    folder = f"switch-{name}"
    if folder in host.boot.folders:
        return 1, "", "mkdir: cannot create directory: File exists"
    host.boot.folders[folder] = unpack(host.stdin)
    host.world.destructive(host, "switch")
    guard_model.start(host.machine, host.boot, folder, host.run)
    return done()


def unpack(data: bytes) -> dict[str, str]:
    files = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            file = archive.extractfile(member)
            files[member.name] = file.read().decode() if file else ""
    return files


def look(host: Context, name: str) -> Model:
    """guard._LOOK."""
    yield 0.02
    folder = host.boot.folders.get(f"switch-{name}")
    if folder is None:
        return done("outcome=gone\n")
    folder["alive"] = ""
    return done("".join(
        f"{file}={folder[file].strip()[:300]}\n" for file in ("activated", "outcome", "reason") if file in folder
    ))  # fmt: skip


def beat(host: Context, name: str) -> Model:
    """guard._BEAT."""
    folder = host.boot.folders.get(f"switch-{name}")
    if folder is None:
        return 1, "", ""
    host.session.line("beating")
    while host.session.is_fed:
        yield host.session.every
        if host.session.is_beating():
            folder["alive"] = ""
    return done()


def say(host: Context, name: str, file: str, text: str) -> Model:
    """guard._SAY."""
    yield 0.02
    folder = host.boot.folders.get(f"switch-{name}")
    if folder is None:
        return 1, "", "cd: can't cd"
    folder[file] = text
    return done()


def logs(host: Context, name: str) -> Model:
    """guard._LOGS."""
    yield 0.02
    return done()


def receipt(host: Context) -> Model:
    """guard._RECEIPT."""
    yield 0.02
    text = host.files.get("receipt.json")
    return (0, text, "") if text is not None else (1, "", "head: cannot open")


def restart(host: Context) -> Model:
    """reboot._REBOOT and reboot._RESTART."""
    yield 0.05
    machine, boot = host.machine, host.boot
    host.world.destructive(host, "reboot")

    def go() -> None:
        if machine.boot is boot:
            machine.reboot()

    host.world.scheduler.after(1.0, go)
    return done()


def image_state(host: Context, sha256: str, count: str) -> Model:
    """on_host._STATE."""
    yield 0.02
    size = host.world.image.size if host.boot.image else 0
    digest = host.world.image.digest(min(int(count), size))
    return done(f"{size}\n{digest}  -\n/dev/vda1 100 50 {8 << 20} 50% /\n/root/.nixa-kexec\n")


def image_restart(host: Context, sha256: str) -> Model:
    """on_host._RESTART."""
    yield 0.02
    host.boot.image = False
    return done()


def append(host: Context, sha256: str) -> Model:
    """upload._APPEND."""
    yield host.rng.uniform(0.5, 60)
    if not host.session.is_fed:
        return 1, "", ""
    host.boot.image = True
    return done()


def kexec(host: Context, folder: str, *_more: str) -> Model:
    """upload._BOOT."""
    yield host.rng.uniform(0.5, 5)
    if not host.boot.image:
        return 90, "", "FAILED"
    host.world.destructive(host, "kexec")
    machine, boot = host.machine, host.boot

    def jump() -> None:
        if machine.boot is boot:
            machine.reboot(Kind.INSTALLER, is_clean=False, seconds=machine.rng.uniform(2, 30))

    host.world.scheduler.after(6.0, jump)
    return done("machine will boot into nixos in 6s...\n")


BY_NAME: dict[str, Callable[..., Model]] = {
    "probe": ask,
    "lock": hold_lock,
    "write receipt": write_receipt,
    "history": read_history,
    "is a system": is_system,
    "generations": generations,
    "live system": live,
    "failed units": failed_units,
    "launch the guard": launch,
    "look at the guard": look,
    "signs of life": beat,
    "tell the guard": say,
    "the guard's logs": logs,
    "the guard's receipt": receipt,
    "reboot the installer": restart,
    "restart": restart,
    "the image's state": image_state,
    "begin the image anew": image_restart,
    "append to the image": append,
    "kexec": kexec,
}
MODELS: dict[str, Callable[..., Model]] = {HEALTH: health}
MODELS |= {text: BY_NAME[name] for name, text in real_scripts.of_commands().items()}

_QUOTED: dict[str, str] = {}
_words = functools.lru_cache(4096)(lambda text: tuple(shlex.split(text)))


def parse(remote: str) -> tuple[str, tuple[str, ...]]:
    """The script and its arguments, out of the command line for the shell at the other end."""
    if not _QUOTED:
        _QUOTED.update({f"sh -c {shlex.quote(script)} nixa": script for script in MODELS})
    for quoted, script in _QUOTED.items():
        if remote.startswith(quoted):
            return script, _words(remote[len(quoted) :])
    start = re.sub(r"\s+", " ", remote)[:300]
    raise Unmodelled(f"no model of {start}")
