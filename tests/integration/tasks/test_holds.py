"""A host that was rolled back is held, and the plan says by its exit status what is to be done."""

from __future__ import annotations

import json
from pathlib import Path

from tests.integration.tasks.conftest import Doit


def receipt(project: Path, host: str, **more: str | None) -> None:
    """Leave what a deploy of the host would have left, changed so."""
    folder = project / ".nixa/hosts" / host
    toplevel = json.loads((folder / "output.json").read_text())["toplevel"]
    said = {
        "target": {"web1": "127.0.0.1", "web2": "127.0.0.2"}[host], "host_key": "", "out": toplevel["out"],
        "wanted": toplevel["out"], "drv": toplevel["drv"], "mode": "switch", "kexec_sha256": None, "flake": None,
        "started_at": "2026-01-01T00:00:00Z", "seconds": 1.0, "operator": "me@here", "outcome": "done",
    }  # fmt: skip
    (folder / "deployed.json").write_text(json.dumps({**said, **more}))


def rolled_back(project: Path, host: str) -> None:
    toplevel = json.loads((project / ".nixa/hosts" / host / "output.json").read_text())["toplevel"]
    before = "/nix/store/00000000000000000000000000000000-nixos-system-before"
    receipt(project, host, out=before, wanted=before, drv=None, mode="rollback", left=toplevel["out"])


def test_a_host_that_was_rolled_back_is_left_alone_until_it_is_asked_for_again(
    doit: Doit, project: Path
) -> None:
    doit("evaluate")
    rolled_back(project, "web1")
    doit("reset-dep", "deploy")  # doit itself has seen the deploys once
    asked: tuple[tuple[str, ...], ...] = (("deploy:web1",), ("deploy", "--on", "web1"))
    for words in asked:
        held = doit(*words)
        assert held.returncode == 0, held.stdout + held.stderr
        assert "web1  held" in held.stdout
        assert "me@here" in held.stdout
        assert "doit deploy:web1 --again" in held.stdout
        assert "reach" not in held.stdout
    row = json.loads(doit("plan:web1", "--json").stdout)["hosts"][0]
    assert row["action"] == "hold"
    assert "--again" in row["reason"]
    for words in ((*words, "--again") for words in asked):
        assert "web1: reach: failed" in doit(*words).stdout, words


def test_a_plan_says_by_its_status_whether_there_is_something_to_do(doit: Doit, project: Path) -> None:
    doit("evaluate")
    receipt(project, "web1")
    receipt(project, "web2")
    assert doit("plan").returncode == 0
    assert doit("plan", "--detailed-exitcode").returncode == 0
    rolled_back(project, "web1")
    assert doit("plan", "--detailed-exitcode").returncode == 0, "a host that is held is left alone"
    receipt(project, "web2", outcome="failed")
    assert doit("plan").returncode == 1, "it has to be asked, and can't be"
    assert doit("plan:web1", "--detailed-exitcode").returncode == 0
