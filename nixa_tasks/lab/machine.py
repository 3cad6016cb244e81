"""A practice machine, as tests and the command line see it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nixa_tasks.lab import control, faults, linux
from nixa_tasks.lab.effects import enter
from nixa_tasks.lab.errors import LabError
from nixa_tasks.lab.paths import LabPaths, MachinePaths, read_json
from nixa_tasks.lab.sequence import Stage

_BOOT_SECONDS = 60.0
_POLL_SECONDS = 0.02
_INSIDE_ENVIRONMENT = {
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PATH": "/run/current-system/sw/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
}


class Machine:
    """One machine of a lab. Everything is read from its files when asked: nothing is kept here."""

    def __init__(self, lab: LabPaths, name: str, index: int, address: str) -> None:
        self.name = name
        self.index = index
        self.address = address
        self._lab = lab

    @property
    def paths(self) -> MachinePaths:
        return self._lab.machine(self.name)

    @property
    def state(self) -> dict[str, Any]:
        """`state.json`: stage, up, boots, boot_id, address, pid, supervisor."""
        return read_json(self.paths.state)

    @property
    def stage(self) -> Stage:
        """What it is at the moment; `off` where its supervisor is dead, whatever the file says."""
        return Stage(self.state.get("stage", "off")) if self.is_supervised else Stage.OFF

    @property
    def boot_id(self) -> str | None:
        return self.state.get("boot_id")

    @property
    def boots(self) -> int:
        """How many times it has been booted since it was made."""
        return int(self.state.get("boots", 0))

    @property
    def is_up(self) -> bool:
        """Whether its last boot is through."""
        return self.is_supervised and bool(self.state.get("up"))

    @property
    def is_supervised(self) -> bool:
        """Whether its supervisor lives."""
        supervisor = self.state.get("supervisor") or {}
        start = supervisor.get("start")
        return start is not None and linux.start_time(int(supervisor["pid"])) == start

    @property
    def host_key_public(self) -> str:
        """The old Linux's key, as `ssh-ed25519 AAAA…`; an installation may keep it or make another."""
        return " ".join(self.paths.host_key.with_suffix(".pub").read_text().split()[:2])

    def exec(
        self,
        argv: Sequence[str],
        input: bytes | str | None = None,  # noqa: A002  subprocess calls it so
        *,
        deadline: float = 60.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside, as root, without ssh. Raises LabError where the machine is not up."""
        pid = self.state.get("pid")
        if not self.is_supervised or pid is None:
            raise LabError(f"it is {self.stage}", host=self.name)
        given = input.encode() if isinstance(input, str) else input
        done = subprocess.run(
            (*enter(pid), *argv),
            input=b"" if given is None else given,
            capture_output=True, timeout=deadline, check=False, env=_INSIDE_ENVIRONMENT,
        )  # fmt: skip
        said, complained = (text.decode("utf-8", "replace") for text in (done.stdout, done.stderr))
        return subprocess.CompletedProcess(done.args, done.returncode, said, complained)

    def fault(self, name: str, value: str | None = None) -> None:
        """Let something go wrong from now on. Raises LabError for a fault that does not exist."""
        name, chosen = faults.parse(name, value)
        self._ask({"do": "fault", "name": name, "value": chosen})

    def clear(self) -> None:
        """Take all faults back."""
        self._ask({"do": "clear"})

    def faults(self) -> dict[str, str]:
        """The faults that are set, with their values."""
        return faults.active(self.paths.faults)

    def power_cycle(self, *, wait: bool = True) -> None:
        """Pull the plug and put it in again."""
        before = self.boots
        self._ask({"do": "power-cycle"})
        if wait and "boot-fails" not in self.faults():
            self.wait(lambda: self.boots > before and self.is_up, "power cycle")

    def reset(self, *, wait: bool = True) -> None:
        """As new: an empty disk, the old Linux, no faults. Its host key stays, so that what the lab's
        own project remembers of a NixOS on it goes too: nixa would not install over that."""
        before = self.boots
        self._ask({"do": "reset"})
        self.paths.wipes.unlink(missing_ok=True)
        (self._lab.flake / ".nixa/hosts" / self.name / "deployed.json").unlink(missing_ok=True)
        if wait:
            self.wait(lambda: self.boots > before and self.is_up, "reset")

    def wait(self, condition: Callable[[], bool], what: str, *, deadline: float = _BOOT_SECONDS) -> None:
        """Until `condition` holds. Raises LabError with the console's last lines."""
        until = time.monotonic() + deadline
        while not condition():
            if time.monotonic() > until:
                raise LabError(
                    f"{what}: not done after {deadline:g} s; it is {self.stage}",
                    host=self.name,
                    tail=self._console(),
                )
            time.sleep(_POLL_SECONDS)

    def wait_for(self, stage: Stage | str, *, deadline: float = _BOOT_SECONDS) -> None:
        """Until it is `stage`, and up if that stage is one that boots."""
        wanted = Stage(stage)
        boots = wanted not in {Stage.DARK, Stage.OFF}
        self.wait(
            lambda: self.stage is wanted and (self.is_up or not boots),
            f"wait for {wanted}",
            deadline=deadline,
        )

    def contacts(self) -> int:
        """TCP connections that its sshd has seen so far, logged in or not."""
        try:
            return self.paths.sshd_log.read_text(errors="replace").count("Connection from ")
        except FileNotFoundError:
            return 0

    def wipes(self) -> int:
        """How often its disk was erased by a disko script."""
        try:
            return len(self.paths.wipes.read_text().splitlines())
        except FileNotFoundError:
            return 0

    def current_system(self) -> str | None:
        """What /run/current-system leads to in there; None on an old Linux."""
        done = self.exec(("readlink", "-e", "/run/current-system"))
        return done.stdout.strip() or None

    def stop(self) -> None:
        """End the machine and its supervisor, by force if it does not listen."""
        if not self.is_supervised:
            return
        pid = int(self.state["supervisor"]["pid"])
        with contextlib.suppress(LabError):
            self._ask({"do": "stop"})
        until = time.monotonic() + 5
        while linux.start_time(pid) is not None and time.monotonic() < until:
            time.sleep(0.005)
        if self.is_supervised:
            os.kill(pid, signal.SIGKILL)

    def _ask(self, request: dict[str, Any]) -> None:
        try:
            control.ask(self._lab.id, self.name, request)
        except LabError as error:
            raise LabError(error.what, host=self.name, hint=error.hint) from error

    def _console(self) -> tuple[str, ...]:
        log: Path = self.paths.console
        return tuple(log.read_text(errors="replace").splitlines()[-8:]) if log.exists() else ()
