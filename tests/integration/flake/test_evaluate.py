"""Evaluation with real Nix: once for what changed, only what was asked for, each host for itself."""

from __future__ import annotations

import json
import os
import threading

import pytest

from nixa_tasks.errors import NixaError
from nixa_tasks.flake.evaluate import Evaluation
from nixa_tasks.flake.fingerprint import fingerprint
from nixa_tasks.flake.output import Output, current, forget
from nixa_tasks.nix.command import command
from nixa_tasks.nix.errors import NixFailed, Reason

from .conftest import Project


def test_nothing_is_evaluated_while_nothing_changed(project: Project) -> None:
    first = project.evaluation("web1", "web2").of("web1")
    assert len(project.evaluations()) == 1
    assert project.evaluation("web1", "web2").of("web1") == first
    os.utime(project.root / "flake.nix")
    (project.root / "untracked").write_text("x")
    project.evaluation("web1", "web2").of("web2")
    assert len(project.evaluations()) == 1


def test_output_json_is_as_promised_and_its_paths_are_nixs_own(project: Project) -> None:
    output = project.evaluation("web1").of("web1")
    value = json.loads(project.layout.host("web1").output.read_text())
    assert value == output.to_json()
    assert set(value) == {"attr", "system", "toplevel", "disko"}
    assert value["system"] == "x86_64-linux"
    flake = json.loads(project.layout.flake.read_text())
    assert flake["evaluated"] == {"web1": "web1"}
    assert flake["locked"].startswith("git+file:///")
    assert f"rev={project.git('rev-parse', 'HEAD').strip()}" in flake["locked"]


def test_an_unrelated_tracked_change_evaluates_again_but_leaves_the_output_file(project: Project) -> None:
    project.evaluation("web1").of("web1")
    path = project.layout.host("web1").output
    before = path.stat().st_mtime_ns, path.stat().st_ino, path.read_bytes()
    (project.root / "notes.txt").write_text("two\n")
    project.evaluation("web1").of("web1")
    assert len(project.evaluations()) == 2
    assert (path.stat().st_mtime_ns, path.stat().st_ino, path.read_bytes()) == before
    project.git("commit", "-qam", "the same content")
    project.evaluation("web1").of("web1")
    assert len(project.evaluations()) == 2


def test_hosts_not_asked_for_are_not_evaluated(project: Project) -> None:
    project.write(extra='broken = throw "must not be looked at";')
    project.evaluation("web1").of("web1")
    assert len(project.evaluations()) == 1
    assert not project.layout.host("web2").output.exists()


def test_a_host_without_disko_has_none(project: Project) -> None:
    output = project.evaluation("bare").of("bare")
    assert output.disko_drv is None
    assert output.to_json()["disko"] is None


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ('bad = throw "this host is broken";', "this host is broken"),
        ("bad.config.system.build.toplevel = (import ./missing.nix).x;", "no file missing.nix"),
        ("bad.config = { };", "attribute `system` missing"),
        ('bad = abort "no more";', "no more"),
        ("bad.config.system.build.toplevel = 1 + true;", "Boolean"),
    ],
)
def test_one_bad_host_of_three_spoils_no_other(project: Project, extra: str, said: str) -> None:
    project.write(extra=extra)
    evaluation = project.evaluation("web1", "bad", "web2")
    assert evaluation.of("web1").attr == "web1"
    assert evaluation.of("web2").attr == "web2"
    for _ in range(2):
        with pytest.raises(NixaError) as caught:
            evaluation.of("bad")
        assert caught.value.host == "bad"
        assert said in caught.value.render()
    assert set(json.loads(project.layout.flake.read_text())["evaluated"]) == {"web1", "web2"}
    before = len(project.evaluations())
    project.evaluation("web1", "web2").of("web1")
    assert len(project.evaluations()) == before, "the good ones are done"


def test_a_missing_host_is_told_the_nearest_name(project: Project) -> None:
    evaluation = Evaluation(project.nix, project.layout, project.seen(), {"a": "web11", "web1": "web1"})
    assert evaluation.of("web1").attr == "web1"
    with pytest.raises(NixaError, match=r"no nixosConfigurations\.web11") as caught:
        evaluation.of("a")
    assert "did you mean `web1`" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("hosts_are", "said"), [("{ ; }", "syntax error"), ('throw "nobody is well"', "nobody is well")]
)
def test_a_broken_flake_is_not_evaluated_host_by_host(project: Project, hosts_are: str, said: str) -> None:
    text = f"{{ outputs = {{ self }}: {{ nixosConfigurations = {hosts_are}; }}; }}"
    (project.root / "flake.nix").write_text(text)
    hosts = [f"h{number}" for number in range(20)]
    evaluation = project.evaluation(*hosts)
    for host in hosts:
        with pytest.raises(NixFailed) as caught:
            evaluation.of(host)
        assert caught.value.host == host
        assert said in caught.value.what
    assert len(project.evaluations()) <= 2


def test_an_untracked_flake_says_git_add(project: Project) -> None:
    project.git("rm", "-q", "--cached", "flake.nix")
    with pytest.raises(NixFailed) as caught:
        project.evaluation("web1").of("web1")
    assert caught.value.reason is Reason.UNTRACKED
    assert "git add" in (caught.value.hint or "")


def test_many_threads_cause_one_evaluation(project: Project) -> None:
    evaluation = project.evaluation("web1", "web2", "bare")
    found: dict[str, Output] = {}
    threads = [
        threading.Thread(target=lambda host=host: found.__setitem__(host, evaluation.of(host)))
        for host in ("web1", "web2", "bare")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {"web1", "web2", "bare"}
    assert len(project.evaluations()) == 1


def test_workers_share_the_hosts(project: Project) -> None:
    evaluation = project.evaluation("web1", "web2", "bare", workers=2)
    assert {evaluation.of(host).attr for host in ("web1", "web2", "bare")} == {"web1", "web2", "bare"}
    assert len(project.evaluations()) == 2


def test_little_memory_means_more_processes(project: Project) -> None:
    hosts = " ".join(f'h{number} = host "h{number}";' for number in range(6))
    project.write(extra=hosts)
    project.evaluation(*(f"h{number}" for number in range(6)), memory=1024).of("h5")
    assert 1 < len(project.evaluations()) <= 3


def test_a_host_that_needs_more_memory_than_allowed_fails_alone(project: Project) -> None:
    big = "builtins.length (builtins.concatLists (builtins.genList (x: builtins.genList (y: y) 100000) 1500))"
    project.write(extra=f'big = {{ config.system.build.toplevel = raw "big-${{toString ({big})}}" ""; }};')
    evaluation = project.evaluation("web1", "big", "web2", memory=512)
    assert evaluation.of("web1").attr == "web1"
    assert evaluation.of("web2").attr == "web2"
    with pytest.raises(NixFailed) as caught:
        evaluation.of("big")
    assert caught.value.reason is Reason.MEMORY
    assert "eval_memory" in (caught.value.hint or "")


def test_an_edit_while_the_flake_is_read_never_mixes(project: Project) -> None:
    stale = project.seen()
    project.write(token="edited-meanwhile")
    evaluation = Evaluation(project.nix, project.layout, stale, {"web1": "web1"}, recheck=project.seen)
    output = evaluation.of("web1")
    assert current(project.layout, project.seen(), "web1", "web1") == output
    assert current(project.layout, stale, "web1", "web1") is None
    assert evaluation.fingerprint.value == project.seen().value


def test_a_plain_flake_gives_the_same_output_whatever_nixa_writes_into_it(plain: Project) -> None:
    text = (plain.root / "flake.nix").read_text().replace("echo ", "echo ${self} ", 1)
    (plain.root / "flake.nix").write_text(text)
    cache = plain.root / "images"
    cache.mkdir()

    def output() -> Output:
        seen = fingerprint(plain.nix, str(plain.root), plain.layout, excluded=(cache,))
        return Evaluation(plain.nix, plain.layout, seen, {"web1": "web1"}).of("web1")

    first = output()
    (plain.layout.state / "journal.jsonl").write_text("another run\n")
    (cache / "image.tar.gz").write_text("fetched\n")
    forget(plain.layout, "web1")
    assert output() == first
    assert len(plain.evaluations()) == 2


def test_self_is_what_nix_gives_it_for_the_tree_itself(project: Project) -> None:
    probe = """probe.config.system.build.toplevel = raw
      "p-${self.rev or "dirty"}-${toString self.lastModified}-${toString (self.revCount or 0)}" "${self}";"""
    project.write(extra=probe)
    project.git("commit", "-qam", "reads itself")
    argv = command(
        "eval", "--raw", f"git+file://{project.root}#nixosConfigurations.probe.config.system.build.toplevel.drvPath"
    )  # fmt: skip
    asked = project.nix.run(argv, deadline=60).stdout.strip()
    assert project.evaluation("probe").of("probe").toplevel_drv == asked


def test_a_damaged_or_deleted_stamp_costs_an_evaluation_and_no_more(project: Project) -> None:
    output = project.evaluation("web1").of("web1")
    for damage in (b"", b"[]", b'{"evaluated": 3}', b'{"fingerprint": 1'):
        project.layout.flake.write_bytes(damage)
        assert project.evaluation("web1").of("web1") == output
    project.layout.host("web1").output.write_bytes(b'{"attr": "web1"}')
    assert project.evaluation("web1").of("web1") == output
    assert len(project.evaluations()) == 6


def test_two_runs_side_by_side_lose_nothing_of_each_others(project: Project) -> None:
    one, two = project.evaluation("web1"), project.evaluation("web2")
    threads = [
        threading.Thread(target=one.of, args=("web1",)),
        threading.Thread(target=two.of, args=("web2",)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(json.loads(project.layout.flake.read_text())["evaluated"]) == {"web1", "web2"}
