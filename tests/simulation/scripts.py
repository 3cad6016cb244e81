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
from nixa_tasks.host.ssh import Fence
from nixa_tasks.host.ssh import script as read
from tests.simulation import guard_model, real_scripts
from tests.simulation.machine import Boot, Content, Kind, Machine

if TYPE_CHECKING:
    from tests.simulation.controller import Run
    from tests.simulation.network import Session
    from tests.simulation.world import World

Model = Generator[float, None, tuple[int, str, str]]
INSTALLER_SYSTEM = "/nix/store/" + "i" * 32 + "-nixos-system-installer"
_SILENCE_SECONDS = 30
HEALTH = "nixa-simulated-health"  # the command of the health check in the simulated hosts.toml


class Unmodelled(BaseException):
    """nixa did something that the model does not know. Not an Exception, so that nobody handles it."""


class Refused(Exception):
    """ssh itself failed; what it prints."""


@dataclass(slots=True)
class Context:
    """What a script runs in. `fence`: the token of the lock that its run really held when it came
    through the fence."""

    machine: Machine
    boot: Boot
    session: Session
    run: Run
    stdin: bytes
    fence: int | None = None

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


def ask(host: Context, *_words: str) -> Model:
    """probe.sh."""
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
            facts += [("os_id", "nixos"), ("os_name", "NixOS initrd"), ("initrd", "yes")]
        case Kind.INSTALLER:
            facts += [("os_id", "nixos"), ("os_name", "NixOS"), ("variant_id", "installer")]
            facts += [("etc_nixos", "yes"), ("system", INSTALLER_SYSTEM)]
        case Kind.NIXOS:
            facts += [("os_id", "nixos"), ("os_name", "NixOS"), ("etc_nixos", "yes")]
            facts += [("system", boot.system), ("booted", boot.booted), ("loader", machine.loader)]
            if machine.root is not None:
                facts += [("profile", machine.root.profile), ("boots", machine.root.default)]
                facts.append(("before", machine.root.earlier or ""))
            if boot.waits_until is not None:
                facts.append(("guard", int(boot.waits_until - host.world.now)))
    if boot.is_installing:
        facts.append(("installing", "yes"))
    receipt = host.files.get("receipt.json")
    if receipt is not None:
        facts.append(("receipt", base64.b64encode(receipt.encode()).decode()))
    return done("".join(f"{key}={value}\n" for key, value in facts) + "end=yes\n")


def hold_lock(host: Context, timeout: str, holder: str) -> Model:
    """lock.sh."""
    boot, session = host.boot, host.session
    until = host.world.now + int(timeout)
    if boot.lock is not None:
        session.line(f"held by {boot.holder}")
        while boot.lock is not None:
            if host.world.now >= until or not session.is_fed:
                return lock._HELD, "", ""
            yield 1.0
    boot.lock = session
    if boot.guard is not None or boot.busy:
        session.line("held by a step that the host itself still carries out")
        until = host.world.now + int(timeout)
        while boot.guard is not None or boot.busy:
            if host.world.now >= until or not session.is_fed:
                release(host)
                return lock._HELD, "", ""
            yield 1.0
    boot.holder = holder
    boot.fence += 1
    session.line(f"locked {boot.fence}")
    silent = 0.0
    while session.is_fed and silent < _SILENCE_SECONDS:
        yield 5.0
        silent = 0.0 if session.is_beating() else silent + 5.0
    if boot.lock is session:
        host.machine.say("frees its lock, whose holder fell silent")
    release(host)
    return done()


def release(host: Context) -> None:
    if host.boot.lock is host.session:
        host.boot.lock = None


def write_receipt(host: Context) -> Model:
    """receipt.sh."""
    yield host.rng.uniform(0.01, 0.2)
    text = host.stdin.decode()
    host.files["history.jsonl"] = host.files.get("history.jsonl", "") + text
    host.files["receipt.json"] = text
    host.world.receipt_written(host.machine, json.loads(text))
    return done()


def read_history(host: Context) -> Model:
    """receipts._HISTORY."""
    yield 0.02
    return done(host.files.get("history.jsonl", ""))


def is_system(host: Context, path: str) -> Model:
    """rollback._IS_SYSTEM."""
    yield 0.02
    root = host.machine.root
    return (0 if root is not None and path in root.store else 1), "", ""


def generations(host: Context) -> Model:
    """generations.sh."""
    yield 0.05
    root = host.machine.root
    if root is None or host.boot.kind is not Kind.NIXOS:
        return done()
    lines = [f"{number} 0 {path}" for number, path in enumerate(root.generations, 1) if path]
    return done("".join(f"{line}\n" for line in lines))


def live(host: Context) -> Model:
    """switch._LIVE."""
    yield 0.02
    return done(f"{host.boot.system or ''}\n")


def failed_units(host: Context) -> Model:
    """failed_units.sh."""
    yield 0.05
    return done("" if host.boot.is_healthy else "web.service\n")


def health(host: Context) -> Model:
    """The command of the health check."""
    yield host.rng.uniform(0.02, 2)
    return (0, "", "") if host.boot.is_healthy else (1, "unhealthy\n", "")


def launch(host: Context, name: str) -> Model:
    """launch.sh."""
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


def units_of_switch(host: Context, name: str) -> Model:
    """guard._FAILED_UNITS."""
    yield 0.02
    return done()


def needs_reboot(host: Context) -> Model:
    """needs_reboot.sh: systems of a simulation differ in no kernel."""
    yield 0.02
    return done()


def inhibitors(host: Context, system: str) -> Model:
    """inhibitors.sh: no system of a simulation names any."""
    yield 0.02
    return done("\n\n")


def receipt(host: Context) -> Model:
    """guard._RECEIPT."""
    yield 0.02
    text = host.files.get("receipt.json")
    return (0, text, "") if text is not None else (1, "", "head: cannot open")


def restart(host: Context) -> Model:
    """reboot_installer.sh and reboot_system.sh."""
    yield 0.05
    machine, boot = host.machine, host.boot
    host.world.destructive(host, "reboot")
    boot.busy += 1  # what goes down in a moment holds on to the lock

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
    boot.busy += 1

    def jump() -> None:
        if machine.boot is boot:
            machine.reboot(Kind.INSTALLER, is_clean=False, seconds=machine.rng.uniform(2, 30))

    host.world.scheduler.after(6.0, jump)
    return done("machine will boot into nixos in 6s...\n")


def network(host: Context) -> Model:
    """network.sh: a plain interface, of which there is nothing to say."""
    yield 0.02
    return done("[]\n\n")


def look_at_disks(host: Context) -> Model:
    """look_at_disks.sh."""
    yield host.rng.uniform(0.1, 2)
    machine, lines = host.machine, ["disk\t/dev/vda\t1000000\t"]
    if machine.content is Content.LINUX:
        lines.append("holds\t/dev/vda\tDebian on /dev/vda1")
    elif machine.content is Content.NIXOS and machine.root is not None:
        lines.append("nixos\t/dev/vda1")
    return done("".join(f"{line}\n" for line in lines))


def mark(host: Context) -> Model:
    """install._MARK."""
    yield 0.02
    host.boot.is_installing = True
    return done()


def fenced(host: Context, fence: Fence, process: Model) -> Model:
    """fence.sh, and the script behind it."""
    yield 0.0
    boot = host.boot
    live = INSTALLER_SYSTEM if boot.kind is Kind.INSTALLER else boot.system
    if boot.id != fence.boot_id:
        return 121, "", ""
    if fence.token and (boot.lock is None or boot.fence != int(fence.token) or boot.guard is not None):
        return 122, "", ""
    if (live or "") != (fence.system or ""):
        return 123, "", ""
    if boot.lock is not None and boot.lock.run is host.run:
        host.fence = boot.fence
    boot.busy += 1
    try:
        return (yield from process)
    finally:
        boot.busy -= 1


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
    "the guard's failed units": units_of_switch,
    "inhibitors": inhibitors,
    "needs a reboot": needs_reboot,
    "the guard's receipt": receipt,
    "reboot the installer": restart,
    "restart": restart,
    "look at the disks": look_at_disks,
    "network": network,
    "mark the installation": mark,
    "the image's state": image_state,
    "begin the image anew": image_restart,
    "append to the image": append,
    "kexec": kexec,
}
MODELS: dict[str, Callable[..., Model]] = {HEALTH: health}
MODELS |= {text: BY_NAME[name] for name, text in real_scripts.of_commands().items()}

_QUOTED: dict[str, str] = {}
_words = functools.lru_cache(4096)(lambda text: tuple(shlex.split(text)))


_FENCE = shlex.quote(read("fence"))[:-1]


def parse(remote: str) -> tuple[str, tuple[str, ...], Fence | None]:
    """The script, its arguments and its fence, out of the command line for the shell at the other end."""
    if not _QUOTED:
        _QUOTED.update({_quote(script): script for script in MODELS})
    fence, start = None, "sh -c "
    if remote.startswith(f"{start}{_FENCE}"):
        call, _, rest = remote[len(start) + len(_FENCE) :].partition("\n")
        fence = parse_fence(call.replace("'\"'\"'", "'"))
        remote = f"{start}'{rest}"
    for quoted, script in _QUOTED.items():
        if remote.startswith(f"{start}{quoted} nixa"):
            return script, _words(remote[len(start) + len(quoted) + 5 :]), fence
        if remote == f"{start}{shlex.quote(script)} nixa" or remote.startswith(
            f"{start}{shlex.quote(script)} nixa "
        ):
            return script, _words(remote[len(start) + len(shlex.quote(script)) + 5 :]), fence
    shown = re.sub(r"\s+", " ", remote)[:300]
    raise Unmodelled(f"no model of {shown}")


def _quote(script: str) -> str:
    return "'" + script.replace("'", "'\"'\"'") + "'"


def parse_fence(call: str) -> Fence:
    """From `nixa_fence BOOT_ID TOKEN SYSTEM`."""
    _, boot_id, token, system = shlex.split(call)
    return Fence(boot_id, token, system or None)
