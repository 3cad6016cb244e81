"""nixa from a script."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from nixa_tasks import api
from nixa_tasks.errors import UsageError
from nixa_tasks.manifest.problems import ManifestError


@pytest.fixture
def fleet(project: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> api.Fleet:
    for name in ("NIX_USER_CONF_FILES", "XDG_STATE_HOME", "NIXA_CACHE"):
        monkeypatch.setenv(name, environment[name])
    return api.Fleet(project)


def test_hosts_are_chosen_as_on_the_command_line(fleet: api.Fleet) -> None:
    assert fleet.hosts() == ("web1", "web2")
    assert fleet.hosts("@web and not web1") == ("web2",)
    with pytest.raises(UsageError):
        fleet.deploy("@nobody")


def test_a_plan_changes_nothing_and_says_why(fleet: api.Fleet) -> None:
    (row,) = fleet.plan("web1")
    assert (row.host, row.action) == ("web1", "wait")
    assert "refused" in row.reason
    assert fleet.receipts() == {"web1": None, "web2": None}


def test_a_deploy_gives_a_status_and_each_hosts_result(fleet: api.Fleet, tmp_path: Path) -> None:
    here = Path.cwd()
    output = io.StringIO()
    done = fleet.deploy("web1", output=output)
    assert done.status == 1
    assert done.results["web1"].outcome == "failed"
    assert done.results.keys() == {"web1"}
    assert "web1: reach: failed" in output.getvalue()
    assert Path.cwd() == here
    again = fleet.deploy()
    assert again.results.keys() == {"web1", "web2"}, "each call is a run of its own"


def test_a_bad_manifest_is_an_error_with_its_lines(tmp_path: Path) -> None:
    (tmp_path / "hosts.toml").write_text("version = 1\n[hosts.web1]\ntarkey = 1\n")
    with pytest.raises(ManifestError) as caught:
        api.Fleet(tmp_path)
    assert "hosts.toml:" in str(caught.value.render())
