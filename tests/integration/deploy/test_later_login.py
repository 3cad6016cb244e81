"""Who logs in before an installation, and who afterwards."""

from __future__ import annotations

import pytest

from tests.integration.deploy.conftest import Fleet

pytestmark = pytest.mark.lab


def _declare(fleet: Fleet, *keys: str) -> None:
    manifest = fleet.flake / "hosts.toml"
    manifest.write_text(
        manifest.read_text().replace("[hosts.web1]\n", "[hosts.web1]\n" + "\n".join(keys) + "\n")
    )


def test_a_system_that_would_lock_its_user_out_is_not_installed(fleet: Fleet) -> None:
    _declare(fleet, 'user = "admin"')
    fleet.change("web1", '{ users = [ "root" ]; }\n')
    machine = fleet.lab.machines["web1"]
    said = fleet.doit("deploy:web1", status=1)
    assert "would lock admin out: it has ssh keys for root only; nothing was changed" in said
    assert 'install_user = "admin"' in said
    assert (machine.stage, machine.wipes()) == ("old", 0)


def test_the_first_login_may_be_another_user_than_the_later_ones(fleet: Fleet) -> None:
    machine = fleet.lab.machines["web1"]
    machine.exec(["rm", "/root/.ssh/authorized_keys"])
    assert "Permission denied" in fleet.doit("deploy:web1", status=1)
    _declare(fleet, 'install_user = "admin"')
    fleet.change("web1", '{ users = [ "root" ]; }\n')
    fleet.doit("deploy:web1")
    assert machine.stage == "installed"
    fleet.change("web1", '{ users = [ "root" ]; message = "second"; }\n')
    assert "switched" in fleet.doit("deploy:web1")


def test_a_user_who_cannot_log_in_to_the_installed_system_is_told_at_once(fleet: Fleet) -> None:
    """The closure has a key for the user, but the user's login does not work there."""
    _declare(fleet, 'user = "nobody-here"', 'install_user = "admin"')
    fleet.change("web1", '{ users = [ "root" "nobody-here" ]; }\n')
    said = fleet.doit("deploy:web1", status=1)
    assert "installed and running, but later deploys log in as nobody-here" in said
    assert "root can still log in" in said
    assert fleet.lab.machines["web1"].stage == "installed"
