"""What a closure tells of who may log in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nixa_tasks.deploy.preflight import check_later_login
from nixa_tasks.errors import NixaError
from nixa_tasks.manifest.model import FileSecret, Host

HOST = Host("web1", "web1", user="deploy")


@pytest.fixture
def system(tmp_path: Path) -> Path:
    keys = tmp_path / "etc/ssh/authorized_keys.d"
    keys.mkdir(parents=True)
    (keys / "root").touch()
    return tmp_path


def test_a_user_without_a_key_would_be_locked_out(system: Path) -> None:
    with pytest.raises(NixaError, match="would lock deploy out: it has ssh keys for root only"):
        check_later_login(HOST, system)


def test_a_user_with_a_key_is_let_in(system: Path) -> None:
    check_later_login(replace(HOST, user="root"), system)


def test_keys_that_come_with_the_extra_files_are_not_known(system: Path) -> None:
    check_later_login(replace(HOST, extra_files=FileSecret(Path("secrets"))), system)


def test_a_system_without_declared_keys_says_nothing(tmp_path: Path) -> None:
    check_later_login(HOST, tmp_path)


@pytest.mark.parametrize(
    ("line", "is_known"),
    [
        ("TrustedUserCAKeys /etc/ssh/ca.pub", False),
        ("  authorizedkeyscommand /bin/sss_ssh_authorizedkeys", False),
        ("AuthorizedKeysCommand none", True),
        ("# TrustedUserCAKeys /etc/ssh/ca.pub", True),
        ("AuthorizedKeysCommandUser nobody", True),
    ],
)
def test_certificates_and_commands_may_let_anybody_in(system: Path, line: str, is_known: bool) -> None:
    (system / "etc/ssh/sshd_config").write_text(f"Port 22\n{line}\n")
    if is_known:
        with pytest.raises(NixaError, match="lock deploy out"):
            check_later_login(HOST, system)
    else:
        check_later_login(HOST, system)
