"""A slow, lossy link between two network namespaces, in user space.

Each namespace gets a TUN device; this process carries whole IP packets between the two, each one
delayed, held to a rate, dropped by chance or where the queue is full. The kernel's own TCP runs at
both ends, so its congestion control answers to the loss as it does on a real line. (netem, which
would do the same in the kernel, is a module that many kernels come without.)
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import select
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

_TUNSETIFF = 0x400454CA  # linux/if_tun.h
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_MTU = 1500
NEAR, FAR = "10.211.0.1", "10.211.0.2"


@dataclass(frozen=True, slots=True)
class Link:
    """`delay`: seconds one way. `rate`: bits a second each way. `loss`: 0 to 1, of packets each
    way. `queue`: bytes that wait at the bottleneck."""

    delay: float
    rate: float
    loss: float
    queue: int


@dataclass(frozen=True, slots=True)
class Ends:
    """The namespaces' names: the client's, and the server's, which has the address `FAR`."""

    near: str
    far: str


@dataclass(slots=True)
class _Way:
    """One direction: packets that are under way, oldest first, with the time of arrival."""

    source: int
    target: int
    free_at: float = 0.0
    under_way: deque[tuple[float, bytes]] = field(default_factory=deque)

    def take(self, link: Link, dice: random.Random) -> None:
        """Everything that waits at the sender's end."""
        for _ in range(256):
            try:
                packet = os.read(self.source, _MTU + 100)
            except BlockingIOError:
                return
            now = time.monotonic()
            start = max(now, self.free_at)
            if (start - now) * link.rate / 8 > link.queue:
                continue  # the queue is full
            self.free_at = start + len(packet) * 8 / link.rate
            if dice.random() >= link.loss:  # a lost packet takes its time on the line, too
                self.under_way.append((self.free_at + link.delay, packet))

    def give(self) -> float | None:
        """Hand over what has arrived; when the next one will, or None."""
        while self.under_way:
            due, packet = self.under_way[0]
            if due > time.monotonic():
                return due
            self.under_way.popleft()
            with contextlib.suppress(BlockingIOError, OSError):
                os.write(self.target, packet)
        return None


def carry(near: int, far: int, link: Link) -> None:
    """Carry packets until the standard input ends."""
    dice = random.Random(7)
    ways = (_Way(near, far), _Way(far, near))
    poller = select.epoll()
    for handle in (near, far, 0):
        poller.register(handle, select.EPOLLIN)
    while True:
        dues = [due for way in ways if (due := way.give()) is not None]
        wait = max(0.0, min(dues) - time.monotonic()) if dues else 1.0
        ready = {handle for handle, _event in poller.poll(wait)}
        if 0 in ready:
            return
        for way in ways:
            if way.source in ready:
                way.take(link, dice)


def _tun(name: str) -> int:
    handle = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(handle, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return handle


def _ip(*args: str) -> None:
    subprocess.run(("ip", *args), check=True, timeout=20)


def _configure(namespace: str, device: str, own: str, peer: str) -> None:
    _ip("link", "set", device, "netns", namespace)
    _ip("-n", namespace, "link", "set", "lo", "up")
    _ip("-n", namespace, "addr", "add", own, "peer", peer, "dev", device)
    _ip("-n", namespace, "link", "set", device, "mtu", str(_MTU), "txqueuelen", "1000", "up")
    _ip("netns", "exec", namespace, "sysctl", "-qw", "net.ipv4.tcp_no_metrics_save=1")


@contextlib.contextmanager
def opened(link: Link) -> Iterator[Ends]:
    """The link, with both namespaces, for as long as the body runs. Needs root."""
    ends = Ends(f"nixa-near-{os.getpid()}", f"nixa-far-{os.getpid()}")
    devices = f"nixn{os.getpid() % 10**6}", f"nixf{os.getpid() % 10**6}"
    with contextlib.ExitStack() as stack:
        handles = [_tun(device) for device in devices]
        for handle in handles:
            stack.callback(os.close, handle)
        for namespace in (ends.near, ends.far):
            _ip("netns", "add", namespace)
            stack.callback(_ip, "netns", "del", namespace)
        _configure(ends.near, devices[0], NEAR, FAR)
        _configure(ends.far, devices[1], FAR, NEAR)
        numbers = (link.delay, link.rate, link.loss, link.queue)
        carrier = subprocess.Popen(
            (sys.executable, "-m", "bench.link", *map(str, (*handles, *numbers))),
            stdin=subprocess.PIPE,
            pass_fds=handles,
        )
        try:
            yield ends
        finally:
            carrier.communicate(timeout=10)


if __name__ == "__main__":
    _near, _far, _delay, _rate, _loss, _queue = sys.argv[1:]
    carry(int(_near), int(_far), Link(float(_delay), float(_rate), float(_loss), int(_queue)))
