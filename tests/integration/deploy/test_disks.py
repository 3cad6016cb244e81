"""What is found on a machine's disks before they are wiped, on disks written by the real tools."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest

from nixa_tasks.deploy.disks import Disks as Found
from nixa_tasks.deploy.disks import parse
from tests.integration import disks
from tests.integration.disks import NIXOS, NIXOS_ENTRY, OLD_LINUX, Disks, Partition, Write

pytestmark = pytest.mark.lab

SCRIPT = Path(str(resources.files("nixa_tasks.deploy") / "look_at_disks.sh"))
RECEIPT = {"var/lib/nixa/receipt.json": "{}"}


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Disks]:
    with disks.disks(tmp_path) as found:
        yield found


def look(made: Disks) -> Found:
    return parse(made.run(SCRIPT))


@pytest.mark.parametrize(
    ("write", "content"),
    [
        pytest.param(disks.ext4(NIXOS), "NixOS on /dev/hda1", id="ext4"),
        pytest.param(disks.btrfs({"@": NIXOS}), "NixOS on /dev/hda1", id="a subvolume"),
        pytest.param(disks.ext4(OLD_LINUX | RECEIPT), "a receipt of nixa on /dev/hda1", id="a receipt"),
        pytest.param(disks.ext4(NIXOS_ENTRY, "boot"), "boot entries of a NixOS on /dev/hda1", id="/boot"),
    ],
)
def test_a_nixos_is_found(made: Disks, write: Write, content: str) -> None:
    made.add([Partition(write, megabytes=140)])
    found = look(made)
    assert found.has_nixos
    assert content in found.disks[0].contents


@pytest.mark.parametrize(
    ("write", "content"),
    [
        pytest.param(disks.ext4(OLD_LINUX), "Debian GNU/Linux 12 (bookworm) on /dev/hda1", id="Debian"),
        pytest.param(disks.ext4({"photos/a": "b"}, "data"), 'ext4 "data" on /dev/hda1', id="data"),
        pytest.param(disks.luks, "LUKS, encrypted, on /dev/hda1", id="LUKS"),
        pytest.param(disks.lvm("pool"), "LVM on /dev/hda1", id="LVM"),
        pytest.param(disks.raid_member, "RAID on /dev/hda1", id="RAID"),
        pytest.param(disks.zfs_member, "ZFS pool tank on /dev/hda1", id="ZFS"),
    ],
)
def test_whatever_else_is_there_is_named_and_stops_nothing(made: Disks, write: Write, content: str) -> None:
    made.add([Partition(write, megabytes=140)])
    found = look(made)
    assert not found.has_nixos
    assert found.disks[0].contents == (content,)


def test_every_disk_is_named_with_its_size(made: Disks) -> None:
    made.add()
    made.add([Partition(disks.luks), Partition(disks.ext4(NIXOS))])
    assert look(made).lines == (
        "/dev/hda (168 MB): empty",
        "/dev/hdb (168 MB): LUKS, encrypted, on /dev/hdb1, NixOS on /dev/hdb2",
    )


def test_nothing_is_written_and_nothing_stays_mounted(made: Disks, tmp_path: Path) -> None:
    made.add([Partition(disks.ext4(NIXOS), megabytes=140)])
    before = (tmp_path / "hda.img").read_bytes()
    look(made)
    assert (tmp_path / "hda.img").read_bytes() == before
    assert "/dev/hda1" not in Path("/proc/mounts").read_text()
