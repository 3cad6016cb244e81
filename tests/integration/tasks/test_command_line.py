"""What a person sees of doit with nixa's tasks: exit statuses, what is made, what is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.image.image_server import serving
from tests.integration.tasks.conftest import Doit

HEAVY = ("httpx", "jinja2", "jsonschema", "rich", "tomlkit")


@pytest.mark.parametrize("is_stamped", [False, True])
def test_doit_list_imports_nothing_heavy(
    doit: Doit, project: Path, environment: dict[str, str], is_stamped: bool
) -> None:
    if is_stamped:
        doit("list")
        assert (project / ".nixa/manifest.stamp").exists()
    code = (
        "import sys; sys.argv = ['doit', 'list']\n"
        "from doit.doit_cmd import DoitMain\n"
        "status = DoitMain().run(['list'])\n"
        f"print('heavy:', [name for name in {HEAVY!r} if name in sys.modules], status)\n"
    )
    argv = (sys.executable, "-c", code)
    done = subprocess.run(argv, cwd=project, env=environment, capture_output=True, text=True, check=True)
    assert "heavy: [] 0" in done.stdout


def test_a_bad_manifest_ends_every_command_before_anything_is_touched(doit: Doit, project: Path) -> None:
    (project / "hosts.toml").write_text(
        'version = 1\n[hosts.web1]\ntarget = "-oProxyCommand=x"\ntarkey = 1\n'
    )
    for command in (("list",), ("deploy",), ("deploy:web1",), (), ("kexec",), ("forget",)):
        done = doit(*command)
        assert done.returncode == 3, command
        assert "hosts.toml:3:" in done.stderr
        assert "hosts.toml:4:" in done.stderr
        assert "Traceback" not in done.stderr
    assert not (project / ".nixa").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("deploy:wbe1",), "did you mean deploy:web1"),
        (("deploy:x*",), "no host in hosts.toml matches"),
        (("deploy", "--on", "@wbe"), "@web"),
        (("deploy:web1", "--on", "@web"), "--on can't follow deploy:web1"),
    ],
)
def test_a_mistake_on_the_command_line_has_status_3_and_a_way_on(
    doit: Doit, words: tuple[str, ...], says: str
) -> None:
    done = doit(*words)
    assert done.returncode == 3
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_host_that_can_not_be_reached_fails_with_status_1_and_a_reason(doit: Doit) -> None:
    done = doit("deploy")
    assert done.returncode == 1
    assert done.stdout.count("the connection is refused") >= 2
    assert "web1  failed" in done.stdout
    assert "what to do:" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_an_unchanged_flake_is_not_evaluated_again(doit: Doit, project: Path) -> None:
    assert "evaluate: done" in doit("evaluate").stdout
    output = project / ".nixa/hosts/web1/output.json"
    before = output.stat().st_mtime_ns
    (project / "flake.nix").touch()
    (project / "untracked").write_text("x")
    assert "nothing to do" in doit("evaluate").stdout
    (project / "hosts/web2.nix").write_text('"web2" # a comment\n')
    assert "evaluate: done" in doit("evaluate").stdout
    assert output.stat().st_mtime_ns == before


def test_a_built_closure_is_rooted_and_built_once(doit: Doit, project: Path) -> None:
    assert "web1: build: done" in doit("build:web1").stdout
    wanted = json.loads((project / ".nixa/hosts/web1/output.json").read_text())["toplevel"]["out"]
    assert str((project / ".nixa/gcroots/web1").readlink()) == wanted
    assert "build: done" not in doit("build:web1").stdout


def test_views_print_one_json_document_and_nothing_else(doit: Doit) -> None:
    for command, status in (("plan", 1), ("status", 0)):  # nobody reaches the hosts, so none can be planned
        done = doit(command, "--json")
        assert done.returncode == status
        assert {row["host"] for row in json.loads(done.stdout)["hosts"]} == {"web1", "web2"}


def test_doit_alone_plans_and_changes_nothing(doit: Doit) -> None:
    done = doit()
    assert done.returncode == 1, "the hosts can't be planned"
    assert "action" in done.stdout
    assert "web1" in done.stdout


def test_a_report_is_a_page_from_the_first_day_on_and_tells_what_happened_since(
    doit: Doit, project: Path, tmp_path: Path
) -> None:
    done = doit("report")
    page = project / ".nixa/report.html"
    assert (done.returncode, done.stdout) == (0, f"report: {page}\n")
    assert "No run yet" in page.read_text()
    doit("deploy:web1")
    other = tmp_path / "deploy.html"
    assert doit("report", "--output", str(other)).stdout == f"report: {other}\n"
    text = other.read_text()
    assert "web1: reach" in text
    assert "the connection is refused" in text
    assert ".nixa/hosts/web1/log/" not in text, "a host that was not reached left no log"
    assert "No run yet" in page.read_text(), "only the file that was asked for is written"
    failed = doit("report", "-o", str(tmp_path))
    assert failed.returncode == 1
    assert "can't be written" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_reinstall_wants_the_hosts_name(doit: Doit) -> None:
    for words in (("reinstall:web1",), ("reinstall:web1", "--yes-wipe", "web2")):
        done = doit(*words)
        assert done.returncode == 3
        assert "reach" not in done.stdout


def test_doits_own_commands_still_work(doit: Doit) -> None:
    doit("evaluate:web1")
    assert doit("info", "deploy:web1").returncode in (0, 1)
    assert doit("forget", "evaluate:web1").returncode == 0
    assert doit("-n", "2", "evaluate:web1").returncode == 0


def test_pin_check_looks_at_every_image_and_writes_nothing(doit: Doit, project: Path) -> None:
    url = "https://github.com/nix-community/nixos-images/releases/download/nixos-25.11"
    manifest = project / "hosts.toml"
    with manifest.open("a") as file:
        for number, name in enumerate(("right", "old")):
            pin = f"{number:064x}"
            file.write(f'\n[kexec.{name}]  # kept\nurl = "{url}/{name}.tar.gz"\nsha256 = "{pin}"\n')
    before = manifest.read_text()
    release = {
        "assets": [{"name": f"{name}.tar.gz", "digest": "sha256:" + "0" * 64} for name in ("right", "old")]
    }
    with serving(b"") as server:
        answer = json.dumps(release).encode()
        server.do.answers["/repos/nix-community/nixos-images/releases/tags/nixos-25.11"] = answer
        both = doit("pin", "--check", NIXA_GITHUB_API=server.base)
        assert both.returncode == 1, both.stdout + both.stderr
        assert "right: " in both.stdout
        assert "doit pin:old" in both.stdout
        assert doit("pin:right", "--check", NIXA_GITHUB_API=server.base).returncode == 0
    assert manifest.read_text() == before


def test_a_wave_behind_a_failed_one_is_not_started_and_says_why(doit: Doit, project: Path) -> None:
    manifest = project / "hosts.toml"
    manifest.write_text(manifest.read_text().replace("version = 1", 'version = 1\nfleet.waves = [["web2"]]'))
    done = doit("deploy")
    assert done.returncode == 1
    assert "web1: deploy: not started: wave 1 failed (web2)" in done.stdout
    assert "web1  not started" in done.stdout
    assert "web1: reach" not in done.stdout
    assert done.stdout.count("the connection is refused") >= 1
    assert "_wave" not in done.stdout + done.stderr + doit("list", "--all").stdout
    alone = doit("deploy:web1", "reach:web2")
    assert "web1: reach: failed" in alone.stdout, "a wave that nobody asked for holds nobody"
    doit("ignore", "deploy:web2")
    held = doit("deploy")
    assert held.returncode == 1
    assert "web1: deploy: not started: wave 1 is not complete" in held.stdout
