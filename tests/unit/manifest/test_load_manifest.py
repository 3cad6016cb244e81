"""Loading: what the keys become, and the way of a stamped manifest."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from nixa_tasks.manifest import load as load_module
from nixa_tasks.manifest.load import ManifestError, load
from nixa_tasks.manifest.model import (
    BuildOn,
    Check,
    CommandCheck,
    CommandSecret,
    Deliver,
    FileSecret,
    HttpCheck,
    InstallableImage,
    InstallPolicy,
    KexecPhase,
    Manifest,
    Mode,
    OnDrift,
    TcpCheck,
    UnitsCheck,
    UrlImage,
)

EMPTY_SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
SRI = "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB9JgoYTUSjWDsCHeuqmQ5iUgoMHqZT5q1kMWWRHVEVs"

FULL = f"""
version = 1
[fleet]
flake = "./infra?dir=nix"
cache = "${{NIXA_TEST_CACHE}}/images"
jobs = 3
nixos_anywhere = ["./tools/nixos-anywhere", "--debug"]
kexec_phase = "nixos-anywhere"
waves = [["@web"], ["db", "not @web and not db"]]
rollback_wave = true
on_finish = ["notify", "a b"]
eval_workers = 2
eval_memory = 1024
impure = true
copy_jobs = 4
[kexec.x86_64-linux]
url = "images/installer.tar.gz"
sha256 = "{EMPTY_SHA256.upper()}"
mirrors = ["https://mirror.example.org/installer.tar.gz"]
store = true
deliver = "pull"
[kexec.own]
installable = ".#packages.x86_64-linux.installer"
[defaults]
user = "admin"
kexec = "own"
tags = ["all"]
[hosts.web1]
target = "deploy@[2001:DB8::1]"
port = 2222
identity = "~/.ssh/deploy"
ssh_options = ["ProxyCommand nc %h  %p", "Compression = yes"]
host_key = "{KEY} root@web1"
flake_attr = "web"
tags = ["web"]
kexec = "x86_64-linux"
kexec_extra_flags = "--no-sync"
install = "always"
build_on = "remote"
mode = "boot"
reboot = true
post_kexec_target = "192.0.2.9"
post_kexec_port = 22
copy_host_keys = false
substitute_on_destination = false
extra_files = "secrets/web1"
hardware = "hosts/web1.json"
on_drift = "deploy"
confirm_timeout = 5
lock_timeout = 1.5
install_timeout = 100
checks = [
    {{ http = "https://web1/", status = 204, body = "ok", cert_days = 14, retries = 0, deadline = 2 }},
    {{ command = "test -e /etc/a; echo" }}, {{ tcp = 443 }}, {{ units = true }},
]
[hosts.web1.disk_encryption_keys]
"/tmp/luks.key" = "secrets/luks"
"/tmp/other.key" = {{ command = ["sops", "-d", "secrets/other"] }}
[hosts.db]
target = "db.example.org"
extra_files = {{ command = ["./secrets.sh"] }}
[hosts.last]
target = "db.example.org"
port = 23
"""


@pytest.fixture
def full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NIXA_TEST_CACHE", "/var/cache/nixa-test")
    monkeypatch.setenv("HOME", "/home/me")
    path = tmp_path / "hosts.toml"
    path.write_text(FULL)
    return path


def problems(path: Path, stamp: Path | None = None) -> list[str]:
    with pytest.raises(ManifestError) as caught:
        load(path, stamp)
    return [f"{problem.line} {problem.key}: {problem.text}" for problem in caught.value.problems]


def test_every_key_of_the_fleet_and_the_images_is_served(full: Path) -> None:
    manifest, root = load(full), full.parent
    assert manifest.path == full
    fleet = manifest.fleet
    assert fleet.flake == f"{root}/infra?dir=nix"
    assert fleet.cache == Path("/var/cache/nixa-test/images")
    assert fleet.nixos_anywhere == (f"{root}/tools/nixos-anywhere", "--debug")
    assert fleet.kexec_phase is KexecPhase.NIXOS_ANYWHERE
    assert fleet.waves == (("@web",), ("db", "not @web and not db"))
    assert (fleet.jobs, fleet.rollback_wave, fleet.on_finish) == (3, True, ("notify", "a b"))
    assert (fleet.eval_workers, fleet.eval_memory, fleet.copy_jobs, fleet.impure) == (2, 1024, 4, True)
    mirror = "https://mirror.example.org/installer.tar.gz"
    assert list(manifest.images.values()) == [
        UrlImage(
            "x86_64-linux",
            f"file://{root}/images/installer.tar.gz",
            EMPTY_SHA256,
            mirrors=(mirror,),
            store=True,
            deliver=Deliver.PULL,
        ),
        InstallableImage("own", f"{root}#packages.x86_64-linux.installer"),
    ]


def test_every_key_of_a_host_is_served(full: Path) -> None:
    host, root = load(full).hosts["web1"], full.parent
    assert (host.target, host.user, host.port) == ("2001:DB8::1", "deploy", 2222)
    assert host.identity == Path("/home/me/.ssh/deploy")
    assert host.ssh_options == ("ProxyCommand=nc %h  %p", "Compression=yes")
    assert host.host_key == KEY
    assert (host.flake_attr, host.tags, host.kexec) == ("web", ("web",), "x86_64-linux")
    assert (host.kexec_extra_flags, host.install) == ("--no-sync", InstallPolicy.ALWAYS)
    assert (host.build_on, host.mode, host.reboot) == (BuildOn.REMOTE, Mode.BOOT, True)
    assert (host.post_kexec_target, host.post_kexec_port) == ("192.0.2.9", 22)
    assert not host.copy_host_keys
    assert not host.substitute_on_destination
    assert host.extra_files == FileSecret(root / "secrets/web1")
    assert host.hardware == root / "hosts/web1.json"
    assert host.on_drift is OnDrift.DEPLOY
    assert (host.confirm_timeout, host.lock_timeout, host.install_timeout) == (5.0, 1.5, 100.0)
    assert host.disk_encryption_keys == (
        ("/tmp/luks.key", FileSecret(root / "secrets/luks")),
        ("/tmp/other.key", CommandSecret(("sops", "-d", "secrets/other"))),
    )
    assert host.checks == (
        Check(HttpCheck("https://web1/", 204, "ok", 14), retries=0, deadline=2.0),
        Check(CommandCheck("test -e /etc/a; echo")),
        Check(TcpCheck(443)),
        Check(UnitsCheck()),
    )


def test_defaults_hold_for_every_host_that_says_nothing_else(full: Path) -> None:
    manifest = load(full)
    assert list(manifest.hosts) == ["web1", "db", "last"], "the file's order"
    db = manifest.hosts["db"]
    assert (db.user, db.kexec, db.tags, db.flake_attr) == ("admin", "own", ("all",), "db")
    assert db.extra_files == CommandSecret((str(full.parent / "secrets.sh"),))


def test_the_least_manifest_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "hosts.toml"
    path.write_text('version = 1\n[hosts]\nweb1.target = "web1"\n')
    manifest = load(path)
    assert manifest.fleet.flake == str(tmp_path)
    assert manifest.hosts["web1"].kexec is None
    assert manifest.images == {}


def test_two_hosts_that_both_say_so_may_share_a_target(tmp_path: Path) -> None:
    path = tmp_path / "hosts.toml"
    path.write_text('version = 1\ndefaults.shared_target = true\n[hosts]\na.target = "x"\nb.target = "X"\n')
    assert len(load(path).hosts) == 2


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (".", "ROOT"),
        ("sub", "ROOT/sub"),
        ("../other", "PARENT/other"),
        ("/abs/flake", "/abs/flake"),
        ("path:.", "path:ROOT"),
        ("path:/abs", "path:/abs"),
        ("git+file:.?ref=main", "git+file://ROOT?ref=main"),
        ("git+file:///abs?dir=x", "git+file:///abs?dir=x"),
        ("git+ssh://git@example.org/infra?ref=main", "git+ssh://git@example.org/infra?ref=main"),
        ("github:example/infra/main", "github:example/infra/main"),
    ],
)
def test_a_flake_reference_means_the_same_from_any_folder(tmp_path: Path, written: str, meant: str) -> None:
    path = tmp_path / "hosts.toml"
    path.write_text(f'version = 1\n[fleet]\nflake = "{written}"\n')
    wanted = meant.replace("ROOT", str(tmp_path)).replace("PARENT", str(tmp_path.parent))
    assert load(path).fleet.flake == wanted


def test_a_flake_in_a_folder_that_nix_would_misread_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "a#b"
    folder.mkdir()
    (folder / "hosts.toml").write_text("version = 1\n")
    assert problems(folder / "hosts.toml") == [
        "1 fleet.flake: lies in a folder with `#` in its name, which Nix reads as something else"
    ]


def test_a_stamped_manifest_is_the_same_manifest(full: Path) -> None:
    stamp = full.with_name("stamp")
    slow = load(full, stamp)
    assert stat.S_IMODE(stamp.stat().st_mode) == 0o600
    assert load(full, stamp) == slow


def test_a_stamp_of_other_bytes_counts_for_nothing(full: Path) -> None:
    stamp = full.with_name("stamp")
    load(full, stamp)
    full.write_text(FULL.replace("port = 2222", "port = 0"))
    assert problems(full, stamp) == ["30 hosts.web1.port: must be at least 1, not 0"]


def test_a_stamp_that_came_with_a_repository_counts_for_nothing(full: Path, tmp_path: Path) -> None:
    stamp = full.with_name("stamp")
    load(full, stamp)
    clone = tmp_path / "clone"
    shutil.copytree(full.parent, clone)
    before = (clone / "stamp").read_bytes()
    load(clone / full.name, clone / "stamp")
    assert (clone / "stamp").read_bytes() != before, "it was checked again"


def test_a_stamp_of_other_rules_counts_for_nothing(full: Path, tmp_path: Path) -> None:
    """Also where every file has the same size and time, as in the Nix store."""
    rules = Path(load_module.__file__).parent
    package = tmp_path / "rules" / "nixa_tasks"
    shutil.copytree(rules.parent, package, ignore=shutil.ignore_patterns("lab", "__pycache__"))
    stamp = full.with_name("stamp")

    def is_valid() -> bool:
        code = (
            "import sys; from pathlib import Path; from nixa_tasks.manifest import load\n"
            "path, stamp = map(Path, sys.argv[1:])\n"
            "print(load.is_found_valid(path, stamp)); load.load(path, stamp)"
        )
        ended = subprocess.run(
            [sys.executable, "-B", "-c", code, str(full), str(stamp)],
            env=os.environ | {"PYTHONPATH": str(package.parent)}, cwd=tmp_path,
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        return ended.stdout.strip() == "True"

    assert [is_valid(), is_valid()] == [False, True]
    changed = package / "manifest" / "values.py"
    status = changed.stat()
    changed.write_text(changed.read_text().replace("_NAME_LENGTH = 63", "_NAME_LENGTH = 62"))
    os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert not is_valid()


def test_a_damaged_stamp_counts_for_nothing(full: Path) -> None:
    stamp = full.with_name("stamp")
    wanted = load(full, stamp)
    whole = stamp.read_bytes()
    for damaged in (b"", whole[:100], whole[:-5], whole.replace(b"2222", b"2223"), b"\xff" * 50):
        stamp.write_bytes(damaged)
        assert load(full, stamp) == wanted
        assert stamp.read_bytes() == whole


def test_a_stamp_of_another_folder_counts_for_nothing(full: Path, tmp_path: Path) -> None:
    stamp = full.with_name("stamp")
    load(full, stamp)
    other = tmp_path / "a#b" / "hosts.toml"
    other.parent.mkdir()
    other.write_text('version = 1\n[hosts.web1]\ntarget = "a"\n')
    here = tmp_path / "hosts.toml"
    here.write_bytes(other.read_bytes())
    load(here, stamp)
    assert problems(other, stamp), "the same bytes mean another flake there"


def test_a_variable_that_is_gone_is_a_problem_in_a_stamped_manifest_too(
    full: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamp = full.with_name("stamp")
    load(full, stamp)
    monkeypatch.delenv("NIXA_TEST_CACHE")
    said = "needs the environment variable `NIXA_TEST_CACHE`, which is not set"
    assert problems(full, stamp) == [f"5 fleet.cache: {said}"]


def test_a_stamp_that_can_not_be_written_is_no_error(full: Path) -> None:
    assert isinstance(load(full, full.parent / "no such folder" / "stamp"), Manifest)


def test_a_stamped_load_imports_neither_jsonschema_nor_tomlkit(full: Path) -> None:
    stamp = full.with_name("stamp")
    load(full, stamp)
    code = (
        "import sys, pathlib, nixa_tasks.manifest.load as m\n"
        "m.load(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))\n"
        "heavy = {'jsonschema', 'tomlkit', 'httpx', 'rich', 'difflib', 'nixa_tasks.manifest.schema'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(full), str(stamp)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert ran.stdout == "[]\n"


def test_a_missing_file_says_how_to_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ManifestError) as caught:
        load(Path("hosts.toml"))
    assert caught.value.render().splitlines()[0] == "hosts.toml: there is no such file"
    assert "nixa_tasks.lab" in caught.value.render()


def test_a_folder_in_the_file_s_place_is_said(tmp_path: Path) -> None:
    assert problems(tmp_path) == ["0 : is a folder, not a file"]


def test_a_link_to_nothing_and_a_loop_of_links_are_said(tmp_path: Path) -> None:
    link = tmp_path / "hosts.toml"
    link.symlink_to("hosts.toml")
    assert problems(link)[0].startswith("0 : can't be read: ")


@pytest.mark.skipif(os.geteuid() != 0, reason="root has to give its rights up for this")
def test_an_unreadable_file_is_said() -> None:
    code = (
        "import os, sys, pathlib, nixa_tasks.manifest.load as m\n"
        "os.setegid(65534); os.seteuid(65534)\n"
        "try: m.load(pathlib.Path(sys.argv[1]))\n"
        "except m.ManifestError as error: print(error.problems[0].text)"
    )
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # others may pass through it, unlike through pytest's own
        path = Path(folder) / "hosts.toml"
        path.write_text(FULL)
        path.chmod(0)
        ran = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60, check=True
        )
    assert ran.stdout == "can't be read: Permission denied\n"


def test_the_path_is_written_as_short_as_it_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "fleet" / "hosts.toml"
    path.parent.mkdir()
    path.write_text("version = 2\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ManifestError, match=r"^fleet/hosts.toml:1: version: is 2"):
        load(path)
    monkeypatch.chdir("/")
    with pytest.raises(ManifestError) as caught:
        load(path)
    assert caught.value.render().startswith(f"{str(path)[1:]}:1: ")


@pytest.mark.parametrize(
    "content",
    [
        "version = 1\n" + "colour = 1\n" * 100_000,
        "version = 1\n" + "".join(f"colour{number} = 1\n" for number in range(100_000)),
        "version = 1\n"
        + "".join(f'[hosts.h{n}]\ntarget="-x"\ntarkt=1\nkexec="i{n}"\n' for n in range(25_000)),
        "version = 1\n" + "x = [\n" * 100_000,
        "version = 1\n" + "# nothing\n" * 100_000 + "fleet = 3\n",
        'version = 1\nfleet.flake = """\n' + "line\n" * 100_000 + '"""\n',
        "version = 1\n[hosts.a]\ntarget = 'a'\ntags = [\n"
        + "".join(f"'t{n}',\n" for n in range(99_000))
        + "'a b']",
    ],
    ids=["repeated", "unknown", "hosts", "open", "comments", "string", "tags"],
)
def test_a_hundred_thousand_lines_are_answered_soon(tmp_path: Path, content: str) -> None:
    path = tmp_path / "hosts.toml"
    path.write_text(content)
    begun = time.process_time()
    said = problems(path)
    assert time.process_time() - begun < 20, (
        "far above what it takes, far below what a quadratic search would"
    )
    assert said


def test_a_file_beyond_all_measure_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "hosts.toml"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    assert problems(path) == ["0 : is larger than 16 MiB"]


def test_a_rendered_error_does_not_go_on_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "hosts.toml"
    path.write_text("version = 1\n" + "".join(f"colour{number} = 1\n" for number in range(1000)))
    with pytest.raises(ManifestError) as caught:
        load(path)
    assert len(caught.value.problems) == 1000
    assert caught.value.render().splitlines()[-1].endswith("hosts.toml: and 800 problems more")
