"""Building with real Nix: roots that hold, derivations that are gone, runs that are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nixa_tasks.flake.build import (
    DerivationGone,
    NoDisko,
    RemoteStore,
    build,
    build_remotely,
    is_built,
    previous_root_of,
    root_of,
)
from nixa_tasks.flake.output import Output, current
from nixa_tasks.nix.command import Nix, store_command
from nixa_tasks.nix.errors import NixFailed, Reason
from nixa_tasks.process.run import LocalProcesses

from .conftest import Project, every_nix

# The store of the machine is everybody's: what collects garbage runs with a /nix of its own.
PRIVATE = """set -eu
mount --bind "$1" /nix
test -e /nix/.private
shift
exec "$@"
"""


def _in_private_store(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    (folder / ".private").touch()
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", PRIVATE, "sh", str(folder), *argv],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def _roots(path: Path) -> str:
    argv = store_command("--query", "--roots", str(path))
    return Nix(LocalProcesses()).run(argv, deadline=60).stdout


def test_both_closures_are_built_rooted_and_then_left_alone(project: Project) -> None:
    output = project.evaluation("web1").of("web1")
    lines: list[str] = []
    assert not is_built(project.layout, "web1", output, "toplevel")
    system = build(project.nix, project.layout, "web1", output, "toplevel", sink=lines.append)
    disko = build(project.nix, project.layout, "web1", output, "disko", sink=lines.append)
    assert (system / "init").read_text() == f"{project.token}\n"
    assert disko.read_text() == f"{project.token}\n"
    assert any(output.toplevel_drv in line for line in lines), "the log has what Nix said"
    assert str(root_of(project.layout, "web1", "toplevel")) in _roots(system)
    assert str(root_of(project.layout, "web1", "disko")) in _roots(disko)
    asked = project.log.read_text()
    assert build(project.nix, project.layout, "web1", output, "toplevel", sink=lines.append) == system
    assert project.log.read_text() == asked, "Nix is not asked again"


def test_a_host_without_disko_says_so(project: Project) -> None:
    output = project.evaluation("bare").of("bare")
    with pytest.raises(NoDisko, match="diskoScript"):
        build(project.nix, project.layout, "bare", output, "disko", sink=print)


def test_what_is_deployed_stays_rooted_while_newer_systems_are_built(project: Project) -> None:
    first = project.evaluation("web1").of("web1")
    build(project.nix, project.layout, "web1", first, "toplevel", sink=print)
    project.layout.host("web1").deployed.write_text(json.dumps({"out": first.toplevel_out}))
    for token in ("newer", "newest"):
        project.write(token=f"{project.token}-{token}")
        output = project.evaluation("web1").of("web1")
        build(project.nix, project.layout, "web1", output, "toplevel", sink=print)
        assert str(root_of(project.layout, "web1", "toplevel").readlink()) == output.toplevel_out
    previous = previous_root_of(project.layout, "web1")
    assert str(previous.readlink()) == first.toplevel_out
    assert str(previous) in _roots(Path(first.toplevel_out))


@every_nix
def test_a_failed_build_names_its_derivation_and_shows_its_builders_last_lines(project: Project) -> None:
    broken = 'broken.config.system.build.toplevel = raw "broken" "echo {0} the disk is on fire; exit 3";'
    project.write(extra=broken.format(project.token))
    output = project.evaluation("broken").of("broken")
    lines: list[str] = []
    with pytest.raises(NixFailed) as caught:
        build(project.nix, project.layout, "broken", output, "toplevel", sink=lines.append)
    assert caught.value.reason is Reason.BUILD
    assert caught.value.subject == output.toplevel_drv
    assert f"log {output.toplevel_drv}" in (caught.value.hint or "")
    assert any("on fire" in line for line in lines)
    shown = [line for line in caught.value.render().splitlines() if "on fire" in line]
    assert len(shown) == 1, "the builder's last words are in the error, once"


def test_a_collected_derivation_is_told_apart_and_evaluated_again(project: Project) -> None:
    evaluation = project.evaluation("web1")
    output = evaluation.of("web1")
    project.nix.run(
        store_command("--delete", output.toplevel_drv), deadline=60
    )  # this one path, not a collection
    with pytest.raises(DerivationGone):
        build(project.nix, project.layout, "web1", output, "toplevel", sink=print)
    assert current(project.layout, project.seen(), "web1", "web1") is None, "the next run evaluates"
    assert evaluation.again("web1") == output
    assert build(project.nix, project.layout, "web1", output, "toplevel", sink=print).exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a mount namespace")
def test_the_root_keeps_the_closure_over_a_garbage_collection(project: Project, tmp_path: Path) -> None:
    script = tmp_path / "collect.py"
    script.write_text(
        f"""
import subprocess
from pathlib import Path
from nixa_tasks.flake.build import build, root_of
from nixa_tasks.flake.evaluate import Evaluation
from nixa_tasks.flake.fingerprint import fingerprint
from nixa_tasks.nix.command import Nix
from nixa_tasks.process.run import LocalProcesses
from nixa_tasks.state.layout import Layout

assert Path("/nix/.private").exists()
layout = Layout(Path({str(project.root)!r}))
nix = Nix(LocalProcesses())
output = Evaluation(nix, layout, fingerprint(nix, {str(project.root)!r}, layout), {{"web1": "web1"}}).of("web1")
path = build(nix, layout, "web1", output, "toplevel", sink=print)
subprocess.run(["nix-store", "--gc"], check=True, capture_output=True)
assert path.exists(), "rooted, and collected"
root_of(layout, "web1", "toplevel").unlink()
subprocess.run(["nix-store", "--gc"], check=True, capture_output=True)
assert not path.exists(), "the collection collects nothing: the test proves nothing"
print("kept")
"""
    )
    done = _in_private_store(tmp_path / "nix", sys.executable, str(script))
    assert done.stdout.endswith("kept\n"), done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a mount namespace")
def test_a_build_in_the_hosts_own_store_leaves_nothing_to_build_here(
    project: Project, tmp_path: Path
) -> None:
    """Real Nix on both sides of an ssh that ends in a store of its own on this machine."""
    there = tmp_path / "there"
    there.mkdir()
    (there / ".private").touch()
    wrapper = tmp_path / "ssh-bin/ssh"
    wrapper.parent.mkdir()
    wrapper.write_text(
        "#!/bin/sh\n"
        "while [ $# -gt 0 ]; do case $1 in nix-daemon*|nix-store*|echo*) break ;; esac; shift; done\n"
        f"cat > {tmp_path}/private.sh <<'EOF'\n{PRIVATE}EOF\n"
        f'exec unshare --mount sh {tmp_path}/private.sh {there} sh -c "$*"\n'
    )
    wrapper.chmod(0o755)
    output = project.evaluation("web1").of("web1")
    out = build_remotely(
        project.nix,
        project.layout,
        output,
        "toplevel",
        RemoteStore("ssh-ng://root@host.example", {"PATH": f"{wrapper.parent}:{os.environ['PATH']}"}),
        host="web1",
        sink=print,
        deadline=60,
    )
    assert out == output.toplevel_out
    assert not Path(out).exists()
    assert (there / "store" / Path(out).name / "init").read_text() == f"{project.token}\n"


def _killed_while(project: Project, script: str, *, when: Callable[[], bool]) -> None:
    """Run `script` in a process of its own, and end it by force once `when` holds."""
    head = f"""
from pathlib import Path
from nixa_tasks.flake.build import build
from nixa_tasks.flake.evaluate import Evaluation
from nixa_tasks.flake.fingerprint import fingerprint
from nixa_tasks.nix.command import Nix
from nixa_tasks.process.run import LocalProcesses
from nixa_tasks.state.layout import Layout
root = {str(project.root)!r}
layout = Layout(Path(root))
nix = Nix(LocalProcesses())
evaluation = Evaluation(nix, layout, fingerprint(nix, root, layout), {{"slow": "slow", "web1": "web1"}})
"""
    child = subprocess.Popen([sys.executable, "-c", head + script], stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not when() and time.monotonic() < until:
        time.sleep(0.02)
    assert child.poll() is None, "it ended before it could be killed"
    child.send_signal(signal.SIGKILL)
    child.wait(10)


def test_an_evaluation_that_was_killed_is_finished_by_the_next_run(project: Project) -> None:
    work = "builtins.foldl' (a: b: a + b) 0 (builtins.genList (x: x) 8000000)"
    project.write(extra=f'slow = {{ config.system.build.toplevel = raw "slow-${{toString ({work})}}" ""; }};')
    _killed_while(project, "evaluation.of('slow')", when=lambda: bool(project.evaluations()))
    assert not project.layout.host("slow").output.exists()
    output = project.evaluation("slow", "web1").of("slow")
    assert current(project.layout, project.seen(), "slow", "slow") == output


def test_a_build_that_was_killed_is_finished_by_the_next_run(project: Project) -> None:
    slow = f"${{./bin}}/busybox sleep 2; ${{./bin}}/busybox mkdir $out; echo {project.token} > $out/init"
    project.write(extra=f'slow.config.system.build.toplevel = raw "slow" "{slow}";')
    _killed_while(
        project,
        "build(nix, layout, 'slow', evaluation.of('slow'), 'toplevel', sink=print)",
        when=lambda: project.log.exists() and "--realise" in project.log.read_text(),
    )
    output = project.evaluation("slow").of("slow")
    assert not is_built(project.layout, "slow", output, "toplevel")
    assert (build(project.nix, project.layout, "slow", output, "toplevel", sink=print) / "init").exists()


def test_an_output_reads_back_as_it_was_written() -> None:
    for output in (Output("a", "s", "/d", "/o"), Output("a", "s", "/d", "/o", "/dd", "/do")):
        assert Output.from_json(output.to_json()) == output
    assert Output.from_json({"attr": "a", "system": "s", "toplevel": {"drv": "/d"}, "disko": None}) is None
