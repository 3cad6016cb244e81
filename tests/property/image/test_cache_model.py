"""Histories of fetches, pins, clean-ups, kills, damage and changing servers, against what must hold:

- what `fetch` gives has the pinned hash, and so has whatever lies under a finished name;
- a pin is only written of a whole file that its server serves;
- a source that has the file and answers well is always reached;
- what a project pins and has fetched is there until somebody cleans or damages it.

A history is a seed: a failure prints the shortest list of events that still fails.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nixa_tasks.errors import NixaError
from nixa_tasks.image import pin
from nixa_tasks.image.cache import entry as names
from nixa_tasks.image.cache.cache import Cache
from nixa_tasks.image.download.fetch import fetch
from nixa_tasks.manifest.digest import to_sri
from nixa_tasks.manifest.model import UrlImage
from tests.image_world import WATCHED, Server, World, sha256
from tests.tarballs import installer

HISTORIES = 10_000 if os.environ.get("CI") == "true" else 300
EVENTS = 7
BODIES = [installer(seed, 1500) for seed in range(4)]
UPSTREAM = ("http://origin.example/x.tar.gz", "https://origin.example/x.tar.gz")
MIRROR = "http://mirror.example/x.tar.gz"

Event = tuple[str, int, int]
NAMES = (
    "fetch", "fetch", "fetch", "fetch", "pin", "pin", "gc", "clean", "corrupt", "change", "lag", "nodes", "fault",
    "fault", "fault", "kill", "kill", "time", "etags", "ranges",
)  # fmt: skip


def _ignore(*_args: object) -> None:
    pass


@dataclass
class Model:
    """The world, two projects, and what is known of them."""

    root: Path
    world: World = field(init=False)
    pins: dict[int, str] = field(default_factory=dict)
    holds: dict[int, str] = field(default_factory=dict)
    tainted: set[str] = field(default_factory=set)
    kill_next: int | None = None

    def __post_init__(self) -> None:
        folder = self.root / "cache"
        folder.mkdir()
        self.world = World(folder)
        for url in (*UPSTREAM, MIRROR):
            self.world.servers[url] = Server(url, [BODIES[0]])
        for project in (0, 1):
            self.write(project, sha256(BODIES[0]))

    @property
    def cache(self) -> Cache:
        return Cache(self.world.folder, self.world.clock)

    def manifest(self, project: int) -> Path:
        return self.root / f"project-{project}" / "hosts.toml"

    def write(self, project: int, digest: str) -> None:
        self.manifest(project).parent.mkdir(exist_ok=True)
        self.manifest(project).write_text(f'[kexec.i]\nsha256 = "{to_sri(digest)}"\n')
        self.pins[project] = digest

    def image(self, project: int) -> UrlImage:
        return UrlImage("i", UPSTREAM[project], self.pins[project], mirrors=(MIRROR,))

    # --- events

    def happen(self, event: Event) -> None:
        name, a, b = event
        getattr(self, f"on_{name}")(a, b)
        self.check()

    def on_fetch(self, a: int, _b: int) -> None:
        project, kill = a % 2, self.take_kill()
        image = self.image(project)
        is_good = any(self.world.servers[url].is_good_for(image.sha256) for url in (image.url, MIRROR))
        path: Path | None = None
        error: NixaError | None = None
        with self.world.process(kill):
            self.cache.record_pin(image, self.manifest(project))
            try:
                path = fetch(image, self.cache, progress=_ignore, note=_ignore, network=self.world.network)
            except NixaError as caught:
                error = caught
        if self.world.is_dead:
            return
        if path is None:
            assert not is_good, f"a good source was not reached: {error and error.render()}"
            return
        assert sha256(path.read_bytes()) == image.sha256, "fetch gave a wrong file"
        self.tainted -= {name for name in self.tainted if name == path.name}
        self.holds[project] = image.sha256

    def on_pin(self, a: int, _b: int) -> None:
        project, kill = a % 2, self.take_kill()
        image = self.image(project)
        server = self.world.servers[image.url]
        server.served.clear()
        found = None
        with self.world.process(kill):
            try:
                found = pin.look(
                    image, cache=self.cache, progress=_ignore, note=_ignore, network=self.world.network
                )
            except NixaError:
                pass
            else:
                pinned = UrlImage("i", image.url, found.sha256)
                self.cache.record_pin(pinned, self.manifest(project), is_pending=True)
        if self.world.is_dead or found is None:
            return
        served = {sha256(body) for body in (*server.served, *server.nodes)}
        assert found.sha256 in served, "a pin of bytes that nobody serves"
        assert sha256(found.path.read_bytes()) == found.sha256
        self.other_gc(1 - project)
        assert found.path.exists(), "gc took what was about to be pinned"
        self.write(project, found.sha256)
        self.holds[project] = found.sha256

    def other_gc(self, project: int) -> None:
        with self.world.process(None):
            self.cache.gc(dry_run=False, keep=[self.image(project)])

    def on_gc(self, a: int, _b: int) -> None:
        project, kill = a % 2, self.take_kill()
        with self.world.process(kill):
            self.cache.gc(dry_run=False, keep=[self.image(project)])

    def on_clean(self, a: int, _b: int) -> None:
        project = a % 2
        with self.world.process(self.take_kill()):
            self.cache.clean([self.image(project)])
        gone = self.pins[project]
        self.holds = {one: digest for one, digest in self.holds.items() if digest != gone}

    def on_corrupt(self, a: int, b: int) -> None:
        files = [path for path in sorted(self.world.folder.iterdir()) if path.is_file()]
        if not files:
            return
        path = files[a % len(files)]
        data = bytearray(path.read_bytes())
        if b % 3 == 0 or not data:
            data = data[: b % (len(data) + 1)]
        elif b % 3 == 1:
            data[b % len(data)] ^= 1 + b % 255
        else:
            data += b"more"
        before = path.stat().st_mtime_ns
        path.write_bytes(data)
        os.utime(path, ns=(before, before + 1_000_000_000))  # without waiting for the file system's clock
        if names.is_finished(path.name):
            self.tainted.add(path.name)
        digest = path.name[:64]
        self.holds = {one: held for one, held in self.holds.items() if held != digest}

    def on_change(self, a: int, b: int) -> None:
        for url in UPSTREAM:
            self.world.servers[url].nodes = [BODIES[a % len(BODIES)]]
        if b % 2:
            self.world.servers[MIRROR].nodes = [BODIES[a % len(BODIES)]]

    def on_lag(self, a: int, _b: int) -> None:
        self.world.servers[MIRROR].nodes = [BODIES[a % len(BODIES)]]

    def on_nodes(self, a: int, b: int) -> None:
        self.world.servers[self.any_url(b)].nodes = [BODIES[a % len(BODIES)], BODIES[b % len(BODIES)]]

    def on_fault(self, a: int, b: int) -> None:
        kind = ("cut", "cut", "damage", "damage", "endless", "refuse", "busy")[a % 7]
        self.world.servers[self.any_url(b)].faults.append((kind, b))

    def on_kill(self, a: int, _b: int) -> None:
        self.kill_next = a % 60

    def on_time(self, a: int, _b: int) -> None:
        self.world.clock.pass_time(hours=(1, 5, 30, 24 * 40)[a % 4])

    def on_etags(self, a: int, b: int) -> None:
        self.world.servers[self.any_url(b)].etags = ("content", "constant", "none")[a % 3]

    def on_ranges(self, a: int, b: int) -> None:
        server = self.world.servers[self.any_url(b)]
        server.serves_ranges, server.ignores_if_range = bool(a % 3), a % 2 == 0

    @staticmethod
    def any_url(number: int) -> str:
        return (*UPSTREAM, MIRROR)[number % 3]

    def take_kill(self) -> int | None:
        taken, self.kill_next = self.kill_next, None
        return taken

    # --- what must hold

    def check(self) -> None:
        for path in self.world.folder.iterdir():
            if names.is_finished(path.name) and path.name not in self.tainted:
                assert sha256(path.read_bytes()) == path.name[:64], f"{path.name} is another file"
        for project, digest in self.holds.items():
            if digest == self.pins[project]:
                there = [path for path in self.world.folder.iterdir() if path.name == f"{digest}.tar.gz"]
                assert there, f"what project {project} pins and has fetched is gone"


def history(seed: int) -> list[Event]:
    chance = random.Random(seed)
    return [
        (chance.choice(NAMES), chance.randrange(1 << 16), chance.randrange(1 << 16))
        for _ in range(chance.randint(2, EVENTS))
    ] + [("fetch", 0, 0), ("fetch", 1, 0)]


def failure(events: list[Event], root: Path) -> BaseException | None:
    """What goes wrong in a history; None where nothing does."""
    folder = Path(tempfile.mkdtemp(dir=root))
    try:
        model = Model(folder)
        for event in events:
            model.happen(event)
    except Exception as error:  # noqa: BLE001 - any error at all is a finding
        return error
    finally:
        shutil.rmtree(folder)
    return None


def shortest(events: list[Event], fails: Callable[[list[Event]], bool]) -> list[Event]:
    """The history without the events that it fails without."""
    for number in reversed(range(len(events))):
        fewer = events[:number] + events[number + 1 :]
        if fails(fewer):
            events = fewer
    return events


@pytest.fixture
def root() -> Iterator[Path]:
    """Where the histories happen: in memory, where there is room."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.mark.parametrize("part", range(10))
def test_what_holds_in_every_history(root: Path, part: int) -> None:
    WATCHED.hook()
    for seed in range(part, HISTORIES, 10):
        events = history(seed)
        error = failure(events, root)
        if error is not None:
            few = shortest(events, lambda fewer: failure(fewer, root) is not None)
            raise AssertionError(f"seed {seed}: {few}") from failure(few, root) or error
