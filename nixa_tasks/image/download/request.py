"""What the first connection of an attempt asks for, and whether the answer fits what is kept."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from nixa_tasks.image.download.http import Reply, Wire
from nixa_tasks.image.download.part import Part
from nixa_tasks.image.errors import ContentChanged, NotModified, RangesBroken, SourceError

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
