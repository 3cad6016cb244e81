"""`deliver = "pull"`: one copy crosses the controller's uplink, and nobody who hands it on is trusted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from nixa_tasks.fleet.report.records import read_journal
from nixa_tasks.fleet.report.runs import account
from nixa_tasks.lab import Lab
from tests.integration.deploy.conftest import Fleet

pytestmark = pytest.mark.lab

_MACHINES = 4
_IMAGE_MB = 40
_DAMAGING_PYTHON = """#!/bin/sh
# -c PROGRAM FILE TOKEN: what is served has one other byte
cp "$3" /tmp/other && printf X | dd of=/tmp/other bs=1 seek=1000000 conv=notrunc 2>/dev/null
exec /usr/bin/python3 -c "$2" /tmp/other "$4"
"""


@pytest.fixture
def pulling(tmp_path: Path, home: Path) -> Iterator[Fleet]:
    """Hosts that can reach each other, and an image that only the controller has."""
    lab = Lab(tmp_path / "lab", image_mb=_IMAGE_MB)
    try:
        lab.up(_MACHINES)
        manifest = Path(lab.flake) / "hosts.toml"
        text = re.sub(r"(?m)^url = .*$", f'url = "{lab.image}"\ndeliver = "pull"', manifest.read_text())
        manifest.write_text(text)
        yield Fleet(lab, home)
    finally:
        lab.down()


def _sent(fleet: Fleet) -> int:
    """Bytes that this computer itself has sent into the lab's network."""
    return int(Path(f"/sys/class/net/{fleet.lab.paths.bridge}/statistics/tx_bytes").read_text())


def test_one_copy_crosses_the_uplink_and_the_hosts_hand_it_on(pulling: Fleet) -> None:
    before = _sent(pulling)
    said = pulling.doit("deploy")
    sent = _sent(pulling) - before
    assert [machine.stage for machine in pulling.lab.machines.values()] == ["installed"] * _MACHINES
    size = pulling.lab.image.stat().st_size
    assert size > 30 << 20
    assert sent < 1.5 * size, said
    assert "handing it on" in said
    (image,) = account(read_journal(pulling.flake / ".nixa/journal.jsonl").files)
    assert (image.needed, image.saved_upload) == (_MACHINES, (_MACHINES - 1) * size)
    assert not image.is_remote, "it is a file of this computer: nothing is downloaded"


def test_a_neighbour_that_gives_another_file_is_not_believed(pulling: Fleet) -> None:
    for machine in pulling.lab.machines.values():
        put = 'printf %s "$1" >/usr/local/bin/python3 && chmod 755 /usr/local/bin/python3'
        assert machine.exec(["sh", "-c", put, "sh", _DAMAGING_PYTHON]).returncode == 0
    said = pulling.doit("deploy")
    assert "gave another file than the pinned one" in said
    assert [machine.stage for machine in pulling.lab.machines.values()] == ["installed"] * _MACHINES
