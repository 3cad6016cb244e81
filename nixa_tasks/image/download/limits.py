"""How long a fetch waits for what, and how far it goes."""

from __future__ import annotations

from dataclasses import dataclass


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
