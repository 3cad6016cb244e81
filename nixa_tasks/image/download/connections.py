"""How many connections a download should have. Pure: samples in, a number out.

Several connections pay where packets are lost (each one's window collapses by itself) or where a
server limits each connection; elsewhere they only cost. So one is measured first, more are opened
only while it is poor, and kept only if they help.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from nixa_tasks.image.download.limits import Limits

STEP = 4  # 1, 4, 16: few steps, since each costs a measurement
GAIN = 1.3  # what a step must bring to be kept
WORTH_SECONDS = 4.0  # a download that is over sooner is not worth measuring
REST_SECONDS = 30.0  # after a step that brought nothing


@dataclass(frozen=True, slots=True)
class Pace:
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


def begin(pace: Pace, now: float, settle: float) -> Pace:
    """Wait for new connections to get up to speed before they are measured."""
    return replace(pace, since=None, done=0, settling_until=now + settle)


def limit(pace: Pace, cap: int) -> Pace:
    """A connection was refused or lost: never more than `cap` from now on."""
    cap = max(1, min(cap, pace.cap))
    return replace(pace, cap=cap, width=min(pace.width, cap), previous=min(pace.previous, cap))


def observe(pace: Pace, now: float, done: int, left: int, limits: Limits) -> Pace:
    """The next state, after `done` bytes in all, with `left` still to come."""
    if pace.settling_until is None:
        return begin(pace, now, limits.settle)
    if pace.since is None:
        is_settled = now >= pace.settling_until
        return replace(pace, since=now, done=done) if is_settled else pace
    if now - pace.since < limits.window:
        return pace
    return _judge(pace, now, (done - pace.done) / (now - pace.since), left, limits)


def _judge(pace: Pace, now: float, rate: float, left: int, limits: Limits) -> Pace:
    """What a measured rate, in bytes a second, says about the number of connections."""
    if pace.width > pace.previous and rate < pace.rate * GAIN:
        back = replace(pace, width=pace.previous, rate=0.0, rest=pace.rest * 2)
        return begin(back, now, pace.rest)
    wanted = min(pace.width * STEP, limits.connections, pace.cap)
    is_poor = rate < limits.good_rate and left > rate * WORTH_SECONDS
    if is_poor and wanted > pace.width:
        return begin(replace(pace, width=wanted, rate=rate, previous=pace.width), now, limits.settle)
    return begin(replace(pace, rate=rate, previous=pace.width), now, limits.settle)
