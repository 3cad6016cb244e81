"""The manifest as values: what exists here is valid.

Built by `manifest.load`, which has checked every key, filled in `[defaults]`, expanded paths
and read hashes. Nothing in this module does I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class KexecPhase(StrEnum):
    """Who boots the installer: nixa's own phase, or `nixos-anywhere --kexec FILE`."""

    NIXA = "nixa"
    NIXOS_ANYWHERE = "nixos-anywhere"


class Deliver(StrEnum):
    """How an image gets to a host: sent by the controller, or fetched by the host itself."""

    UPLOAD = "upload"
    PULL = "pull"


class InstallPolicy(StrEnum):
    """When a host may be wiped without a further word."""

    IF_NOT_NIXOS = "if-not-nixos"
    NEVER = "never"
    ALWAYS = "always"


class BuildOn(StrEnum):
    LOCAL = "local"
    REMOTE = "remote"


class Mode(StrEnum):
    """How a later deploy takes effect: at once, or at the next boot."""

    SWITCH = "switch"
    BOOT = "boot"


class OnDrift(StrEnum):
    """What to do with a host whose live system is not the one its receipt names."""

    STOP = "stop"
    DEPLOY = "deploy"


@dataclass(frozen=True, slots=True)
class FileSecret:
    """A secret, or a tree of them, that lies in a file or folder here."""

    path: Path


@dataclass(frozen=True, slots=True)
class CommandSecret:
    """A secret that a command prints; it lives only in memory or on a tmpfs."""

    command: tuple[str, ...]


SecretSource = FileSecret | CommandSecret


@dataclass(frozen=True, slots=True)
class HttpCheck:
    """`url` must answer with `status`; `body`: a text that it must hold; `cert_days`: days left."""

    url: str
    status: int = 200
    body: str | None = None
    cert_days: int | None = None


@dataclass(frozen=True, slots=True)
class CommandCheck:
    """`command` is run by the host's shell, as root, and must end with status 0."""

    command: str


@dataclass(frozen=True, slots=True)
class TcpCheck:
    """The port at the host's address must accept a connection from the controller."""

    port: int


@dataclass(frozen=True, slots=True)
class UnitsCheck:
    """No systemd unit may be failed that was not failed before the switch."""


Probe = HttpCheck | CommandCheck | TcpCheck | UnitsCheck


@dataclass(frozen=True, slots=True)
class Check:
    """A health check: tried until it passes, `retries` times more, within `deadline` seconds."""

    probe: Probe
    retries: int = 3
    deadline: float = 30.0


@dataclass(frozen=True, slots=True)
class UrlImage:
    """A kexec tarball at a URL. `sha256` is lower-case hex; `url` and `mirrors` are URLs
    (`https:`, `http:`, `file:`). `lines` are not kept: errors about it are over by now."""

    name: str
    url: str
    sha256: str
    mirrors: tuple[str, ...] = ()
    store: bool = False
    deliver: Deliver = Deliver.UPLOAD


@dataclass(frozen=True, slots=True)
class InstallableImage:
    """A kexec tarball that Nix builds or substitutes."""

    name: str
    installable: str
    deliver: Deliver = Deliver.UPLOAD


Image = UrlImage | InstallableImage


@dataclass(frozen=True, slots=True)
class Host:
    """One machine. `target` has no `user@` left in it; times are seconds."""

    name: str
    target: str
    user: str = "root"
    port: int | None = None
    identity: Path | None = None
    ssh_options: tuple[str, ...] = ()
    host_key: str | None = None
    shared_target: bool = False
    flake_attr: str = ""
    tags: tuple[str, ...] = ()
    kexec: str | None = None
    kexec_extra_flags: str = ""
    install: InstallPolicy = InstallPolicy.IF_NOT_NIXOS
    build_on: BuildOn = BuildOn.LOCAL
    mode: Mode = Mode.SWITCH
    reboot: bool = False
    post_kexec_target: str | None = None
    post_kexec_port: int | None = None
    copy_host_keys: bool = True
    extra_files: SecretSource | None = None
    disk_encryption_keys: tuple[tuple[str, SecretSource], ...] = ()
    hardware: Path | None = None
    checks: tuple[Check, ...] = ()
    on_drift: OnDrift = OnDrift.STOP
    confirm_timeout: float = 60.0
    lock_timeout: float = 600.0
    install_timeout: float = 3600.0


@dataclass(frozen=True, slots=True)
class Fleet:
    """What holds for all hosts. `flake` is a reference that Nix takes; a relative path in it has
    been made absolute. `cache` is None for the user's own cache directory."""

    flake: str
    cache: Path | None = None
    jobs: int = 16
    nixos_anywhere: tuple[str, ...] | None = None
    kexec_phase: KexecPhase = KexecPhase.NIXA
    waves: tuple[tuple[str, ...], ...] = ()
    rollback_wave: bool = False
    on_finish: tuple[str, ...] | None = None
    eval_workers: int = 1
    eval_memory: int = 4096
    copy_jobs: int = 8


@dataclass(frozen=True, slots=True)
class Manifest:
    """A whole `hosts.toml`. `path` is absolute; `images` and `hosts` keep the file's order."""

    path: Path
    fleet: Fleet
    images: Mapping[str, Image]
    hosts: Mapping[str, Host]

    @property
    def root(self) -> Path:
        """The folder that relative paths start from, and beside which `.nixa/` lies."""
        return self.path.parent
