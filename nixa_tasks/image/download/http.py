"""HTTP for the download: limits, one request, its checked answer, its bytes as they were sent.

The only module that imports httpx. Bytes are never decoded: the pin is of the file as it lies on
the server, and an encoding that a server adds on its own shows as a wrong hash.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from nixa_tasks.image.download import answers
from nixa_tasks.image.download.part import Origin, Part
from nixa_tasks.image.errors import ContentChanged, NotModified, RangesBroken, SourceError

if TYPE_CHECKING:
    import httpx


@dataclass(frozen=True, slots=True)
class Limits:
    """Times in seconds, sizes in bytes, rates in bytes a second.

    `stall`: no byte for so long. `low_rate`: slower than this during `low_time`. `total`: all of
    it, all sources. `tries`: on one source, without a byte of progress between them. `pause`:
    before the second try, doubled for each one after it, with jitter, up to `longest_pause`; a
    Retry-After is honoured up to `retry_after`.

    `good_rate`: a connection at least this fast is left alone. Below it more are opened, up to
    `connections`, each step judged over `window` after `settle`; `split` is the least that is
    worth a connection.
    """

    connect: float = 15.0
    stall: float = 30.0
    low_rate: float = 4096.0
    low_time: float = 60.0
    total: float = 4 * 3600.0
    tries: int = 5
    pause: float = 1.0
    longest_pause: float = 30.0
    retry_after: float = 120.0
    redirects: int = 10
    connections: int = 16
    good_rate: float = 12.5e6
    settle: float = 1.0
    window: float = 1.5
    split: int = 1 << 20


class Reply:
    """An answer whose body is still to be read. `start` is the offset of its first byte."""

    def __init__(self, response: httpx.Response, asked_url: str, stall: float) -> None:
        headers = response.headers
        self.status = response.status_code
        self.asked_url = asked_url
        self.url = str(response.url)
        self.encoding = headers.get("content-encoding", "").strip()
        self.content_type = headers.get("content-type", "").split(";")[0].strip().lower()
        length = answers.number(headers.get("content-length", ""))
        is_chunked = "chunked" in headers.get("transfer-encoding", "").lower()
        self.length = None if is_chunked else length
        self.is_framed = is_chunked or length is not None
        self.content_range = answers.content_range(headers.get("content-range", ""))
        self.told_size = answers.unsatisfied_size(headers.get("content-range", ""))
        self.takes_ranges = self.status == 206 or "bytes" in headers.get("accept-ranges", "").lower()
        self.start = self.content_range[0] if self.status == 206 and self.content_range else 0
        self.origin = Origin(
            url=asked_url,
            etag=headers.get("etag", "").strip(),
            last_modified=headers.get("last-modified", "").strip(),
            validator=answers.validator(
                headers.get("etag", ""), headers.get("last-modified", ""), headers.get("date", "")
            ),
            size=self.content_range[2] if self.status == 206 and self.content_range else self.length,
        )
        self._response = response
        self._stall = stall
        self._chunks: Iterator[bytes] | None = None
        self._rest = memoryview(b"")
        self._left = self.length
        self._socket: socket.socket | None = None

    def read_into(self, view: memoryview) -> int:
        """The next bytes of the body, as sent; 0 at its end. Raises SourceError."""
        with _mapped(self.asked_url, self._stall):
            if not self._rest and self._socket is None:
                self._rest = memoryview(self._next_chunk())
            if self._rest:
                count = min(len(view), len(self._rest))
                view[:count] = self._rest[:count]
                self._rest = self._rest[count:]
            elif self._socket is not None and self._left:
                count = self._socket.recv_into(view, min(len(view), self._left))
                if not count:
                    raise SourceError(
                        f"{self.asked_url}: the connection was closed {self._left} bytes too early",
                        url=self.asked_url,
                        is_transient=True,
                    )
            else:
                return 0
        if self._left is not None:
            self._left -= count
        return count

    def _next_chunk(self) -> bytes:
        if self._chunks is None:
            self._chunks = iter(self._response.iter_raw())
            chunk = next(self._chunks, b"")
            self._socket = self._take_socket() if chunk else None
            return chunk
        return next(self._chunks, b"")

    def _take_socket(self) -> socket.socket | None:
        """The connection itself, for the rest of a body of known length: large reads straight into
        our buffer, instead of 64 KiB at a time through the HTTP parser (a third of the time of a
        fetch on loopback). The parser holds no byte back once it has given its first piece."""
        if self.length is None:
            return None
        stream = self._response.extensions.get("network_stream")
        taken = None if stream is None else stream.get_extra_info("socket")
        is_https = urlsplit(self.url).scheme == "https"
        if not isinstance(taken, socket.socket):
            return None
        if is_https != isinstance(taken, ssl.SSLSocket):
            return None  # TLS inside a proxy's TLS: the socket would give ciphertext
        if is_https and stream is not None and stream.get_extra_info("ssl_object") is not taken:
            return None
        taken.settimeout(self._stall)
        return taken

    def abort(self) -> None:
        """Wake up whoever reads it."""
        stream = self._response.extensions.get("network_stream")
        taken = None if stream is None else stream.get_extra_info("socket")
        if isinstance(taken, socket.socket):
            with contextlib.suppress(OSError):
                socket.socket.shutdown(taken, socket.SHUT_RDWR)


class Wire:
    """Connections that share their settings: proxies, .netrc, certificates, redirects, times."""

    def __init__(self, limits: Limits) -> None:
        import httpx

        self._limits = limits
        times = httpx.Timeout(limits.stall, connect=limits.connect, pool=limits.connect)
        with contextlib.ExitStack() as stack:
            try:
                self._client = stack.enter_context(
                    httpx.Client(
                        http2=False,
                        timeout=times,
                        verify=_certificates(),
                        auth=_netrc(),
                        follow_redirects=True,
                        max_redirects=limits.redirects,
                        limits=httpx.Limits(max_connections=limits.connections + 2),
                        event_hooks={"response": [_refuse_downgrade]},
                        headers={"User-Agent": "nixa", "Accept": "*/*", "Accept-Encoding": "identity"},
                    )
                )
            except (ValueError, TypeError, ImportError) as error:  # a proxy variable that is no URL, SOCKS
                raise SourceError(
                    f"the proxy settings can't be used: {error}",
                    url="",
                    hint="look at HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY",
                ) from error
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def get(self, asked_url: str, headers: Mapping[str, str], *, at: str | None = None) -> Iterator[Reply]:
        """One GET. `at`: where an earlier one of the same URL was redirected to. Raises SourceError
        for every status but 200, 206, 304 and 416."""
        url = at or asked_url
        with _mapped(asked_url, self._limits.stall):
            request = self._client.build_request("GET", url, headers=dict(headers))
            response = self._client.send(request, stream=True)
        try:
            with _mapped(asked_url, self._limits.stall):
                reply = Reply(response, asked_url, self._limits.stall)
            if reply.status not in (200, 206, 304, 416):
                raise answers.refusal(
                    asked_url, reply.status, response.headers.get("retry-after", ""), time.time()
                )
            yield reply
        finally:
            with contextlib.suppress(Exception):
                response.close()

    def head(self, url: str) -> Origin:
        """What the server says of the file. Raises SourceError."""
        with _mapped(url, self._limits.stall):
            response = self._client.head(url)
            reply = Reply(response, url, self._limits.stall)
        if reply.status != 200:
            raise answers.refusal(url, reply.status, "", time.time())
        return reply.origin

    def json(self, url: str, headers: Mapping[str, str]) -> dict[str, Any]:
        """The object that an API answers with. Raises SourceError."""
        with _mapped(url, self._limits.stall):
            response = self._client.get(url, headers=dict(headers))
            if response.status_code != 200:
                raise answers.refusal(url, response.status_code, "", time.time())
            value = response.json()
        if not isinstance(value, dict):
            raise SourceError(f"{url}: the answer is no JSON object", url=url)
        return value


def _refuse_downgrade(response: httpx.Response) -> None:
    """Called for every answer on the way, before it is followed."""
    if not response.has_redirect_location:
        return
    here = response.request.url
    there = here.join(response.headers["location"])
    if here.scheme == "https" and there.scheme != "https":
        raise SourceError(
            f"{here}: redirects to {there.scheme}:, which is not followed from https",
            url=str(here),
            hint="pin a URL that stays on https, or write the http one yourself: the hash decides",
        )


def _netrc() -> httpx.Auth | None:
    import netrc

    import httpx

    chosen = os.environ.get("NETRC")
    path = Path(chosen) if chosen else Path.home() / ".netrc"
    try:
        return httpx.NetRCAuth(str(path)) if path.is_file() else None
    except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
        return None  # a .netrc that can't be read: the server will say whether it is needed


def _certificates() -> ssl.SSLContext:
    """The system's certificates, as curl uses them; httpx's own bundle where there are none."""
    paths = ssl.get_default_verify_paths()
    named = os.environ.get("SSL_CERT_FILE") or os.environ.get("NIX_SSL_CERT_FILE")
    if named and Path(named).is_file():
        return ssl.create_default_context(cafile=named)
    if paths.cafile or (paths.capath and any(Path(paths.capath).iterdir())):
        return ssl.create_default_context()
    import certifi

    return ssl.create_default_context(cafile=certifi.where())


@contextlib.contextmanager
def _mapped(url: str, stall: float) -> Iterator[None]:
    """What httpx, TLS and the socket raise, as SourceError."""
    import httpx

    try:
        yield
    except SourceError:
        raise
    except httpx.ConnectTimeout as error:
        raise SourceError(f"{url}: no connection in time", url=url, is_transient=True) from error
    except (httpx.TimeoutException, TimeoutError) as error:
        raise SourceError(f"{url}: no byte for {stall:g} s", url=url, is_transient=True) from error
    except httpx.TooManyRedirects as error:
        raise SourceError(f"{url}: redirects in a circle, or too often", url=url) from error
    except (httpx.UnsupportedProtocol, httpx.InvalidURL, httpx.LocalProtocolError) as error:
        raise SourceError(f"{url}: leads to an address that can't be fetched ({error})", url=url) from error
    except httpx.ConnectError as error:
        raise answers.no_connection(url, error) from error
    except (httpx.HTTPError, httpx.StreamError, OSError) as error:
        said = str(error) or type(error).__name__
        raise SourceError(f"{url}: the connection broke ({said})", url=url, is_transient=True) from error
    except (ValueError, LookupError, OverflowError) as error:
        raise SourceError(f"{url}: the answer can't be understood ({error})", url=url) from error


OVERLAP = 4096

Room = Callable[[Part, int | None], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """From which byte on, and to which (None: to the end). `validator`: for `If-Range`, so that a changed file comes whole. Without
    one the range begins `OVERLAP` bytes early, and these are compared. `unless`: an ETag of a file
    that is known to be wrong."""

    start: int = 0
    is_ranged: bool = False
    validator: str = ""
    unless: str = ""
    end: int | None = None


def plan(part: Part, url: str, *, serves_ranges: bool, unless: str) -> Plan:
    """The request that goes on where the part ends."""
    missing = part.missing() if part.origin.size is not None else []
    first = missing[0][0] if missing else part.prefix
    end = missing[0][1] if len(missing) > 1 else None
    if not part.kept:
        return Plan(unless=unless)
    if not serves_ranges:
        return Plan()
    if part.origin.url == url and part.origin.validator:
        return Plan(first, True, part.origin.validator, end=end)
    return Plan(max(0, first - OVERLAP), True, end=end)


def range_headers(start: int, end: int | None, validator: str) -> dict[str, str]:
    """The headers that ask for bytes from `start` to before `end`."""
    headers = {"Range": f"bytes={start}-{'' if end is None else end - 1}"}
    return {**headers, "If-Range": validator} if validator else headers


@contextlib.contextmanager
def first_reply(wire: Wire, url: str, part: Part, asked: Plan) -> Iterator[Reply]:
    """The answer to a plan, checked against what is kept.

    Raises ContentChanged (another file than the kept bytes are of), RangesBroken (ask for all of
    it), NotModified, SourceError.
    """
    headers = range_headers(asked.start, asked.end, asked.validator) if asked.is_ranged else {}
    if asked.unless:
        headers["If-None-Match"] = asked.unless
    with wire.get(url, headers) as reply:
        if reply.status == 304:
            if asked.unless:
                raise NotModified
            raise SourceError(f"{url}: the server answered 304 unasked", url=url)
        if not asked.is_ranged:
            if reply.status != 200:
                raise SourceError(f"{url}: the server answered {reply.status} to a plain request", url=url)
            _check_size(part, reply)
            yield reply
            return
        if reply.status == 200 and asked.validator and reply.origin.validator != asked.validator:
            pass  # another validator: perhaps of the same bytes, so a little is compared before they go
        else:
            _check_range(part, asked, reply, url)
            yield reply
            return
    without = Plan(max(0, asked.start - OVERLAP), True, end=asked.end)
    with wire.get(url, range_headers(without.start, without.end, "")) as reply:
        _check_range(part, without, reply, url)
        yield reply


def _check_range(part: Part, asked: Plan, reply: Reply, url: str) -> None:
    if reply.status == 416:
        if reply.told_size is not None and reply.told_size == part.prefix == part.kept:
            raise SourceError(f"{url}: has no more bytes than are here", url=url, status=416)
        if reply.told_size is not None and reply.told_size < part.kept:
            raise ContentChanged
        raise RangesBroken
    if reply.status == 206 and (reply.content_range is None or reply.start != asked.start):
        raise RangesBroken
    _check_size(part, reply)


def _check_size(part: Part, reply: Reply) -> None:
    known, told = part.origin.size, reply.origin.size
    if part.kept and told is not None and ((known is not None and known != told) or told < part.prefix):
        raise ContentChanged
