"""A machine's power supply, firmware and cable: one process a machine, in a session of its own.

It boots the machine, learns why a boot ended, and boots what comes next. It keeps the machine's
mounts in a mount namespace of its own and its children die with it, so that a killed supervisor
leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from nixa_tasks.lab import boot, control, disk, faults, linux, network, stages
from nixa_tasks.lab.effects import Effects
from nixa_tasks.lab.errors import LabError
from nixa_tasks.lab.initrd import BrokenInitrd
from nixa_tasks.lab.paths import LabPaths, read_json, write_json
from nixa_tasks.lab.sequence import End, Stage, next_stage

_BOOT_SECONDS = 60.0


class Supervisor:
    """One machine, from `run` to the word to stop."""

    def __init__(self, lab: LabPaths, name: str, index: int) -> None:
        config = read_json(lab.config)
        self.lab, self.name, self.index = lab, name, index
        self.paths = lab.machine(name)
        self.address = network.machine_address(config["subnet"], index)
        self.machine = stages.Machine(lab, self.paths, name, self.address)
        self.link = network.veth(lab.id, index)
        self.boot_delay = float(config["boot_delay"])
        self.disk_mb = int(config["disk_mb"])
        self.disk = disk.Disk(self.paths.disk, self.paths.root / "disk")
        self.old = self.paths.root / "old"
        self.memory = self.paths.root / "ram"
        self.boots = int(read_json(self.paths.state).get("boots", 0))
        self.stage = Stage.OFF
        self.is_up = False
        self.has_begun = False
        self.running: boot.Running | None = None
        self.init: int | None = None
        self.events = b""
        self.due: tuple[float, End] | None = None
        self.effects = Effects(self.paths, self.link)
        self.selector = selectors.DefaultSelector()

    def run(self, lock: int) -> None:
        """Serve until told to stop. `lock`: a descriptor that is closed as soon as this process is on
        record."""
        server = control.listen(self.lab.id, self.name)
        self._write_state()
        os.close(lock)
        linux.private_mounts()
        self.old.mkdir(exist_ok=True)
        self.memory.mkdir(exist_ok=True)
        self._new_disks()
        self.selector.register(server, selectors.EVENT_READ)
        self._boot(End.POWER_ON)
        while True:
            wait = 3600.0 if self.due is None else max(0.0, self.due[0] - time.monotonic())
            if self.effects.is_counting:
                wait = min(wait, 0.004)
            for key, _ in self.selector.select(wait):
                if key.fileobj is server:
                    if not self._serve(server):
                        return
                elif self.running is not None and key.fd == self.running.events:
                    self._hear(self.running)
                elif self.running is not None:
                    self._ended(self.running)
            self.effects.count(self.init)
            if self.due is not None and time.monotonic() >= self.due[0]:
                _, end = self.due
                self.due = None
                self._boot(end)

    def _new_disks(self) -> None:
        """The old Linux's disk, which lives as long as the supervisor, and the one to install on."""
        linux.mount("tmpfs", self.old, "tmpfs", 0, "mode=755")
        self.disk.attach(self.disk_mb)

    def _boot(self, end: End) -> None:
        """Boot what comes after `end`."""
        set_faults = faults.active(self.paths.faults)
        stage = next_stage(end, faults=frozenset(set_faults), is_bootable=self.disk.is_bootable())
        self.has_begun, self.is_up, self.init, self.stage = True, False, None, stage
        if stage is Stage.DARK:
            self.paths.oneshot.unlink(missing_ok=True)  # the boot loader had its turn
        if stage in {Stage.DARK, Stage.OFF}:
            network.set_known(self.lab.bridge, self.address, known=True)
            self._write_state()
            return
        layer = self.old
        if stage is Stage.INSTALLER:
            layer = self.memory
            linux.mount("tmpfs", layer, "tmpfs", 0, "mode=755")
        elif stage is Stage.INSTALLED:
            layer = self.disk.mounted
            self.disk.mount()
        self.effects.layer = layer
        if "disk-full" in set_faults:
            self.effects.make_room()
        try:
            plan = stages.prepare(self.machine, stage, layer, self.disk.device, set_faults)
        except (BrokenInitrd, OSError) as error:
            self._console(f"the kernel panics: {error}")
            self._release()
            network.set_known(self.lab.bridge, self.address, known=True)
            self.stage = Stage.DARK
            self._write_state()
            return
        self.boots += 1
        self.running = boot.start(plan)
        self.events = b""
        os.set_blocking(self.running.events, False)
        self.selector.register(self.running.events, selectors.EVENT_READ)
        self.pidfd = os.pidfd_open(self.running.pid)
        self.selector.register(self.pidfd, selectors.EVENT_READ)
        self._write_state()

    def _hear(self, running: boot.Running) -> None:
        """What the boot tells of itself."""
        try:
            data = os.read(running.events, 65536)
        except BlockingIOError:
            return
        if not data:
            self.selector.unregister(running.events)
            return
        self.events += data
        while b"\n" in self.events:
            line, self.events = self.events.split(b"\n", 1)
            event = json.loads(line)
            if "net" in event:
                self._plug(running)
            elif "pid" in event:
                self.init = event["pid"]
            elif "error" in event:
                self._console(f"the boot failed: {event['error']}")
            elif "up" in event:
                self.is_up = True
                self.effects.booted(self.init)
            self._write_state()

    def _plug(self, running: boot.Running) -> None:
        try:
            network.plug(self.link, self.lab.bridge, running.pid, self.address)
            self.effects.plugged()
            os.write(running.go, b"g")
        except (LabError, BrokenPipeError) as error:  # a boot that has ended already says why itself
            self._console(f"no network: {error}")
            with contextlib.suppress(ProcessLookupError):
                os.kill(running.pid, signal.SIGKILL)

    def _ended(self, running: boot.Running) -> None:
        """The boot is over: clean up, find out why, and plan what comes."""
        _, status = os.waitpid(running.pid, 0)
        was_up = self.is_up
        end = boot.reason(status)
        if self.paths.next.exists():
            self.paths.next.unlink()
            end = End.KEXEC if end is End.REBOOT else end
        self._forget(running)
        if "silent" not in faults.active(self.paths.faults):
            network.set_known(self.lab.bridge, self.address, known=False)
        self._console(f"ended: {end}")
        if end is End.CRASH and not was_up:
            self.stage = Stage.DARK  # booting again would end in the same way, for ever
            self._write_state()
            return
        self.due = (time.monotonic() + self.boot_delay, end)
        self._write_state()

    def _forget(self, running: boot.Running) -> None:
        for descriptor in (running.events, self.pidfd):
            with contextlib.suppress(KeyError):
                self.selector.unregister(descriptor)
            os.close(descriptor)
        os.close(running.go)
        self.running, self.init, self.is_up = None, None, False
        network.unplug(self.link)
        self._release()

    def _release(self) -> None:
        self.effects.layer = None
        linux.unmount(self.memory)
        self.disk.unmount()

    def _cut_power(self) -> None:
        """End the boot at once, and silently: nobody is told."""
        self.due = None
        if self.running is None:
            return
        network.set_dark(self.link, dark=True)
        for pid in (self.init, self.running.pid):
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        os.waitpid(self.running.pid, 0)
        self.paths.next.unlink(missing_ok=True)
        shutil.rmtree(self.paths.loaded, ignore_errors=True)
        self._forget(self.running)

    def _serve(self, server: socket.socket) -> bool:
        """Answer one request; False for the last one."""
        connection, _ = server.accept()
        with connection:
            try:
                request = control.receive(connection) or {}
                answer = self._obey(request)
            except (OSError, ValueError, LabError) as error:
                answer = {"error": str(error)}
                request = {}
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps(answer).encode() + b"\n")
            return request.get("do") != "stop"

    def _obey(self, request: dict[str, Any]) -> dict[str, Any]:
        match request.get("do"):
            case "fault":
                self.effects.set(request["name"], request["value"], self.init)
            case "clear":
                self.effects.clear(self.init)
            case "power-cycle":
                self._cut_power()
                self.due = (time.monotonic() + self.boot_delay, End.POWER_ON)
            case "reset":
                self._cut_power()
                self.effects.clear(None)
                linux.unmount(self.old)
                self.disk.erase()
                self.paths.oneshot.unlink(missing_ok=True)
                self._new_disks()
                self._boot(End.POWER_ON)
            case "stop":
                self._cut_power()
                self.stage = Stage.OFF
            case other:
                return {"error": f"unknown request {other!r}"}
        self._write_state(stopped=request["do"] == "stop")
        return {"boots": self.boots}

    def _console(self, text: str) -> None:
        with self.paths.console.open("a") as stream:
            stream.write(f"[supervisor] {text}\n")

    def _write_state(self, *, stopped: bool = False) -> None:
        boot_id = self.paths.root / "boot_id"
        write_json(self.paths.state, {
            "name": self.name,
            "stage": str(self.stage),
            "begun": self.has_begun,
            "up": self.is_up,
            "boots": self.boots,
            "boot_id": boot_id.read_text().strip() if self.running and boot_id.exists() else None,
            "address": self.address,
            "pid": self.init,
            "index": self.index,
            "supervisor": None if stopped else {"pid": os.getpid(), "start": linux.start_time(os.getpid())},
        })  # fmt: skip


def _become(lab: LabPaths, name: str, index: int, lock: int) -> None:
    """In a child of the starter: a daemon that supervises one machine."""
    os.setsid()
    log = os.open(lab.machine(name).root / "supervisor.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    null = os.open("/dev/null", os.O_RDONLY)
    for target, source in ((0, null), (1, log), (2, log)):
        os.dup2(source, target)
    os.chdir("/")
    os.umask(0o022)
    Supervisor(lab, name, index).run(lock)


def main(argv: list[str]) -> int:
    """`DIR LOCK NAME INDEX …`: start a supervisor for each of them and return."""
    lab = LabPaths(Path(argv[0]))
    for name, index in zip(argv[2::2], argv[3::2], strict=True):
        if os.fork() == 0:
            status = 1
            try:
                _become(lab, name, int(index), int(argv[1]))
                status = 0
            except Exception:  # noqa: BLE001  into the supervisor's log
                import traceback

                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
