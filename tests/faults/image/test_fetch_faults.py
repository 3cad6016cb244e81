"""Whatever a server does: the right file or a clear error, never a bad file, never a lost good byte."""

from __future__ import annotations

import errno
import gzip
import os
import socket
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path

import pytest

from nixa_tasks.image.cache.cache import Cache
from nixa_tasks.image.download.fetch import FetchError, WrongFile
from nixa_tasks.image.download.part import Part
from nixa_tasks.manifest.digest import to_sri
from nixa_tasks.manifest.model import UrlImage
from tests.clocks import CLOCK, FakeClock

from .image_server import QUICK, Try, content, image_of, serving, sha256

BODY = content()


@pytest.fixture
def attempt(tmp_path: Path) -> Try:
    return Try(Cache(tmp_path / "cache", CLOCK))


def test_a_file_is_fetched_once_and_then_found(attempt: Try) -> None:
    with serving(BODY) as server:
        image = image_of(server, BODY)
        path = attempt.fetch(image)
        assert path.read_bytes() == BODY
        assert path.name == f"{sha256(BODY)}.tar.gz"
        assert attempt.fetch(image) == path
        assert attempt.fetch(replace(image, url=server.base + "/other.tar.gz")) == path
        assert len(server.asked) == 1
    assert attempt.steps[-1] == (len(BODY), len(BODY))
    assert sorted(one.name for one in attempt.cache.folder.iterdir()) == [path.name[:64] + ".json", path.name]


@pytest.mark.parametrize("has_etag", [True, False])
def test_cuts_at_every_tenth_lose_no_byte(attempt: Try, has_etag: bool) -> None:
    with serving(BODY) as server:
        server.do.cuts = [len(BODY) * tenth // 10 for tenth in range(1, 10)]
        if not has_etag:
            server.do.etag, server.do.last_modified = None, formatdate(1e9, usegmt=True)
        assert attempt.fetch(image_of(server, BODY)).read_bytes() == BODY
        assert server.served == len(BODY)
        assert len(server.asked) == 10


@pytest.mark.parametrize("tenth", range(1, 10))
def test_another_run_goes_on_where_a_cut_run_ended(attempt: Try, tenth: int) -> None:
    with serving(BODY) as server:
        image = image_of(server, BODY)
        server.do.cuts = [len(BODY) * tenth // 10]
        with pytest.raises(FetchError, match="too early"):
            attempt.fetch(image, replace(QUICK, tries=0))
        assert attempt.finished() == []
        assert attempt.fetch(image).read_bytes() == BODY
        assert server.served == len(BODY)


def test_without_validators_a_little_is_compared_before_going_on(attempt: Try) -> None:
    with serving(BODY) as server:
        server.do.etag = None
        server.do.cuts = [400_000, 800_000]
        assert attempt.fetch(image_of(server, BODY)).read_bytes() == BODY
        assert len(BODY) < server.served <= len(BODY) + 2 * 4096


def test_a_stalled_connection_is_left_and_continued(attempt: Try) -> None:
    with serving(BODY) as server:
        server.do.stalls = [300_000, 700_000]
        assert attempt.fetch(image_of(server, BODY)).read_bytes() == BODY
        assert server.served == len(BODY)
    assert any("no byte for" in note for note in attempt.notes)


def test_a_server_that_always_stalls_is_an_error_and_keeps_what_came(attempt: Try) -> None:
    with serving(BODY) as server:
        image = image_of(server, BODY)
        server.do.stalls = [500_000]
        server.do.refuses_after = 1
        with pytest.raises(FetchError, match="429"):
            attempt.fetch(image)
        assert attempt.cache.file(image.sha256, ".part").stat().st_size == 500_000


def test_a_slow_drip_is_given_up(attempt: Try) -> None:
    with serving(BODY) as server:
        server.do.rate = 2000.0
        with pytest.raises(FetchError, match="bytes a second"):
            attempt.fetch(image_of(server, BODY), replace(QUICK, tries=1))


def test_the_total_deadline_holds_for_a_server_that_is_merely_slow(attempt: Try) -> None:
    with serving(BODY) as server:
        server.do.rate = 200_000.0
        with pytest.raises(FetchError, match="not done in time"):
            attempt.fetch(image_of(server, BODY), replace(QUICK, total=1.0))


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_passing_refusal_is_waited_out(attempt: Try, status: int) -> None:
    with serving(BODY) as server:
        server.do.statuses = [(status, {"Retry-After": "3600"}), (status, {})]
        assert attempt.fetch(image_of(server, BODY)).read_bytes() == BODY
    assert "trying again in 0.3 s" in attempt.notes[0]  # the hour it asked for, capped


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451])
def test_a_lasting_refusal_is_said_at_once(attempt: Try, status: int) -> None:
    with serving(BODY) as server:
        server.do.statuses = [(status, {})] * 5
        with pytest.raises(FetchError, match=str(status)) as caught:
            attempt.fetch(image_of(server, BODY))
        assert len(server.asked) == 1
    assert server.url in caught.value.render()


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_refusal_without_end_is_an_error(attempt: Try, status: int) -> None:
    with serving(BODY) as server:
        server.do.statuses = [(status, {})] * 50
        with pytest.raises(FetchError, match=str(status)):
            attempt.fetch(image_of(server, BODY))
        assert len(server.asked) == QUICK.tries


def test_wrong_content_is_never_a_finished_file(attempt: Try) -> None:
    other = content(seed=2)
    with serving(other) as server:
        server.do.last_modified = "Tue, 14 Jul 2026 10:00:00 GMT"
        image = image_of(server, BODY)
        with pytest.raises(WrongFile) as caught:
            attempt.fetch(image)
        said = caught.value.render()
        for part in (
            to_sri(sha256(BODY)), sha256(BODY), to_sri(sha256(other)), sha256(other), server.url,
            str(len(other)), "14 Jul 2026", '"v1"', "doit pin:x86_64-linux", "mirror",
        ):  # fmt: skip
            assert part in said
        assert attempt.finished() == []
        assert attempt.cache.find(image) is None
        assert "doit kexec:x86_64-linux fetches it again" in said
        # Perhaps it was damaged on the way: it is fetched once more.
        with pytest.raises(WrongFile, match="not the pinned one"):
            attempt.fetch(image)
        assert server.served == 2 * len(other)
        # Now, as long as the server says that it has the same file, it need not be fetched to say so.
        with pytest.raises(WrongFile, match="not the pinned one"):
            attempt.fetch(image)
        assert server.served == 2 * len(other)
        # And pinned by its own hash, it is there.
        assert attempt.fetch(image_of(server, other)).read_bytes() == other
        assert server.served == 2 * len(other)


@pytest.mark.parametrize("etag", ['"v1"', 'W/"v1"', None])
def test_a_changed_upstream_is_not_downloaded_for_each_try(attempt: Try, etag: str | None) -> None:
    with serving(content(seed=2)) as server:
        server.do.etag, server.do.last_modified = etag, formatdate(1e9, usegmt=True)
        for number in range(4):
            attempt.steps.clear()
            with pytest.raises(WrongFile):
                attempt.fetch(image_of(server, BODY))
            assert max(done for done, _total in attempt.steps) == (len(BODY) if number < 2 else 0)


def test_a_download_damaged_once_is_healed_by_the_next_try(attempt: Try) -> None:
    flipped = bytearray(BODY)
    flipped[1000] ^= 1
    with serving(bytes(flipped)) as server:
        image = image_of(server, BODY)
        with pytest.raises(WrongFile):
            attempt.fetch(image)
        server.do.body = BODY  # and the ETag is what it was
        assert attempt.fetch(image).read_bytes() == BODY


def test_a_wrong_file_is_looked_at_again_after_a_day(tmp_path: Path) -> None:
    clock = FakeClock()
    attempt = Try(Cache(tmp_path / "cache", clock))
    with serving(content(seed=2)) as server:
        image = image_of(server, BODY)
        for _ in range(3):
            with pytest.raises(WrongFile):
                attempt.fetch(image)
        clock.pass_time(days=1)
        server.do.body = BODY  # and the ETag is what it was
        assert attempt.fetch(image).read_bytes() == BODY


def test_a_server_that_ignores_if_range_does_not_get_two_files_joined(attempt: Try) -> None:
    with serving(content(seed=3)) as server:
        server.do.cuts, server.do.ignores_if_range = [600_000], True
        image = image_of(server, BODY)
        with pytest.raises(FetchError):
            attempt.fetch(image, replace(QUICK, tries=0))
        server.do.body, server.do.etag = BODY, '"v2"'
        assert attempt.fetch(image).read_bytes() == BODY


@pytest.mark.parametrize("start", [0, 600_000])
def test_nodes_that_are_out_of_step_do_not_keep_a_good_file_away(attempt: Try, start: int) -> None:
    other = BODY[:start] + content(seed=3)[start:]
    with serving(BODY) as server:
        server.do.cuts, server.do.ignores_if_range = [700_000], True
        server.do.other_nodes = [(other, '"v1"'), (BODY, '"v2"'), (BODY, '"v2"')]
        assert attempt.fetch(image_of(server, BODY)).read_bytes() == BODY


def test_an_absurd_length_is_the_sources_own_fault(attempt: Try) -> None:
    with serving(BODY) as absurd, serving(BODY) as mirror:
        absurd.do.length_lie = 10**15
        assert attempt.fetch(image_of(absurd, BODY, mirror.url)).read_bytes() == BODY
        assert any("more than an image may have" in note for note in attempt.notes)


@pytest.mark.parametrize("chunked", [True, False])
def test_a_body_without_end_is_bounded_and_the_mirror_is_asked(attempt: Try, chunked: bool) -> None:
    limits = replace(QUICK, largest=5_000_000)
    with serving(BODY) as endless, serving(BODY) as mirror:
        endless.do.is_endless, endless.do.chunked, endless.do.tells_length = True, chunked, False
        image = image_of(endless, BODY, mirror.url)
        assert attempt.fetch(image, limits).read_bytes() == BODY
        assert any("more than an image may have" in note for note in attempt.notes)
        other = replace(image, sha256="0" * 64, mirrors=())
        with pytest.raises(FetchError, match="more than an image may have"):
            attempt.fetch(other, limits)
        assert not attempt.cache.file(other.sha256, ".part").exists()


def test_a_length_that_does_not_fit_leaves_the_mirror_its_chance(
    attempt: Try, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.statvfs

    def small(path: str) -> os.statvfs_result:
        values = list(real(path))
        values[1] = 1  # f_frsize
        values[2], values[4] = 10_000_000, 5_000_000
        return os.statvfs_result(values)

    monkeypatch.setattr(os, "statvfs", small)
    with serving(BODY) as absurd, serving(BODY) as mirror:
        absurd.do.length_lie = 6_000_000
        assert attempt.fetch(image_of(absurd, BODY, mirror.url)).read_bytes() == BODY


def test_one_flipped_bit_is_noticed(attempt: Try) -> None:
    flipped = bytearray(BODY)
    flipped[len(BODY) // 2] ^= 1
    with serving(bytes(flipped)) as server, pytest.raises(WrongFile):
        attempt.fetch(image_of(server, BODY))
    assert attempt.finished() == []


def test_content_changed_between_start_and_resume(attempt: Try) -> None:
    old = content(seed=3)
    with serving(old) as server:
        server.do.cuts = [600_000]
        image = image_of(server, BODY)
        with pytest.raises(FetchError):
            attempt.fetch(image, replace(QUICK, tries=0))
        server.do.body, server.do.etag = BODY, '"v2"'
        assert attempt.fetch(image).read_bytes() == BODY
    assert sorted(one.suffix for one in attempt.cache.folder.iterdir()) == [".gz", ".json"]


def test_good_bytes_survive_a_server_that_went_wrong(attempt: Try) -> None:
    with serving(BODY) as server:
        server.do.cuts = [600_000]
        image = image_of(server, BODY)
        with pytest.raises(FetchError):
            attempt.fetch(image, replace(QUICK, tries=0))
        server.do.body, server.do.etag = content(seed=4), '"v2"'
        with pytest.raises(WrongFile):
            attempt.fetch(image)
        server.do.body, server.do.etag = BODY, '"v1"'
        before = server.served
        assert attempt.fetch(image).read_bytes() == BODY
        assert server.served - before == len(BODY) - 600_000


def test_a_new_etag_of_the_same_bytes_loses_nothing(attempt: Try) -> None:
    with serving(BODY) as server:
        server.do.cuts = [600_000]
        image = image_of(server, BODY)
        with pytest.raises(FetchError):
            attempt.fetch(image, replace(QUICK, tries=0))
        server.do.etag = '"another node of the same network"'
        attempt.fetch(image)
        ranged = [one for one in server.asked if one.status == 206]
        assert [one.served for one in ranged] == [len(BODY) - 600_000 + 4096]


def test_without_ranges_the_kept_bytes_are_compared_not_lost(attempt: Try) -> None:
    with serving(BODY) as server:
        server.do.serves_ranges = False
        server.do.cuts = [400_000, 700_000]
        assert attempt.fetch(image_of(server, BODY)).read_bytes() == BODY
        assert [one.status for one in server.asked] == [200, 200, 200]


@pytest.mark.parametrize("lie", [1, -7, 5000])
def test_a_wrong_content_range_is_not_believed(attempt: Try, lie: int) -> None:
    with serving(BODY) as server:
        server.do.range_lie = lie
        server.do.cuts = [500_000]
        assert attempt.fetch(image_of(server, BODY)).read_bytes() == BODY


def test_a_content_length_that_promises_too_much(attempt: Try) -> None:
    with serving(BODY) as server:
        server.do.length_lie = 1000
        assert attempt.fetch(image_of(server, BODY)).read_bytes() == BODY


def test_a_content_length_that_promises_too_little_is_an_error(attempt: Try) -> None:
    with serving(BODY) as server:
        server.do.length_lie = -1000
        with pytest.raises(FetchError):
            attempt.fetch(image_of(server, BODY))
    assert attempt.finished() == []


@pytest.mark.parametrize("chunked", [True, False])
def test_a_body_of_untold_length(attempt: Try, chunked: bool) -> None:
    with serving(BODY) as server:
        server.do.tells_length, server.do.chunked = False, chunked
        server.do.cuts = [500_000]
        assert attempt.fetch(image_of(server, BODY)).read_bytes() == BODY
        assert server.served <= len(BODY) + 4096


def test_a_body_of_untold_length_that_is_wrong(attempt: Try) -> None:
    with serving(content(seed=5)) as server:
        server.do.tells_length = False
        with pytest.raises(WrongFile):
            attempt.fetch(image_of(server, BODY))
    assert attempt.finished() == []


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/octet-stream"])
def test_a_page_with_status_200_is_told_from_a_file(attempt: Try, kind: str) -> None:
    with serving(b"  <!DOCTYPE html><html><title>Sign in</title></html>" * 20_000) as server:
        server.do.content_type = kind
        with pytest.raises(FetchError, match="web page") as caught:
            attempt.fetch(image_of(server, BODY))
        assert "login" in caught.value.render()
    assert attempt.finished() == []
    assert list(attempt.cache.folder.glob("*.part")) == []


def test_an_encoding_added_by_the_server_is_not_taken_for_content(attempt: Try) -> None:
    with serving(gzip.compress(BODY, 1)) as server:
        server.do.extra = {"Content-Encoding": "gzip"}
        with pytest.raises(WrongFile, match="Content-Encoding gzip"):
            attempt.fetch(image_of(server, BODY))
        assert server.asked[0].headers["Accept-Encoding"] == "identity"
    assert attempt.finished() == []


def test_a_gzip_file_labelled_as_an_encoding_is_taken_as_it_lies_there(attempt: Try) -> None:
    packed = gzip.compress(BODY, 1)
    with serving(packed) as server:
        server.do.extra = {"Content-Encoding": "x-gzip"}
        assert attempt.fetch(image_of(server, packed)).read_bytes() == packed


def test_redirects_are_followed_and_a_circle_is_not(attempt: Try) -> None:
    with serving(BODY) as server:
        server.do.redirects = {"/image.tar.gz": "/a", "/a": server.base + "/b"}
        assert attempt.fetch(image_of(server, BODY)).read_bytes() == BODY
        server.do.redirects["/b"] = "/image.tar.gz"
        with pytest.raises(FetchError, match="circle"):
            attempt.fetch(replace(image_of(server, BODY), sha256="0" * 64))


@pytest.mark.parametrize("to", ["ftp://127.0.0.1/x", "file:///etc/passwd", "http://[::1", "http://"])
def test_a_redirect_to_nowhere_is_an_error(attempt: Try, to: str) -> None:
    with serving(BODY) as server:
        server.do.redirects = {"/image.tar.gz": to}
        with pytest.raises(FetchError):
            attempt.fetch(image_of(server, BODY))


def test_a_mirror_goes_on_with_the_bytes_of_the_first_source(attempt: Try) -> None:
    with serving(BODY) as first, serving(BODY) as mirror:
        first.do.cuts = [600_000]
        first.do.refuses_after = 1
        mirror.do.etag = '"its own"'
        assert attempt.fetch(image_of(first, BODY, mirror.url)).read_bytes() == BODY
        assert first.served == 600_000
        assert mirror.served == len(BODY) - 600_000 + 4096


def test_a_mirror_of_another_file_does_not_cost_the_kept_bytes(attempt: Try) -> None:
    with serving(BODY) as first, serving(content(seed=6)) as wrong, serving(BODY) as right:
        first.do.cuts = [600_000]
        first.do.refuses_after = 1
        image = image_of(first, BODY, wrong.url, right.url)
        assert attempt.fetch(image).read_bytes() == BODY
        assert right.served == len(BODY) - 600_000 + 4096


def test_every_source_failing_names_every_reason(attempt: Try) -> None:
    with serving(content(seed=7)) as wrong, serving(BODY) as gone:
        gone.do.statuses = [(404, {})] * 9
        with pytest.raises(FetchError) as caught:
            attempt.fetch(image_of(gone, BODY, wrong.url))
    said = caught.value.render()
    assert "404" in said
    assert "not the pinned one" in said
    assert "all 2 sources failed" in said
    assert "doit pin:x86_64-linux" in said


def test_a_name_that_does_not_resolve(attempt: Try) -> None:
    image = UrlImage("i", "http://does-not-exist.invalid/x.tar.gz", sha256(BODY))
    with pytest.raises(FetchError, match=r"resolved"):
        attempt.fetch(image, replace(QUICK, tries=1))


def test_a_port_where_nobody_listens(attempt: Try) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        image = UrlImage("i", f"http://127.0.0.1:{unused.getsockname()[1]}/x.tar.gz", sha256(BODY))
        with pytest.raises(FetchError, match="no connection"):
            attempt.fetch(image)


def test_a_damaged_partial_file_costs_time_and_never_gives_a_bad_file(attempt: Try) -> None:
    with serving(BODY) as server:
        image = image_of(server, BODY)
        server.do.cuts = [600_000]
        with pytest.raises(FetchError):
            attempt.fetch(image, replace(QUICK, tries=0))
        part = attempt.cache.file(image.sha256, ".part")
        data = bytearray(part.read_bytes())
        data[1000] ^= 0x10
        part.write_bytes(data)
        assert attempt.fetch(image).read_bytes() == BODY


@pytest.mark.parametrize("state", [b"", b"{", b"[]", b'{"spans": [[0, 99999999]]}', b'{"spans": [[5]]}',
                                   b'{"size": -1, "url": 5}', b'{"size": 7}'])  # fmt: skip
def test_a_damaged_map_of_a_partial_file(attempt: Try, state: bytes) -> None:
    with serving(BODY) as server:
        image = image_of(server, BODY)
        attempt.cache.make()
        attempt.cache.file(image.sha256, ".part").write_bytes(BODY[:600_000])
        attempt.cache.file(image.sha256, ".part.json").write_bytes(state)
        assert attempt.fetch(image).read_bytes() == BODY


def test_a_partial_file_longer_than_the_file(attempt: Try) -> None:
    with serving(BODY) as server:
        image = image_of(server, BODY)
        attempt.cache.make()
        attempt.cache.file(image.sha256, ".part").write_bytes(BODY + b"more")
        assert attempt.fetch(image).read_bytes() == BODY


def test_a_partial_file_that_is_whole_already(attempt: Try) -> None:
    with serving(BODY) as server:
        image = image_of(server, BODY)
        attempt.cache.make()
        attempt.cache.file(image.sha256, ".part").write_bytes(BODY)
        assert attempt.fetch(image).read_bytes() == BODY
        assert server.served <= 4096


def test_a_full_disk_is_its_own_error_and_keeps_what_came(
    attempt: Try, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(_self: Part, data: memoryview, at: int) -> None:
        if at >= 500_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.pwrite(_self._file, data, at)

    with serving(BODY) as server:
        image = image_of(server, BODY, server.base + "/mirror.tar.gz")
        with monkeypatch.context() as patch:
            patch.setattr(Part, "_write", write)
            with pytest.raises(FetchError, match="disk is full"):
                attempt.fetch(image)
        assert len(server.asked) == 1  # no mirror would help
        kept = attempt.cache.file(image.sha256, ".part").stat().st_size
        assert kept >= 500_000
        before = server.served
        assert attempt.fetch(image).read_bytes() == BODY
        assert server.served - before == len(BODY) - kept


def test_too_little_room_is_said_before_the_first_byte(attempt: Try, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs

    def nearly_full(path: str) -> os.statvfs_result:
        values = list(real(path))
        values[4] = 10
        return os.statvfs_result(values)

    with serving(BODY) as server:
        monkeypatch.setattr(os, "statvfs", nearly_full)
        with pytest.raises(FetchError, match="MiB free"):
            attempt.fetch(image_of(server, BODY))
    assert attempt.finished() == []
