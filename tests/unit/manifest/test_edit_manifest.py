"""Writing into hosts.toml: the one value, and not a byte besides."""

from __future__ import annotations

import difflib
import os
import stat
import tempfile
import tomllib
from pathlib import Path

import pytest
import tomlkit

from nixa_tasks.errors import NixaError
from nixa_tasks.manifest.edit import set_host_key, set_pin

OLD = "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
NEW = "sha256-ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0="
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB9JgoYTUSjWDsCHeuqmQ5iUgoMHqZT5q1kMWWRHVEVs"


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "hosts.toml"
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize(
    "layout",
    [
        '# top\nversion = 1\n\n[kexec.a]\n  url="u"   # where\n  sha256   =   "OLD"   # of June\n\n# end\n',
        '[kexec]\na = { url = "u", sha256 = "OLD" }\nb = { url = "u", sha256 = "OLD" }\n',
        'kexec.a.url = "u"\nkexec.a.sha256 = "OLD"\nkexec.b.sha256 = "OLD"\n',
        '[kexec."a"]\n"url" = "u"\n\'sha256\' = "OLD"\n[kexec.b]\nsha256 = "OLD"',
        'kexec = { a = { url = "u", "sha256" = "OLD" }, b.sha256 = "OLD" }',
        '[kexec.b]\nsha256 = "OLD"\r\n[kexec . a]\r\nurl = "u"\r\nsha256 = "OLD"\r\n',
        '[x]\ny = """\n[kexec.a]\nsha256 = "OLD"\n"""\n[kexec.a]\nurl = "u"\nsha256 = "OLD"',
        "[x]\n# [kexec.a]\n# sha256 = \"OLD\"\n[[list]]\n[kexec.a]\nurl = 'u'\nsha256 = 'OLD'\n",
    ],
)
def test_a_pin_is_replaced_where_it_stands(tmp_path: Path, layout: str) -> None:
    before = layout.replace("OLD", OLD)
    path = written(tmp_path, before)
    assert set_pin(path, "a", NEW)
    after = path.read_bytes().decode()
    changed = [place for place in range(before.count(OLD)) if _nth_replaced(before, place) == after]
    assert len(changed) == 1, f"one of the hashes is another, nothing else: {after}"
    assert tomllib.loads(after)["kexec"]["a"]["sha256"] == NEW
    assert not set_pin(path, "a", NEW), "it says so already"


def _nth_replaced(text: str, number: int) -> str:
    parts = text.split(OLD)
    return OLD.join(parts[: number + 1]) + NEW + OLD.join(parts[number + 1 :])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            '[hosts.a]\n  target = "a" # x\n\n# of b\n[hosts.b]\n',
            '[hosts.a]\n  target = "a" # x\n  host_key = "K"\n\n# of b\n[hosts.b]\n',
        ),
        ("[hosts.a]  # empty\n[hosts.b]\n", '[hosts.a]  # empty\nhost_key = "K"\n[hosts.b]\n'),
        (
            '[hosts]\na.target = "a"\nb.target = "b"\n',
            '[hosts]\na.target = "a"\na.host_key = "K"\nb.target = "b"\n',
        ),
        ('hosts."a".target = "a"\n', 'hosts."a".target = "a"\nhosts."a".host_key = "K"\n'),
        ('[hosts]\na = { target = "a" } # x\n', '[hosts]\na = { target = "a", host_key = "K" } # x\n'),
        ("[hosts]\na = {}\n", '[hosts]\na = { host_key = "K" }\n'),
        ("[hosts.a]\ntags = [\n 'a',\n]\n", "[hosts.a]\ntags = [\n 'a',\n]\nhost_key = \"K\"\n"),
        ('[hosts.a]\r\ntarget = "a"\r\n', '[hosts.a]\r\ntarget = "a"\r\nhost_key = "K"\r\n'),
        ('[hosts.a]\ntarget = "a"', '[hosts.a]\ntarget = "a"\nhost_key = "K"\n'),
        (
            '[hosts.a.disk_encryption_keys]\n"/k" = "k"\n',
            '[hosts.a]\nhost_key = "K"\n\n[hosts.a.disk_encryption_keys]\n"/k" = "k"\n',
        ),
        ('[hosts.a]\nhost_key = """old"""\n', '[hosts.a]\nhost_key = "K"\n'),
    ],
)
def test_a_host_key_is_added_beside_the_host_s_other_keys(tmp_path: Path, before: str, after: str) -> None:
    path = written(tmp_path, before)
    assert set_host_key(path, "a", KEY)
    assert path.read_bytes().decode() == after.replace('"K"', f'"{KEY}"')


def test_only_the_pin_s_line_is_in_the_diff(tmp_path: Path) -> None:
    before = f'version = 1\n[kexec.a]\nurl = "u"\nsha256 = "{OLD}"  # pinned\n[hosts.a]\ntarget = "a"\n'
    path = written(tmp_path, before)
    set_pin(path, "a", NEW)
    lines = list(difflib.ndiff(before.splitlines(), path.read_text().splitlines()))
    assert [line for line in lines if line[0] in "+-"] == [
        f'- sha256 = "{OLD}"  # pinned',
        f'+ sha256 = "{NEW}"  # pinned',
    ]


def test_the_file_keeps_its_mode_and_stays_a_link(tmp_path: Path) -> None:
    real = tmp_path / "real.toml"
    real.write_text(f'[kexec.a]\nsha256 = "{OLD}"\n')
    real.chmod(0o640)
    link = tmp_path / "hosts.toml"
    link.symlink_to("real.toml")
    set_pin(link, "a", NEW)
    assert link.is_symlink()
    assert NEW in real.read_text()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["hosts.toml", "real.toml"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_the_file_keeps_its_owner(tmp_path: Path) -> None:
    path = written(tmp_path, f'[kexec.a]\nsha256 = "{OLD}"\n')
    os.chown(path, 1234, 1235)
    set_pin(path, "a", NEW)
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 1235)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[kexec.b]\n", "has no table kexec.a"),
        ("kexec = 3\n", "has no table kexec.a"),
        ("[kexec.a]\nsha256 = \n", "is not TOML"),
        ("\ufeff[kexec.a]\nsha256 = 'x'\n", "is not TOML"),
    ],
)
def test_what_can_not_be_edited_is_left_as_it_is(tmp_path: Path, text: str, reason: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(NixaError, match=reason):
        set_pin(path, "a", NEW)
    assert path.read_bytes() == text.encode()


def test_a_layout_that_can_not_be_kept_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f'[kexec.a]\nurl = "u"\nsha256 = "{OLD}"\n'
    path = written(tmp_path, text)
    real = tomlkit.parse
    monkeypatch.setattr(tomlkit, "parse", lambda source: real(source.replace(" = ", "=")))
    with pytest.raises(NixaError, match="can't be kept") as caught:
        set_pin(path, "a", NEW)
    assert f'sha256 = "{NEW}"' in caught.value.render(), "it says what to write by hand"
    assert path.read_text() == text


def test_an_edit_by_someone_else_in_between_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, f'[kexec.a]\nsha256 = "{OLD}"\n')
    real = tomlkit.parse

    def slowly(source: str) -> tomlkit.TOMLDocument:
        path.write_text(source + "# mine\n")
        return real(source)

    monkeypatch.setattr(tomlkit, "parse", slowly)
    with pytest.raises(NixaError, match="changed by someone else"):
        set_pin(path, "a", NEW)
    assert path.read_text() == f'[kexec.a]\nsha256 = "{OLD}"\n# mine\n'


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act for another user")
def test_a_member_of_the_group_keeps_the_group() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = written(Path(folder), f'[kexec.a]\nsha256 = "{OLD}"\n')
        for place, owner, mode in ((Path(folder), 0, 0o770), (path, 1234, 0o660)):
            os.chown(place, owner, 1235)
            place.chmod(mode)
        groups = os.getgroups()
        os.setgroups([1235])
        os.setegid(1236)
        os.seteuid(1237)
        try:
            set_pin(path, "a", NEW)
        finally:
            os.seteuid(0)
            os.setegid(0)
            os.setgroups(groups)
        status = path.stat()
        assert NEW in path.read_text()
        assert (status.st_gid, stat.S_IMODE(status.st_mode)) == (1235, 0o660)


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(NixaError, match=r"hosts.toml can't be read: No such file"):
        set_pin(tmp_path / "hosts.toml", "a", NEW)
