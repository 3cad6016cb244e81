"""What nobody else may read: looked for in every process and every file, on both sides."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nixa_tasks.host.ssh import Ssh
from nixa_tasks.host.sudo import Elevation, Password
from nixa_tasks.lab import ADMIN_PASSWORD, Lab, Machine
from nixa_tasks.manifest.model import Host
from nixa_tasks.process.run import LocalProcesses, Output
from nixa_tasks.state import private_dir as private
from tests.integration.deploy.background import Background, wait_until
from tests.integration.deploy.conftest import Fleet

LOCAL = LocalProcesses()
pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(shutil.which("sudo") is None, reason="there is no sudo on this computer"),
]
DOIT = (sys.executable, "-m", "doit")
VARIABLE = "NIXA_SUDO_PASSWORD"
IN_MEMORY = Path("/dev/shm")


@dataclass
class Vault:
    """The secrets of a test, where only the test keeps them; `texts` are what must not be seen."""

    place: Path
    luks: str = field(default_factory=lambda: f"luks-{secrets.token_hex(16)}")
    token: str = field(default_factory=lambda: f"token-{secrets.token_hex(16)}")

    def fill(self) -> None:
        (self.place / "files/etc/secret").mkdir(parents=True)
        self.write("luks", self.luks)
        self.write("files/etc/secret/token", self.token)

    def write(self, name: str, text: str) -> None:
        (self.place / name).write_text(text)
        (self.place / name).chmod(0o600)

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.luks, self.token)


class Sampler:
    """Looks at every process of this computer, the machines' included, again and again."""

    def __init__(self, texts: tuple[str, ...]) -> None:
        self._texts = [text.encode() for text in texts]
        self.found: set[str] = set()
        self.commands: set[bytes] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._over.wait(0.003):
            for place in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    self._look(place)

    def _look(self, place: Path) -> None:
        command = (place / "cmdline").read_bytes()
        environment = (place / "environ").read_bytes()
        self.commands.add(command)
        if (place / "cmdline").read_bytes() != command:
            return  # it became another program meanwhile: whose environment that was, nobody knows
        # doit itself was given the password in its environment; what it starts shows doit's until
        # it has become another program
        is_doit = command.startswith(b"\0".join(map(os.fsencode, DOIT)))
        for text in self._texts:
            if text in command or (text in environment and not is_doit):
                self.found.add(repr(command))

    def end(self) -> None:
        self._over.set()
        self._thread.join()


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    vault = Vault(tmp_path / "vault")
    vault.fill()
    return vault


@pytest.fixture
def fleet(tmp_path: Path, home: Path, vault: Vault) -> Iterator[Fleet]:
    """Two machines whose admin's sudo asks; web1 brings secrets along."""
    lab = Lab(tmp_path / "lab")
    try:
        lab.up(2)
        for machine in lab.machines.values():
            machine.fault("sudo-password")
        manifest = Path(lab.flake) / "hosts.toml"
        login = vault.place / "files/home/admin/.ssh/authorized_keys"
        login.parent.mkdir(parents=True)
        login.write_bytes(lab.paths.identity.with_suffix(".pub").read_bytes())
        extra = ["tar", "-C", str(vault.place / "files"), "-cf", "-", "."]
        key = ["cat", str(vault.place / "luks")]
        manifest.write_text(
            manifest.read_text()
            .replace('user = "root"', 'user = "admin"')
            .replace(
                "[hosts.web1]",
                f"[hosts.web1]\nextra_files = {{ command = {json.dumps(extra)} }}\n"
                f'disk_encryption_keys = {{ "/tmp/luks.key" = {{ command = {json.dumps(key)} }} }}',
            )
        )
        (home / "tmp").mkdir(parents=True)
        yield Fleet(lab, home)
    finally:
        lab.down()


def start(fleet: Fleet, *args: str, password: str | None = None) -> subprocess.Popen[str]:
    """doit without a terminal, its output kept."""
    given = {} if password is None else {VARIABLE: password}
    return subprocess.Popen(
        (*DOIT, *args),
        cwd=fleet.flake,
        env=fleet.environment() | {"TMPDIR": str(fleet.home / "tmp")} | given,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def doit(fleet: Fleet, *args: str, password: str | None = ADMIN_PASSWORD, status: int = 0) -> str:
    child = start(fleet, *args, password=password)
    said, _ = child.communicate(timeout=240)
    assert child.returncode == status, said
    assert "Traceback" not in said
    return said


def holding(folder: Path, texts: tuple[str, ...]) -> list[Path]:
    """The files below a folder that hold one of the texts."""
    found = []
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            if path.is_file() and any(text.encode() in path.read_bytes() for text in texts):
                found.append(path)
    return found


def in_memory(texts: tuple[str, ...]) -> list[Path]:
    """The same in the folders that nixa keeps in memory."""
    return [path for place in IN_MEMORY.glob("nixa-*") for path in holding(place, texts)]


def on_machine(machine: Machine, texts: tuple[str, ...]) -> set[str]:
    """The files on the machine that hold one of the texts."""
    folders = ("/tmp", "/root", "/home", "/etc", "/var/lib", "/var/tmp", "/run", "/dev/shm", "/nix/var")
    script = 'grep -rlF --exclude-dir=fw --exclude=disk.img -f - -- "$@" 2>/dev/null; true'
    done = machine.exec(("sh", "-c", script, "sh", *folders), input="\n".join(texts) + "\n")
    return set(done.stdout.splitlines())


def middle_of_key(lab: Lab) -> str:
    """A line of the private key that nothing but the key holds."""
    return lab.paths.identity.read_text().splitlines()[2]


def test_no_process_and_no_file_shows_a_secret(fleet: Fleet, vault: Vault) -> None:
    """A whole installation, then a switch, by a user whose sudo asks; only the place on the machine
    where it was to go has the secret, and only root may read it there."""
    web1 = fleet.lab.machines["web1"]
    texts = (*vault.texts, ADMIN_PASSWORD, middle_of_key(fleet.lab))
    sampler = Sampler(texts)
    said = ""
    try:
        for change in (None, '{ message = "another"; }\n'):
            if change:
                fleet.change("web1", change)
            child = start(fleet, "deploy:web1", password=ADMIN_PASSWORD)
            said += child.communicate(timeout=240)[0]
            assert child.returncode == 0, said
    finally:
        sampler.end()

    assert web1.stage == "installed"
    assert web1.wipes() == 1
    seen = b"\n".join(sampler.commands)
    for command in (b"nixos_anywhere", b"sudo\0-k\0-S", b"guard.sh", b"nix-daemon", b"luks.key"):
        assert command in seen, "it was looked at while it ran"
    assert not sampler.found
    assert not [text for text in texts if text in said]
    assert not holding(fleet.flake, texts)
    assert not holding(fleet.home, texts)
    assert not in_memory(vault.texts)
    assert on_machine(web1, texts) == {"/etc/secret/token"}
    assert web1.exec(("cat", "/etc/secret/token")).stdout == vault.token
    mode = web1.exec(("stat", "-c", "%a %U %G", "/etc/secret/token")).stdout
    assert mode == "600 root root\n"

    shutil.rmtree(fleet.flake / ".nixa")
    assert "current" in doit(fleet, "deploy:web1", password=None), "nothing to do needs no password"
    here = json.loads((fleet.flake / ".nixa/hosts/web1/deployed.json").read_text())
    assert here["mode"] == "switch", "the host's receipt can be read by a login that is not root"

    machine_receipt = web1.exec(("cat", "/var/lib/nixa/receipt.json")).stdout
    other = machine_receipt.replace(here["out"], "/nix/store/" + "a" * 32 + "-nixos-system-web1")
    web1.exec(("sh", "-c", 'printf "%s" "$1" >/var/lib/nixa/receipt.json', "sh", other))
    fleet.change("web1", '{ message = "a third"; }\n')
    refused = doit(fleet, "-a", "deploy:web1", password=None, status=1)
    assert "refused: it has drifted" in refused, "a refusal needs no password either"


def test_a_killed_installation_kept_its_secrets_private_and_leaves_none_here(
    fleet: Fleet, vault: Vault
) -> None:
    environment = {**fleet.environment(), VARIABLE: ADMIN_PASSWORD}
    run = Background.begin(fleet.flake, environment, "deploy:web1", output=fleet.home / "killed")
    run.await_step("install", seconds=90)
    held = in_memory(vault.texts)
    assert {path.read_text() for path in held if path.name == "key-0"} == {vault.luks}
    for path in held:
        folders = [folder for folder in path.parents if folder.is_relative_to(IN_MEMORY / path.parts[3])]
        assert folders[-1].stat().st_mode & 0o777 == 0o700
        assert path.stat().st_mode & 0o077 == 0
    run.signal(signal.SIGKILL)
    assert run.end() == -signal.SIGKILL

    wait_until(lambda: not in_memory(vault.texts), "gone from memory", seconds=20)
    assert not holding(fleet.flake, vault.texts)
    assert not holding(fleet.home, vault.texts)
    web1 = fleet.lab.machines["web1"]
    key = web1.exec(("stat", "-c", "%a %U %n", "/tmp/luks.key"))
    assert key.stdout.split() == ["600", "root", "/tmp/luks.key"]

    doit(fleet, "deploy:web1")
    assert web1.stage == "installed"
    assert not in_memory(vault.texts)


def test_a_wrong_password_is_tried_once_on_one_host(fleet: Fleet) -> None:
    """Accounts of a directory count every try towards one lockout."""
    machines = list(fleet.lab.machines.values())
    for machine in machines:
        done = machine.exec(("tee", "/etc/sudoers.d/log"), input="Defaults logfile=/var/lib/sudo.log\n")
        assert done.returncode == 0
    said = doit(fleet, "deploy", password="no such", status=1)
    assert "sudo refused the password of admin" in said
    assert "so it was not tried here" in said
    assert f"set {VARIABLE}" in said
    assert "no such" not in said
    logs = "".join(machine.exec(("cat", "/var/lib/sudo.log")).stdout for machine in machines)
    assert logs.count("incorrect password attempt") == 1
    assert "1 incorrect password attempt" in logs

    said = doit(fleet, "deploy:web2", password=None, status=1)
    assert "there is no terminal" in said
    assert f"set {VARIABLE}" in said

    manifest = fleet.flake / "hosts.toml"
    manifest.write_text(manifest.read_text().replace("[fleet]", '[fleet]\nkexec_phase = "nixos-anywhere"'))
    said = doit(fleet, "deploy:web2", status=1)
    assert "can't give sudo a password" in said
    assert [machine.stage for machine in machines] == ["old", "old"]


PAYLOADS = (b"", b"\n", b"\n\nline\n", bytes(range(256)) * 4096, f"{ADMIN_PASSWORD}\n\nrest".encode())


def test_sudo_takes_its_line_and_the_command_the_rest(fleet: Fleet, tmp_path: Path) -> None:
    """Byte for byte, over a real ssh to a real sudo: where it asks, and where it does not."""
    machine = fleet.lab.machines["web1"]
    host = Host("web1", machine.address, user="admin", identity=fleet.lab.paths.identity)
    with private.folder(private.temporary(), LOCAL) as folder:
        ssh = Ssh(
            host, folder, host.target, "admin", 22, LOCAL, LOCAL.clock, strict=False,
            elevation=Elevation.PASSWORD, password=Password.parse(ADMIN_PASSWORD),
        )  # fmt: skip
        for is_asked in (True, False):
            if not is_asked:
                machine.clear()
            for payload in PAYLOADS:
                done = ssh.run(
                    'id -u; cat; printf %s "$1"',
                    "$'\\end",
                    root=True,
                    stdin=payload,
                    deadline=30,
                    output=Output(keep=2 << 20),
                )
                assert done.raw == b"0\n" + payload + b"$'\\end"
        assert ssh.run("cat", root=True, deadline=30).raw == b"", "no input is no input"
        ssh.disconnect()
