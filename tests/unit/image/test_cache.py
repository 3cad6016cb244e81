"""The cache: what is in it is right, whatever happened to its files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import traceback
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nixa_tasks import files as hashing
from nixa_tasks.errors import NixaError
from nixa_tasks.image.cache import entry as names
from nixa_tasks.image.cache.cache import Cache, cache_dir
from nixa_tasks.image.cache.entry import Entry
from nixa_tasks.image.download.fetch import fetch
from nixa_tasks.image.obtain import obtain
from nixa_tasks.manifest.digest import to_base32, to_sri
from nixa_tasks.manifest.model import UrlImage
from nixa_tasks.nix.command import Nix
from nixa_tasks.process.run import LocalProcesses
from tests.clocks import CLOCK, FakeClock
from tests.tarballs import installer

BODY = b"an image" * 1000
SHA256 = hashlib.sha256(BODY).hexdigest()
IMAGE = UrlImage("i", "https://example.org/image.tar.gz", SHA256)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """A cache with one image."""
    made = Cache(tmp_path / "cache", CLOCK)
    made.make()
    made.file(SHA256, ".part").write_bytes(BODY)
    made.adopt(made.file(SHA256, ".part"), SHA256, ".tar.gz", Entry(url=IMAGE.url, etag='"1"'))
    return made


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Which files were read through."""
    seen: list[Path] = []
    real = hashing.hash_file

    def counting(path: Path, progress: Callable[[int, int | None], None] | None = None) -> str:
        seen.append(path)
        return real(path, progress)

    monkeypatch.setattr("nixa_tasks.image.cache.cache.hash_file", counting)
    return seen


def test_the_order_of_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("NIXA_CACHE", raising=False)
    assert cache_dir(None) == tmp_path / "xdg/nixa"
    assert cache_dir(Path("/fleet")) == Path("/fleet")
    monkeypatch.setenv("NIXA_CACHE", str(tmp_path / "chosen"))
    assert cache_dir(Path("/fleet")) == tmp_path / "chosen"


def test_a_finished_file_is_found_without_being_read(cache: Cache, hashed: list[Path]) -> None:
    assert cache.find(IMAGE) == cache.path(IMAGE)
    assert hashed == []
    assert (cache.entry(SHA256).size, cache.entry(SHA256).etag) == (len(BODY), '"1"')


def test_restored_by_ci_with_new_times_it_still_hits(
    cache: Cache, tmp_path: Path, hashed: list[Path]
) -> None:
    restored = Cache(tmp_path / "restored", CLOCK)
    shutil.copytree(cache.folder, restored.folder, copy_function=shutil.copyfile)
    assert restored.find(IMAGE) is not None
    assert restored.find(IMAGE) is not None
    assert len(hashed) == 1  # read through once, then its new looks are known


@pytest.mark.parametrize("has_entry", [True, False])
def test_the_file_alone_is_enough(cache: Cache, has_entry: bool) -> None:
    entry = cache.file(SHA256, ".json")
    entry.write_text("{damaged") if has_entry else entry.unlink()
    assert cache.find(IMAGE) is not None


@pytest.mark.parametrize("times", ["kept", "new"])
def test_a_flipped_bit_is_noticed_even_with_the_old_times(cache: Cache, times: str) -> None:
    path = cache.path(IMAGE)
    before = path.stat()
    data = bytearray(BODY)
    data[100] ^= 1
    path.write_bytes(data)
    if times == "kept":
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    notes: list[str] = []
    assert cache.find(IMAGE, notes.append) is None
    assert "damaged" in notes[0]
    assert not path.exists()


@pytest.mark.parametrize("content", [b"", BODY[:-1], BODY + b"x"])
def test_a_wrong_length_is_noticed(cache: Cache, content: bytes) -> None:
    cache.path(IMAGE).write_bytes(content)
    assert cache.find(IMAGE) is None


def test_something_else_in_the_way_is_said(cache: Cache) -> None:
    cache.path(IMAGE).unlink()
    cache.path(IMAGE).mkdir()
    with pytest.raises(NixaError, match="in the way"):
        cache.find(IMAGE)


def test_another_suffix_is_a_link_not_a_download(cache: Cache, hashed: list[Path]) -> None:
    other = replace(IMAGE, url="https://elsewhere.example.org/i.tar.xz")
    found = cache.find(other)
    assert found == cache.folder / f"{SHA256}.tar.xz"
    assert found.stat().st_ino == cache.path(IMAGE).stat().st_ino
    assert cache.find(IMAGE) is not None
    assert hashed == []


def test_many_at_once_may_want_another_suffix(cache: Cache) -> None:
    other = replace(IMAGE, url="https://elsewhere.example.org/i.tar.xz")
    found: list[Path | None] = []
    threads = [threading.Thread(target=lambda: found.append(cache.find(other))) for _ in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert found == [cache.path(other)] * 8


def test_verify_reads_everything_and_removes_what_is_wrong(cache: Cache, hashed: list[Path]) -> None:
    assert cache.verify(IMAGE) == cache.path(IMAGE)
    assert hashed == [cache.path(IMAGE)]
    assert cache.verify(replace(IMAGE, sha256="0" * 64)) is None


def test_clean_tells_what_it_freed_and_leaves_the_rest(cache: Cache) -> None:
    cache.find(replace(IMAGE, url="https://example.org/i.tar"))  # a hard link frees nothing more
    other = cache.file("1" * 64, ".tar.gz")
    other.write_bytes(b"somebody else's")
    assert cache.clean([IMAGE]) == len(BODY)
    assert [one.name for one in cache.folder.iterdir()] == [other.name]
    assert cache.clean([IMAGE]) == 0


def test_clean_removes_partial_files(cache: Cache) -> None:
    for ending in (".part", ".part.json", ".aside", ".wrong", ".copy"):
        cache.file(SHA256, ending).write_bytes(b"x" * 5000)
    assert cache.clean([IMAGE]) == len(BODY) + 4 * 5000
    assert list(cache.folder.iterdir()) == []


@pytest.mark.parametrize("spelling", [SHA256, SHA256.upper(), to_sri(SHA256), to_base32(SHA256)])
def test_gc_keeps_what_a_manifest_pins_in_any_spelling(cache: Cache, tmp_path: Path, spelling: str) -> None:
    manifest = tmp_path / "hosts.toml"
    manifest.write_text(f'kexec.i = {{ sha256 = "{spelling}" }}')
    cache.record_pin(IMAGE, manifest)
    assert cache.gc(dry_run=False) == []
    manifest.write_text("[kexec.i]\nsha256 = 'another'")
    assert [one.path for one in cache.gc(dry_run=True)] == [cache.path(IMAGE)]
    assert cache.find(IMAGE) is not None
    removed = cache.gc(dry_run=False)
    assert [(one.path, one.size) for one in removed] == [(cache.path(IMAGE), len(BODY))]
    assert str(manifest) in removed[0].why
    assert list(cache.folder.iterdir()) == []


def test_gc_forgets_a_manifest_that_is_gone_for_a_month_and_keeps_the_callers(
    cache: Cache, tmp_path: Path
) -> None:
    clock = FakeClock()
    later = Cache(cache.folder, clock)
    later.record_pin(IMAGE, tmp_path / "gone/hosts.toml")
    clock.pass_time(days=29)
    assert later.gc(dry_run=False) == []
    clock.pass_time(days=2)
    assert later.gc(dry_run=False, keep=[IMAGE]) == []
    assert len(later.gc(dry_run=False)) == 1


def test_gc_keeps_what_a_broken_manifest_may_pin(cache: Cache, tmp_path: Path) -> None:
    manifest = tmp_path / "hosts.toml"
    cache.record_pin(IMAGE, manifest)
    manifest.write_text("[kexec.i")
    assert cache.gc(dry_run=False) == []


def test_gc_reads_the_value_and_not_the_text(cache: Cache, tmp_path: Path) -> None:
    manifest = tmp_path / "hosts.toml"
    cache.record_pin(IMAGE, manifest)
    manifest.write_text(f"# was {SHA256}\n")
    assert len(cache.gc(dry_run=True)) == 1
    escaped = "".join(f"\\u{ord(char):04x}" for char in SHA256)
    manifest.write_text(f'[kexec."i"]\nsha256 = "{escaped}"\n')
    assert cache.gc(dry_run=True) == []


def test_gc_keeps_what_is_about_to_be_pinned_for_an_hour(cache: Cache, tmp_path: Path) -> None:
    manifest, clock = tmp_path / "hosts.toml", FakeClock()
    manifest.write_text("")
    later = Cache(cache.folder, clock)
    later.record_pin(IMAGE, manifest, is_pending=True)
    assert later.gc(dry_run=False) == []
    clock.pass_time(hours=2)
    assert len(later.gc(dry_run=True)) == 1


def test_gc_leaves_what_is_in_use_and_says_so(cache: Cache) -> None:
    notes: list[str] = []
    with cache.locked(SHA256):
        assert cache.gc(dry_run=False, note=notes.append) == []
    assert f"process {os.getpid()}" in notes[0]
    assert len(cache.gc(dry_run=False)) == 1


def test_a_cache_that_is_only_to_be_read_serves_other_users(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    for folder in (
        tmp_path,
        *(parent for parent in tmp_path.parents if parent.name.startswith(("pytest-", "popen-"))),
    ):
        folder.chmod(0o755)
    data = installer()
    image = UrlImage("i", "https://example.org/image.tar.gz", hashlib.sha256(data).hexdigest())
    cache = Cache(tmp_path / "cache", CLOCK)
    cache.make()
    cache.file(image.sha256, ".part").write_bytes(data)
    cache.adopt(cache.file(image.sha256, ".part"), image.sha256, ".tar.gz", Entry(url=image.url))
    notes: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of forks beside threads
        child = os.fork()
    if child == 0:
        try:
            os.setgid(65534)
            os.setuid(65534)
            got = obtain(
                image, cache=cache, manifest=Path("/elsewhere/hosts.toml"), gcroots=tmp_path, nix=Nix(LocalProcesses()),
                progress=lambda _d, _t: None, note=notes.append,
            )  # fmt: skip
            os._exit(0 if got.path == cache.path(image) and "can't note who pins" in notes[0] else 3)
        except BaseException:  # noqa: BLE001 - whatever it is, the parent must hear of it
            traceback.print_exc()
            os._exit(4)
    assert os.waitpid(child, 0)[1] == 0


LEFT_BY_A_KILL = (
    f"{SHA256}.store/image.tar.gz",
    f"{SHA256}.ab12cd34.store/image.tar.gz",
    f"{SHA256}.ab12cd34.tmp",
    f".{SHA256}.json.ab12cd34",
    f"{SHA256}.part.json.tmp",
)


@pytest.mark.parametrize("how", ["gc", "clean"])
def test_what_a_killed_process_left_goes(cache: Cache, tmp_path: Path, how: str) -> None:
    for name in LEFT_BY_A_KILL:
        left = cache.folder / name
        left.parent.mkdir(exist_ok=True)
        left.write_bytes(b"x" * 5000)
    manifest = tmp_path / "hosts.toml"
    cache.record_pin(IMAGE, manifest)
    manifest.write_text(f"kexec.i.sha256 = '{SHA256}'")
    if how == "gc":
        assert sum(one.size for one in cache.gc(dry_run=False)) == 5 * 5000
        assert cache.find(IMAGE) is not None
    else:
        assert cache.clean([IMAGE]) == len(BODY) + 5 * 5000
    assert not any((cache.folder / name).exists() for name in LEFT_BY_A_KILL)
    assert not any((cache.folder / name).parent.name.endswith(".store") and (cache.folder / name).parent.exists()
                   for name in LEFT_BY_A_KILL)  # fmt: skip


def test_pins_do_not_grow_without_end(cache: Cache) -> None:
    clock = FakeClock()
    growing = Cache(cache.folder, clock)
    for number in range(250):
        growing.record_pin(IMAGE, Path(f"/build/{number}/hosts.toml"))
        clock.pass_time(minutes=1)
    pins = growing.entry(SHA256).pinned_by
    assert len(pins) == 200
    assert "/build/249/hosts.toml" in pins


def test_a_manifest_whose_name_is_not_utf8(cache: Cache, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"\xff with blanks")
    folder.mkdir()
    manifest = folder / "hosts.toml"
    manifest.write_text(f"[kexec]\ni = {{sha256='{SHA256}'}}")
    cache.record_pin(IMAGE, manifest)
    assert str(manifest) in cache.entry(SHA256).pinned_by
    assert cache.gc(dry_run=False) == []


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o757])
def test_a_folder_that_others_can_write_to_is_refused(cache: Cache, mode: int) -> None:
    cache.folder.chmod(mode)
    with pytest.raises(NixaError, match="others can write"):
        cache.make()
    with pytest.raises(NixaError, match="others can write") as caught:
        cache.find(IMAGE)
    assert "chmod go-w" in caught.value.render()


def test_a_planted_link_is_not_followed(cache: Cache, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    cache.file(SHA256, ".lock").symlink_to(victim)
    with pytest.raises(NixaError, match="can't be opened"), cache.locked(SHA256):
        pass
    assert victim.read_text() == "mine"


def test_a_damaged_file_that_was_replaced_meanwhile_stays(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = cache.path(IMAGE)
    path.write_bytes(b"damaged")
    real = hashing.hash_file

    def hash_and_replace(file: Path, progress: Callable[[int, int | None], None] | None = None) -> str:
        digest = real(file, progress)
        if digest != SHA256:  # another run fetches the right one while this one has seen the wrong one
            fresh = file.with_name("fresh")
            fresh.write_bytes(BODY)
            fresh.replace(file)
        return digest

    monkeypatch.setattr("nixa_tasks.image.cache.cache.hash_file", hash_and_replace)
    cache.find(IMAGE)
    assert path.read_bytes() == BODY


def test_what_is_carried_in_shares_nothing_with_the_original(cache: Cache, tmp_path: Path) -> None:
    carried = tmp_path / "carried.tar.gz"
    carried.write_bytes(BODY)
    other = Cache(tmp_path / "other", CLOCK)
    path = fetch(
        replace(IMAGE, url=str(carried)), other, progress=lambda _d, _t: None, note=lambda _text: None
    )
    with carried.open("r+b") as file:
        file.write(b"rewritten in place")
    assert path.read_bytes() == BODY


def test_gc_leaves_foreign_files_alone(cache: Cache) -> None:
    foreign = cache.folder / "notes.txt"
    foreign.write_text("mine")
    cache.gc(dry_run=False)
    assert foreign.exists()


def test_pins_of_many_writers_are_all_kept(cache: Cache) -> None:
    manifests = [Path(f"/project-{number}/hosts.toml") for number in range(20)]
    threads = [threading.Thread(target=cache.record_pin, args=(IMAGE, one)) for one in manifests]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert sorted(cache.entry(SHA256).pinned_by) == sorted(map(str, manifests))


def test_a_folder_that_cant_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NixaError, match="can't be created"):
        Cache(tmp_path / "file/cache", CLOCK).make()


@pytest.mark.parametrize("as_url", [True, False])
def test_an_image_carried_in_by_hand(tmp_path: Path, as_url: bool) -> None:
    carried = tmp_path / "carried in.tar.gz"
    carried.write_bytes(BODY)
    cache = Cache(tmp_path / "cache", CLOCK)
    image = replace(IMAGE, url=carried.as_uri() if as_url else str(carried))
    path = fetch(image, cache, progress=lambda _done, _total: None, note=lambda _text: None)
    assert path.read_bytes() == BODY
    assert path.name == f"{SHA256}.tar.gz"
    carried.write_bytes(b"changed in place")  # perhaps the same file, if it could be linked
    found = cache.find(image)
    assert found is None or found.read_bytes() == BODY


def test_a_wrong_file_carried_in_is_named_and_not_taken(tmp_path: Path) -> None:
    carried = tmp_path / "x.tar.gz"
    carried.write_bytes(b"wrong")
    cache = Cache(tmp_path / "cache", CLOCK)
    with pytest.raises(NixaError, match=r"x\.tar\.gz: the file is not the pinned one"):
        fetch(replace(IMAGE, url=str(carried)), cache, progress=lambda _d, _t: None, note=lambda _text: None)
    assert list(cache.folder.iterdir()) == []
    assert carried.read_bytes() == b"wrong"


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(NixaError, match="can't be read: No such file"):
        fetch(
            replace(IMAGE, url="/nowhere/x.tar.gz"),
            Cache(tmp_path / "cache", CLOCK),
            progress=lambda _d, _t: None,
            note=lambda _text: None,
        )


def test_no_unfinished_name_looks_finished() -> None:
    for ending in names.UNFINISHED:
        assert not names.is_finished(SHA256 + ending)
        assert names.suffix_of(SHA256 + ending) == ""
    assert all(names.is_finished(name) for name in names.every_finished(SHA256))


@pytest.mark.parametrize(
    "text", ["", "null", "[]", '{"size": "x"}', '{"files": {"a": [1, 2]}}', '{"pinned_by": {}}', "\x00"]
)
def test_a_damaged_entry_reads_as_an_empty_one(cache: Cache, text: str) -> None:
    cache.file(SHA256, ".json").write_text(text)
    assert cache.entry(SHA256) == Entry()


def test_an_entry_survives_json(cache: Cache) -> None:
    entry = cache.entry(SHA256)
    assert json.loads(cache.file(SHA256, ".json").read_text()) == entry.to_json()
