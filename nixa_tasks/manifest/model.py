"""The manifest as values: what exists here is valid.

Each key of `hosts.toml` is declared here once, at the field that it fills: what is allowed, its default,
its meaning and an example. The JSON Schema and the manual's tables are generated from this
(`scripts/generate.py`). Built by `manifest.load`, which has checked every key, filled in `[defaults]`,
expanded paths and read hashes. Nothing in this module does I/O.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, cast

from nixa_tasks.manifest import paths, values
from nixa_tasks.manifest.digest import parse_sha256
from nixa_tasks.manifest.keys import (
    FLAG,
    NAME,
    PORT,
    PROGRAM,
    SECONDS,
    TRUE,
    WORD,
    Kind,
    Place,
    Refused,
    choice,
    key,
    keys_of,
    listed,
    local,
    read_fields,
    require,
    text,
    whole,
)
from nixa_tasks.manifest.public_key import parse_host_key


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


class OnInhibitor(StrEnum):
    """What to do where the new system changes something that NixOS can't change while it runs."""

    BOOT = "boot"
    STOP = "stop"
    FORCE = "force"


class OnFailedUnits(StrEnum):
    """What to do with a new system that runs, but whose units failed."""

    ROLLBACK = "rollback"
    KEEP = "keep"


class OnDrift(StrEnum):
    """What to do with a host whose live system is not the one its receipt names."""

    STOP = "stop"
    DEPLOY = "deploy"


class Dirty(StrEnum):
    """What a deploy does where the flake's git tree has uncommitted changes."""

    ALLOW = "allow"
    WARN = "warn"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class FileSecret:
    """A secret, or a tree of them, that lies in a file or folder here."""

    path: Path


@dataclass(frozen=True, slots=True)
class CommandSecret:
    """A secret that a command prints; it lives only in memory or on a tmpfs."""

    command: tuple[str, ...] = key(
        PROGRAM, "Command", "A program and its arguments; its output lives only in memory or on a tmpfs.",
        example=["sops", "-d", "secrets/web1.luks"],
    )  # fmt: skip


SecretSource = FileSecret | CommandSecret


def _read_secret(place: Place, value: Any) -> SecretSource:
    if isinstance(value, dict):
        found = read_fields(keys_of(CommandSecret), value, place)
        if "command" not in found:
            raise Refused if "command" in value else place.refuse("needs the key `command`")
        return CommandSecret(**found)
    return FileSecret(cast(Path, local(paths.path).read(place, value)))


def _read_secrets(place: Place, value: Any) -> tuple[tuple[str, SecretSource], ...]:
    require(dict, place, value)
    found = []
    for remote, source in value.items():
        with contextlib.suppress(Refused):
            found.append((cast(str, text(values.remote_path).read(place.at(remote), remote)), source))
    return tuple((remote, _read_secret(place.at(remote), source)) for remote, source in found)


SECRET = Kind(_read_secret, lambda: {"$ref": "#/$defs/secret"})
SECRETS = Kind(_read_secrets, lambda: {"type": "object", "additionalProperties": {"$ref": "#/$defs/secret"}})


@dataclass(frozen=True, slots=True)
class HttpCheck:
    """`url` must answer with `status`; `body`: a text that it must hold; `cert_days`: days left."""

    url: str = key(
        text(values.web_url, r"^[Hh][Tt][Tt][Pp][Ss]?://\S+$"), "HTTP", "The URL that the controller requests.",
        name="http", example="https://web1.example.org/health",
    )  # fmt: skip
    status: int = key(
        whole(100, 599), "Status", "The status that `http` must answer with.", default=200, example=204
    )
    body: str | None = key(
        text(values.prose), "Body", "A text that the answer to `http` must contain.",
        default=None, otherwise="any body will do", example="ok",
    )  # fmt: skip
    cert_days: int | None = key(
        whole(0, 3650), "Certificate days", "How many more days the certificate of an https URL must be valid.",
        default=None, otherwise="it must be valid now", example=14,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class CommandCheck:
    """`command` is run by the host's shell, as root, and must end with status 0."""

    command: str = key(
        text(values.prose), "Command", "Run by the host's shell as root; must end with status 0.",
        example="systemctl is-system-running --wait",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class TcpCheck:
    """The port at the host's address must accept a connection from the controller."""

    port: int = key(
        PORT, "TCP port", "A port of the host that must accept a connection from the controller.",
        name="tcp", example=443,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class UnitsCheck:
    """No systemd unit may be failed that was not failed before the switch."""

    units: bool = key(
        TRUE, "Units", "No systemd unit may be failed that was not failed before.",
        default=True, otherwise="not checked", example=True,
    )  # fmt: skip


Probe = HttpCheck | CommandCheck | TcpCheck | UnitsCheck
PROBES = {"http": HttpCheck, "command": CommandCheck, "tcp": TcpCheck, "units": UnitsCheck}


@dataclass(frozen=True, slots=True)
class Check:
    """A health check: tried until it passes, `retries` times more, within `deadline` seconds."""

    probe: Probe
    retries: int = key(
        whole(0, 1000), "Retries", "How many more times a failed check is tried.", default=3, example=5
    )
    deadline: float = key(
        SECONDS, "Deadline", "How long one check may take with all its retries, in seconds.",
        default=30.0, example=120,
    )  # fmt: skip


def _read_check(place: Place, value: Any) -> Check:
    require(dict, place, value)
    found = read_fields(keys_of(*PROBES.values(), Check), value, place)
    named = [name for name in PROBES if name in value]
    if len(named) != 1:
        raise place.refuse("needs exactly one of `http`, `command`, `tcp`, `units`")
    options = {one.field: found.pop(one.field) for one in keys_of(Check).values() if one.field in found}
    kind = PROBES[named[0]]
    fields = {one.field: found[one.field] for one in keys_of(kind).values() if one.field in found}
    if keys_of(kind)[named[0]].field not in fields:
        raise Refused  # it is there, and was refused by itself
    if "cert_days" in fields and not fields["url"].lower().startswith("https:"):
        raise place.at("cert_days").refuse("goes only with an https URL")
    return Check(kind(**fields), **options)


CHECK = Kind(_read_check, lambda: {"$ref": "#/$defs/check"})

_DELIVER: Any = {
    "kind": choice(Deliver),
    "title": "Delivery",
    "meaning": "`upload`: sent by the controller; `pull`: fetched by the host itself. The hash is checked either way.",
    "default": Deliver.UPLOAD,
    "example": "pull",
}


@dataclass(frozen=True, slots=True)
class UrlImage:
    """A kexec tarball at a URL. `sha256` is lower-case hex; `url` and `mirrors` are URLs
    (`https:`, `http:`, `file:`)."""

    name: str
    url: str = key(
        local(paths.url, WORD), "URL",
        "Where the tarball is: https, http (safe, since the hash decides), file, or a path.",
        example="https://github.com/nix-community/nixos-images/releases/download/nixos-25.11/"
        "nixos-kexec-installer-noninteractive-x86_64-linux.tar.gz",
    )  # fmt: skip
    sha256: str = key(
        text(parse_sha256), "SHA-256",
        "The tarball's hash: SRI, hex, or Nix base32. `doit pin:IMAGE` updates it.",
        example="sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
    )  # fmt: skip
    mirrors: tuple[str, ...] = key(
        listed(local(paths.url, WORD)), "Mirrors",
        "Other places of the same file, tried in order and held to the same hash.",
        default=(), example=["https://mirror.example.org/installer.tar.gz"],
    )  # fmt: skip
    store: bool = key(
        FLAG, "Keep in the Nix store",
        "Whether the verified file is also added to the Nix store, and taken from there if present.",
        default=False, example=True,
    )  # fmt: skip
    deliver: Deliver = key(**_DELIVER)


@dataclass(frozen=True, slots=True)
class InstallableImage:
    """A kexec tarball that Nix builds or substitutes."""

    name: str
    installable: str = key(
        local(paths.installable, WORD), "Installable",
        "Built or substituted by Nix instead of a URL; pinned by the flake's lock file.",
        example="github:nix-community/nixos-images#packages.x86_64-linux.kexec-installer-nixos-stable-noninteractive",
    )  # fmt: skip
    deliver: Deliver = key(**_DELIVER)


Image = UrlImage | InstallableImage


@dataclass(frozen=True, slots=True)
class Host:
    """One machine. `target` has no `user@` left in it; times are seconds."""

    name: str
    target: str = key(
        text(values.target, WORD), "Target",
        "DNS name, IPv4 or IPv6 address, or ssh alias; `user@` may precede it. Every host needs one.",
        example="203.0.113.10",
    )  # fmt: skip
    user: str = key(
        text(values.user, WORD), "User", "The user who logs in over ssh.", default="root", example="admin"
    )
    install_user: str | None = key(
        text(values.user, WORD),
        "User before the installation",
        "The user who logs in where `user` can't yet: on the image that the machine was started with.",
        default=None,
        otherwise="`user` logs in before, too",
        example="ubuntu",
    )
    port: int | None = key(
        PORT,
        "Port",
        "The ssh port.",
        default=None,
        otherwise="what ssh's own configuration says, else 22",
        example=2222,
    )
    identity: Path | None = key(
        local(paths.path), "Identity", "The file of the private key, as for `ssh -i`.",
        default=None, otherwise="ssh's own", example="~/.ssh/deploy",
    )  # fmt: skip
    ssh_options: tuple[str, ...] = key(
        listed(text(values.ssh_option)), "ssh options",
        "As for `ssh -o`, one each. Those that guard host keys and the shared connection belong to nixa.",
        default=(), example=["ProxyJump=bastion"],
    )  # fmt: skip
    host_key: str | None = key(
        text(parse_host_key), "Host key",
        "The key that the host must show: an OpenSSH public key, or a `SHA256:` fingerprint.",
        default=None, otherwise="the key seen at first contact is remembered",
        example="SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU",
    )  # fmt: skip
    shared_target: bool = key(
        FLAG, "Shared target", "Says that another host has the same target on purpose; both must say so.",
        default=False, example=True,
    )  # fmt: skip
    flake_attr: str = key(
        text(values.flake_attribute, WORD), "Flake attribute", "The name below `nixosConfigurations`.",
        default="", otherwise="the host's name", example="web1",
    )  # fmt: skip
    tags: tuple[str, ...] = key(
        listed(text(values.name, NAME), is_set=True), "Tags", "For choosing hosts: `--on '@web and not web3'`.",
        default=(), example=["web", "prod"],
    )  # fmt: skip
    kexec: str | None = key(
        text(values.name, NAME), "Kexec image", "The image that boots the installer.",
        default=None, otherwise="the one named like the host's system", example="x86_64-linux",
    )  # fmt: skip
    kexec_extra_flags: str = key(
        text(values.kexec_flags, may_be_empty=True), "Kexec flags", "Passed to the kexec program on the host.",
        default="", example="--no-sync",
    )  # fmt: skip
    install: InstallPolicy = key(
        choice(InstallPolicy), "Install",
        "When the host may be wiped: `if-not-nixos`: only if it does not run NixOS; `never`; "
        "`always`: a throwaway machine, wiped whenever its output changes.",
        default=InstallPolicy.IF_NOT_NIXOS, example="never",
    )  # fmt: skip
    build_on: BuildOn = key(
        choice(BuildOn), "Build on", "Where the closure is built; `remote`: the host builds its own system.",
        default=BuildOn.LOCAL, example="remote",
    )  # fmt: skip
    mode: Mode = key(
        choice(Mode), "Mode", "How a later deploy takes effect: `switch`: at once; `boot`: at the next boot.",
        default=Mode.SWITCH, example="boot",
    )  # fmt: skip
    reboot: bool = key(
        FLAG, "Reboot", 'With `mode = "boot"`: nixa reboots the host and watches the boot.',
        default=False, example=True,
    )  # fmt: skip
    post_kexec_target: str | None = key(
        text(values.address, WORD), "Target after kexec", "The installer's address, if it has another one.",
        default=None, otherwise="the target", example="203.0.113.11",
    )  # fmt: skip
    post_kexec_port: int | None = key(
        PORT,
        "Port after kexec",
        "The installer's ssh port.",
        default=None,
        otherwise="the host's port",
        example=22,
    )
    copy_host_keys: bool = key(
        FLAG, "Copy host keys", "Whether the installed system keeps the host keys of the one before.",
        default=True, example=False,
    )  # fmt: skip
    substitute_on_destination: bool = key(
        FLAG, "Substitute on the destination",
        "Whether the host fetches what it can from its own substituters, so that only the rest is sent to it.",
        default=True, example=False,
    )  # fmt: skip
    extra_files: SecretSource | None = key(
        SECRET, "Extra files",
        "A folder copied to `/` of the new system, or `{ command = […] }` that prints it as a tar archive.",
        default=None, otherwise="none", example="secrets/web1",
    )  # fmt: skip
    disk_encryption_keys: tuple[tuple[str, SecretSource], ...] = key(
        SECRETS, "Disk encryption keys",
        "For each path in the installer, the file or `{ command = […] }` that has the secret; put there "
        "before the disks are made.",
        default=(), otherwise="none", example={"/tmp/luks.key": "secrets/web1.luks"},  # noqa: S108
    )  # fmt: skip
    hardware: Path | None = key(
        local(paths.path), "Hardware report",
        "The file in the flake that `doit hardware:HOST` writes, `.json` or `.nix`.",
        default=None, otherwise="none", example="hosts/web1/facter.json",
    )  # fmt: skip
    checks: tuple[Check, ...] = key(
        listed(CHECK), "Checks", "What must hold before a deploy counts as successful.",
        default=(), example=[{"http": "https://web1.example.org/health"}, {"units": True}],
    )  # fmt: skip
    on_drift: OnDrift = key(
        choice(OnDrift), "On drift",
        "What to do with a host that has drifted since its last deploy: its live system is not its receipt's.",
        default=OnDrift.STOP, example="deploy",
    )  # fmt: skip
    on_inhibitor: OnInhibitor = key(
        choice(OnInhibitor), "On inhibitor",
        "What to do where a switch would change what NixOS does not change in a running system, such as the D-Bus "
        "implementation: `boot`: set it up for the next boot; `stop`: refuse; `force`: switch all the same.",
        default=OnInhibitor.BOOT, example="stop",
    )  # fmt: skip
    on_failed_units: OnFailedUnits = key(
        choice(OnFailedUnits), "On failed units",
        "What to do with a new system whose units failed: `rollback`, or `keep` it; the deploy fails either way.",
        default=OnFailedUnits.ROLLBACK, example="keep",
    )  # fmt: skip
    confirm_timeout: float = key(
        SECONDS, "Confirm timeout",
        "Seconds that the host waits for nixa's confirmation before it rolls back automatically.",
        default=60.0, example=120,
    )  # fmt: skip
    lock_timeout: float = key(
        SECONDS, "Lock timeout", "Seconds to wait for another deploy of this host.", default=600.0, example=60
    )
    install_timeout: float = key(
        SECONDS, "Install timeout",
        "Seconds that a run of nixos-anywhere may take; a boot is waited for no longer either, and at most 600.",
        default=3600.0, example=7200,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fleet:
    """What holds for all hosts. `flake` is a reference that Nix takes; a relative path in it has
    been made absolute. `cache` is None for the user's own cache directory."""

    flake: str = key(
        local(paths.flake, WORD), "Flake",
        "The flake of every host: a path (relative to hosts.toml; `~` and `${VAR}` are expanded), `git+…`, "
        "`github:…` (no variables there). Without an attribute: that is a host's `flake_attr`.",
        default=".", example="git+ssh://git@example.org/infra",
    )  # fmt: skip
    cache: Path | None = key(
        local(paths.path), "Image cache",
        "Where kexec images are kept; the environment variable `NIXA_CACHE` goes first. `~` and `${VAR}` are expanded.",
        default=None, otherwise="the user's cache directory, shared by all projects", example=".deploy_cache",
    )  # fmt: skip
    jobs: int = key(
        whole(1, 1000), "Jobs", "How many hosts are worked on at the same time.", default=16, example=50
    )
    nixos_anywhere: tuple[str, ...] | None = key(
        PROGRAM, "nixos-anywhere", "The command, as a list.",
        default=None, otherwise="the one on PATH, else `nix run` of a pinned revision",
        example=["nix", "run", "github:nix-community/nixos-anywhere", "--"],
    )  # fmt: skip
    kexec_phase: KexecPhase = key(
        choice(KexecPhase), "Kexec phase",
        "Who boots the installer: nixa's own verified phase, or `nixos-anywhere --kexec FILE`.",
        default=KexecPhase.NIXA, example="nixos-anywhere",
    )  # fmt: skip
    waves: tuple[tuple[str, ...], ...] = key(
        listed(listed(text(values.clean), at_least=1), at_least=1), "Waves",
        "Hosts in groups, each a list of selections as for `--on`. A wave starts only when every host of the "
        "one before is healthy; hosts in no wave come last, a host in two is in the first.",
        default=(), otherwise="all at once", example=[["@canary"], ["@web and not @canary"]],
    )  # fmt: skip
    rollback_wave: bool = key(
        FLAG, "Roll a failed wave back",
        "Whether the hosts that a run switched go back to the system before when another host of their wave fails.",
        default=False, example=True,
    )  # fmt: skip
    on_finish: tuple[str, ...] | None = key(
        PROGRAM, "On finish",
        "A command, as a list, run on this machine at the end of a run that changed a host or tried to. It gets "
        "the run as JSON on its standard input, and has 5 minutes.",
        default=None, otherwise="none", example=["./notify"],
    )  # fmt: skip
    eval_workers: int = key(
        whole(1, 256),
        "Evaluation workers",
        "How many evaluations run at the same time.",
        default=1,
        example=4,
    )
    eval_memory: int = key(
        whole(256, 1048576), "Evaluation memory", "MiB of memory that one evaluation may be expected to take.",
        default=4096, example=8192,
    )  # fmt: skip
    impure: bool = key(
        FLAG, "Impure evaluation",
        "Whether the flake may read what lies outside of it (`--impure`). It is then evaluated at every run.",
        default=False, example=True,
    )  # fmt: skip
    dirty: Dirty = key(
        choice(Dirty), "Uncommitted changes",
        "What a deploy does where the flake's git tree has uncommitted changes.",
        default=Dirty.WARN, example="refuse",
    )  # fmt: skip
    copy_jobs: int = key(
        whole(1, 1000), "Copies", "How many hosts are sent a closure or an image at the same time.",
        default=8, example=2,
    )  # fmt: skip


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
