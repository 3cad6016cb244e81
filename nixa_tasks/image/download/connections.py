"""How many connections a download should have. Pure: samples in, a number out.

Several connections pay where packets are lost (each one's window collapses by itself) or where a
server limits each connection; elsewhere they only cost. So one is measured first, more are opened
only while it is poor, and kept only if they help.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from nixa_tasks.image.download.http import Limits

STEP = 4  # 1, 4, 16: few steps, since each costs a measurement
GAIN = 1.3  # what a step must bring to be kept
WORTH_SECONDS = 4.0  # a download that is over sooner is not worth measuring
REST_SECONDS = 30.0  # after a step that brought nothing


@dataclass(frozen=True, slots=True)
class Connections:
    """Where the measuring stands. `width`: connections wanted; `rate`: of the step before this
    one, bytes a second; `since`/`done`: when this measurement began, and with how many bytes."""

    width: int = 1
    cap: int = 1 << 10
    rate: float = 0.0
    previous: int = 1
    since: float | None = None
    done: int = 0
    rest: float = REST_SECONDS
    settling_until: float | None = None


def begin(old: Connections, now: float, settle: float) -> Connections:
    """Wait for new connections to get up to speed before they are measured."""
    return replace(old, since=None, done=0, settling_until=now + settle)


def limit(old: Connections, cap: int) -> Connections:
    """A connection was refused or lost: never more than `cap` from now on."""
    cap = max(1, min(cap, old.cap))
    return replace(old, cap=cap, width=min(old.width, cap), previous=min(old.previous, cap))


def observe(old: Connections, now: float, done: int, left: int, limits: Limits) -> Connections:
    """The next state, after `done` bytes in all, with `left` still to come."""
    if old.settling_until is None:
        return begin(old, now, limits.settle)
    if old.since is None:
        is_settled = now >= old.settling_until
        return replace(old, since=now, done=done) if is_settled else old
    if now - old.since < limits.window:
        return old
    return _judge(old, now, (done - old.done) / (now - old.since), left, limits)


def _judge(old: Connections, now: float, rate: float, left: int, limits: Limits) -> Connections:
    """What a measured rate, in bytes a second, says about the number of connections."""
    if old.width > old.previous and rate < old.rate * GAIN:
        back = replace(old, width=old.previous, rate=0.0, rest=old.rest * 2)
        return begin(back, now, old.rest)
    wanted = min(old.width * STEP, limits.connections, old.cap)
    is_poor = rate < limits.good_rate and left > rate * WORTH_SECONDS
    if is_poor and wanted > old.width:
        return begin(replace(old, width=wanted, rate=rate, previous=old.width), now, limits.settle)
    return begin(replace(old, rate=rate, previous=old.width), now, limits.settle)
