"""What goes to a host: held open here, and bounded there."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from nixa_tasks.errors import NixaError
from nixa_tasks.image.delivery import pull
from nixa_tasks.image.delivery.upload import held_open
from nixa_tasks.image.obtain import Obtained
from nixa_tasks.image.tarball import Summary
from nixa_tasks.manifest.model import UrlImage
from tests.faults.image.image_server import serving


def obtained(path: Path) -> Obtained:
    summary = Summary("x86_64", "gz", 1, 1, 1, 1, 1, "0" * 64)
    return Obtained(UrlImage("i", "http://h/i.tar.gz", "0" * 64), path, "0" * 64, summary)


def test_an_image_that_is_cleaned_away_during_its_upload_stays_readable(tmp_path: Path) -> None:
    path = tmp_path / "image.tar.gz"
    path.write_bytes(b"image")
    with held_open(obtained(path)) as held:
        path.unlink()
        assert held.path.read_bytes() == held.path.read_bytes() == b"image"
        assert held.path.stat().st_size == 5


def test_an_image_that_is_gone_before_its_upload_is_an_error_with_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(NixaError, match="No such file") as caught, held_open(obtained(tmp_path / "gone")):
        pass
    assert "doit kexec:i" in caught.value.render()


@pytest.mark.parametrize("tool", ["curl", "wget"])
@pytest.mark.parametrize("script", [pull._FROM_URL, pull._FROM_NEIGHBOUR])
def test_a_host_takes_no_more_than_the_image_has(tmp_path: Path, tool: str, script: str) -> None:
    if tool == "wget":
        script = script.replace("command -v curl", "command -v no-curl")
    with serving(b"x" * 1000) as server:
        server.do.is_endless, server.do.tells_length = True, False
        done = subprocess.run(
            ["sh", "-c", script, "nixa", "0" * 64, server.url, "4096"],
            env={**os.environ, "HOME": str(tmp_path)},
            capture_output=True,
            timeout=60,
            check=False,
        )
    assert done.returncode != 0
    assert (tmp_path / ".nixa-kexec" / f"{'0' * 64}.part").stat().st_size <= 4096 * 512
