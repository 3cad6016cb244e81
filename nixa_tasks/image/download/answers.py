"""What an HTTP server's answer means. Pure."""

from __future__ import annotations

import re
import socket
import ssl
from email.utils import parsedate_to_datetime

from nixa_tasks.image.errors import SourceError

_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524})
_HINTS = {
    401: "this URL needs a login: put it into ~/.netrc",
    403: "this URL needs rights that nixa does not have, or it has expired",
    404: "the file is not there (a release that is being uploaded answers so for a minute); try again,\n"
    "look for the new address, or name a mirror that has it",
    407: "the proxy needs a login: write it into the proxy's URL",
    410: "the file was withdrawn; look for the new address, or name a mirror that has it",
    429: "the server limits requests; try again later, or name a mirror",
}
_RANGE = re.compile(r"\s*bytes\s+(\d{1,18})-(\d{1,18})/(\d{1,18}|\*)\s*", re.IGNORECASE | re.ASCII)
_UNSATISFIED = re.compile(r"\s*bytes\s+\*/(\d{1,18})\s*", re.IGNORECASE | re.ASCII)


def number(text: str) -> int | None:
    """The number in a header; None where there is none that makes sense.

    >>> number("350"), number("-1"), number("")
    (350, None, None)
    """
    return int(text) if re.fullmatch(r"\s*\d{1,18}\s*", text, re.ASCII) else None


def content_range(text: str) -> tuple[int, int, int | None] | None:
    """First byte, end (exclusive) and whole size of `Content-Range`; None where it makes no sense.

    >>> content_range("bytes 5-9/10")
    (5, 10, 10)
    """
    found = _RANGE.fullmatch(text)
    if found is None:
        return None
    start, end = int(found[1]), int(found[2]) + 1
    size = None if found[3] == "*" else int(found[3])
    return (start, end, size) if start < end and (size is None or end <= size) else None


def unsatisfied_size(text: str) -> int | None:
    """The whole size that a 416 tells.

    >>> unsatisfied_size("bytes */10")
    10
    """
    found = _UNSATISFIED.fullmatch(text)
    return int(found[1]) if found else None


def seconds_since_1970(text: str) -> float | None:
    """The moment of a date in a header; None where it is none."""
    try:
        return parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, OverflowError, OSError, IndexError):
        return None


def validator(etag: str, last_modified: str, date: str) -> str:
    """What `If-Range` may be asked with: a strong ETag, or a date that is strong because the file
    was older than a second when it was sent (RFC 9110, 8.8.2.2). "" where there is neither.

    >>> validator('W/"a"', "", ""), validator('"a"', "", "")
    ('', '"a"')
    """
    etag = etag.strip()
    if re.fullmatch(r'"[\x21\x23-\x7e]*"', etag):
        return etag
    changed, sent = seconds_since_1970(last_modified), seconds_since_1970(date)
    is_strong = changed is not None and sent is not None and sent - changed >= 1
    return last_modified.strip() if is_strong and not etag else ""


def retry_after(text: str, now: float) -> float | None:
    """Seconds to wait, from `Retry-After` (seconds, or a date).

    >>> retry_after("7", 0.0)
    7.0
    """
    seconds = number(text)
    if seconds is not None:
        return float(seconds)
    moment = seconds_since_1970(text)
    return None if moment is None else max(0.0, moment - now)


def refusal(url: str, status: int, retry: str, now: float) -> SourceError:
    """The error for a status other than success."""
    words = {429: "too many requests", 404: "not found", 403: "forbidden", 401: "login needed"}
    said = f" ({words[status]})" if status in words else ""
    return SourceError(
        f"{url}: the server answered {status}{said}",
        url=url,
        status=status,
        is_transient=status in _TRANSIENT,
        retry_after=retry_after(retry, now) if retry else None,
        hint=_HINTS.get(status),
    )


def no_connection(url: str, error: BaseException) -> SourceError:
    """The error for a connection that did not come about, by its cause."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return SourceError(
                f"{url}: the server's certificate is not trusted ({cause.verify_message})",
                url=url,
                hint="check this machine's clock and certificates; SSL_CERT_FILE names others",
            )
        if isinstance(cause, ssl.SSLError):
            said = cause.reason or str(cause)
            return SourceError(f"{url}: TLS failed ({said})", url=url, is_transient=True)
        if isinstance(cause, socket.gaierror):
            return SourceError(
                f"{url}: its name can't be resolved ({cause.strerror})",
                url=url,
                is_transient=cause.errno == socket.EAI_AGAIN,
                hint="check the name, and this machine's network and DNS",
            )
        cause = cause.__cause__ or cause.__context__
    return SourceError(f"{url}: no connection ({error})", url=url, is_transient=True)


def is_page(content_type: str, first: bytes) -> bool:
    """Whether a body is a web page rather than a file.

    >>> is_page("application/gzip", b"  <!DOCTYPE html><html>")
    True
    """
    head = first[:256].lstrip().lower()
    return content_type in ("text/html", "application/xhtml+xml") or head.startswith(
        (b"<!doctype html", b"<html")
    )
