"""Disks written by the real tools are told for what they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration import disks
from tests.integration.disks import NIXOS, NIXOS_ENTRY, OLD_LINUX, Disks, Partition, Write

pytestmark = pytest.mark.lab

TYPES = 'for dev in /dev/hd*; do echo "${dev#/dev/} $(blkid -p -o value -s TYPE "$dev")"; done'


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Disks]:
    with disks.disks(tmp_path) as found:
        yield found


@pytest.mark.parametrize(
    ("write", "kind"),
    [
        pytest.param(disks.ext4(OLD_LINUX), "ext4", id="ext4"),
        pytest.param(disks.esp(NIXOS_ENTRY), "vfat", id="FAT"),
        pytest.param(disks.btrfs({"@": OLD_LINUX}), "btrfs", id="btrfs"),
        pytest.param(disks.luks, "crypto_LUKS", id="LUKS"),
        pytest.param(disks.lvm("pool"), "LVM2_member", id="LVM"),
        pytest.param(disks.raid_member, "linux_raid_member", id="RAID"),
        pytest.param(disks.zfs_member, "zfs_member", id="ZFS"),
    ],
)
def test_what_is_written_is_what_blkid_finds(made: Disks, tmp_path: Path, write: Write, kind: str) -> None:
    (tmp_path / "types.sh").write_text(TYPES)
    made.add([Partition(write, megabytes=140)])
    assert made.run(tmp_path / "types.sh").split() == ["hda", "hda1", kind]


def test_a_machine_sees_its_own_disks_only(made: Disks, tmp_path: Path) -> None:
    (tmp_path / "types.sh").write_text(TYPES + "; ls /dev")
    made.add()
    made.add([Partition(disks.esp(NIXOS_ENTRY), esp=True), Partition(disks.ext4(NIXOS))])
    seen = made.run(tmp_path / "types.sh").split()
    assert seen == ["hda", "hdb", "hdb1", "vfat", "hdb2", "ext4",
                    "full", "hda", "hdb", "hdb1", "hdb2", "null", "random", "tty", "urandom", "zero"]  # fmt: skip
