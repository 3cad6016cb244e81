"""The speed of fetching an image, against what people use otherwise: `python -m bench.fetch`.

Prints a Markdown table of ratios, each of medians of interleaved runs. Options: `--size MB`,
`--rounds N`, `--only loopback,wan,kill,cached,uplink`. The rows of the slow line and of the uplink
need root.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.link import FAR, Link, opened
from bench.measure import DEADLINE, Row, has, interleaved, medians, one_fetch, seconds, serving, within
from bench.uplink import uplink
from nixa_tasks.lab import image

NAME, SMALL = "image.tar.gz", "small.tar.gz"
MEMORY_GOAL = 60 << 20
WAN_SECONDS = 40.0
_PEERS = ("aria2c", "nix-prefetch-url", "wget + sha256sum")


class Bench:
    """One file, served to everyone."""

    def __init__(self, work: Path, megabytes: int, rounds: int) -> None:
        self.work, self.rounds = work, rounds
        self.folder = work / "served"
        self.folder.mkdir()
        self.sha256 = self._make(self.folder / NAME, megabytes * 1_000_000)
        self.out = work / "out"

    @staticmethod
    def _make(path: Path, size: int) -> str:
        digest = hashlib.sha256()
        with path.open("wb") as file:
            for at in range(0, size, 1 << 20):
                block = os.urandom(min(1 << 20, size - at))
                digest.update(block)
                file.write(block)
        return digest.hexdigest()

    @contextlib.contextmanager
    def fresh(self) -> Iterator[Path]:
        """An empty folder to fetch into."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()
        try:
            yield self.out
        finally:
            shutil.rmtree(self.out)

    # --- loopback

    def loopback(self) -> Iterator[Row]:
        """Verified downloads at the speed of this machine."""
        peaks: list[int] = []
        with serving(self.folder) as server:
            url = server.url(NAME)

            def ours() -> float:
                with self.fresh() as folder:
                    told = one_fetch(url, self.sha256, folder, DEADLINE)
                    assert told["is_whole"]
                    peaks.append(told["peak"])
                    return float(told["seconds"])

            def whole() -> float:
                with self.fresh() as folder:
                    argv = (sys.executable, "-m", "bench.one_fetch", url, self.sha256, str(folder))
                    return seconds(argv)

            runs: dict[str, Callable[[], float]] = {"nixa": ours, "nixa, whole process": whole}
            runs |= {name: self._peer(name, url) for name in ("curl + openssl", *_PEERS) if _is_there(name)}
            found = medians(interleaved(runs, self.rounds))
        base = found["curl + openssl"]
        yield _at_most("verified download, against curl then openssl", found["nixa"] / base, 0.8)
        yield _at_most("the same with Python's start and imports", found["nixa, whole process"] / base, None)
        peers = {name: found[name] for name in _PEERS if name in found}
        for name in _PEERS:
            if name not in peers:
                yield Row(f"against {name}", "", "not on this machine", None)
            else:
                yield _at_most(f"against {name}", found["nixa"] / peers[name], None)
        if peers:
            best = min(peers, key=lambda name: peers[name])
            yield _at_most(f"against the best of these ({best})", found["nixa"] / peers[best], 0.8)
        peak = max(peaks)
        yield Row("peak memory of a fetch", "≤ 60 MB", f"{peak / 1e6:.0f} MB", peak <= MEMORY_GOAL)

    def _peer(self, name: str, url: str) -> Callable[[], float]:
        def run() -> float:
            with self.fresh() as folder:
                return sum(seconds(argv, env) for argv, env in _commands(name, url, folder, self.sha256))

        return run

    # --- a long line

    def wan(self) -> Iterator[Row]:
        """80 ms, 200 Mbit/s: throughput in a fixed time, with loss and without."""
        if os.geteuid() != 0 or not Path("/dev/net/tun").exists() or not has("ip", "curl"):
            yield Row("80 ms, 200 Mbit/s", "", "needs root, iproute2, curl and /dev/net/tun", None)
            return
        for loss, goal in ((0.01, 8.0), (0.0, 1.0)):
            with (
                opened(Link(delay=0.04, rate=200e6, loss=loss, queue=2_000_000)) as ends,
                serving(self.folder, address=FAR, congestion="cubic", namespace=ends.far) as server,
            ):
                url = server.url(NAME)

                def ours(url: str = url, near: str = ends.near) -> float:
                    with self.fresh() as folder:
                        told = one_fetch(url, self.sha256, folder, WAN_SECONDS, near)
                        return float(told["bytes"]) / float(told["seconds"])

                def curl(url: str = url, near: str = ends.near) -> float:
                    with self.fresh() as folder:
                        return _curl_rate(url, folder, near)

                found = medians(interleaved({"nixa": ours, "curl": curl}, 1 if loss else self.rounds))
            ratio = found["nixa"] / found["curl"]
            what = f"80 ms, 200 Mbit/s, {loss:.0%} loss: throughput against curl"
            got = f"{ratio:.2f} times ({_mbit(found['nixa'])} against {_mbit(found['curl'])})"
            yield Row(what, f"≥ {goal:g} times", got, ratio >= goal)

    # --- a killed run

    def kill(self) -> Iterator[Row]:
        """kill -9 at 70 %, and once more: what crosses the line twice. The server is slow, with
        small buffers, so that what it sent is what arrived."""
        yield self._killed("bytes fetched again after kill -9 at 70 %", NAME, self.sha256, 100e6)
        sha256 = self._make(self.folder / SMALL, 60_000_000)
        what = "the same with several connections (60 MB, each held to 1 MB/s)"
        yield self._killed(what, SMALL, sha256, 1e6)

    def _killed(self, what: str, name: str, sha256: str, rate: float) -> Row:
        size = (self.folder / name).stat().st_size
        with serving(self.folder, rate=rate) as server, self.fresh() as folder:
            url = server.url(name)
            argv = (sys.executable, "-m", "bench.one_fetch", url, sha256, str(folder))
            child = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            part = folder / f"{sha256}.part"
            until = time.monotonic() + DEADLINE
            while not part.exists() or part.stat().st_blocks * 512 < 0.7 * size:
                assert child.poll() is None and time.monotonic() < until
                time.sleep(0.005)
            child.send_signal(signal.SIGKILL)
            child.wait()
            told = one_fetch(url, sha256, folder, DEADLINE)
            assert told["is_whole"]
            again = max(0, sum(one["sent"] for one in server.stop()) - size)
        return Row(what, "≤ 1 MiB", f"{again / 2**20:.2f} MiB", again <= 1 << 20)

    # --- nothing to do

    def cached(self) -> Iterator[Row]:
        """`doit kexec` with the image cached, against `doit list` of an empty dodo.py."""
        full, empty = self.work / "full", self.work / "empty"
        for folder in (full, empty):
            folder.mkdir()
        (empty / "dodo.py").write_text("")
        (full / "dodo.py").write_text("from nixa_tasks.dodo import *\n")
        installer = self.work / NAME
        image.write(installer, system="x86_64-linux", megabytes=16)
        digest = hashlib.sha256(installer.read_bytes()).hexdigest()
        (full / "hosts.toml").write_text(
            f'version = 1\n[kexec.x86_64-linux]\nurl = "file://{installer}"\nsha256 = "{digest}"\n'
        )
        env = {"NIXA_CACHE": str(self.work / "cache")}
        doit = (sys.executable, "-m", "doit")
        seconds((*doit, "kexec"), env, full)
        runs: dict[str, Callable[[], float]] = {
            "kexec": lambda: seconds((*doit, "kexec"), env, full),
            "list": lambda: seconds((*doit, "list"), env, empty),
        }
        found = medians(interleaved(runs, max(9, self.rounds)))
        yield _at_most(
            "image cached: `doit kexec` against an empty `doit list`", found["kexec"] / found["list"], 1.15
        )

    # --- several hosts

    def uplink(self) -> Iterator[Row]:
        """One copy for all hosts."""
        yield uplink(self.work, (self.folder / NAME).stat().st_size >> 20)


def _commands(name: str, url: str, folder: Path, sha256: str) -> list[tuple[tuple[str, ...], dict[str, str]]]:
    """What a peer runs for a verified file in `folder`."""
    file = str(folder / NAME)
    store = {
        "NIX_STORE_DIR": f"{folder}/store",
        "NIX_STATE_DIR": f"{folder}/state",
        "NIX_LOG_DIR": f"{folder}/log",
        "NIX_CONFIG": "build-users-group =",
    }
    commands: dict[str, list[tuple[tuple[str, ...], dict[str, str]]]] = {
        "curl + openssl": [
            (("curl", "-sSo", file, url), {}),
            (("openssl", "dgst", "-sha256", file), {}),
        ],
        "aria2c": [
            (
                (
                    "aria2c",
                    "-q",
                    "-x4",
                    "-s4",
                    f"--checksum=sha-256={sha256}",
                    "-d",
                    str(folder),
                    "-o",
                    NAME,
                    url,
                ),
                {},
            )
        ],
        "nix-prefetch-url": [(("nix-prefetch-url", "--type", "sha256", url, sha256), store)],
        "wget + sha256sum": [(("wget", "-qO", file, url), {}), (("sha256sum", file), {})],
    }
    return commands[name]


def _is_there(name: str) -> bool:
    return has(*(word for word in name.split() if word != "+"))


def _curl_rate(url: str, folder: Path, namespace: str) -> float:
    """Bytes a second that curl gets on average in the fixed time."""
    form = "%{size_download} %{time_total}"
    argv = ("curl", "-so", str(folder / NAME), "-w", form, "--max-time", str(WAN_SECONDS), url)
    told = subprocess.run(within(namespace, argv), stdout=subprocess.PIPE, timeout=DEADLINE, check=False)
    size, took = told.stdout.split()
    return int(size) / float(took)


def _mbit(rate: float) -> str:
    return f"{rate * 8 / 1e6:.1f} Mbit/s"


def _at_most(what: str, ratio: float, goal: float | None) -> Row:
    if goal is None:
        return Row(what, "", f"{ratio:.2f}", True)
    return Row(what, f"≤ {goal:g}", f"{ratio:.2f}", ratio <= goal)


def main() -> int:
    """Print the table; status 1 where a goal is not reached."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=350, help="of the file, in MB")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="loopback,wan,kill,cached,uplink")
    parser.add_argument("--folder", type=Path, help="where the files lie; default: the temporary folder")
    chosen = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="nixa-bench-", dir=chosen.folder) as work:
        bench = Bench(Path(work), chosen.size, chosen.rounds)
        print(f"{chosen.size} MB, medians of {chosen.rounds} interleaved runs; {os.cpu_count()} cores,")
        print(f"Linux {platform.release()}, Python {platform.python_version()}\n")
        print("| what | goal | measured | reached |\n|---|---|---|---|")
        for part in chosen.only.split(","):
            for row in getattr(bench, part)():
                print(row.line(), flush=True)
                rows.append(row)
    return 1 if any(row.is_reached is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
