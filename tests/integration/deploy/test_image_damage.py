"""A damaged or foreign image never reaches `kexec/run`, wherever it was damaged: in the cache, on the
way, on the host, or at its source. What is whole again afterwards is used."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nixa_tasks.image.cache.entry import Signature
from nixa_tasks.lab import Lab, image
from nixa_tasks.lab.machine import Machine
from tests.integration.deploy.conftest import Fleet

pytestmark = [pytest.mark.lab, pytest.mark.xdist_group("deploy-image-damage")]

FOLDER = "/root/.nixa-kexec"
CHECKED = "kexec_load failed"  # kexec/run itself says so: the host had found the image right
NOTHING_RAN = "nothing of it ran"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One practice machine, whose `kexec` refuses to load: what comes that far is seen, and undone."""
    place = tmp_path_factory.mktemp("damage")
    lab = Lab(place / "lab", kexec_delay=0)
    try:
        lab.up(1)
        fleet = Fleet(lab, place / "home")
        fleet.doit("build:web1", "kexec")
        yield fleet
    finally:
        lab.down()


@dataclass
class Damage:
    """The fleet of one test, and what the machine was before it."""

    fleet: Fleet
    web1: Machine
    boot_id: str | None

    @property
    def manifest(self) -> Path:
        return self.fleet.flake / "hosts.toml"

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.fleet.lab.image.read_bytes()).hexdigest()

    @property
    def cached(self) -> Path:
        return self.fleet.home / "cache" / f"{self.sha256}.tar.gz"

    @property
    def part(self) -> str:
        return f"{FOLDER}/{self.sha256}.part"

    def deploy(self, *, ran: bool) -> str:
        """A deploy that fails: at `kexec/run` itself, or before it."""
        self.web1.exec(["rm", "-f", f"{FOLDER}/run.log"])
        said = self.fleet.doit("deploy:web1", status=1)
        assert (CHECKED in said) is ran, said
        assert self.has_run() is ran, said
        assert self.web1.stage == "old"
        assert self.web1.boot_id == self.boot_id
        assert self.web1.wipes() == 0
        return said

    def has_run(self) -> bool:
        """Whether `kexec/run` was started since the last deploy began, or a kernel was loaded."""
        log = self.web1.exec(["test", "-e", f"{FOLDER}/run.log"])
        return log.returncode == 0 or self.web1.paths.loaded.exists()

    def on_host(self, script: str, *args: str) -> str:
        done = self.web1.exec(["sh", "-euc", script, "sh", *args])
        assert done.returncode == 0, done.stderr
        return done.stdout

    def pin(self, path: Path) -> None:
        """Another image for the manifest, pinned as it is."""
        text = re.sub(r"(?m)^url = .*$", f'url = "{path}"', self.manifest.read_text())
        self.manifest.write_text(re.sub(r"(?m)^sha256 = .*$", f'sha256 = "{image.sri(path)}"', text))


@pytest.fixture
def damage(shared: Fleet) -> Iterator[Damage]:
    web1 = shared.lab.machines["web1"]
    manifest = shared.flake / "hosts.toml"
    text = manifest.read_text()
    web1.exec(["rm", "-rf", FOLDER])
    web1.fault("kexec-fails")
    yield Damage(shared, web1, web1.boot_id)
    manifest.write_text(text)
    web1.exec(["rm", "-f", "/usr/local/bin/sha256sum"])


def flip(path: Path, at: int | None = None) -> None:
    """Change one bit in the middle, or at a place, of a file that keeps its size."""
    with path.open("r+b") as file:
        where = path.stat().st_size // 2 if at is None else at
        file.seek(where)
        byte = file.read(1)[0]
        file.seek(where)
        file.write(bytes([byte ^ 1]))


# --- in the cache


@pytest.mark.parametrize("how", ["flipped", "cut short"])
def test_a_cached_image_that_looks_other_than_before_is_fetched_again(damage: Damage, how: str) -> None:
    if how == "flipped":
        flip(damage.cached)
    else:
        os.truncate(damage.cached, damage.cached.stat().st_size - 1000)
    before = len(damage.fleet.lab.requests())
    said = damage.deploy(ran=True)
    assert "was damaged" in said
    assert len(damage.fleet.lab.requests()) > before
    assert image.sri(damage.cached) == damage.fleet.lab.image_sha256


def test_a_cached_image_that_was_damaged_and_is_nowhere_else_ends_the_deploy(damage: Damage) -> None:
    source = damage.fleet.lab.image
    flip(damage.cached)
    source.rename(source.with_suffix(".away"))
    try:
        said = damage.deploy(ran=False)
    finally:
        source.with_suffix(".away").rename(source)
    assert "was damaged" in said
    assert "404" in said
    assert damage.web1.exec(["test", "-e", FOLDER]).returncode == 1, "nothing was sent"
    damage.fleet.doit("kexec")


@pytest.mark.parametrize("how", ["flipped", "cut short"])
def test_a_cached_image_that_rotted_unseen_is_refused_by_the_host_and_replaced(
    damage: Damage, how: str
) -> None:
    rot(damage, how)
    said = damage.deploy(ran=False)
    assert NOTHING_RAN in said
    assert f"{damage.sha256}.tar.gz here was damaged, and has been removed" in said
    damage.deploy(ran=True)
    assert image.sri(damage.cached) == damage.fleet.lab.image_sha256


def test_a_cached_image_that_rotted_unseen_is_not_given_to_nixos_anywhere(damage: Damage) -> None:
    """Its own kexec phase checks nothing."""
    damage.manifest.write_text(
        damage.manifest.read_text().replace("[fleet]", '[fleet]\nkexec_phase = "nixos-anywhere"')
    )
    rot(damage, "flipped")
    said = damage.deploy(ran=False)
    assert "nothing was sent" in said
    assert f"{damage.sha256}.tar.gz here was damaged, and has been removed" in said
    damage.fleet.doit("kexec")


def rot(damage: Damage, how: str) -> None:
    """The disk gives other bytes, and size, times and inode are as they were noted."""
    if how == "flipped":
        flip(damage.cached)
    else:
        os.truncate(damage.cached, damage.cached.stat().st_size - 1000)
    entry = damage.cached.with_name(f"{damage.sha256}.json")
    known = json.loads(entry.read_text())
    looks = Signature.of(damage.cached.stat())
    known["files"][damage.cached.name] = [looks.size, looks.mtime, looks.ctime, looks.inode]
    entry.write_text(json.dumps(known))


# --- on the way


@pytest.fixture
def way(damage: Damage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Let something happen to one of nixa's ssh calls: the one whose command holds a certain text."""
    real = shutil.which("ssh")
    folder = tmp_path / "bin"
    folder.mkdir()

    def alter(text: str, does: str) -> None:
        script = folder / "ssh"
        script.write_text(f"""#!/bin/sh
real() {{ {real} "$@"; }}
case "$*" in *'{text}'*) {does} ;; *) exec {real} "$@" ;; esac
""")
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    return alter


FLIPPED = "{ head -c 2000000; head -c 1 | tr '\\000-\\377' '\\001-\\377\\000'; cat; } | real \"$@\""


def test_bytes_changed_on_the_way_are_refused_by_the_host_and_sent_again(
    damage: Damage, way: Callable[[str, str], None]
) -> None:
    way("cat >>", FLIPPED)
    assert NOTHING_RAN in damage.deploy(ran=False)
    way("cat >>", 'real "$@"')
    assert "going on" not in damage.deploy(ran=True)


def test_a_stream_that_ends_early_is_continued_and_one_with_more_in_it_is_refused(
    damage: Damage, way: Callable[[str, str], None]
) -> None:
    way("cat >>", 'head -c 3000000 | real "$@"')
    assert "going on at 2 MiB" in damage.deploy(ran=True)
    damage.web1.exec(["rm", "-rf", FOLDER])
    way("cat >>", '{ cat; echo more; } | real "$@"')
    assert "upload incomplete after 6 attempts" in damage.deploy(ran=False)


# --- on the host


@pytest.mark.parametrize("how", ["flipped", "cut short", "another file"])
def test_an_image_damaged_after_its_upload_is_refused_by_the_host(
    damage: Damage, way: Callable[[str, str], None], how: str
) -> None:
    other = damage.fleet.home / "other.tar.gz"
    damage.fleet.home.mkdir(exist_ok=True)
    foreign(damage.fleet.lab.image, other, lambda members: members)
    script = {
        "flipped": f"printf X | dd of={damage.part} bs=1 seek=2000000 conv=notrunc status=none",
        "cut short": f"truncate -s -1000 {damage.part}",
        "another file": f"cat >{damage.part}",
    }[how]
    inside = f"nsenter --target={damage.web1.state['pid']} --mount --pid --root sh -c '{script}' <{other}"
    way("sha256sum -c", f'{inside}; real "$@"')
    assert NOTHING_RAN in damage.deploy(ran=False)
    way("sha256sum -c", 'real "$@"')
    said = damage.deploy(ran=True)
    assert ("going on" in said) is (how == "cut short"), "what is wrong there is thrown away, and no more"


@pytest.mark.parametrize("how", ["flipped", "longer", "rubbish", "under its own name"])
def test_what_an_earlier_run_left_damaged_on_the_host_is_thrown_away(damage: Damage, how: str) -> None:
    damage.deploy(ran=True)
    damage.on_host(
        {
            "flipped": "printf X | dd of=$1 bs=1 seek=2000000 conv=notrunc status=none",
            "longer": "echo more >>$1",
            "rubbish": "head -c 100000 /dev/urandom >$1",
            "under its own name": 'printf X | dd of=$1 bs=1 seek=9 conv=notrunc status=none; mv "$1" "${1%.part}"',
        }[how],
        damage.part,
    )
    assert "going on" not in damage.deploy(ran=True)


@pytest.mark.parametrize("suffix", [".tar.gz", ".tar"])
def test_an_image_that_changes_between_the_hosts_check_and_its_unpacking_does_not_run(
    damage: Damage, suffix: str
) -> None:
    """Also where the format has no checksum of its own."""
    path = damage.fleet.home / f"plain{suffix}"
    members = list(members_of(damage.fleet.lab.image))
    write(path, members)
    damage.pin(path)
    # kexec/run is the last member: its text is what is changed, and its length is kept
    damage.on_host(r"""cat >/usr/local/bin/sha256sum <<'END'
#!/bin/sh
/usr/bin/sha256sum "$@" || exit
[ "${1-}" != -c ] || sed -i 's/^set -eu$/set -xu/' *.part
END
chmod 755 /usr/local/bin/sha256sum""")
    assert NOTHING_RAN in damage.deploy(ran=False)


# --- at its source: pinned as it is, and no image for this machine


Member = tuple[tarfile.TarInfo, bytes]


def members_of(path: Path) -> Iterator[Member]:
    with tarfile.open(path) as archive:
        for member in archive:
            file = archive.extractfile(member)
            yield member, b"" if file is None else file.read()


def write(path: Path, members: list[Member]) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    path.write_bytes(gzip.compress(data.getvalue(), 0) if path.name.endswith(".gz") else data.getvalue())


def foreign(good: Path, path: Path, change: Callable[[list[Member]], list[Member]]) -> None:
    """An image like the lab's, changed; its `kexec/run` leaves a trace."""
    members = [
        (member, b"#!/bin/sh\n: >/root/.nixa-kexec/run.log\n" if member.name == "kexec/run" else content)
        for member, content in members_of(good)
    ]
    write(path, change(members))


def file(name: str, content: bytes = b"x") -> Member:
    member = tarfile.TarInfo(name)
    member.mode = 0o755
    return member, content


def link(name: str, target: str) -> Member:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, target
    return member, b""


def for_another_architecture(members: list[Member]) -> list[Member]:
    def elf(content: bytes) -> bytes:
        machine = int.from_bytes(content[18:20], "little")
        return content[:18] + (183 if machine == 62 else 62).to_bytes(2, "little") + content[20:]

    return [(m, elf(content) if m.name == "kexec/kexec" else content) for m, content in members]


FOREIGN: dict[str, tuple[Callable[[list[Member]], list[Member]], str]] = {
    "a path outside": (lambda them: [*them, file("etc/cron.d/evil")], "lies outside kexec/"),
    "a path upwards": (lambda them: [*them, file("kexec/../../../etc/cron.d/evil")], "leads out of kexec/"),
    "an absolute path": (lambda them: [*them, file("/etc/cron.d/evil")], "leads out of kexec/"),
    "a link out": (lambda them: [*them, link("kexec/etc", "/etc")], "is a link to '/etc', out of kexec/"),
    "another architecture": (for_another_architecture, "is for "),
    "no run in it": (lambda them: [m for m in them if m[0].name != "kexec/run"], "kexec/run is not in it"),
}  # fmt: skip


@pytest.mark.parametrize("what", [*FOREIGN, "cut short"])
def test_an_image_that_is_none_for_this_machine_is_not_sent_though_it_is_the_pinned_one(
    damage: Damage, tmp_path: Path, what: str
) -> None:
    path = tmp_path / "foreign.tar.gz"
    change, says = FOREIGN.get(what, (lambda them: them, "can't be unpacked"))
    foreign(damage.fleet.lab.image, path, change)
    if what == "cut short":
        os.truncate(path, path.stat().st_size - 1000)
    damage.pin(path)
    contacts = damage.web1.contacts()
    said = damage.deploy(ran=False)
    assert says in said
    assert damage.web1.exec(["test", "-e", FOLDER]).returncode == 1, "nothing was sent"
    assert damage.web1.contacts() - contacts <= 1, "the question what it is, and no more"
