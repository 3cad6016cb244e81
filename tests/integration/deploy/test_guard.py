"""The dead-man's switch by itself, under the shells that hosts have: it confirms, and it goes back.

Run in a mount namespace of its own, with toy systems whose activation leaves a trace.
"""

from __future__ import annotations

import importlib.resources
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nixa_tasks.lab import linux

pytestmark = pytest.mark.skipif(os.geteuid() != 0 and not os.environ.get("CI"), reason="needs root")

SHELLS = [("dash",), ("bash",), ("busybox", "sh")]
SWITCH = """#!/bin/sh
echo "$0" >>"$TRACE"
{body}
ln -sfn "$(dirname "$(dirname "$0")")" /run/current-system
"""
# Stands in for Nix: what the guard needs of it is that a profile's link is set.
NIX_ENV = """#!/bin/sh
[ "$1 $3" = "-p --set" ] && ln -sfn "$4" "$2"
"""


@dataclass
class Machine:
    root: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def folder(self) -> Path:
        return self.root / "switch"

    def system(self, name: str, body: str) -> Path:
        path = self.root / name
        (path / "bin").mkdir(parents=True)
        (path / "sw/bin").mkdir(parents=True)
        for where, text in (
            ("bin/switch-to-configuration", SWITCH.format(body=body)),
            ("sw/bin/nix-env", NIX_ENV),
        ):
            (path / where).write_text(text)
            (path / where).chmod(0o755)
        return path

    def begin(
        self, shell: tuple[str, ...], *, body: str = "", timeout: int = 3, limit: int = 6, **more: str
    ) -> None:
        old, new = self.system("old", ""), self.system("new", body)
        self.folder.mkdir()
        receipt = {"out": str(new), "wanted": str(new), "seconds": "@SECONDS@"}
        for name, text in {
            "guard.sh": importlib.resources.files("nixa_tasks.deploy").joinpath("guard.sh").read_text(),
            "new": f"{new}\n",
            "timeout": f"{timeout}\n",
            "limit": f"{limit}\n",
            **{name: f"{word}\n" for name, word in more.items()},
            "done.json": json.dumps(receipt | {"outcome": "done"}) + "\n",
            "armed.json": json.dumps(receipt | {"out": "@OUT@", "outcome": "failed"}) + "\n",
            "begun.json": json.dumps(receipt | {"out": "@OUT@", "outcome": "failed"}) + "\n",
            "back.json": json.dumps(receipt | {"out": "@OUT@", "outcome": "rolled-back", "left": str(new)})
            + "\n",
            "unconfirmed.json": json.dumps(receipt | {"out": "@OUT@", "outcome": "rolled-back"}) + "\n",
            "stuck.json": json.dumps(receipt | {"out": "@OUT@", "outcome": "failed"}) + "\n",
        }.items():
            (self.folder / name).write_text(text)
        script = f"""
        mount -t tmpfs tmpfs /run; mkdir -p /run/nixa; mount -t tmpfs tmpfs /var/lib; mkdir -p {self.root}/profiles /nix/var/nix/profiles
        mount --bind {self.root}/profiles /nix/var/nix/profiles
        ln -s {old} /run/current-system; ln -s {old} /nix/var/nix/profiles/system
        {" ".join(shell)} {self.folder}/guard.sh {self.folder}
        readlink -f /run/current-system >{self.root}/live; readlink -f /nix/var/nix/profiles/system >{self.root}/profile
        cp -pr /var/lib/nixa {self.root}/receipts
        """
        self.process = subprocess.Popen(
            ["unshare", "-m", "sh", "-c", script], env=os.environ | {"TRACE": str(self.root / "trace")}
        )

    def say(self, name: str, text: str = "yes") -> None:
        (self.folder / name).write_text(text + "\n")

    def await_file(self, name: str, seconds: float = 10) -> None:
        until = time.monotonic() + seconds
        while not (self.folder / name).exists():
            assert time.monotonic() < until, name
            time.sleep(0.05)

    def end(self, seconds: float = 40) -> tuple[str, str, dict[str, object]]:
        assert self.process is not None
        assert self.process.wait(seconds) == 0
        live = Path((self.root / "live").read_text().strip()).name
        profile = Path((self.root / "profile").read_text().strip()).name
        assert live == profile, "what runs and what will boot are the same"
        receipt = json.loads((self.root / "receipts/receipt.json").read_text())
        assert json.loads((self.root / "receipts/history.jsonl").read_text()) == receipt
        return live, (self.folder / "outcome").read_text().strip(), receipt


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    if made.process is not None and made.process.poll() is None:
        made.process.kill()
        made.process.wait()


@pytest.fixture(params=SHELLS, ids=" ".join)
def shell(request: pytest.FixtureRequest) -> tuple[str, ...]:
    words: tuple[str, ...] = request.param
    assert shutil.which(words[0]), f"{words[0]} must be here"
    return words


def test_a_confirmed_system_stays(machine: Machine, shell: tuple[str, ...]) -> None:
    machine.begin(shell)
    machine.await_file("activated")
    machine.say("confirm")
    live, outcome, receipt = machine.end()
    assert (live, outcome) == ("new", "done")
    assert isinstance(receipt["seconds"], int)


def test_without_a_word_in_time_it_goes_back(machine: Machine, shell: tuple[str, ...]) -> None:
    machine.begin(shell, timeout=2)
    live, outcome, receipt = machine.end()
    assert (live, outcome) == ("old", "rolled-back")
    assert Path(str(receipt["out"])).name == "old"
    assert "confirmed" in (machine.folder / "reason").read_text()


def test_signs_of_life_alone_do_not_confirm_but_put_the_return_off(machine: Machine) -> None:
    machine.begin(("dash",), timeout=2)
    machine.await_file("activated")
    for _ in range(8):
        machine.say("alive")
        time.sleep(0.5)
    assert not (machine.folder / "outcome").exists()
    assert machine.end()[0] == "old"


def test_a_failed_activation_goes_back_at_once(machine: Machine, shell: tuple[str, ...]) -> None:
    machine.begin(shell, body="exit 4", timeout=60)
    live, outcome, _ = machine.end(20)
    assert (live, outcome) == ("old", "rolled-back")
    assert "status 4" in (machine.folder / "reason").read_text()


def test_a_hanging_activation_is_ended_with_its_children(machine: Machine, shell: tuple[str, ...]) -> None:
    machine.begin(shell, body=f"sleep 1000 & echo $! >{machine.root}/child; wait", timeout=60, limit=2)
    live, outcome, _ = machine.end(30)
    assert (live, outcome) == ("old", "rolled-back")
    assert (
        linux.start_time(int((machine.root / "child").read_text())) is None
    )  # its corpse may lie there a while


def test_an_abort_is_obeyed_with_its_reason(machine: Machine) -> None:
    machine.begin(("dash",), timeout=60)
    machine.await_file("activated")
    machine.say("abort", "check failed: tcp port 80")
    live, outcome, _ = machine.end(20)
    assert (live, outcome) == ("old", "rolled-back")
    assert "check failed" in (machine.folder / "reason").read_text()


def test_a_confirmation_can_not_overtake_the_activation(machine: Machine) -> None:
    machine.begin(("dash",), body="sleep 1; exit 1", timeout=60)
    machine.say("confirm")
    assert machine.end(20)[:2] == ("old", "rolled-back")


def test_a_login_that_is_not_root_reads_the_receipt_of_a_first_boot(machine: Machine) -> None:
    """Also where it is the first thing that nixa leaves on that host."""
    machine.begin(("dash",), task="boot", reboot="unwatched")
    assert machine.end(20)[1] == "armed"
    for path in (machine.root / "receipts", machine.root / "receipts/receipt.json"):
        assert path.stat().st_mode & 0o004, path
