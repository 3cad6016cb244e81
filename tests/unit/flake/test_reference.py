"""What `flake = …` means before anybody is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from nixa_tasks.errors import NixaError
from nixa_tasks.flake.batch import MOST_AT_ONCE, next_size, nix_string
from nixa_tasks.flake.reference import Kind, parse

COMMIT = "a" * 40


@pytest.mark.parametrize(
    ("flake", "is_fixed"),
    [
        ("github:owner/repo", False),
        ("github:owner/repo/main", False),
        (f"github:owner/repo/{COMMIT}", True),
        (f"github:owner/repo/{COMMIT}?dir=nixos", True),
        (f"git+https://example.org/x?rev={COMMIT}&ref=main", True),
        ("git+ssh://git@example.org/x?ref=main", False),
        (f"git+file:///srv/x?rev={COMMIT}", True),
        ("git+file:///srv/x?ref=main", False),
        ("https://example.org/x.tar.gz?narHash=sha256-AAAA", True),
        ("flake:fleet", False),
    ],
)
def test_what_only_nix_can_look_at(flake: str, is_fixed: bool) -> None:
    place = parse(flake)
    assert (place.kind, place.url, place.is_fixed) == (Kind.REMOTE, flake, is_fixed)


def test_the_nearest_flake_upwards_within_git(tmp_path: Path) -> None:
    root = tmp_path / "a b"
    (root / "x/y").mkdir(parents=True)
    (root / ".git").mkdir()
    (root / "x/flake.nix").touch()
    place = parse(str(root / "x/y"))
    assert (place.kind, place.root, place.subdir) == (Kind.GIT, root, "x")
    assert place.url == f"git+file://{tmp_path}/a%20b?dir=x"
    with pytest.raises(NixaError, match=r"nor above it up to"):
        parse(str(root))


def test_without_git_nothing_is_looked_for_upwards(tmp_path: Path) -> None:
    (tmp_path / "flake.nix").touch()
    (tmp_path / "sub").mkdir()
    assert parse(str(tmp_path)).kind is Kind.PLAIN
    with pytest.raises(NixaError, match=r"no flake\.nix"):
        parse(str(tmp_path / "sub"))


def test_path_takes_the_folder_without_git(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/flake.nix").touch()
    place = parse(f"path:{tmp_path}?dir=sub")
    assert (place.kind, place.root, place.subdir) == (Kind.PLAIN, tmp_path, "sub")


def test_the_next_batch_follows_the_memory_that_the_last_one_took() -> None:
    gib = 1 << 30
    assert next_size(8, 4 * gib, 4096) == 5  # full: fewer
    assert next_size(8, 1 * gib, 4096) == 22  # room: more
    assert next_size(8, 1, 4096) == 1000  # tiny: not everything at once
    assert next_size(1, 100 * gib, 4096) == 1
    assert next_size(9000, 1, 4096) == MOST_AT_ONCE


def test_a_name_is_never_read_as_nix_code() -> None:
    assert nix_string('a"b\\c${d}') == r'"a\"b\\c\${d}"'
