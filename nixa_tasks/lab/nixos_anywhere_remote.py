"""The connections and programs of the stand-in for nixos-anywhere.

Deliberately without deadlines, as the real one: whoever runs it must bring one. `ssh`,
`ssh-keygen`, `ssh-copy-id`, `sshpass` and `nix` come from PATH.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from nixa_tasks.lab.nixos_anywhere_args import Ended, Options

FEATURES = ("--extra-experimental-features", "nix-command flakes")
_ONCE = ("-o", "ConnectTimeout=10")


def step(text: str) -> None:
    """Announce a step, on standard output, as tools wait to see it."""
    print(f"### {text} ###", flush=True)


def complain(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Programs:
    """Starts programs as a shell under `set -e -o pipefail` would."""

    def __init__(self, *, trace: bool) -> None:
        self._trace = trace

    def status(
        self,
        argv: Sequence[str],
        *,
        stdin: IO[bytes] | bytes | None = None,
        stdout: IO[bytes] | int | None = None,
        env: Mapping[str, str] | None = None,
    ) -> tuple[int, bytes]:
        """Exit status as a shell counts it (127 not found, 128 + n a signal), and captured output."""
        if self._trace:
            complain("+ " + shlex.join(argv))
        data = stdin if isinstance(stdin, bytes) else None
        stream = None if isinstance(stdin, bytes) else stdin
        merged = None if env is None else {**os.environ, **env}
        try:
            if data is None:
                done = subprocess.run(argv, stdin=stream, stdout=stdout, env=merged, check=False)
            else:
                done = subprocess.run(argv, input=data, stdout=stdout, env=merged, check=False)
        except FileNotFoundError:
            complain(f"nixos-anywhere: {argv[0]}: command not found")
            return 127, b""
        return _shell_status(done.returncode), done.stdout or b""

    def run(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> None:
        """Raises Ended with its status."""
        status, _ = self.status(argv, env=env)
        if status:
            raise Ended(status)

    def output(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> str:
        """Its output, without the newlines at the end. Raises Ended with its status."""
        status, raw = self.status(argv, stdout=subprocess.PIPE, env=env)
        if status:
            raise Ended(status)
        return raw.decode("utf-8", "replace").rstrip("\n")


class Remote:
    """One machine: ssh's words for it, and who it is reached as."""

    def __init__(self, options: Options, programs: Programs, folder: Path) -> None:
        self._options = options
        self.programs = programs
        self._folder = folder
        self._tty = "-t" if os.isatty(0) else "-T"
        self._key = folder / "nixos-anywhere"
        self.connection = options.connection
        # ssh takes the first value of an option: --ssh-option can't change these.
        self._words = [
            *("-o", "IdentitiesOnly=yes", "-i", str(self._key)),
            *("-o", "UserKnownHostsFile=/dev/null", "-o", "StrictHostKeyChecking=no"),
            *options.ssh,
        ]

    @property
    def host(self) -> str:
        """The host without a user. ("a@b@c" has the host "c".)"""
        return self.connection.rpartition("@")[2]

    def become_root(self) -> None:
        self.connection = f"root@{self.host}"

    def use_port_after_kexec(self) -> None:
        """Only where `-p` gave a port: without it --post-kexec-ssh-port does nothing."""
        if "-p" in self._words:
            self._words[self._words.index("-p") + 1] = self._options.post_kexec_port

    def login_user(self) -> str:
        """Who ssh would log in as, by its own configuration. Raises Ended."""
        settings = self.programs.output(("ssh", *self._words, "-G", self.connection))
        return next((line[5:] for line in settings.splitlines() if line.startswith("user ")), "")

    def argv(self, *remote: str) -> tuple[str, ...]:
        if self._options.debug:
            shown = " ".join(("ssh", self._tty, *self._words, self.connection, *remote))
            print(f"\033[1;34mSSH COMMAND:\033[0m {shown}\n", flush=True)
        return ("ssh", self._tty, *self._words, self.connection, *remote)

    def run(self, *remote: str, stdin: bytes | IO[bytes] | None = None) -> None:
        """Raises Ended with ssh's status (255 where ssh itself failed)."""
        status, _ = self.programs.status(self.argv(*remote), stdin=stdin)
        if status:
            raise Ended(status)

    def output(self, *remote: str, stdin: bytes | None = None) -> tuple[int, str]:
        status, raw = self.programs.status(self.argv(*_ONCE, *remote), stdin=stdin, stdout=subprocess.PIPE)
        return status, raw.decode("utf-8", "replace").replace("\r\n", "\n")

    def plain(self, *remote: str, to: Path | None = None) -> str:
        """Without a terminal, its output captured or written to a file. Raises Ended."""
        argv = ("ssh", *self._words, self.connection, *_ONCE, *remote)
        if to is None:
            return self.programs.output(argv)
        with to.open("wb") as file:
            status, _ = self.programs.status(argv, stdout=file)
        if status:
            raise Ended(status)
        return ""

    def feed(self, producer: Sequence[str], remote: str) -> None:
        """`producer | ssh remote`; the last of the two that failed decides. Raises Ended."""
        try:
            source = subprocess.Popen(producer, stdout=subprocess.PIPE)
        except FileNotFoundError:
            raise Ended(127, f"nixos-anywhere: {producer[0]}: command not found") from None
        with source:
            status, _ = self.programs.status(self.argv(remote), stdin=source.stdout)
        status = status or _shell_status(source.returncode)
        if status:
            raise Ended(status)

    def wait_until_down(self) -> None:
        """Polled once a second: a machine that is back sooner is never seen down."""
        poll = ("timeout", "10", "ssh", *self._words, self.connection, "--", "exit", "0")
        while self.programs.status(poll)[0] == 0:
            time.sleep(1)

    def wait_until_up(self) -> None:
        """Every 5 s, for ever."""
        while self.programs.status(self.argv(*_ONCE, "--", "exit", "0"))[0] != 0:
            time.sleep(5)

    def upload_key(self, identity: Path | None) -> None:
        """Make or take the key, and let ssh-copy-id put it there: every 3 s, for ever. Raises Ended."""
        home = self._home_for_copying()
        if identity is not None:
            try:
                shutil.copy(identity, self._key)
            except OSError as error:
                raise Ended(1, f"nixos-anywhere: cannot copy {identity}: {error.strerror}") from None
            public = self.programs.output(("ssh-keygen", "-y", "-f", str(self._key)))
            self._key.with_name("nixos-anywhere.pub").write_text(public + "\n")
        else:
            words = ("-t", "ed25519", "-f", str(self._key), "-P", "", "-C", "nixos-anywhere")
            self.programs.output(("ssh-keygen", *words))
        step("Uploading install SSH keys")
        if self._options.env_password:
            argv = ("sshpass", "-e", "ssh-copy-id", *_ONCE, *self._words, self.connection)
        else:
            # The user's own keys and agent may open the door: the first value of an option counts.
            argv = ("ssh-copy-id", "-o", "IdentitiesOnly=no", *_ONCE, *self._words, self.connection)
        while self.programs.status(argv, env={"HOME": str(home)})[0] != 0:
            time.sleep(3)

    def _home_for_copying(self) -> Path:
        """ssh-copy-id insists on ~/.ssh. Raises Ended where there is no HOME at all."""
        if "HOME" not in os.environ:
            raise Ended(1, "nixos-anywhere: HOME: unbound variable")
        home = Path(os.environ["HOME"])
        try:
            (home / ".ssh").mkdir(parents=True, exist_ok=True)
        except OSError:
            instead = self._folder / "ssh-home"
            (instead / ".ssh").mkdir(parents=True)
            print(f"Warning: Could not create {home}/.ssh, using temporary directory: {instead}", flush=True)
            return instead
        return home

    def nix_environment(self) -> dict[str, str]:
        """NIX_SSHOPTS is taken over whole, joined by blanks (and split at blanks by Nix)."""
        return {"NIX_SSHOPTS": " ".join(self._words)}

    def store(self, scheme: str, *settings: str) -> str:
        return f"{scheme}://{self.connection}?" + "&".join((*settings, self._options.store_settings))

    def ssh_key_setting(self) -> str:
        return f"ssh-key={self._folder}%2Fnixos-anywhere"


def _shell_status(returncode: int) -> int:
    return 128 - returncode if returncode < 0 else returncode
