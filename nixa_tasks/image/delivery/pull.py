"""The host fetches the image itself: from a neighbour that has it, else from its URL.

What arrives is compared with the pinned hash like everything else on the host, so that neither a
neighbour nor a mirror is trusted with anything.
"""

from __future__ import annotations

import contextlib
import ipaddress
import secrets
from collections.abc import Callable, Iterator
from importlib import resources

from nixa_tasks.errors import CommandFailed, Interrupted, NixaError
from nixa_tasks.host.ssh import Ssh, environment
from nixa_tasks.image.delivery.neighbours import Member
from nixa_tasks.image.delivery.on_host import FOLDER, good_prefix
from nixa_tasks.image.obtain import Obtained
from nixa_tasks.manifest.model import UrlImage
from nixa_tasks.process.pump import Sink
from nixa_tasks.process.run import Heartbeat, Output, Place

Note = Callable[[str], None]

_SLACK_BLOCKS = 2048  # of 512 bytes, as `ulimit -f` counts: more than the image has is not taken
_FETCH_SECONDS = 6 * 3600.0
_SERVER_SECONDS = 30.0
_BEAT_SECONDS = 5.0
_FROM_URL = f"""{FOLDER}
ulimit -f "$3"
if command -v curl >/dev/null; then exec curl -fsSL --retry 3 --connect-timeout 20 --speed-limit 1024 \
  --speed-time 60 -C - -o "$1.part" "$2"
elif command -v wget >/dev/null; then exec wget -q -c -T 60 -O "$1.part" "$2"
else echo "neither curl nor wget is there" >&2; exit 1; fi
"""
_FROM_NEIGHBOUR = f"""{FOLDER}
ulimit -f "$3"
if command -v curl >/dev/null; then exec curl -fsS --noproxy '*' --connect-timeout 5 --speed-limit 1024 \
  --speed-time 20 -C - -o "$1.part" "$2"
elif command -v wget >/dev/null; then exec wget -q -c -t 2 -T 20 -Y off -O "$1.part" "$2"
else echo "neither curl nor wget is there" >&2; exit 1; fi
"""
_SERVE = f"""{FOLDER}
exec python3 -c "$2" "$1.part" "$3"
"""


def pull(
    ssh: Ssh,
    obtained: Obtained,
    member: Member,
    *,
    downloaded: Callable[[int], None],
    note: Note,
    log: Sink,
) -> bool:
    """Whether the host has the whole file now. `downloaded` is told of the bytes that came from its
    URL. Raises NixaError where the host itself fails."""
    before, size = good_prefix(ssh, obtained), obtained.path.stat().st_size
    if before == size:
        return True
    while True:
        with member.source(note) as neighbour:
            if neighbour is None:
                break
            for url in neighbour.urls:
                if _fetch(ssh, obtained, _FROM_NEIGHBOUR, url, source=neighbour.name, note=note, log=log):
                    return True
    declared = obtained.image
    urls = (declared.url, *declared.mirrors) if isinstance(declared, UrlImage) else ()
    for url in urls:
        if url.startswith(("http://", "https://")) and _fetch(
            ssh, obtained, _FROM_URL, url, source=url, note=note, log=log
        ):
            downloaded(size - before)
            return True
    return False


def _fetch(
    ssh: Ssh, obtained: Obtained, script: str, url: str, *, source: str, note: Note, log: Sink
) -> bool:
    note(f"the host fetches it from {source}")
    try:
        most = obtained.path.stat().st_size // 512 + _SLACK_BLOCKS
        ssh.run(
            script,
            obtained.sha256,
            url,
            str(most),
            deadline=_FETCH_SECONDS,
            output=Output(sink=log),
            what="pull",
        )
    except CommandFailed as error:
        note(f"{source}: {error.tail[-1] if error.tail else error.what}")
        return False
    if good_prefix(ssh, obtained) == obtained.path.stat().st_size:
        return True
    note(f"{source}: gave another file than the pinned one")
    return False


def hand_on(ssh: Ssh, obtained: Obtained, member: Member, *, note: Note) -> None:
    """Serve the host's copy to those who wait for it, until nobody does. A host that can't is no
    failure: they get it elsewhere. Raises Interrupted."""
    if not member.is_wanted():
        return
    try:
        with _serving(ssh, obtained) as urls:
            note("handing it on to the hosts that wait for it")
            member.serve(urls)
    except Interrupted:
        raise
    except NixaError as error:
        note(f"can't hand it on: {error.tail[-1] if error.tail else error.what}")


@contextlib.contextmanager
def _serving(ssh: Ssh, obtained: Obtained) -> Iterator[tuple[str, ...]]:
    """The server, and the URLs at which others may reach it: by the address that our own connection
    came to, else by the one that the manifest names."""
    said: list[str] = []

    def is_ready(line: str) -> bool:
        if line.startswith("serving "):
            said.append(line)
        return bool(said)

    token = secrets.token_urlsafe(16)
    program = resources.files("nixa_tasks.image.delivery").joinpath("server.py").read_text()
    with ssh.processes.hold(
        ssh.command("sh", "-c", _SERVE, "nixa", obtained.sha256, program, token),
        is_ready=is_ready,
        deadline=_SERVER_SECONDS,
        heartbeat=Heartbeat(b"beat\n", _BEAT_SECONDS),
        place=Place(env=environment()),
        host=ssh.host.name,
        what="handing the image on",
    ):
        yield serving_urls(ssh, said[0], token)


def serving_urls(ssh: Ssh, said: str, token: str) -> tuple[str, ...]:
    """From `serving PORT CLIENT PORT SERVER PORT`. Raises NixaError for what is no address or port."""
    words = said.split()
    try:
        port = int(words[1])
        if not 0 < port < 1 << 16:
            raise ValueError(words[1])
        address = ipaddress.ip_address(words[4]) if len(words) > 4 else None
        seen = [] if address is None or "%" in str(address) else [str(address)]  # a link's own: ours alone
    except (ValueError, IndexError) as error:
        raise NixaError("where the host serves the image can't be read", host=ssh.host.name) from error
    named = [ssh.target] if ssh.target not in seen else []
    return tuple(
        f"http://{f'[{address}]' if ':' in address else address}:{port}/{token}"
        for address in (*seen, *named)
    )
