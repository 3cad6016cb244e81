"""Flakes as people have them, under every Nix: what nixa evaluates is what `nix eval` evaluates."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from nixa_tasks.errors import NixaError
from nixa_tasks.flake.evaluate import Evaluation, Output, Reporting
from nixa_tasks.flake.fingerprint import Fingerprint, fingerprint
from nixa_tasks.nix.command import Nix, command
from nixa_tasks.nix.errors import NixFailed, Reason
from nixa_tasks.process.run import LocalProcesses
from nixa_tasks.state.layout import Layout

from .conftest import every_nix

pytestmark = every_nix

# The host `whole` depends on every file that Nix sees.
FLAKE = """{ %s
  outputs = { self, ... }@inputs: let
    raw = name: args: derivation { inherit name args; system = "x86_64-linux"; builder = "/bin/sh"; };
    host = name: args: { config.pkgs.system = "x86_64-linux"; config.system.build.toplevel = raw name args; };
  in { nixosConfigurations = { whole = host "whole" [ "${self}" ]; %s }; };
}
"""


@dataclass(frozen=True)
class Tree:
    """A folder with a flake, and nixa's state beside it."""

    root: Path
    layout: Layout
    nix: Nix

    def write(self, name: str, text: str) -> None:
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_text(text)

    def flake(self, hosts: str = "", head: str = "", folder: str = ".") -> None:
        self.write(f"{folder}/flake.nix", FLAKE % (head, hosts))

    def git(self, *args: str, folder: Path | None = None) -> str:
        argv = [
            "git", "-c", "user.email=a@example.org", "-c", "user.name=a", "-C", str(folder or self.root), *args
        ]  # fmt: skip
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()

    def commit(self) -> None:
        self.git("add", "-A")
        self.git("commit", "-qm", "a change", "--allow-empty")

    def at(self, root: Path) -> Tree:
        return Tree(root, self.layout, self.nix)

    def seen(self, flake: str | None = None, *, impure: bool = False) -> Fingerprint:
        return fingerprint(self.nix, flake or str(self.root), self.layout, impure=impure)

    def output(self, attr: str = "whole", flake: str | None = None, *, impure: bool = False) -> Output:
        def seen() -> Fingerprint:
            return self.seen(flake, impure=impure)

        return Evaluation(self.nix, self.layout, seen(), {attr: attr}, recheck=seen).of(attr)

    def plain(self, flake: str | None = None, attr: str = "whole") -> str:
        """What a person gets who types `nix eval` in the folder."""
        where = f"{flake or '.'}#nixosConfigurations.{attr}.config.system.build.toplevel.drvPath"
        argv = command("eval", "--raw", "--no-update-lock-file", where)
        return self.nix.run(argv, deadline=120, cwd=self.root).stdout.strip()

    def check(self, flake: str | None = None) -> str:
        """Nixa and `nix eval` evaluate the same. Gives the fingerprint's value."""
        value = self.seen(flake).value
        assert self.output(flake=flake).toplevel_drv == self.plain(flake)
        assert self.seen(flake).value == value, "evaluating changes no fingerprint"
        return value


@pytest.fixture
def folder(tmp_path: Path, nix_log: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    """A flake in a folder without git."""
    # git refuses to clone a submodule from a folder of this machine, unless it may
    for name, value in {"COUNT": "1", "KEY_0": "protocol.file.allow", "VALUE_0": "always"}.items():
        monkeypatch.setenv(f"GIT_CONFIG_{name}", value)
    root = tmp_path / "fleet"
    root.mkdir()
    (tmp_path / "state").mkdir()
    layout = Layout(tmp_path / "state")
    layout.make()
    made = Tree(root, layout, Nix(LocalProcesses()))
    made.flake()
    return made


@pytest.fixture
def tree(folder: Tree) -> Tree:
    """A flake in a git tree, committed."""
    folder.git("init", "-q", "-b", "main")
    folder.write("notes.txt", "one\n")
    folder.commit()
    return folder


def test_a_clean_and_a_dirty_tree(tree: Tree) -> None:
    clean = tree.check()
    tree.write("notes.txt", "two\n")
    assert tree.check() != clean


def test_a_shallow_clone_as_ci_has_it(tree: Tree, tmp_path: Path) -> None:
    tree.write("notes.txt", "two\n")
    tree.commit()
    tree.git("clone", "-q", "--depth", "1", f"file://{tree.root}", str(tmp_path / "clone"))
    clone = tree.at(tmp_path / "clone")
    clean = clone.check()
    clone.write("notes.txt", "three\n")
    assert clone.check() != clean
    clone.git("worktree", "add", "-q", str(tmp_path / "other"))
    assert clone.at(tmp_path / "other").seen().reference.endswith("shallow=1")


def test_a_flake_in_a_sub_folder(tree: Tree) -> None:
    tree.write("lib.nix", '"one"')
    tree.flake('near = host "near" [ (import ../lib.nix) ];', folder="deep")
    tree.commit()
    deep = tree.at(tree.root / "deep")
    values = [deep.check()]
    for text in ('"two"', '"three"'):
        tree.write("lib.nix", text)
        values.append(deep.check())
        near = deep.output("near")
        assert near.toplevel_drv == deep.plain(attr="near")
    tree.commit()
    assert deep.check() == values[-1], "a commit of what was there"
    assert len(set(values)) == 3


@pytest.mark.parametrize("query", ["?dir=deep", "?dir=deep&ref=old", "?ref=old"])
def test_a_reference_with_a_folder_and_a_branch(tree: Tree, query: str) -> None:
    tree.flake(folder="deep")
    tree.commit()
    tree.git("branch", "old")
    tree.write("notes.txt", "two\n")
    tree.commit()
    first = tree.check(f"git+file://{tree.root}{query}")
    tree.write("notes.txt", "three\n")
    tree.commit()
    assert (tree.check(f"git+file://{tree.root}{query}") == first) == ("ref" in query)


def test_a_worktree(tree: Tree, tmp_path: Path) -> None:
    tree.git("worktree", "add", "-q", "-b", "side", str(tmp_path / "side"))
    side = tree.at(tmp_path / "side")
    clean = side.check()
    side.write("notes.txt", "in the side tree\n")
    assert side.check() != clean
    assert tree.check() == clean


def _with_submodule(tree: Tree, tmp_path: Path) -> Path:
    library = tree.at(tmp_path / "library")
    library.write("lib.nix", '"one"')
    library.git("init", "-q", "-b", "main")
    library.commit()
    tree.git("submodule", "--quiet", "add", str(library.root), "lib")
    tree.flake('near = host "near" [ (import ./lib/lib.nix) ];')
    tree.commit()
    return tree.root / "lib"


def test_submodules_asked_for_in_the_reference(tree: Tree, tmp_path: Path) -> None:
    inside = _with_submodule(tree, tmp_path)
    flake = f"git+file://{tree.root}?submodules=1"
    values = [tree.check(flake)]
    assert tree.output("near", flake).toplevel_drv == tree.plain(flake, "near")
    (inside / "lib.nix").write_text('"two"')
    values.append(tree.check(flake))
    assert tree.output("near", flake).toplevel_drv == tree.plain(flake, "near")
    tree.git("commit", "-qam", "inside", folder=inside)
    tree.commit()
    tree.git("push", "-q", "origin", "HEAD:refs/heads/side", folder=inside)
    tree.check(flake)
    assert values[0] != values[1]


def test_submodules_asked_for_by_the_flake_itself(tree: Tree, tmp_path: Path) -> None:
    if tree.nix.version() < (2, 27):
        return  # this Nix has no inputs.self.submodules
    inside = _with_submodule(tree, tmp_path)
    tree.flake('near = host "near" [ (import ./lib/lib.nix) ];', head="inputs.self.submodules = true;")
    tree.commit()
    before = tree.check()
    assert tree.output("near").toplevel_drv == tree.plain(attr="near")
    (inside / "lib.nix").write_text('"two"')  # Nix doesn't look at a submodule's edits here
    tree.check()
    assert tree.output("near").toplevel_drv == tree.plain(attr="near")
    tree.git("commit", "-qam", "inside", folder=inside)
    tree.commit()
    tree.git("push", "-q", "origin", "HEAD:refs/heads/side", folder=inside)
    assert tree.check() != before
    assert tree.output("near").toplevel_drv == tree.plain(attr="near")


def test_submodules_that_nobody_asked_for(tree: Tree, tmp_path: Path) -> None:
    inside = _with_submodule(tree, tmp_path)
    before = tree.check()
    (inside / "lib.nix").write_text('"two"')
    tree.check()
    tree.write("notes.txt", "two\n")
    assert tree.check() != before


@pytest.mark.parametrize(
    "attributes",
    ["*.txt text eol=crlf", "*.txt export-ignore", "*.txt filter=shout", "*.txt filter=lfs -text"],
)
def test_attributes_that_convert_or_leave_out_files(tree: Tree, attributes: str) -> None:
    tree.git("config", "filter.shout.clean", "tr A-Z a-z")
    tree.git("config", "filter.shout.smudge", "tr a-z A-Z")
    tree.write(".gitattributes", attributes + "\n")
    tree.write("notes.txt", "version https://git-lfs.github.com/spec/v1\n")
    tree.commit()
    values = [tree.check()]
    tree.write("other.nix", "1")
    values.append(tree.check())
    tree.git("add", "-A")
    values.append(tree.check())
    tree.write("notes.txt", "more\n")
    values.append(tree.check())
    tree.commit()
    tree.check()
    assert len({values[0], values[2], values[3]}) == 3


def test_line_ends_that_git_converts(tree: Tree) -> None:
    tree.git("config", "core.autocrlf", "true")
    tree.write("notes.txt", "one\r\ntwo\r\n")
    values = [tree.check()]
    tree.git("rm", "-q", "--cached", "notes.txt")
    tree.git("add", "notes.txt")
    tree.check()
    tree.commit()
    tree.check()
    tree.write("notes.txt", "three\r\n")
    values.append(tree.check())
    assert len(set(values)) == 2


def test_a_sparse_checkout(tree: Tree) -> None:
    tree.write("far/away.txt", "one\n")
    tree.write("near/by.txt", "one\n")
    tree.commit()
    tree.git("sparse-checkout", "set", "near")
    assert not (tree.root / "far").exists()
    clean = tree.check()
    tree.write("near/by.txt", "two\n")
    assert tree.check() != clean


@pytest.mark.parametrize("bit", ["--skip-worktree", "--assume-unchanged"])
def test_files_that_git_was_told_not_to_look_at(tree: Tree, bit: str) -> None:
    tree.write("other.txt", "one\n")
    tree.commit()
    tree.git("update-index", bit, "notes.txt")
    tree.check()
    tree.write("notes.txt", "two\n")
    tree.check()
    tree.write("other.txt", "two\n")
    dirty, evaluated = tree.check(), tree.plain()
    tree.write("notes.txt", "three\n")
    assert (tree.check() == dirty) == (tree.plain() == evaluated)


def test_links_modes_and_names_that_differ_in_case(tree: Tree) -> None:
    values = [tree.check()]
    (tree.root / "link").symlink_to("notes.txt")
    tree.git("add", "-A")
    values.append(tree.check())
    (tree.root / "link").unlink()
    (tree.root / "link").symlink_to("flake.nix")
    values.append(tree.check())
    (tree.root / "notes.txt").chmod(0o755)
    values.append(tree.check())
    tree.git("mv", "notes.txt", "Notes.txt")
    values.append(tree.check())
    tree.commit()
    assert tree.check() == values[-1]
    (tree.root / "link").unlink()
    (tree.root / "link").mkdir()
    tree.write("link/inside", "a folder now")
    values.append(tree.check())
    assert len(set(values)) == len(values)


def test_a_file_that_is_only_intended_to_be_added(tree: Tree) -> None:
    before = tree.check()
    tree.write("new.nix", "1")
    assert tree.check() == before
    tree.git("add", "--intent-to-add", "new.nix")
    intended = tree.check()
    tree.write("new.nix", "2")
    tree.check()
    assert intended != before


def test_a_tree_without_a_commit(folder: Tree) -> None:
    folder.git("init", "-q", "-b", "main")
    folder.git("add", "-A")
    first = folder.check()
    folder.write("new.nix", "1")
    folder.git("add", "-A")
    assert folder.check() != first


def test_a_detached_head(tree: Tree) -> None:
    tree.git("checkout", "-q", "--detach")
    clean = tree.check()
    tree.write("notes.txt", "two\n")
    assert tree.check() != clean


@pytest.mark.parametrize("name", ["flake.nix", "deep/flake.nix", "lib/new.nix"])
def test_an_untracked_file_is_named_with_what_to_type(tree: Tree, name: str) -> None:
    flake = tree.root
    if name == "lib/new.nix":
        tree.flake('near = host "near" [ (import ./lib/new.nix) ];')
        tree.commit()
        tree.write(name, '"x"')
    else:
        tree.flake(folder=str(Path(name).parent))
        tree.git("rm", "-q", "--cached", name, "--ignore-unmatch")
        flake = (tree.root / name).parent
    with pytest.raises(NixFailed) as caught:
        tree.at(flake).output("near")
    assert caught.value.reason is Reason.UNTRACKED
    # 2.8 names only the first part of the path
    added = "lib" if name == "lib/new.nix" and tree.nix.version() < (2, 9) else name
    assert f"git add {added}" in (caught.value.hint or "")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a tree of another user")
def test_a_tree_of_another_user_says_what_to_type(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tree.root.parent))
    monkeypatch.delenv("SUDO_UID", raising=False)
    subprocess.run(["chown", "-R", "12345:12345", str(tree.root)], check=True)
    with pytest.raises(NixaError) as caught:
        tree.seen()
    assert f"git config --global --add safe.directory {tree.root}" in (caught.value.hint or "")
    subprocess.run(["git", "config", "--global", "--add", "safe.directory", str(tree.root)], check=True)
    tree.seen()


def test_a_folder_without_git_is_read_without_what_tools_leave(folder: Tree, tmp_path: Path) -> None:
    (tmp_path / "fleet/.nixa").mkdir()
    before = folder.seen()
    for name in (".nixa/journal.jsonl", ".venv/pyvenv.cfg", ".venv/lib/x.py", ".mypy_cache/CACHEDIR.TAG",
                 ".mypy_cache/a.json", "__pycache__/dodo.pyc", ".direnv/x", ".doit.db.dat"):  # fmt: skip
        folder.write(name, "x")
    (folder.root / "result").symlink_to("/nix/store/rh2mfwp17kr751yaxllsv68q2a6yqjch-system")
    assert folder.seen().value == before.value
    folder.write("more.nix", "1")
    assert folder.seen().value != before.value
    folder.flake('names = host "names" [ (toString (builtins.attrNames (builtins.readDir self.outPath))) ];')
    drv = folder.output("names").toplevel_drv
    shown = Path(drv).read_text()
    assert "flake.nix more.nix" in shown
    for name in (".venv", ".nixa", "result", "cache", ".doit", ".direnv"):
        assert name not in shown.replace("__pycache__", "")


def test_path_inputs_whose_content_changes(tree: Tree, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "flake.nix").write_text("{ outputs = _: { x = ./.; }; }")
    tree.flake('near = host "near" [ "${inputs.other.x}" ];', head=f'inputs.other.url = "path:{other}";')
    tree.nix.run(command("flake", "lock", f"path:{tree.root}"), deadline=60)
    tree.commit()
    before = tree.check()
    assert tree.output("near").toplevel_drv == tree.plain(attr="near")
    (other / "more.txt").write_text("x")
    assert tree.seen().value != before
    tree.nix.run(command("flake", "update", *_update(tree, "other")), deadline=60, cwd=tree.root)
    tree.check()
    assert tree.output("near").toplevel_drv == tree.plain(attr="near")


def _update(tree: Tree, name: str) -> tuple[str, ...]:
    return (name,) if tree.nix.version() >= (2, 19) else ()


def test_a_relative_path_input(tree: Tree) -> None:
    if tree.nix.version() < (2, 26):
        return  # 2.8 can't lock one inside of a git tree
    tree.write("other/flake.nix", "{ outputs = _: { x = ./.; }; }")
    tree.flake('near = host "near" [ "${inputs.other.x}" ];', head='inputs.other.url = "path:./other";')
    tree.git("add", "-A")
    tree.nix.run(command("flake", "lock", str(tree.root)), deadline=60)
    tree.commit()
    before = tree.check()
    assert tree.output("near").toplevel_drv == tree.plain(attr="near")
    tree.write("other/more.txt", "x")
    tree.git("add", "-A")
    assert tree.check() != before
    assert tree.output("near").toplevel_drv == tree.plain(attr="near")


def test_a_repository_behind_ssh(tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ssh = tmp_path / "fake-ssh"
    ssh.write_text('#!/bin/sh\nfor last; do :; done\nexec sh -c "$last"\n')
    ssh.chmod(0o755)
    monkeypatch.setenv("GIT_SSH_COMMAND", str(ssh))
    monkeypatch.setenv("GIT_SSH_VARIANT", "simple")
    flake = f"git+ssh://git@forge.example{tree.root}?ref=main"
    first = tree.check(flake)
    tree.write("notes.txt", "two\n")
    tree.commit()
    assert tree.check(flake) != first
    ssh.write_text("#!/bin/sh\nexit 1\n")
    locked = f"{flake}&rev={tree.git('rev-parse', 'HEAD')}"
    tree.check(locked)  # offline: what is locked and was fetched is there


def test_a_name_of_the_registry(tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config/nix").mkdir(parents=True)
    (tmp_path / "global.json").write_text('{"version": 2, "flakes": []}')
    monkeypatch.setenv("NIX_CONFIG", f"flake-registry = {tmp_path}/global.json")
    (tmp_path / "config/nix/registry.json").write_text(
        '{"version": 2, "flakes": [{"from": {"type": "indirect", "id": "fleet"}, '
        f'"to": {{"type": "git", "url": "file://{tree.root}", "ref": "main"}}}}]}}'
    )
    first = tree.check("flake:fleet")
    tree.write("notes.txt", "two\n")
    tree.commit()
    assert tree.check("flake:fleet") != first


def test_an_impure_flake_is_evaluated_at_every_run(tree: Tree, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("one")
    tree.flake(f'near = host "near" [ (builtins.readFile {tmp_path}/outside) ];')
    tree.commit()
    with pytest.raises(NixFailed) as caught:
        tree.output("near")
    assert caught.value.reason is Reason.PURE
    one = tree.output("near", impure=True)
    (tmp_path / "outside").write_text("two")
    assert tree.output("near", impure=True) != one


def test_an_import_from_a_derivation(tree: Tree) -> None:
    busybox = shutil.which("busybox")
    assert busybox
    (tree.root / "bin").mkdir()
    shutil.copy(busybox, tree.root / "bin/busybox")
    built = (
        'derivation { name = "generated"; system = "x86_64-linux"; builder = "${./bin}/busybox"; '
        'args = [ "sh" "-c" "echo \'\\"made\\"\' > $out" ]; }'
    )
    tree.flake(f'near = host "near" [ (import ({built})) ];')
    tree.commit()
    assert tree.output("near").toplevel_drv == tree.plain(attr="near")


def test_settings_and_warnings_of_the_flake_are_shown_once_and_end_nothing(tree: Tree) -> None:
    tree.flake(
        'one = builtins.trace "look here" (host "one" [ ]); two = throw "broken";',
        head='nixConfig.extra-substituters = [ "https://cache.invalid" ];',
    )
    tree.commit()
    notes: list[str] = []
    wanted = {"one": "one", "two": "two"}
    reporting = Reporting(note=notes.append)
    evaluation = Evaluation(tree.nix, tree.layout, tree.seen(), wanted, reporting=reporting)
    assert evaluation.of("one").attr == "one"
    with pytest.raises(NixFailed):
        evaluation.of("two")
    assert notes.count("trace: look here") == 1
    assert len(notes) == len(set(notes))
    assert sum("extra-substituters" in note for note in notes) <= 1


@pytest.mark.parametrize("attr", ["web1.example.org", 'with"quote', "a b", "${x}", "back\\slash"])
def test_attribute_names_of_every_kind(tree: Tree, attr: str) -> None:
    quoted = attr.replace("\\", "\\\\").replace('"', '\\"').replace("${", "\\${")
    tree.flake(f'"{quoted}" = host "odd" [ ];')
    tree.commit()
    assert tree.output(attr).attr == attr


def test_several_systems_and_hosts_without_disko(tree: Tree) -> None:
    arm = '{ config.pkgs.system = "aarch64-linux"; config.system.build.toplevel = raw "arm" [ ]; }'
    tree.flake(f"arm = {arm};")
    tree.commit()
    evaluation = Evaluation(tree.nix, tree.layout, tree.seen(), {"whole": "whole", "arm": "arm"})
    assert (evaluation.of("arm").system, evaluation.of("whole").system) == ("aarch64-linux", "x86_64-linux")
    assert evaluation.of("whole").disko_drv is None


def test_an_edit_while_the_reference_itself_is_evaluated_is_evaluated_again(
    tree: Tree, tmp_path: Path
) -> None:
    inside = _with_submodule(tree, tmp_path)
    flake = f"git+file://{tree.root}?submodules=1"
    (inside / "lib.nix").write_text('"two"')
    edits = iter(('"three"',))

    def recheck() -> Fingerprint:
        for text in edits:  # once, behind the first evaluation's back
            (inside / "lib.nix").write_text(text)
        return tree.seen(flake)

    found = Evaluation(tree.nix, tree.layout, tree.seen(flake), {"near": "near"}, recheck=recheck).of("near")
    assert '"three"' in (inside / "lib.nix").read_text()
    assert found.toplevel_drv == tree.plain(flake, "near")
