"""Several connections, several processes, and processes that are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from nixa_tasks.image.cache.cache import Cache
from nixa_tasks.image.download.fetch import FetchError
from tests.clocks import CLOCK

from .image_server import QUICK, ImageServer, Try, content, image_of, serving, sha256

BODY = content(6_000_007)
EAGER = replace(QUICK, settle=0.1, window=0.2, split=64 << 10, connections=8, stall=2.0, low_rate=1.0)

_CHILD = """
import sys
from pathlib import Path
from nixa_tasks.errors import NixaError
from nixa_tasks.image.cache.cache import Cache
from nixa_tasks.image.download.fetch import Limits, Network, fetch, Network
from nixa_tasks.manifest.model import UrlImage
from nixa_tasks.process.run import LocalProcesses
url, sha256, folder, manifest, connections = sys.argv[1:]
cache = Cache(Path(folder), LocalProcesses().clock)
image = UrlImage("i", url, sha256)
cache.record_pin(image, Path(manifest))
limits = Limits(settle=0.1, window=0.2, split=64 << 10, connections=int(connections))
note = lambda text: print(text, file=sys.stderr, flush=True)
print("started", flush=True)
try:
    path = fetch(image, cache, progress=lambda done, total: print(done, flush=True), note=note, network=Network(limits))
except NixaError as error:
    sys.exit(error.render())
print("got", path, flush=True)
"""


def child(
    server: ImageServer, folder: Path, manifest: str = "/a", connections: int = 1
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _CHILD, server.url, sha256(server.do.body), str(folder), manifest,
         str(connections)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for_bytes(process: subprocess.Popen[str], count: int) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip().isdigit() and int(line) >= count:
            return
    raise AssertionError(process.communicate()[1])


@pytest.fixture
def attempt(tmp_path: Path) -> Try:
    return Try(Cache(tmp_path / "cache", CLOCK))


def test_poor_connections_are_helped_by_more_of_them(attempt: Try) -> None:
    with serving(BODY) as server:
        server.do.rate = 1_000_000.0
        began = time.monotonic()
        assert attempt.fetch(image_of(server, BODY), EAGER).read_bytes() == BODY
        assert time.monotonic() - began < 4.0  # one alone takes six
        assert sum(one.status == 206 for one in server.asked) >= 3
        assert all(one.headers["If-Range"] == '"v1"' for one in server.asked[1:])


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_a_file_without_a_strong_validator_is_fetched_by_one_connection(
    attempt: Try, etag: str | None
) -> None:
    with serving(BODY[:2_000_000]) as server:
        server.do.rate, server.do.etag = 1_000_000.0, etag
        attempt.fetch(image_of(server, BODY[:2_000_000]), EAGER)
        assert len(server.asked) == 1


def test_a_server_that_refuses_more_connections_still_gives_the_file(attempt: Try) -> None:
    body = BODY[:2_000_000]
    with serving(body) as server:
        server.do.rate, server.do.refuses_after = 1_000_000.0, 2
        assert attempt.fetch(image_of(server, body), EAGER).read_bytes() == body


def test_cuts_of_several_connections_lose_no_byte(attempt: Try) -> None:
    with serving(BODY) as server:
        server.do.rate = 800_000.0
        server.do.cuts = [1_000_000, 3_700_000, 4_500_000, 5_900_000]
        assert attempt.fetch(image_of(server, BODY), EAGER).read_bytes() == BODY
        assert len(server.asked) > 6
        assert server.served <= len(BODY) + (4 << 18)  # what was under way on shortened pieces


@pytest.mark.parametrize("connections", [1, 8])
def test_a_killed_fetch_goes_on_with_less_than_a_mebibyte_lost(tmp_path: Path, connections: int) -> None:
    with serving(BODY) as server:
        server.do.rate = 800_000.0
        first = child(server, tmp_path, connections=connections)
        wait_for_bytes(first, len(BODY) * 7 // 10)
        first.send_signal(signal.SIGKILL)
        first.communicate()
        time.sleep(0.2)  # until the server sees it
        assert len(server.asked) >= min(4, connections)
        assert not list(tmp_path.glob("*.tar*"))
        server.do.rate = None
        second = child(server, tmp_path)
        out, errors = second.communicate(timeout=20)
        assert second.returncode == 0, errors
        assert Path(out.split()[-1]).read_bytes() == BODY
        assert server.served - len(BODY) <= 1 << 20


def test_two_projects_and_four_processes_fetch_once(tmp_path: Path) -> None:
    with serving(BODY) as server:
        server.do.rate = 6_000_000.0
        children = [child(server, tmp_path, f"/project-{number % 2}/hosts.toml") for number in range(8)]
        ends = [(one.communicate(timeout=30), one.returncode) for one in children]
        assert [status for _, status in ends] == [0] * 8, ends
        assert len(server.asked) == 1
        assert sum("held by process" in errors for (_, errors), _ in ends) >= 1
    entry = Cache(tmp_path, CLOCK).entry(sha256(BODY))
    assert sorted(entry.pinned_by) == ["/project-0/hosts.toml", "/project-1/hosts.toml"]
    assert not list(tmp_path.glob("*.lock"))


def test_a_dead_holder_frees_the_lock(tmp_path: Path) -> None:
    with serving(BODY) as server:
        server.do.rate = 600_000.0
        first = child(server, tmp_path)
        wait_for_bytes(first, 100_000)
        second = child(server, tmp_path)
        assert second.stderr is not None
        assert f"held by process {first.pid}" in second.stderr.readline()
        server.do.rate = None
        first.kill()
        first.communicate()
        out, errors = second.communicate(timeout=60)
        assert second.returncode == 0, errors
        assert Path(out.split()[-1]).read_bytes() == BODY


def test_a_full_file_system_keeps_what_came_and_goes_on_with_room(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m,mode=755", "nixa-test", str(folder)],
        check=False,
        capture_output=True,
    )
    if mounted.returncode:
        pytest.skip(f"no mount here: {mounted.stderr!r}")
    try:
        with serving(BODY) as server:
            attempt = Try(Cache(folder, CLOCK))
            server.do.tells_length = False  # so that it is only noticed on the way
            image = image_of(server, BODY)
            with pytest.raises(FetchError, match=r"disk is full|free"):
                attempt.fetch(image)
            assert attempt.finished() == []
            kept = attempt.cache.file(image.sha256, ".part").stat().st_size
            assert kept > 3_000_000
            subprocess.run(["mount", "-o", "remount,size=16m", str(folder)], check=True)
            server.do.tells_length = True
            before = server.served
            assert attempt.fetch(image).read_bytes() == BODY
            assert server.served - before <= len(BODY) - kept + 4096
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
