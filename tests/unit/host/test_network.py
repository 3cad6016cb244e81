"""A network that the installer will not restore is noticed before the jump."""

from __future__ import annotations

import json
import subprocess

import pytest

from nixa_tasks.host import network
from nixa_tasks.host.ssh import script

OURS = "10.7.0.1 50000 10.7.0.2 22"


def _interface(name: str, kind: str | None, *addresses: str, **more: object) -> dict[str, object]:
    found: dict[str, object] = {"ifname": name, "addr_info": [{"local": one} for one in addresses]}
    if kind is not None:
        found["linkinfo"] = {"info_kind": kind}
    return found | more


def _answer(*interfaces: dict[str, object], connection: str = OURS) -> str:
    return f"{json.dumps(list(interfaces))}\n{connection}\n"


def test_a_bond_that_carries_our_connection_is_named_with_its_parts() -> None:
    lost = network.lost_by_kexec(
        _answer(
            _interface("eno1", None, master="bond0"),
            _interface("eno2", None, master="bond0"),
            _interface("bond0", "bond", "10.7.0.2"),
        )
    )
    assert lost is not None
    assert lost.described() == "bond0 (bond of eno1, eno2)"


def test_a_vlan_is_named_with_the_interface_below_it() -> None:
    lost = network.lost_by_kexec(
        _answer(_interface("eno1", None), _interface("eno1.5", "vlan", "10.7.0.2", link="eno1"))
    )
    assert lost is not None
    assert lost.described() == "eno1.5 (VLAN of eno1)"


@pytest.mark.parametrize("kind", [None, "veth", "virtio_net"])
def test_a_plain_interface_comes_back(kind: str | None) -> None:
    assert network.lost_by_kexec(_answer(_interface("eth0", kind, "10.7.0.2"))) is None


def test_a_bridge_that_our_connection_does_not_use_does_not_matter() -> None:
    answer = _answer(_interface("eth0", None, "10.7.0.2"), _interface("docker0", "bridge", "172.17.0.1"))
    assert network.lost_by_kexec(answer) is None


def test_an_ipv6_address_with_a_zone_is_recognised() -> None:
    answer = _answer(_interface("br0", "bridge", "fe80::2"), connection="fe80::1%br0 50000 fe80::2%br0 22")
    lost = network.lost_by_kexec(answer)
    assert lost is not None
    assert lost.described() == "br0 (bridge)"


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "\n",
        "[]\n",
        "nonsense\n1 2 10.7.0.2 22",
        "{}\n" + OURS,
        "[1, null]\n" + OURS,
        _answer(connection=""),
        '[{"ifname": "b", "addr_info": 7}]\n' + OURS,
        '[{"ifname": "b", "addr_info": [{"local": []}]}]\n' + OURS,
    ],
)
def test_an_answer_that_makes_no_sense_says_nothing(answer: str) -> None:
    assert network.lost_by_kexec(answer) is None


@pytest.mark.lab
def test_the_script_reads_a_real_bridge() -> None:
    """In a network namespace of our own, with the `ip` that is here."""
    prepare = (
        "ip link add br0 type bridge; ip link add v0 type veth peer name v1; ip link set v0 master br0;"
        "ip addr add 10.7.0.2/24 dev br0; "
    )
    done = subprocess.run(
        ("unshare", "--net", "sh", "-c", prepare + script("network")),
        capture_output=True,
        text=True,
        check=True,
        env={"SSH_CONNECTION": OURS, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        timeout=30,
    )
    lost = network.lost_by_kexec(done.stdout)
    assert lost is not None
    assert lost.described() == "br0 (bridge of v0)"
