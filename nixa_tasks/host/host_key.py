"""Who a machine is: its ssh host key, pinned in hosts.toml or remembered from the first contact.

The remembered keys lie in the user's state directory, not in `.nixa/`: deleting that must never
make a wrong machine look new.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from nixa_tasks.errors import NixaError
from nixa_tasks.files import locked, write_bytes
from nixa_tasks.manifest.model import Host, InstallPolicy
from nixa_tasks.manifest.public_key import parse_public_key
from nixa_tasks.process.run import Processes
from nixa_tasks.state.private_dir import memory_folder, temporary

_KEYGEN_SECONDS = 30.0
_BESIDE = "beside-pin:"


class Trust(StrEnum):
    """Why a host key is the expected one."""

    PINNED = "pinned"
    SEEN = "seen"
    FIRST = "first"
    ANY = "any"


class HostKeyMismatch(NixaError):
    """The machine that answers shows another key than the expected one. Nothing was sent to it."""


@dataclass(frozen=True, slots=True)
class HostKey:
    """A public key as sshd shows it: `ssh-ed25519`, and the base64 blob."""

    kind: str
    blob: str

    @classmethod
    def parse(cls, text: str) -> HostKey:
        """From `TYPE BLOB [comment]`. Raises ValueError."""
        try:
            return cls(*parse_public_key(text))
        except ValueError as error:
            raise ValueError(f"not a public key: it {error}") from error

    @property
    def fingerprint(self) -> str:
        """As `ssh-keygen -l` prints it: `SHA256:` and base64 without padding."""
        digest = hashlib.sha256(base64.b64decode(self.blob)).digest()
        return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")

    @property
    def text(self) -> str:
        return f"{self.kind} {self.blob}"


@dataclass(frozen=True, slots=True)
class Expectation:
    """What a host must show: one of the keys, or the fingerprint, or nothing yet.

    With a pin there may be a second key, taken by `doit trust` until the host is installed.
    """

    trust: Trust
    keys: tuple[HostKey, ...] = ()
    fingerprint: str | None = None


def address(host: Host) -> str:
    """What a remembered key belongs to: the machine's address, not its name in one project."""
    return f"[{host.target.lower()}]:{host.port or 22}"


class KnownHosts:
    """The keys remembered for this user: `$XDG_STATE_HOME/nixa/known_hosts`, one a line.

    A key that `doit trust` accepted beside a pin is on a line of its own kind, so that a key that
    was merely seen never weakens a pin.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or _state_home() / "nixa" / "known_hosts"

    def find(self, host: Host) -> HostKey | None:
        return self._read().get(address(host))

    def find_trusted(self, host: Host) -> HostKey | None:
        """The key taken beside the host's pin, until it is installed."""
        return self._read().get(_BESIDE + address(host))

    def remember(self, host: Host, key: HostKey) -> None:
        """Keep a key for the host's address, in place of any other."""
        self._set(address(host), key)

    def trust_beside_pin(self, host: Host, key: HostKey | None) -> None:
        """Take a second key for a pinned host, or none any more."""
        self._set(_BESIDE + address(host), key)

    def _set(self, where: str, key: HostKey | None) -> None:
        with self._locked():
            keys = self._read()
            if keys.get(where) == key:
                return
            keys.pop(where, None)
            if key is not None:
                keys[where] = key
            text = "".join(f"{place} {known.text}\n" for place, known in keys.items())
            write_bytes(self.path, text.encode(), 0o600)

    def _read(self) -> dict[str, HostKey]:
        try:
            lines = self.path.read_text().splitlines()
        except FileNotFoundError:
            return {}
        except (OSError, UnicodeError) as error:
            raise NixaError(
                f"{self.path} can't be read: {error}",
                hint="it holds the host keys seen so far; repair it rather than delete it",
            ) from error
        keys = {}
        for line in lines:
            where, _, key = line.partition(" ")
            try:
                keys[where] = HostKey.parse(key)
            except ValueError as error:
                raise NixaError(
                    f"{self.path} is damaged: {error}",
                    hint="it holds the host keys seen so far; fix or remove that line",
                ) from error
        return keys

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locked(self.path.with_suffix(".lock"), timeout=60, what="the list of known host keys"):
            yield


def _state_home() -> Path:
    configured = os.environ.get("XDG_STATE_HOME", "")
    return Path(configured) if configured.startswith("/") else Path.home() / ".local" / "state"


def expectation(host: Host, known: KnownHosts) -> Expectation:
    """What the host must show. A pin decides alone; a throwaway machine without one may show
    anything, since it is created anew behind nixa's back."""
    if host.host_key is not None:
        beside = known.find_trusted(host)
        keys = (beside,) if beside else ()
        if host.host_key.startswith("SHA256:"):
            return Expectation(Trust.PINNED, keys, host.host_key)
        return Expectation(Trust.PINNED, (HostKey.parse(host.host_key), *keys))
    if host.install is InstallPolicy.ALWAYS:
        return Expectation(Trust.ANY)
    seen = known.find(host)
    return Expectation(Trust.FIRST) if seen is None else Expectation(Trust.SEEN, (seen,))


def mismatch(host: Host, expected: Expectation, shown: HostKey | None) -> HostKeyMismatch:
    """The error for a machine that is not the expected one, with both fingerprints."""
    wanted = expected.fingerprint or (expected.keys[0].fingerprint if expected.keys else "none")
    where = "pinned in hosts.toml" if expected.trust is Trust.PINNED else "seen before"
    got = f"{shown.fingerprint} ({shown.kind})" if shown else "a key of another type"
    pinned = (
        "  (then also change `host_key` in hosts.toml, or add --pin)"
        if expected.trust is Trust.PINNED
        else ""
    )
    return HostKeyMismatch(
        f"{host.target} shows another host key than the one {where}; nothing was sent to it",
        host=host.name,
        tail=(f"expected {wanted}", f"shown    {got}"),
        hint=f"if this is another machine at the same address, correct `target`\n"
        f"if it was re-imaged or runs a rescue system: doit trust:{host.name}{pinned}",
    )


def generate(host: Host, processes: Processes) -> tuple[bytes, HostKey]:
    """A new ed25519 host key for a machine that is not installed yet: the private key as OpenSSH
    writes it, without a passphrase, and the public one. Raises NixaError where there is no ssh-keygen."""
    with memory_folder(temporary(), processes) as folder:
        path = folder / "key"
        argv = ("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"root@{host.name}", "-f", str(path))
        processes.run(argv, deadline=_KEYGEN_SECONDS, host=host.name, what="ssh-keygen")
        return path.read_bytes(), HostKey.parse(path.with_suffix(".pub").read_text().strip())
