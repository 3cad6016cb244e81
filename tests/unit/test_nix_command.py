"""The local Nix: what is passed to it, and what its errors mean. Messages are captured from real runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nixa_tasks.errors import CommandFailed, NixaError
from nixa_tasks.nix import command as nix
from nixa_tasks.nix import errors as nix_errors
from nixa_tasks.nix.errors import Reason
from nixa_tasks.process.run import LocalProcesses

DRV = "/nix/store/rh2mfwp17kr751yaxllsv68q2a6yqjch-f.drv"


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("nix (Nix) 2.8.0\n", (2, 8, 0)),
        ("nix (Nix) 2.19.0pre20231107_abcdef\n", (2, 19, 0)),
        ("nix (Lix, like Nix) 2.91.1\nSystem type: x86_64-linux\n", (2, 91, 1)),
        ("nix (Determinate Nix 3.6.2) 2.29.0\n", (2, 29, 0)),
    ],
)
def test_versions_of_every_nix_are_read(said: str, version: tuple[int, ...]) -> None:
    assert nix.parse_version(said) == version


def test_no_version_is_an_error() -> None:
    with pytest.raises(NixaError, match="holds no version"):
        nix.parse_version("command not found")


def test_a_missing_nix_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(nix.NixMissing) as caught:
        nix.Nix(LocalProcesses()).run(("nix", "--version"), deadline=5, env={"PATH": str(tmp_path)})
    assert "apt-get install nix-bin" in (caught.value.hint or "")


def test_every_command_asks_for_flakes() -> None:
    assert "nix-command flakes" in nix.command("eval")


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Root on a machine with Debian's nix-bin as it comes: no daemon, no group, no configuration."""
    for name in ("NIX_REMOTE", "NIX_CONFIG", "NIX_STATE_DIR", "NIX_DAEMON_SOCKET_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NIX_CONF_DIR", str(tmp_path / "etc"))
    monkeypatch.setenv("NIX_USER_CONF_FILES", str(tmp_path / "user.conf"))
    monkeypatch.setenv("NIX_DAEMON_SOCKET_PATH", str(tmp_path / "socket"))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(nix, "_has_group", lambda _name: False)
    return tmp_path


OVERRIDE = ("--option", "build-users-group", "")


def test_root_without_build_users_builds_as_root(bare: Path) -> None:
    assert nix.store_command("-q")[1:4] == OVERRIDE
    assert nix.command("eval")[3:6] == OVERRIDE


@pytest.mark.parametrize("text", ["build-users-group = builders\n", "build-users-group =\n", "auto-allocate-uids = true\n"])  # fmt: skip
def test_a_word_in_a_configuration_is_left_alone(bare: Path, text: str) -> None:
    (bare / "user.conf").write_text("!include more.conf\n")
    (bare / "more.conf").write_text(text)
    assert nix.store_command("-q") == ("nix-store", "-q")


def test_a_daemon_a_group_and_a_plain_user_are_left_alone(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bare / "socket").touch()
    assert nix.store_command("-q") == ("nix-store", "-q")
    (bare / "socket").unlink()
    monkeypatch.setenv("NIX_REMOTE", "daemon")
    assert nix.store_command("-q") == ("nix-store", "-q")
    monkeypatch.delenv("NIX_REMOTE")
    monkeypatch.setattr(nix, "_has_group", lambda _name: True)
    assert nix.store_command("-q") == ("nix-store", "-q")
    monkeypatch.setattr(nix, "_has_group", lambda _name: False)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert nix.store_command("-q") == ("nix-store", "-q")


def test_a_git_hooks_repository_is_not_shown_to_nix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", "/elsewhere/.git")
    monkeypatch.setenv("GIT_SSH_COMMAND", "ssh -v")
    assert "GIT_DIR" not in nix.environment()
    assert nix.environment({"A": "b"})["A"] == "b"
    assert nix.environment()["GIT_SSH_COMMAND"] == "ssh -v"


def test_only_store_objects_are_store_paths() -> None:
    name = "rh2mfwp17kr751yaxllsv68q2a6yqjch-f"
    assert nix.is_store_path(f"/nix/store/{name}")
    for text in (f"/nix/store/{name}\nx", name, "/nix/store/short-f", f"/nix/store/{name}/bin x"):
        assert not nix.is_store_path(text)


ERRORS = [
    # 2.8, then 2.26 or 2.34 where they say it otherwise
    ("error: attribute 'zzz' missing\n\n       at «string»:1:4:\n", Reason.ATTRIBUTE_MISSING, "zzz"),
    (
        (
            "error: getting status of '/nix/store/wkb9kpbbbjg9anwyxxjpf24jm85iam3w-source/new.nix': "
            "No such file or directory\n(use '--show-trace' to show detailed location information)"
        ),
        Reason.UNTRACKED,
        "new.nix",
    ),
    (
        (
            "error:\n       … while calling the 'import' builtin\n         at /nix/store/x/flake.nix:1:49:\n"
            "            1| { error: attribute 'trap' missing }\n\n"
            "       error: path '/nix/store/wkb9kpbbbjg9anwyxxjpf24jm85iam3w-source/new.nix' does not exist"
        ),
        Reason.UNTRACKED,
        "new.nix",
    ),
    (
        "error:\n       … while x\n\n       error: Path 'new.nix' in the repository \"/g\" is not tracked by Git.\n",
        Reason.UNTRACKED,
        "new.nix",
    ),
    ("error: path '«git+file:///g?rev=a»/lib/new.nix' does not exist", Reason.UNTRACKED, "lib/new.nix"),
    ("error: getting status of '/tmp/none': No such file or directory", Reason.NO_FLAKE, "/tmp/none"),
    ("error: could not find a flake.nix file", Reason.NO_FLAKE, ""),
    (
        (
            'error:\n       … while fetching\n\n       error: opening Git repository "/own": repository path '
            "'/own' is not owned by current user"
        ),
        Reason.OWNER,
        "/own",
    ),
    ("error: path '/lnk' is not a flake (because it's not a directory)", Reason.SYMLINK, "/lnk"),
    ("error: '/tmp/sp ace' is not a valid URL", Reason.BLANK, "/tmp/sp ace"),
    (
        (
            "error: flake 'git+file:///g' requires lock file changes but they're not allowed due to "
            "'--no-update-lock-file'"
        ),
        Reason.LOCK_FILE,
        "git+file:///g",
    ),
    (
        (
            "warning: error: unable to download 'https://c/x': Couldn't resolve host name (6); retrying in 342 ms\n"
            "error: unable to download 'https://c/x': Couldn't resolve host name (6)"
        ),
        Reason.NETWORK,
        "https://c/x",
    ),
    (
        (
            "fatal: unable to access 'https://localhost:1/x/': Failed to connect to localhost port 1\n"
            "error: program 'git' failed with exit code 128"
        ),
        Reason.NETWORK,
        "https://localhost:1/x/",
    ),
    (
        (
            f"error: builder for '{DRV}' failed with exit code 3\n"
            "error: 1 dependencies of derivation '/nix/store/jf06qxggl05z3mln1kfyz0v7bdvxbn0q-y.drv' failed to build"
        ),
        Reason.BUILD,
        DRV,
    ),
    (
        (
            f"error: Cannot build '{DRV}'.\n       Reason: builder failed with exit code 3.\n"
            "error: Cannot build '/nix/store/jf06qxggl05z3mln1kfyz0v7bdvxbn0q-y.drv'.\n"
            "       Reason: 1 dependency failed."
        ),
        Reason.BUILD,
        DRV,
    ),
    (
        f"error: a 'aarch64-linux' with features {{}} is required to build '{DRV}', but I am a 'x86_64-linux'",
        Reason.PLATFORM,
        "aarch64-linux",
    ),
    (
        (
            f"error: Cannot build '{DRV}'.\n       Reason: platform mismatch\n"
            "       Required system: 'aarch64-linux'\n       Current system: 'x86_64-linux'"
        ),
        Reason.PLATFORM,
        "aarch64-linux",
    ),
    (f"error: hash mismatch in fixed-output derivation '{DRV}':\n  specified: a", Reason.HASH_MISMATCH, DRV),
    (f"error: cannot build missing derivation '{DRV}'", Reason.PATH_INVALID, DRV),
    (f"error: failed to obtain derivation of '{DRV}'", Reason.PATH_INVALID, DRV),
    ("error: writing to file: No space left on device", Reason.DISK_FULL, ""),
    (
        (
            "warning: the group 'nixbld' specified in 'build-users-group' does not exist\n"
            "error: the group 'nixbld' specified in 'build-users-group' does not exist"
        ),
        Reason.BUILD_USERS,
        "nixbld",
    ),
    ("GC Warning: Out of Memory!\nerror: out of memory", Reason.MEMORY, ""),
    ("\x1b[31;1merror:\x1b[0m syntax error, unexpected ';'", Reason.SYNTAX, "syntax error, unexpected ';'"),
    ("error: boom c", Reason.OTHER, ""),
]


@pytest.mark.parametrize(("said", "reason", "subject"), ERRORS)
def test_what_nix_said_is_recognised(said: str, reason: Reason, subject: str) -> None:
    failed = _explain(said)
    assert (failed.reason, failed.subject) == (reason, subject)
    assert "\x1b" not in failed.render()
    assert reason is Reason.OTHER or failed.hint


def test_what_is_not_recognised_is_given_as_nix_said_it() -> None:
    failed = _explain(
        "warning: x\nerror:\n       … while y\n\n       error: Failed assertions:\n       - set x"
    )
    assert failed.what == "evaluation: Failed assertions:"
    assert "       - set x" in failed.tail


def test_a_killed_nix_is_said_to_want_memory() -> None:
    assert _explain("", status=-9).reason is Reason.MEMORY


def _explain(said: str, status: int = 1) -> nix_errors.NixFailed:
    lines = tuple(said.split("\n"))
    error = CommandFailed("nix: ended", argv=("nix",), status=status, tail=lines[-12:])
    return nix_errors.explain(error, lines, what="evaluation")
