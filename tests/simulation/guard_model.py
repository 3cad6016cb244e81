"""The model of guard.sh, the dead-man's switch: the same steps in the same order."""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.simulation.machine import Boot, Machine, Root
from tests.simulation.scheduler import Process

if TYPE_CHECKING:
    from tests.simulation.controller import Run


class _Exit(Exception):
    """The script's `exit`."""


def start(machine: Machine, boot: Boot, folder: str, run: Run) -> None:
    guard = Guard(machine, boot, boot.folders[folder], folder, run)
    machine.world.scheduler.spawn(guard.main(), is_alive=machine.alive(boot))


@dataclass(slots=True)
class Guard:
    """One run of the script. The names are those of its variables and functions."""

    machine: Machine
    boot: Boot
    files: dict[str, str]
    name: str
    run: Run
    started: float = 0.0
    before: str = ""
    before_profile: str = ""
    activated_by: int = 0
    is_default_set: bool = False

    @property
    def now(self) -> float:
        return self.machine.world.now

    @property
    def root(self) -> Root:
        assert self.machine.root is not None
        return self.machine.root

    def word(self, name: str) -> str:
        return self.files.get(name, "").strip()

    def main(self) -> Process:
        while self.boot.guard is not None:
            yield 0.5
        self.boot.guard = self.name
        try:
            yield from self.body()
        except _Exit:
            pass
        finally:
            if self.boot.guard == self.name:
                self.boot.guard = self.boot.waits_until = None

    def body(self) -> Process:
        self.started = self.now
        new, task = self.word("new"), self.word("task")
        yield 0.05
        if self.machine.root is None:
            self.fail("there is no system to go back to")
        if task == "prove":
            yield from self.prove(new)
        self.before = self.boot.system or ""
        self.before_profile = self.root.profile or self.before
        if task == "boot":
            yield from self.set_up(new)
        yield from self.switch(new)

    def switch(self, new: str) -> Process:
        yield from self.put_receipt("begun.json")
        self.activate(new, "test")
        last = self.started
        timeout, limit = float(self.word("timeout")), float(self.word("limit"))
        while True:
            self.boot.waits_until = last + timeout
            if "activated" in self.files:
                if (status := self.word("activated")) != "0" and "failed-units" not in self.files:
                    self.files["failed-units"] = "web.service:\n  unhealthy\n"
                    if status != "4" or "keep-failed-units" not in self.files:
                        yield from self.go_back(f"the activation ended with status {status}")
                    self.files["reason"] = "units failed (status 4)"
                if "confirm" in self.files:
                    yield from self.keep_switched(new)
            elif self.now - self.started >= limit:
                yield from self.go_back(f"the activation timed out after {limit:g} s")
            if "abort" in self.files:
                yield from self.go_back(self.word("abort")[:300])
            if self.files.pop("alive", None) is not None:
                last = self.now
            if self.now - last >= timeout:
                yield from self.go_back(f"nobody confirmed it within {timeout:g} s", "unconfirmed.json")
            yield 1.0

    def keep_switched(self, new: str) -> Process:
        self.leave_to_others(new)
        if self.boot.system != new:
            yield from self.go_back("it runs the one before again")
        yield from self.set_profile(new)
        self.is_default_set = True
        if not (yield from self.activate_wholly(new, "boot")):
            yield from self.go_back("the boot loader could not be set up")
        self.leave_to_others(new)
        if self.boot.system != new:
            yield from self.go_back("it runs the one before again")
        kept = "failed-units" in self.files
        yield from self.write_receipt(*(("kept.json", "kept") if kept else ("done.json", "done")))
        raise _Exit

    def leave_to_others(self, new: str) -> None:
        if self.boot.system not in (new, self.before):
            self.fail("somebody has switched it meanwhile, which is left as it is")

    def set_profile(self, path: str) -> Process:
        yield self.machine.rng.uniform(0.01, 0.1)
        self.root.set_profile(path)

    def put_receipt(self, file: str, system: str | None = None) -> Generator[float, None, str]:
        yield self.machine.rng.uniform(0.01, 0.1)
        out = system or self.boot.system or ""
        text = (
            self.files[file]
            .replace('"@SECONDS@"', str(int(self.now - self.started)))
            .replace("@OUT@", out)
            .replace("@WHY@", self.word("reason").replace('"', ""))
        )
        yield self.machine.rng.uniform(0.01, 0.1)
        self.root.files["receipt.json"] = text
        self.machine.world.receipt_written(self.machine, json.loads(text))
        return text

    def write_receipt(self, file: str, outcome: str, system: str | None = None) -> Process:
        text = yield from self.put_receipt(file, system)
        root = self.root
        root.files["history.jsonl"] = root.files.get("history.jsonl", "") + text
        yield 0.01
        self.files["outcome"] = outcome
        self.machine.say(
            f"its guard ends: {outcome}" + (f" ({self.word('reason')})" if self.word("reason") else "")
        )

    def activate(self, path: str, action: str) -> None:
        """In a session of its own: it goes on by itself, until it is ended."""
        self.activated_by += 1
        number = self.activated_by
        alive = self.machine.alive(self.boot)

        def ended(status: Any) -> None:
            if number == self.activated_by:
                self.files["activated"] = str(status)

        self.machine.world.scheduler.spawn(
            self.machine.activate(path, action),
            is_alive=lambda: alive() and number == self.activated_by,
            ended=ended,
        )

    def end_activation(self) -> Process:
        if "activated" not in self.files:
            self.activated_by += 1
            yield 1.0

    def activate_wholly(self, path: str, action: str) -> Generator[float, None, bool]:
        self.files.pop("activated", None)
        self.activate(path, action)
        since, limit = self.now, float(self.word("limit"))
        while "activated" not in self.files and self.now - since < limit:
            yield 1.0
        yield from self.end_activation()
        return self.word("activated") == "0"

    def go_back(self, reason: str, back: str = "back.json") -> Process:
        self.files["reason"] = reason
        yield from self.end_activation()
        self.files.pop("confirm", None)
        self.leave_to_others(self.word("new"))
        if self.root.profile != self.before_profile:
            yield from self.set_profile(self.before_profile)
        for _ in range(3):
            if (yield from self.activate_wholly(self.before, "test")) or self.boot.system == self.before:
                break
        is_set_back = True
        if self.is_default_set:
            is_set_back = yield from self.activate_wholly(self.before_profile, "boot")
        if self.boot.system == self.before and self.root.profile == self.before_profile and is_set_back:
            yield from self.write_receipt(back, "rolled-back")
        else:
            if not self.machine.world.systems[self.before].is_good:
                self.machine.is_stuck = True
            yield from self.write_receipt("stuck.json", "stuck")
        raise _Exit

    def fail(self, reason: str) -> None:
        self.files["reason"] = reason
        self.files["outcome"] = "failed"
        raise _Exit

    def set_up(self, new: str) -> Process:
        root, restart, default = self.root, self.word("reboot"), new
        before_profile = self.before if self.before_profile == new else self.before_profile
        yield from self.set_profile(new)
        if restart == "watched":
            yield from self.set_profile(before_profile)
            default = before_profile
        trouble = (
            ""
            if (yield from self.activate_wholly(default, "boot"))
            else "the boot loader could not be set up"
        )
        if not trouble and restart == "watched":
            if self.machine.loader and new in root.generations:
                root.once = new
            else:
                trouble = "the boot loader can't be told to boot it once"
        if trouble:
            self.files["reason"] = trouble
            yield from self.set_profile(before_profile)
            if (yield from self.activate_wholly(before_profile, "boot")):
                yield from self.write_receipt("back.json", "rolled-back")
            else:
                yield from self.write_receipt("stuck.json", "stuck")
        elif root.profile != default:
            self.fail("somebody has set another system to be booted meanwhile, which is left as it is")
        elif restart == "no":
            yield from self.write_receipt("done.json", "done")
        else:
            root.earlier = before_profile
            yield from self.write_receipt("armed.json", "armed")
        raise _Exit

    def stay_or_fail(self, new: str) -> None:
        if self.boot.system != new:
            self.fail("somebody has switched it meanwhile, which is left as it is")

    def keep(self, new: str) -> Process:
        yield from self.set_profile(new)
        if (yield from self.activate_wholly(new, "boot")):
            self.root.earlier = None
            self.stay_or_fail(new)
            yield from self.write_receipt("done.json", "done")
            raise _Exit
        yield from self.restart_before("the boot loader could not be set up")

    def restart_before(self, reason: str, back: str = "back.json") -> Process:
        self.files["reason"] = reason
        before = self.root.earlier or ""
        if before not in self.root.store:
            self.fail(f"{reason}; there is no system to go back to")
        yield from self.set_profile(before)
        yield from self.activate_wholly(before, "boot")
        self.root.earlier = None
        yield from self.write_receipt(back, "rolled-back", before)
        yield 2.0
        self.machine.reboot()
        raise _Exit

    def prove(self, new: str) -> Process:
        if self.boot.system != new:
            self.fail(f"it does not run {new}")
        last, timeout = self.now, float(self.word("timeout"))
        while True:
            self.boot.waits_until = last + timeout
            if "confirm" in self.files:
                self.stay_or_fail(new)
                yield from self.keep(new)
            if "abort" in self.files:
                yield from self.restart_before(self.word("abort")[:300])
            if self.files.pop("alive", None) is not None:
                last = self.now
            if self.now - last >= timeout:
                yield from self.restart_before(
                    f"nobody confirmed it within {timeout:g} s", "unconfirmed.json"
                )
            yield 1.0
