"""Logins of other kinds on a real host: login shells that are no POSIX shells, and doas or sudo with a password."""

from __future__ import annotations

import pytest

from tests.integration.systemd.conftest import Site
from tests.integration.systemd.machine import PASSWORD

pytestmark = [pytest.mark.lab, pytest.mark.xdist_group("systemd")]


def test_a_login_shell_that_is_fish_is_no_obstacle(site: Site) -> None:
    site.machine.ssh("sed -i '/^root:/s|:[^:]*$|:/usr/bin/fish|' /etc/passwd")
    try:
        assert site.machine.ssh("true", check=False).returncode == 0
        site.configure(message='it\'s $HOME and "quotes"')
        site.doit("deploy:web1")
        assert site.machine.current_system() == site.built()
    finally:
        site.machine.ssh("sed -i '/^root:/s|:[^:]*$|:/bin/sh|' /etc/passwd")


def test_sudo_with_a_password_is_enough(site: Site) -> None:
    site.configure(message="second")
    site.declare(user="admin")
    site.doit("deploy:web1", secrets={"NIXA_SUDO_PASSWORD": PASSWORD})
    assert site.machine.current_system() == site.built()


def test_doas_that_asks_for_a_password_is_refused_before_anything_changes(site: Site) -> None:
    before = site.machine.current_system()
    site.machine.ssh("chmod 000 /usr/bin/sudo")
    try:
        site.configure(message="second")
        site.declare(user="admin")
        output = site.doit("deploy:web1", status=1)
        assert "admin" in output and "root" in output
        assert site.machine.current_system() == before
    finally:
        site.machine.ssh("chmod 4755 /usr/bin/sudo")


def test_doas_without_a_password_is_enough(site: Site) -> None:
    site.machine.ssh("chmod 000 /usr/bin/sudo; echo 'permit nopass admin as root' >/etc/doas.conf")
    try:
        site.configure(message="second")
        site.declare(user="admin")
        site.doit("deploy:web1")
        assert site.machine.current_system() == site.built()
    finally:
        site.machine.ssh("chmod 4755 /usr/bin/sudo; echo 'permit admin as root' >/etc/doas.conf")
