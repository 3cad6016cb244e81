"""The model of a machine: what lies on its disk, what it runs, and how it boots."""

from __future__ import annotations

import base64
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from nixa_tasks.host.host_key import HostKey
from tests.simulation.scheduler import Process

if TYPE_CHECKING:
    from tests.simulation.network import Session
    from tests.simulation.world import World


class Kind(StrEnum):
    """What a machine runs."""

    LINUX = "linux"
    NIXOS = "nixos"
    INSTALLER = "installer"
    RESCUE = "rescue"
    INITRD = "initrd"


class Content(StrEnum):
    """What lies on a disk."""

    BLANK = "blank"
    LINUX = "linux"
    NIXOS = "nixos"


class Fate(StrEnum):
    """What becomes of a system that is activated or booted."""

    GOOD = "good"
    FAILS = "fails"
    HANGS = "hangs"


@dataclass(frozen=True, slots=True)
class System:
    """A NixOS configuration, by its store path. `switches`: how its activation ends; `boots`: what
    becomes of its boot; `is_healthy`: whether the checks pass."""

    path: str
    switches: Fate = Fate.GOOD
    boots: Fate = Fate.GOOD
    has_network: bool = True
    has_sshd: bool = True
    is_healthy: bool = True

    @property
    def is_good(self) -> bool:
        return self == System(self.path)

    @property
    def name(self) -> str:
        return self.path.rpartition("-")[2]


def store_path(name: str, number: int) -> str:
    return f"/nix/store/{number:032d}-nixos-system-{name}"


def key_of(name: str) -> HostKey:
    """The host key that a machine of that name has."""
    kind = b"ssh-ed25519"
    raw = b"".join(len(part).to_bytes(4) + part for part in (kind, name.encode().ljust(32, b"-")))
    return HostKey(kind.decode(), base64.b64encode(raw).decode())


@dataclass(slots=True)
class Root:
    """An installed NixOS. `generations`: systems by number; `default`: what the boot loader boots;
    `earlier`: the profile nixa-before; `files`: what lies in /var/lib/nixa; `is_ephemeral`: these are lost by a boot."""

    profile: str
    generations: list[str]
    default: str
    once: str | None = None
    earlier: str | None = None
    store: set[str] = field(default_factory=set)
    files: dict[str, str] = field(default_factory=dict)
    is_ephemeral: bool = False
    is_encrypted: bool = False
    has_run: bool = False

    @classmethod
    def installed(cls, path: str, *, is_ephemeral: bool = False, is_encrypted: bool = False) -> Root:
        return cls(path, [path], path, store={path}, is_ephemeral=is_ephemeral, is_encrypted=is_encrypted)

    def set_profile(self, path: str) -> None:
        if self.generations[-1] != path or self.profile != path:
            self.generations.append(path)
        self.profile = path


@dataclass(slots=True)
class Boot:
    """What a machine runs now, until it goes down. `folders` is /run/nixa; `fence`: the last lock's
    token; `busy`: how many fenced steps are under way."""

    id: str
    kind: Kind
    system: str | None = None
    booted: str | None = None
    has_network: bool = True
    has_sshd: bool = True
    is_healthy: bool = True
    lock: Session | None = None
    holder: str = ""
    fence: int = 0
    busy: int = 0
    is_installing: bool = False
    guard: str | None = None
    waits_until: float | None = None
    folders: dict[str, dict[str, str]] = field(default_factory=dict)
    store: set[str] = field(default_factory=set)
    mounted: Root | None = None
    image: bool = False
    broken_since: float | None = None
    sessions: list[Session] = field(default_factory=list)


@dataclass(slots=True)
class Machine:
    """A machine. `boot` is None while it is off or on its way up. `is_stuck`: a way back failed, since
    the system before can't be activated; `is_given_up`: its owner has asked to wipe it."""

    world: World
    name: str
    content: Content
    root: Root | None = None
    has_same_key_in_initrd: bool = False
    has_same_key_in_rescue: bool = False
    loader: str = ""
    confirm_timeout: float = 60.0
    boot: Boot | None = None
    is_on: bool = True
    boots: int = 0
    installs: int = 0
    is_stuck: bool = False
    is_given_up: bool = False
    wiped: int = 0
    lived: list[tuple[float, str | None]] = field(default_factory=list)

    @property
    def rng(self) -> random.Random:
        return self.world.rng

    @property
    def key(self) -> HostKey:
        """The host key that it shows now."""
        kind = self.boot.kind if self.boot else Kind.LINUX
        if kind is Kind.INITRD and not self.has_same_key_in_initrd:
            return key_of(f"{self.name}-initrd")
        if kind is Kind.RESCUE and not self.has_same_key_in_rescue:
            return key_of(f"{self.name}-rescue")
        return self.usual_key

    @property
    def usual_key(self) -> HostKey:
        """The host key of what is installed on it."""
        return key_of(f"{self.name}-{self.installs}" if self.installs else self.name)

    @property
    def live(self) -> str | None:
        return self.boot.system if self.boot else None

    def is_reachable(self) -> bool:
        return self.boot is not None and self.boot.has_network and self.boot.has_sshd

    def say(self, text: str) -> None:
        self.world.say(self.name, text)

    def note_live(self) -> None:
        """Remember what runs, for the invariants that ask what ran when."""
        self.lived.append((self.world.now, self.live))

    def ran(self, path: str | None, since: float) -> bool:
        """Whether that system was the live one at some moment from `since` on."""
        found = False
        for when, live in self.lived:
            if when <= since:
                found = live == path
            elif live == path:
                return True
        return found

    # -- going down and up ---------------------------------------------------------------------------

    def go_down(self, *, is_clean: bool) -> None:
        """Whatever runs ends; who is connected notices at once, or (a pulled plug) by silence."""
        boot, self.boot = self.boot, None
        if boot is not None:
            for session in list(boot.sessions):
                session.drop(is_noticed=is_clean)

    def reboot(
        self, kind: Kind | None = None, *, is_clean: bool = True, seconds: float | None = None
    ) -> None:
        """Go down and come up as `kind`, or as what the disk says."""
        self.say("goes down" if is_clean else "loses its power")
        self.go_down(is_clean=is_clean)
        self.boots += 1
        number = self.boots
        pause = self.rng.uniform(4, 40) if seconds is None else seconds
        self.world.scheduler.after(pause, lambda: self._come_up(number, kind))

    def _come_up(self, number: int, kind: Kind | None) -> None:
        if number != self.boots or not self.is_on:
            return
        if kind is not None:
            self.start(kind)
        elif self.content is Content.LINUX:
            self.start(Kind.LINUX)
        elif self.content is Content.NIXOS and self.root is not None:
            self._boot_nixos(self.root)
        else:
            self.say("finds nothing to boot")

    def _boot_nixos(self, root: Root) -> None:
        if not root.is_encrypted:
            self._boot_system(root)
            return
        self.start(Kind.INITRD)
        self.say("waits in its initrd for a passphrase")
        initrd = self.boot

        def unlock() -> None:
            if self.boot is initrd:
                self.go_down(is_clean=True)
                self._boot_system(root)

        self.world.scheduler.after(self.rng.uniform(20, 400), unlock)

    def _boot_system(self, root: Root) -> None:
        path, root.once = root.once or root.default, None
        system = self.world.systems[path]
        if root.is_ephemeral:
            root.files.clear()
        if system.boots is not Fate.GOOD:
            self.say(f"{system.name} does not come up")
            return
        root.has_run = True
        self.start(Kind.NIXOS, path)

    def start(self, kind: Kind, path: str | None = None) -> None:
        self.boots += 1
        number = f"{self.boots:04d}{self.world.machine_number(self):04d}"
        boot = Boot(f"{number}-0000-4000-8000-000000000000", kind, path, path)
        if path is not None:
            system = self.world.systems[path]
            boot.has_network, boot.has_sshd = system.has_network, system.has_sshd
            boot.is_healthy = system.is_healthy
        self.boot = boot
        self.note_live()
        self.say(f"runs {kind}" + (f" {self.world.systems[path].name}" if path else ""))

    # -- what scripts do to it -----------------------------------------------------------------------

    def alive(self, boot: Boot) -> Callable[[], bool]:
        return lambda: self.boot is boot

    def activate(self, path: str, action: str, *, is_guarded: bool = True) -> Process:
        """`switch-to-configuration switch|boot|test`; returns its exit status."""
        boot, root, system = self.boot, self.root, self.world.systems[path]
        if boot is None or root is None:
            return 1
        yield self.rng.uniform(0.2, 2)
        if action != "test":
            root.default, root.once = path, None
        if action == "boot":
            yield self.rng.uniform(0.1, 1)
            return 0
        if system.switches is Fate.FAILS and self.rng.random() < 0.5:
            return 1
        boot.system = path
        self.note_live()
        yield self.rng.uniform(0.2, 3)
        boot.is_healthy = system.is_healthy
        self._set_network(boot, system, is_guarded)
        if system.switches is Fate.HANGS:
            yield 1e6
        yield self.rng.uniform(0.2, 5)
        return 4 if system.switches is Fate.FAILS else 0

    def _set_network(self, boot: Boot, system: System, is_guarded: bool) -> None:
        has_network, has_sshd = system.has_network, system.has_sshd
        was = boot.has_network and boot.has_sshd
        boot.has_network, boot.has_sshd = has_network, has_sshd
        if not has_network:
            for session in list(boot.sessions):
                session.drop(is_noticed=False)
        if was and not (has_network and has_sshd):
            boot.broken_since = self.world.now
            self.say("can't be reached any more")
            if is_guarded:
                self.world.expect_reachable(self, boot)
        elif not was and has_network and has_sshd:
            boot.broken_since = None
            self.say("can be reached again")

    def mount_new(self, boot: Boot) -> None:
        """What disko leaves: new file systems on /mnt."""
        boot.mounted = Root("", [""], "")

    def install(self, boot: Boot, path: str) -> None:
        """What nixos-install leaves: a system that boots."""
        store = boot.mounted.store if boot.mounted else set()
        self.content, self.root = Content.NIXOS, Root.installed(path)
        self.root.store |= store

    def snapshot(self) -> tuple[str | None, str | None, str | None]:
        """Live system, profile, boot loader default."""
        root = self.root
        return (self.live, root.profile, root.default) if root else (self.live, None, None)
