"""The gate before every evaluation: it opens for new content and for nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from nixa_tasks.errors import NixaError
from nixa_tasks.flake.fingerprint import fingerprint
from nixa_tasks.nix.command import Nix
from nixa_tasks.process.run import LocalProcesses
from nixa_tasks.state.layout import Layout

from .conftest import Project


def test_touched_and_untracked_files_are_no_new_content(project: Project) -> None:
    before = project.seen()
    os.utime(project.root / "flake.nix", (1, 1))
    (project.root / "untracked.nix").write_text("{}")
    assert project.seen().value == before.value


def test_a_commit_of_what_was_already_there_is_no_new_content(project: Project) -> None:
    clean = project.seen()
    (project.root / "notes.txt").write_text("two\n")
    dirty = project.seen()
    project.git("commit", "-qam", "second")
    committed = project.seen()
    assert clean.value != dirty.value == committed.value
    assert dirty.revision.endswith("-dirty")
    assert committed.revision == project.git("rev-parse", "HEAD").strip()


def test_staged_intended_and_deleted_files_and_modes_count(project: Project) -> None:
    values = [project.seen().value]
    (project.root / "new.nix").write_text("1")
    project.git("add", "--intent-to-add", "new.nix")
    values.append(project.seen().value)
    (project.root / "new.nix").write_text("2")
    values.append(project.seen().value)
    project.git("add", "new.nix")
    assert project.seen().value == values[-1], "staging changes nothing that Nix reads"
    (project.root / "notes.txt").chmod(0o755)
    values.append(project.seen().value)
    (project.root / "notes.txt").unlink()
    values.append(project.seen().value)
    assert len(set(values)) == len(values)


def with_manifest(project: Project, text: str, extra: str = "") -> str:
    manifest = project.root / "hosts.toml"
    manifest.write_text(text)
    project.write(extra)
    project.git("add", "-A")
    return fingerprint(project.nix, str(project.root), project.layout, manifest=manifest).value


def test_an_edit_of_hosts_toml_is_no_new_content_to_a_flake_that_does_not_read_it(project: Project) -> None:
    assert with_manifest(project, "version = 1") == with_manifest(project, "version = 1\n")
    assert project.seen().value != with_manifest(project, "version = 1\n"), "but for whom it may be read"


@pytest.mark.parametrize("text", [
    "builtins.fromTOML (builtins.readFile ./hosts.toml)", "builtins.readFile (./. + \"/x\")", "{ src = ./.; }",
    "\"${./.}/x\"", "\"${self}/x\"", "self + \"/x\"", "{ flake = self; }", "toString self", "import self",
    "self.outPath", "self.narHash", "builtins.readDir ./lib", "lib.fileset.toSource { }", "[ ../.. ]", "[ ./. ]",
])  # fmt: skip
def test_a_flake_that_may_read_hosts_toml_has_new_content_with_it(project: Project, text: str) -> None:
    extra = f"other = {text};"
    assert with_manifest(project, "version = 1", extra) != with_manifest(project, "version = 1\n", extra)


@pytest.mark.parametrize("text", [
    "import ./hosts/web1.nix", "import ../lib/x.nix", "import ../../lib", "{ inherit self; }",
    "{ specialArgs = { inherit inputs self; }; }", "self.nixosConfigurations.web1", "./files/motd", "self.packages",
])  # fmt: skip
def test_what_a_flake_usually_says_does_not_read_hosts_toml(project: Project, text: str) -> None:
    extra = f"other = {text};"
    assert with_manifest(project, "version = 1", extra) == with_manifest(project, "version = 1\n", extra)


def test_a_changed_hosts_toml_makes_a_tree_dirty_all_the_same(project: Project) -> None:
    with_manifest(project, "version = 1")
    project.git("commit", "-qm", "x")
    manifest = project.root / "hosts.toml"
    seen = fingerprint(project.nix, str(project.root), project.layout, manifest=manifest)
    assert not seen.is_dirty
    manifest.write_text("version = 1\n")
    assert fingerprint(project.nix, str(project.root), project.layout, manifest=manifest).is_dirty


def test_asking_leaves_index_and_objects_as_they_are(project: Project) -> None:
    (project.root / "notes.txt").write_text("two\n")
    index = (project.root / ".git/index").read_bytes()
    objects = sorted((project.root / ".git/objects").rglob("*"))
    project.seen()
    assert (project.root / ".git/index").read_bytes() == index
    assert sorted((project.root / ".git/objects").rglob("*")) == objects


def test_nix_is_not_asked_about_a_git_tree(project: Project) -> None:
    project.seen()
    assert not project.log.exists()


@pytest.mark.parametrize(
    "text", ["self.rev or null", "let inherit (self) shortRev; in 1", "self.lastModified"]
)
def test_a_flake_that_reads_its_revision_has_new_content_at_every_commit(project: Project, text: str) -> None:
    (project.root / "r.nix").write_text(f"self: {text}")
    project.git("add", "r.nix")
    project.git("commit", "-qm", "second")
    before = project.seen()
    project.git("commit", "-q", "--allow-empty", "-m", "third")
    assert before.reads_revision
    assert project.seen().value != before.value


def test_state_and_cache_inside_a_plain_flake_do_not_count(plain: Project) -> None:
    cache = plain.root / "images"
    cache.mkdir()
    before = fingerprint(plain.nix, str(plain.root), plain.layout, excluded=(cache,))
    (plain.layout.state / "journal.jsonl").write_text("x")
    (cache / "image.tar.gz").write_text("x")
    (plain.root / "__pycache__").mkdir()
    (plain.root / "__pycache__/dodo.pyc").write_text("x")
    assert fingerprint(plain.nix, str(plain.root), plain.layout, excluded=(cache,)).value == before.value
    (plain.root / "more.nix").write_text("x")
    assert fingerprint(plain.nix, str(plain.root), plain.layout, excluded=(cache,)).value != before.value


def test_subfolders_symlinks_and_blanks_lead_to_the_flake(project: Project, tmp_path: Path) -> None:
    sub = project.root / "my sub"
    sub.mkdir()
    shutil.copy(project.root / "flake.nix", sub)
    project.git("add", "my sub")
    link = tmp_path / "link"
    link.symlink_to(sub)
    by_link = fingerprint(project.nix, str(link), project.layout)
    assert by_link.reference == f"git+file://{project.root}?dir=my%20sub"
    assert (
        by_link.value
        == fingerprint(project.nix, f"git+file://{project.root}?dir=my%20sub", project.layout).value
    )
    assert by_link.value != project.seen().value
    (project.root / "deep").mkdir()
    assert fingerprint(project.nix, str(project.root / "deep"), project.layout).value == project.seen().value


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a tree of another user")
def test_a_tree_of_another_user_is_refused_with_the_way_out(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(project.root.parent))  # no safe.directory of ours
    monkeypatch.delenv("SUDO_UID", raising=False)
    subprocess.run(["chown", "-R", "12345:12345", str(project.root)], check=True)
    with pytest.raises(NixaError) as caught:
        project.seen()
    assert "belongs to another user" in caught.value.what
    assert "safe.directory" in (caught.value.hint or "")


def test_a_flake_that_is_not_there_is_named(tmp_path: Path) -> None:
    for flake in (f"{tmp_path}/none", str(tmp_path), f"path:{tmp_path}"):
        with pytest.raises(NixaError, match=r"does not exist|no flake\.nix"):
            fingerprint(Nix(LocalProcesses()), flake, Layout(tmp_path))


def test_a_reference_with_a_commit_asks_nobody(nix_log: Path, tmp_path: Path) -> None:
    commit = "github:example/fleet/" + "a" * 40
    assert fingerprint(Nix(LocalProcesses()), commit, Layout(tmp_path)).value == f"fixed:{commit}"
    assert not nix_log.exists()
