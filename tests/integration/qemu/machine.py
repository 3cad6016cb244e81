"""One machine in QEMU, without KVM: a process, its console in a file, and its monitor."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.integration.qemu.guest import Guest

_MEMORY_MIB = 1280  # a little more than the 1 GiB that nixa asks for
_DISK_BYTES = 512 << 20
_MONITOR_SECONDS = 60.0
# The tarball's kernel has another command line: who reads this one in a machine was not kexec'ed.
FIRMWARE = "console=ttyS0 panic=-1 nixa.test=firmware"
_STAGE = re.compile(r"stage=(\w+) boot_id=([0-9a-f-]{36}) cmdline=(.*)")


@dataclass(frozen=True, slots=True)
class Boot:
    """One boot, as its pid 1 told it on the console."""

    stage: str
    boot_id: str
    cmdline: str


class Qemu:
    """A running QEMU. It ends with `stop`, or with the process that made it."""

    def __init__(self, folder: Path, guest: Guest) -> None:
        self.console = folder / "console.log"
        self._log = folder / "qemu.log"
        self._monitor, theirs = socket.socketpair()
        self._monitor.settimeout(_MONITOR_SECONDS)
        with (folder / "disk.raw").open("wb") as file:
            file.truncate(_DISK_BYTES)
        argv = (
            "setpriv", "--pdeathsig", "KILL",  # a killed test leaves no QEMU
            "qemu-system-x86_64", "-machine", "q35,accel=tcg", "-cpu", "max", "-smp", "1",
            "-m", str(_MEMORY_MIB), "-nodefaults", "-no-user-config", "-display", "none",
            "-serial", "file:console.log",
            "-chardev", f"socket,id=monitor,fd={theirs.fileno()}", "-mon", "chardev=monitor,mode=control",
            "-kernel", str(guest.kernel), "-initrd", str(guest.initrd), "-append", FIRMWARE,
            "-drive", "file=disk.raw,format=raw,if=virtio,cache=unsafe",
            "-netdev", "user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:0-10.0.2.15:22",
            "-device", "virtio-net-pci,netdev=net,romfile=", "-device", "virtio-rng-pci",
        )  # fmt: skip
        with theirs, self._log.open("wb") as log:
            self._process = subprocess.Popen(
                argv, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                pass_fds=(theirs.fileno(),),
            )  # fmt: skip
        self._lines = self._monitor.makefile("rw")
        self._events: list[dict[str, Any]] = []
        self._ask("qmp_capabilities")
        forwarded = str(self._ask("human-monitor-command", {"command-line": "info usernet"}))
        found = re.search(r"HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)", forwarded)
        assert found is not None, forwarded
        self.port = int(found[1])

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def boots(self) -> list[Boot]:
        text = self.console.read_text(errors="replace") if self.console.exists() else ""
        return [Boot(found[1], found[2], found[3].strip()) for found in _STAGE.finditer(text)]

    def await_boot(self, seconds: float) -> Boot:
        """Wait for the first boot to be through."""
        until = time.monotonic() + seconds
        while not (boots := self.boots()):
            assert time.monotonic() < until and self.is_running, self.tail()
            time.sleep(0.2)
        return boots[0]

    def resets(self) -> list[float]:
        """When the machine was reset so far (seconds since 1970). A kexec is no reset."""
        self._ask("query-status")  # the events so far come before its answer
        times = [event["timestamp"] for event in self._events if event["event"] == "RESET"]
        return [time["seconds"] + time["microseconds"] / 1e6 for time in times]

    def tail(self) -> str:
        lines = self.console.read_text(errors="replace").splitlines() if self.console.exists() else []
        return "\n".join(["the console's last lines:", *lines[-40:]])

    def stop(self) -> None:
        self._lines.close()
        self._monitor.close()
        self._process.kill()
        self._process.wait(30)

    def _ask(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        """Its answer; events that come before it are kept."""
        self._lines.write(json.dumps({"execute": command, "arguments": arguments or {}}) + "\n")
        self._lines.flush()
        while line := self._lines.readline():
            said = json.loads(line)
            if "event" in said:
                self._events.append(said)
            elif "return" in said:
                return said["return"]
            else:
                assert "error" not in said, said
        raise AssertionError(f"QEMU's monitor ended: {self._log.read_text()}")
