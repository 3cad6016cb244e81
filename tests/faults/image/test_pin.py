"""What the pinned URL gives now."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from nixa_tasks.image import pin
from nixa_tasks.image.cache.cache import Cache
from nixa_tasks.image.download.fetch import FetchError, Network, WrongFile
from nixa_tasks.image.errors import SourceError
from nixa_tasks.image.pin import Found, State
from nixa_tasks.image.tarball import TarballError
from nixa_tasks.manifest.model import UrlImage
from tests.clocks import CLOCK
from tests.tarballs import installer

from .image_server import QUICK, Asked, ImageServer, Try, content, image_of, serving, sha256

OLD, NEW = installer(1), installer(2)
ASSET = "https://github.com/nix-community/nixos-images/releases/download/nixos-25.11/image.tar.gz"
RELEASE = "/repos/nix-community/nixos-images/releases/tags/nixos-25.11"


@pytest.fixture
def attempt(tmp_path: Path) -> Try:
    return Try(Cache(tmp_path / "cache", CLOCK))


def look(attempt: Try, image: UrlImage) -> Found:
    return pin.look(
        image,
        cache=attempt.cache,
        progress=lambda done, total: attempt.steps.append((done, total)),
        note=attempt.notes.append,
        network=Network(QUICK),
    )


def test_the_new_file_is_found_and_never_fetched_again(attempt: Try) -> None:
    with serving(NEW) as server:
        image = image_of(server, OLD)
        found = look(attempt, image)
        assert (found.sha256, found.size) == (sha256(NEW), len(NEW))
        assert attempt.fetch(replace(image, sha256=found.sha256)).read_bytes() == NEW
        assert server.served == 2 * len(NEW)  # twice, since nobody vouches for plain http


def test_bytes_that_were_wrong_are_never_pinned(attempt: Try) -> None:
    flipped = bytearray(NEW)
    flipped[len(NEW) // 2] ^= 1
    with serving(bytes(flipped)) as server:
        image = image_of(server, OLD)
        with pytest.raises(WrongFile):
            attempt.fetch(image)
        server.do.body = NEW  # under the same ETag: the bytes above were damaged on the way
        assert look(attempt, image).sha256 == sha256(NEW)


def test_two_transfers_that_differ_pin_nothing(attempt: Try) -> None:
    bodies = [installer(7), NEW]
    with serving(bodies[0]) as server:

        def change(_asked: Asked) -> None:
            server.do.body = bodies[-1]

        server.do.before_body = change
        with pytest.raises(SourceError, match="two different files"):
            look(attempt, image_of(server, OLD))
    assert attempt.finished() == []


def test_a_file_that_is_no_installer_is_not_pinned(attempt: Try) -> None:
    with serving(content(50_000)) as server, pytest.raises(TarballError):
        look(attempt, image_of(server, OLD))


def test_an_unchanged_file_is_told_by_its_etag(attempt: Try) -> None:
    with serving(OLD) as server:
        image = image_of(server, OLD)
        attempt.fetch(image)
        assert look(attempt, image).sha256 == image.sha256
        assert server.served == len(OLD)


def test_pinning_goes_on_after_a_cut(attempt: Try) -> None:
    with serving(NEW) as server:
        server.do.cuts = [100_000, 200_000]
        assert look(attempt, image_of(server, OLD)).sha256 == sha256(NEW)
        assert server.served == 2 * len(NEW)


def test_a_page_is_never_pinned(attempt: Try) -> None:
    with serving(b"<!DOCTYPE html><html>") as server, pytest.raises(FetchError, match="web page"):
        look(attempt, image_of(server, OLD))


def test_a_file_of_this_machine(attempt: Try, tmp_path: Path) -> None:
    carried = tmp_path / "x.tar.gz"
    carried.write_bytes(NEW)
    assert look(attempt, UrlImage("i", carried.as_uri(), sha256(OLD))).sha256 == sha256(NEW)


def release(server: ImageServer, digest: str | None, name: str = "image.tar.gz") -> None:
    said = {"name": name, "size": len(NEW), "updated_at": "2026-07-14T10:00:00Z", "digest": digest}
    server.do.answers[RELEASE] = json.dumps({"assets": [{"name": "other"}, said]}).encode()


@pytest.fixture
def github(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token, so that its use is seen."""
    monkeypatch.setenv("GITHUB_TOKEN", "a-token")


def through(server: ImageServer, monkeypatch: pytest.MonkeyPatch) -> UrlImage:
    """The asset's real URL, answered by the server: by plain http through a proxy."""
    monkeypatch.setenv("NIXA_GITHUB_API", server.base)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("http_proxy", server.base)
    return UrlImage("i", ASSET.replace("https:", "http:"), sha256(OLD))


@pytest.mark.usefixtures("github")
def test_githubs_digest_is_checked_against_the_download(
    attempt: Try, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(NEW) as server:
        image = through(server, monkeypatch)
        release(server, f"sha256:{sha256(NEW)}")
        found = look(attempt, image)
        assert found.sha256 == sha256(NEW)
        assert "GitHub" in found.source
        assert server.asked[0].headers["Authorization"] == "Bearer a-token"
        assert all("Authorization" not in one.headers for one in server.asked if one.path != RELEASE)
        release(server, f"sha256:{sha256(OLD)}")
        with pytest.raises(WrongFile):
            look(attempt, image)


def test_a_digest_in_the_cache_needs_no_download(attempt: Try, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(OLD) as server:
        image = through(server, monkeypatch)
        release(server, f"sha256:{sha256(OLD)}")
        attempt.fetch(image)
        look(attempt, image)
        assert [one.path for one in server.asked].count(RELEASE) == 1
        assert len(server.asked) == 2


@pytest.mark.parametrize("digest", [None, "", "sha512:00", "sha256:zz"])
def test_an_asset_without_a_digest_is_told_by_its_bytes(
    attempt: Try, monkeypatch: pytest.MonkeyPatch, digest: str | None
) -> None:
    with serving(NEW) as server:
        image = through(server, monkeypatch)
        release(server, digest)
        assert look(attempt, image).sha256 == sha256(NEW)


def test_a_mismatch_tells_what_github_says(attempt: Try, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(NEW) as server:
        image = through(server, monkeypatch)
        release(server, f"sha256:{sha256(NEW)}")
        with pytest.raises(WrongFile, match="GitHub updated_at 2026-07-14") as caught:
            attempt.fetch(image)
        assert f"digest sha256:{sha256(NEW)}" in caught.value.render()


@pytest.mark.parametrize("answer", [b"[]", b"{", b'{"assets": 5}', b'{"assets": [1]}', b""])
def test_an_odd_answer_of_the_api_is_an_error_of_ours(
    attempt: Try, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    with serving(NEW) as server:
        image = through(server, monkeypatch)
        server.do.answers[RELEASE] = answer
        with pytest.raises(SourceError):
            look(attempt, image)


def test_check_tells_current_from_out_of_date_without_fetching(
    attempt: Try, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(NEW) as server:
        image = through(server, monkeypatch)
        release(server, f"sha256:{sha256(NEW)}")
        current = replace(image, name="j", sha256=sha256(NEW))
        verdicts = [pin.check(one, cache=attempt.cache, network=Network(QUICK)) for one in (image, current)]
        assert [one.state for one in verdicts] == [State.OUT_OF_DATE, State.CURRENT]
        assert "doit pin:i" in verdicts[0].text
        assert server.served <= 2 * len(server.do.answers[RELEASE])


def test_check_by_what_the_server_says_of_the_file(attempt: Try) -> None:
    with serving(OLD) as server:
        image = image_of(server, OLD)
        assert pin.check(image, cache=attempt.cache, network=Network(QUICK)).state is State.UNKNOWN
        attempt.fetch(image)
        assert pin.check(image, cache=attempt.cache, network=Network(QUICK)).state is State.CURRENT
        server.do.etag = '"v2"'
        assert pin.check(image, cache=attempt.cache, network=Network(QUICK)).state is State.UNKNOWN
        server.do.body = NEW[:-1]
        verdict = pin.check(image, cache=attempt.cache, network=Network(QUICK))
        assert verdict.is_outdated
        server.do.statuses = [(500, {})]
        assert pin.check(image, cache=attempt.cache, network=Network(QUICK)).state is State.UNKNOWN
        assert len(server.gets) == 1


@pytest.mark.parametrize("what", ["headers", "body"])
def test_check_ends_in_time_against_a_server_that_drips(attempt: Try, what: str) -> None:
    """Each byte comes well within the timeout of a read, and the answer never ends."""
    ended = threading.Event()

    def drip(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while not ended.is_set():
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n" + (
                        b"" if what == "headers" else b"\r\n"
                    )
                    connection.sendall(head)
                    while not ended.wait(0.05):
                        connection.sendall(b"X")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=drip, args=(listener,), daemon=True).start()
        base = f"http://127.0.0.1:{listener.getsockname()[1]}"
        asset = ASSET.replace("https:", "http:")
        image = UrlImage("i", f"{base}/x.tar.gz" if what == "headers" else asset, sha256(OLD))
        network = Network(replace(QUICK, total=1.0), github_api=base)
        verdict = pin.check(image, cache=attempt.cache, network=network)
        ended.set()
        listener.shutdown(socket.SHUT_RDWR)
    assert verdict.state is State.UNKNOWN
    assert "no answer within 1 s" in verdict.text


def test_an_answer_without_end_is_not_read_to_its_end(attempt: Try, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(NEW) as server:
        image = through(server, monkeypatch)
        server.do.answers[RELEASE] = b"[" + b" " * (64 << 20)
        with pytest.raises(SourceError, match="longer than 8 MiB"):
            look(attempt, image)
