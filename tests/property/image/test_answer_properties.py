"""No header that a server can send makes anything but an answer or an error of ours."""

from __future__ import annotations

import itertools
import socket
import string
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nixa_tasks.errors import NixaError
from nixa_tasks.image.cache.cache import Cache
from nixa_tasks.image.cache.entry import hash_in, suffix_of
from nixa_tasks.image.download import answers
from nixa_tasks.image.download.fetch import FetchError, Limits, Network, fetch
from nixa_tasks.image.download.part import add, gaps
from nixa_tasks.manifest.model import UrlImage
from tests.clocks import CLOCK

QUICK = Limits(
    connect=1, stall=0.2, low_time=1, total=3, tries=1, pause=0.0, longest_pause=0.0, retry_after=0.0
)
VALUES = st.one_of(
    st.sampled_from(
        ["", "0", "-1", "1e9", "9" * 30, "bytes 0-9/10", "bytes */5", "bytes 5-1/3", "gzip", "chunked, chunked",
         "chunked", '"a"', 'W/"a"', "\xff\xfe", "Wed, 99 Foo 2026 99:99:99 GMT", "//[", "http://", "ftp://x/",
         "/image.tar.gz", "https://127.0.0.1:1/", "close", "text/html", "identity", "12, 13", "+5", "٣"]
    ),
    st.text(string.printable.strip() + "\xe9\xff ", max_size=40),
)  # fmt: skip
NAMES = st.sampled_from(
    ["Content-Length", "Content-Range", "ETag", "Last-Modified", "Date", "Retry-After", "Location",
     "Content-Encoding", "Transfer-Encoding", "Content-Type", "Accept-Ranges", "Connection", "X-Other"]
)  # fmt: skip
REPLIES = st.builds(
    lambda status, headers, body: (
        f"HTTP/1.1 {status} Something\r\n".encode()
        + b"".join(f"{name}: {value}\r\n".encode("latin-1", "replace") for name, value in headers)
        + b"\r\n"
        + body
    ),
    st.sampled_from([100, 200, 204, 206, 301, 302, 304, 307, 401, 404, 416, 429, 503, 999]),
    st.lists(st.tuples(NAMES, VALUES), max_size=6),
    st.binary(max_size=64),
)


@contextmanager
def answering(reply: bytes) -> Iterator[str]:
    """Every connection gets these bytes, and its end."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(5)

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    try:
                        connection.settimeout(1)
                        connection.recv(65536)
                        connection.sendall(reply)
                        connection.shutdown(socket.SHUT_WR)
                    except OSError:
                        continue

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}/image.tar.gz"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join(5)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(REPLIES, st.binary(max_size=200)), st.integers(0, 60))
def test_any_answer_is_an_error_of_ours(reply: bytes, kept: int) -> None:
    with tempfile.TemporaryDirectory() as folder, answering(reply) as url:
        cache = Cache(Path(folder), CLOCK)
        image = UrlImage("i", url, "0" * 64)
        if kept:
            cache.file(image.sha256, ".part").write_bytes(bytes(kept))
        with pytest.raises((FetchError, NixaError)):
            fetch(image, cache, progress=lambda _d, _t: None, note=lambda _text: None, network=Network(QUICK))
        assert list(Path(folder).glob("*.tar*")) == []


@given(VALUES, VALUES, VALUES)
def test_headers_are_read_without_a_crash(first: str, second: str, third: str) -> None:
    answers.number(first)
    found = answers.content_range(first)
    assert found is None or (0 <= found[0] < found[1])
    answers.unsatisfied_size(first)
    answers.validator(first, second, third)
    seconds = answers.retry_after(first, 0.0)
    assert seconds is None or seconds >= 0
    answers.refusal("http://x", 503, first, 0.0)
    answers.is_page(first, second.encode())


SPANS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)).map(lambda one: (min(one), max(one))))


@given(SPANS, st.integers(0, 80))
def test_spans_and_gaps_are_each_others_rest(pieces: list[tuple[int, int]], size: int) -> None:
    spans: list[tuple[int, int]] = []
    for piece in pieces:
        spans = add(spans, piece)
    here = {at for start, end in pieces for at in range(start, end)}
    assert {at for start, end in spans for at in range(start, end)} == here
    assert all(left[1] < right[0] for left, right in itertools.pairwise(spans))
    missing = {at for start, end in gaps(spans, size) for at in range(start, end)}
    assert missing == set(range(size)) - here


@given(st.text(max_size=80))
def test_no_url_makes_a_name_that_leads_elsewhere(url: str) -> None:
    try:
        suffix = suffix_of(url)
    except ValueError:
        return  # no URL at all: the manifest refuses it
    assert "/" not in suffix
    assert hash_in("0" * 64 + suffix) == "0" * 64
