"""The lab's network: one bridge with a subnet of its own, and a link to every machine."""

from __future__ import annotations

import contextlib
import ipaddress
import random
import re
import subprocess
import time
from pathlib import Path

from nixa_tasks.lab.errors import LabError

_RANGE = ipaddress.IPv4Network("10.64.0.0/10")
_FIRST_MACHINE = 10
MAX_MACHINES = 200
_SECONDS = 20.0


def batch(commands: str, *, force: bool = False) -> None:
    """Several `ip` commands in one process. Raises LabError with what it said."""
    argv = ("ip", *(("-force",) if force else ()), "-batch", "-")
    done = subprocess.run(
        argv, input=commands, text=True, capture_output=True, timeout=_SECONDS, check=False
    )  # fmt: skip
    if done.returncode and not force:
        raise LabError(
            f"ip could not change the network: {done.stderr.strip()}", tail=tuple(commands.splitlines())
        )


def bridge_address(subnet: str) -> str:
    return str(ipaddress.IPv4Network(subnet)[1])


def machine_address(subnet: str, index: int) -> str:
    """The address of the machine with this index, counted from 0."""
    return str(ipaddress.IPv4Network(subnet)[_FIRST_MACHINE + index])


def mac(address: str) -> str:
    """A hardware address made from the IPv4 one: the same at every boot, as in a real machine."""
    return "02:4e:" + ":".join(f"{byte:02x}" for byte in ipaddress.IPv4Address(address).packed)


def veth(lab_id: str, index: int) -> str:
    """The name of our end of a machine's link."""
    return f"n{lab_id}x{index}"


def raise_bridge(name: str, wanted: str | None) -> str:
    """The bridge with a free subnet, `wanted` if that is still free; returns the subnet.

    Two labs that pick the same one at the same time: the younger bridge looks for another.
    """
    if _exists(name):
        if found := _addresses().get(name):
            return str(ipaddress.IPv4Interface(found[0]).network)
        batch(f"link del {name}\n")
    batch(f"link add {name} type bridge\nlink set {name} up\n")
    with contextlib.suppress(OSError):  # a /proc/sys that can't be written: slower to notice, no more
        Path(f"/proc/sys/net/ipv4/neigh/{name}/retrans_time_ms").write_text("100")
    candidates = ([wanted] if wanted else []) + [str(_random_subnet()) for _ in range(50)]
    for subnet in candidates:
        network = ipaddress.IPv4Network(subnet)
        others = _others(name)
        if any(network.overlaps(other) for other in others.values()):
            continue
        address = bridge_address(subnet)
        batch(f"link set {name} address {mac(address)}\naddr add {address}/24 brd + dev {name}\n")
        older = [
            n for n, other in _others(name).items() if network.overlaps(other) and _index(n) < _index(name)
        ]
        if not older:
            return subnet
        batch(f"addr flush dev {name}\n")
    raise LabError("there is no free subnet in 10.64.0.0/10", hint="end a lab that is no longer needed")


def lower_bridge(name: str, lab_id: str) -> None:
    """Remove the bridge and every link of this lab."""
    for link in _links():
        if link == name or re.fullmatch(rf"n{lab_id}x\d+", link):
            batch(f"link del {link}\n", force=True)


def plug(link: str, bridge: str, pid: int, address: str) -> None:
    """A cable from the bridge to the network namespace of `pid`, where it is called eth0."""
    commands = (
        f"link add {link} type veth peer name eth0 netns {pid} address {mac(address)}\n"
        f"link set {link} master {bridge} up\n"
    )
    set_known(bridge, address, known=True)
    for attempt in range(100):
        unplug(link)
        try:
            batch(commands)
        except LabError:  # the one of the boot before may take a moment to go
            if attempt == 99 or not Path(f"/proc/{pid}/ns/net").exists():
                raise
            time.sleep(0.02)
        else:
            return


def set_known(bridge: str, address: str, *, known: bool) -> None:
    """Whether this computer goes on sending to a machine that is silent, so that a connection to it
    is left without any answer; or asks where it is, and finds out quickly that it is nowhere."""
    how = f"replace {address} lladdr {mac(address)} nud permanent" if known else f"del {address}"
    batch(f"neigh {how} dev {bridge}\n", force=True)


def unplug(link: str) -> None:
    if _exists(link):
        with contextlib.suppress(LabError):
            batch(f"link del {link}\n")


def set_dark(link: str, *, dark: bool) -> None:
    """Take the cable's light away: nothing arrives, nothing is answered."""
    if _exists(link):
        batch(f"link set {link} {'down' if dark else 'up'}\n")


def shape(argv_prefix: tuple[str, ...], device: str, rate: str | None) -> None:
    """Limit what leaves through `device` to `rate` (as tc writes it: 2mbit), or no longer.
    Raises LabError where the kernel can't."""
    subprocess.run(
        (*argv_prefix, "tc", "qdisc", "del", "dev", device, "root"),
        capture_output=True, timeout=_SECONDS, check=False,
    )  # fmt: skip
    if rate is None:
        return
    done = subprocess.run(
        (*argv_prefix, "tc", "qdisc", "add", "dev", device, "root", "tbf",
         "rate", rate, "burst", "32kb", "latency", "400ms"),
        capture_output=True, text=True, timeout=_SECONDS, check=False,
    )  # fmt: skip
    if done.returncode:
        raise LabError(f"this kernel can't make {device} slow: {done.stderr.strip()}")


def received(link: str) -> int:
    """Bytes sent into the machine through its link so far."""
    try:
        return int(Path(f"/sys/class/net/{link}/statistics/tx_bytes").read_text())
    except (OSError, ValueError):
        return 0


def _exists(name: str) -> bool:
    return Path(f"/sys/class/net/{name}").exists()


def _index(name: str) -> int:
    try:
        return int(Path(f"/sys/class/net/{name}/ifindex").read_text())
    except (OSError, ValueError):
        return 1 << 30


def _links() -> list[str]:
    return [entry.name for entry in Path("/sys/class/net").iterdir()]


def _random_subnet() -> ipaddress.IPv4Network:
    number = random.SystemRandom().randrange(1 << (24 - _RANGE.prefixlen))
    return ipaddress.IPv4Network((int(_RANGE.network_address) + (number << 8), 24))


def _addresses() -> dict[str, list[str]]:
    """IPv4 addresses with their prefix, by interface."""
    said = subprocess.run(
        ("ip", "-4", "-o", "addr"), capture_output=True, text=True, timeout=_SECONDS, check=False
    ).stdout
    found: dict[str, list[str]] = {}
    for line in said.splitlines():
        fields = line.split()
        if "inet" in fields:
            found.setdefault(fields[1], []).append(fields[fields.index("inet") + 1])
    return found


def _others(name: str) -> dict[str, ipaddress.IPv4Network]:
    """The subnets of the other interfaces, and of the routes that lead elsewhere."""
    found = {
        other: ipaddress.IPv4Interface(address).network
        for other, addresses in _addresses().items()
        if other != name
        for address in addresses
    }
    said = subprocess.run(
        ("ip", "-4", "route"), capture_output=True, text=True, timeout=_SECONDS, check=False
    ).stdout
    for number, line in enumerate(said.splitlines()):
        first = line.split()[0]
        if f"dev {name} " not in f"{line} " and re.fullmatch(r"[\d.]+(/\d+)?", first):
            found[f"route {number}"] = ipaddress.IPv4Network(first, strict=False)
    return found
