"""HTTP for the download: limits, one request, its checked answer, its bytes as they were sent.

The only module that imports httpx. Bytes are never decoded: the pin is of the file as it lies on
the server, and an encoding that a server adds on its own shows as a wrong hash.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from nixa_tasks.image.download import answers
from nixa_tasks.image.download.part import Origin, Part
from nixa_tasks.image.errors import ContentChanged, NotModified, RangesBroken, SourceError

if TYPE_CHECKING:
    import httpx


_LONGEST_JSON = 8 << 20  # bytes: what GitHub says about a large release is under one


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

    `largest`: no image is larger; what a source sends beyond is its fault. `reserve`: so many bytes
    stay free on the cache's disk, or a twentieth of it where that is less.
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
    largest: int = 8 << 30
    reserve: int = 256 << 20


class Body(Protocol):
    """The body of an answer, as it comes."""

    def read_into(self, view: memoryview) -> int:
        """The next bytes, as sent; 0 at the end. Raises SourceError."""
        ...

    def abort(self) -> None:
        """Wake up whoever reads it."""
        ...


class Reply:
    """An answer whose body is still to be read. `start` is the offset of its first byte; `headers`
    have lower-case names."""

    def __init__(self, asked_url: str, url: str, status: int, headers: Mapping[str, str], body: Body) -> None:
        self.asked_url = asked_url
        self.url = url
        self.status = status
        self.encoding = headers.get("content-encoding", "").strip()
        self.content_type = headers.get("content-type", "").split(";")[0].strip().lower()
        self.retry_after = headers.get("retry-after", "")
        length = answers.number(headers.get("content-length", ""))
        is_chunked = "chunked" in headers.get("transfer-encoding", "").lower()
        self.length = None if is_chunked else length
        self.is_framed = is_chunked or length is not None
        self.content_range = answers.content_range(headers.get("content-range", ""))
        self.told_size = answers.unsatisfied_size(headers.get("content-range", ""))
        self.takes_ranges = status == 206 or "bytes" in headers.get("accept-ranges", "").lower()
        self.start = self.content_range[0] if status == 206 and self.content_range else 0
        self.origin = Origin(
            url=asked_url,
            etag=headers.get("etag", "").strip(),
            last_modified=headers.get("last-modified", "").strip(),
            validator=answers.validator(
                headers.get("etag", ""), headers.get("last-modified", ""), headers.get("date", "")
            ),
            size=self.content_range[2] if status == 206 and self.content_range else self.length,
        )
        self._body = body

    def read_into(self, view: memoryview) -> int:
        return self._body.read_into(view)

    def abort(self) -> None:
        self._body.abort()


class Wire(Protocol):
    """A way to ask HTTP servers; a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def get(
        self, asked_url: str, headers: Mapping[str, str], *, at: str | None = None
    ) -> contextlib.AbstractContextManager[Reply]:
        """One GET. `at`: where an earlier one of the same URL was redirected to. Raises SourceError
        for every status but 200, 206, 304 and 416."""
        ...

    def head(self, url: str) -> Origin:
        """What the server says about the file. Raises SourceError."""
        ...

    def json(self, url: str, headers: Mapping[str, str]) -> dict[str, Any]:
        """The object that an API answers with. Raises SourceError."""
        ...


class _HttpxBody:
    """A body that httpx receives, read from the socket itself where that is quicker."""

    def __init__(self, response: httpx.Response, asked_url: str, stall: float) -> None:
        self._response = response
        self._asked_url = asked_url
        self._stall = stall
        self._chunks: Iterator[bytes] | None = None
        self._rest = memoryview(b"")
        self._is_of_known_length = False
        self._left: int | None = None
        self._socket: socket.socket | None = None

    def expect(self, length: int | None) -> None:
        """The length of the body, in bytes, where the answer gave one."""
        self._is_of_known_length = length is not None
        self._left = length

    def read_into(self, view: memoryview) -> int:
        with _mapped(self._asked_url, self._stall):
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
                        f"{self._asked_url}: the connection was closed {self._left} bytes too early",
                        url=self._asked_url,
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
        if not self._is_of_known_length:
            return None
        stream = self._response.extensions.get("network_stream")
        taken = None if stream is None else stream.get_extra_info("socket")
        is_https = self._response.url.scheme == "https"
        if not isinstance(taken, socket.socket):
            return None
        if is_https != isinstance(taken, ssl.SSLSocket):
            return None  # TLS inside a proxy's TLS: the socket would give ciphertext
        if is_https and stream is not None and stream.get_extra_info("ssl_object") is not taken:
            return None
        taken.settimeout(self._stall)
        return taken

    def abort(self) -> None:
        stream = self._response.extensions.get("network_stream")
        taken = None if stream is None else stream.get_extra_info("socket")
        if isinstance(taken, socket.socket):
            with contextlib.suppress(OSError):
                socket.socket.shutdown(taken, socket.SHUT_RDWR)


class HttpWire:
    """Connections that share their settings: proxies, .netrc, certificates, redirects, timeouts."""

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
        """See Wire.get."""
        url = at or asked_url
        with _mapped(asked_url, self._limits.stall):
            request = self._client.build_request("GET", url, headers=dict(headers))
            response = self._client.send(request, stream=True)
        try:
            with _mapped(asked_url, self._limits.stall):
                reply = self._reply(response, asked_url)
            if reply.status not in (200, 206, 304, 416):
                raise answers.refusal(asked_url, reply.status, reply.retry_after, time.time())
            yield reply
        finally:
            with contextlib.suppress(Exception):
                response.close()

    def head(self, url: str) -> Origin:
        """See Wire.head."""
        with _mapped(url, self._limits.stall):
            reply = self._reply(self._client.head(url), url)
        if reply.status != 200:
            raise answers.refusal(url, reply.status, "", time.time())
        return reply.origin

    def json(self, url: str, headers: Mapping[str, str]) -> dict[str, Any]:
        """See Wire.json."""
        answer = bytearray()
        buffer = memoryview(bytearray(1 << 16))
        with self.get(url, {**headers, "Accept-Encoding": "identity"}) as reply:
            if reply.status != 200:
                raise answers.refusal(url, reply.status, "", time.time())
            while count := reply.read_into(buffer):
                answer += buffer[:count]
                if len(answer) > _LONGEST_JSON:
                    raise SourceError(f"{url}: the answer is longer than {_LONGEST_JSON >> 20} MiB", url=url)
        with _mapped(url, self._limits.stall):
            value = json.loads(answer)
        if not isinstance(value, dict):
            raise SourceError(f"{url}: the answer is no JSON object", url=url)
        return value

    def _reply(self, response: httpx.Response, asked_url: str) -> Reply:
        headers = {name.lower(): value for name, value in response.headers.items()}
        body = _HttpxBody(response, asked_url, self._limits.stall)
        reply = Reply(asked_url, str(response.url), response.status_code, headers, body)
        body.expect(reply.length)
        return reply


@dataclass(frozen=True, slots=True)
class Network:
    """How images are fetched: within which limits, over what, and who stands in for GitHub's API
    (None: NIXA_GITHUB_API, else GitHub's own)."""

    limits: Limits = Limits()
    connect: Callable[[Limits], Wire] = HttpWire
    github_api: str | None = None


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
    """The system's certificates, as curl uses them; httpx's own bundle where there are none.
    Raises SourceError."""
    for variable in ("SSL_CERT_FILE", "NIX_SSL_CERT_FILE"):
        if named := os.environ.get(variable):
            try:
                return ssl.create_default_context(cafile=named)
            except OSError as error:  # ssl.SSLError is one
                reason = error.strerror if error.errno else "it holds no certificates"
                raise SourceError(
                    f"{variable} names {named}, which can't be used: {reason}",
                    url="",
                    hint=f"unset {variable}, or let it name a file of certificates in PEM form",
                ) from error
    paths = ssl.get_default_verify_paths()
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


@dataclass(frozen=True, slots=True)
class Plan:
    """From which byte on, and to which (None: to the end).

    `validator`: for `If-Range`, so that a changed file comes whole. Without one the range begins
    `OVERLAP` bytes early, and these are compared. `unless`: a file that is known to be wrong.
    """

    start: int = 0
    is_ranged: bool = False
    validator: str = ""
    unless: Origin | None = None
    end: int | None = None


def plan(part: Part, url: str, *, serves_ranges: bool, unless: Origin | None) -> Plan:
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


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a plan. `is_compared`: nothing but an overlap says that it continues the file
    that is here, where a strong validator would prove it."""

    reply: Reply
    is_compared: bool = False


@contextlib.contextmanager
def first_answer(wire: Wire, url: str, part: Part, asked: Plan) -> Iterator[Answer]:
    """The answer to a plan, checked against the bytes that are here.

    Raises ContentChanged (it is of another file), RangesBroken (ask for all of it), NotModified,
    SourceError.
    """
    headers = range_headers(asked.start, asked.end, asked.validator) if asked.is_ranged else {}
    if asked.unless is not None and asked.unless.validator.startswith('"'):
        headers["If-None-Match"] = asked.unless.validator
    with wire.get(url, headers) as reply:
        if reply.status == 304:
            if "If-None-Match" in headers:
                raise NotModified
            raise SourceError(f"{url}: the server answered 304 unasked", url=url)
        if not asked.is_ranged:
            if reply.status != 200:
                raise SourceError(f"{url}: the server answered {reply.status} to a plain request", url=url)
            if asked.unless is not None and asked.unless.is_same_as(reply.origin):
                raise NotModified
            _check_size(part, reply)
            yield Answer(reply)
            return
        if asked.validator and _is_other(asked, part, reply):
            pass  # another validator: perhaps of the same bytes, so a little is compared before they go
        else:
            _check_range(part, asked, reply, url)
            yield Answer(reply, is_compared=reply.status == 206 and not asked.validator)
            return
    without = Plan(max(0, asked.start - OVERLAP), True, end=asked.end)
    with wire.get(url, range_headers(without.start, without.end, "")) as reply:
        _check_range(part, without, reply, url)
        yield Answer(reply, is_compared=reply.status == 206)


def _is_other(asked: Plan, part: Part, reply: Reply) -> bool:
    """Whether the answer to `If-Range` is of a file with other validators. A server that ignores
    the header answers 206 all the same."""
    if reply.status == 200:
        return reply.origin.validator != asked.validator
    return reply.status == 206 and part.origin.contradicts(reply.origin)


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
