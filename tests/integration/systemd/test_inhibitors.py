"""What a switch can't change in a running system: inhibitors, which `on_inhibitor` is for, and the kernel."""

from __future__ import annotations

import pytest

from tests.integration.systemd.conftest import Site
from tests.integration.systemd.test_switch import FAILING, receipt

pytestmark = [pytest.mark.lab, pytest.mark.xdist_group("systemd")]

DBUS, BROKER = {"dbus": "dbus"}, {"dbus": "broker"}


@pytest.fixture
def inhibited(site: Site) -> Site:
    """It runs a system with the one D-Bus, and its configuration says the other."""
    site.configure(message="first", inhibitors=DBUS)
    first = site.built()
    site.machine.import_closure(first, site.environment)
    site.machine.adopt(first)
    site.configure(message="second", inhibitors=BROKER)
    return site


def test_an_inhibited_switch_is_set_up_for_the_next_boot(inhibited: Site) -> None:
    before = inhibited.machine.current_system()
    output = inhibited.doit("deploy:web1")
    assert "dbus can't change in a running system: set up for the next boot" in output
    assert inhibited.machine.current_system() == before
    assert (
        inhibited.machine.ssh("readlink -f /nix/var/nix/profiles/system").stdout.strip() == inhibited.built()
    )
    inhibited.doit("deploy:web1")
    assert inhibited.machine.current_system() == before
    boot_id = inhibited.machine.boot_id
    inhibited.machine.ssh("systemctl reboot", check=False)
    inhibited.machine.wait_for_ssh(other_than=boot_id)
    assert inhibited.machine.current_system() == inhibited.built()


def test_an_inhibited_switch_reboots_under_watch_where_nixa_may_reboot(inhibited: Site) -> None:
    inhibited.declare(reboot=True)
    boot_id = inhibited.machine.boot_id
    inhibited.doit("deploy:web1")
    assert inhibited.machine.boot_id != boot_id
    assert inhibited.machine.current_system() == inhibited.built()
    assert receipt(inhibited)["outcome"] == "done"


def test_an_inhibited_switch_can_be_refused(inhibited: Site) -> None:
    before = inhibited.machine.current_system()
    inhibited.declare(on_inhibitor="stop")
    output = inhibited.doit("deploy:web1", status=1)
    assert "refused: dbus can't change in a running system" in output
    assert inhibited.machine.current_system() == before
    assert inhibited.machine.ssh("readlink -f /nix/var/nix/profiles/system").stdout.strip() == before


def test_an_inhibited_switch_can_be_forced(inhibited: Site) -> None:
    inhibited.declare(on_inhibitor="force")
    inhibited.doit("deploy:web1")
    assert inhibited.machine.current_system() == inhibited.built()


def test_a_forced_switch_that_fails_is_rolled_back_by_force(inhibited: Site) -> None:
    before = inhibited.machine.current_system()
    inhibited.declare(on_inhibitor="force")
    inhibited.configure(message="second", inhibitors=BROKER, units={"toy.service": FAILING})
    inhibited.doit("deploy:web1", status=1)
    assert inhibited.machine.current_system() == before
    assert receipt(inhibited)["outcome"] == "rolled-back"


def test_only_what_both_systems_name_inhibits(site: Site) -> None:
    site.configure(message="second", inhibitors=BROKER)
    site.doit("deploy:web1")
    assert site.machine.current_system() == site.built()


def test_a_new_kernel_is_said_to_need_a_reboot(site: Site) -> None:
    site.configure(message="second")
    assert "a reboot is needed" not in site.doit("deploy:web1")
    site.configure(message="second", kernel="6.12.9", initrd="another")
    assert "a reboot is needed for: kernel, initrd" in site.doit("deploy:web1")
