"""One fetch by nixa in a process of its own: `python -m bench.one_fetch URL SHA256 CACHE [SECONDS]`.

Prints one JSON line: seconds of the fetch itself (imports done before, as in a running doit),
bytes that are here in the end, whether the file is whole, and the process's peak memory in bytes.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

import httpx

from nixa_tasks.errors import NixaError
from nixa_tasks.image.cache.cache import Cache
from nixa_tasks.image.download.fetch import Limits, Network, fetch
from nixa_tasks.manifest.model import UrlImage
from nixa_tasks.process.run import LocalProcesses


def main(url: str, sha256: str, folder: str, seconds: str = "3600") -> None:
    """Fetch it; what is there after `seconds` counts where it is not whole by then."""
    httpx.Client().close()
    done, is_whole = 0, True

    def progress(count: int, _total: int | None) -> None:
        nonlocal done
        done = count

    begun = time.monotonic()
    try:
        path = fetch(
            UrlImage("bench", url, sha256),
            Cache(Path(folder), LocalProcesses().clock),
            progress=progress,
            note=lambda text: print(text, file=sys.stderr),
            network=Network(Limits(total=float(seconds))),
        )
        done = path.stat().st_size
    except NixaError as error:
        is_whole = False
        print(error.render(), file=sys.stderr)
    # Not ru_maxrss: a process that was just started has its parent's in it.
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    peak = int(found[1]) * 1024 if found else 0
    print(
        json.dumps({"seconds": time.monotonic() - begun, "bytes": done, "is_whole": is_whole, "peak": peak})
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
