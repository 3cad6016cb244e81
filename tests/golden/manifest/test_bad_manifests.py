"""Every bad manifest says where, which key and why: held against `bad_manifests.txt`.

`python tests/golden/manifest/test_bad_manifests.py` writes that file anew; read its diff.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from pathlib import Path

import pytest

from nixa_tasks.errors import EXIT_USAGE
from nixa_tasks.manifest.load import ManifestError, load

GOLDEN = Path(__file__).with_name("bad_manifests.txt")

SRI = "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
ED25519 = "AAAAC3NzaC1lZDI1NTE5AAAAIB9JgoYTUSjWDsCHeuqmQ5iUgoMHqZT5q1kMWWRHVEVs"


def host(*lines: str, name: str = "web1", target: str = 'target = "192.0.2.1"') -> str:
    return "\n".join(("version = 1", f"[hosts.{name}]", target, *lines, ""))


def image(*lines: str) -> str:
    return "\n".join(("version = 1", "[kexec.x86_64-linux]", *lines, ""))


def fleet(*lines: str) -> str:
    return "\n".join(("version = 1", "[fleet]", *lines, "[hosts.web1]", 'target = "192.0.2.1"', ""))


CASES: dict[str, str | bytes] = {
    # The file as such
    "empty": "",
    "only comments": "# nothing yet\n\n",
    "not TOML": "version = 1\nthis is a fleet\n",
    "a quote left open": 'version = 1\n[hosts.web1]\ntarget = "192.0.2.1\nport = 22\n',
    "a bracket left open": 'version = 1\n[hosts.web1\ntarget = "192.0.2.1"\n',
    "a list left open": 'version = 1\n[hosts.web1]\ntags = ["web",\n',
    "a value without quotes": "version = 1\n[hosts.web1]\ntarget = web1.example.org\n",
    "not UTF-8": b'version = 1\n[hosts.web1]\ntarget = "caf\xe9"\n',
    "UTF-16": 'version = 1\n[hosts.web1]\ntarget = "web1"\n'.encode("utf-16"),
    "a byte-order mark": b"\xef\xbb\xbfversion = 1\n",
    "a NUL byte": b"version = 1\n[hosts.web1]\ntarget\0 = 1\n",
    "brackets without end": "version = 1\nfleet = " + "[" * 20000,
    "a dotted key without end": "version = 1\n" + "a." * 400 + "b = 1\n",
    "digits without end": "version = 1\n[fleet]\njobs = " + "9" * 5000 + "\n",
    "hex digits without end": "version = 1\n[fleet]\njobs = 0x" + "f" * 5000 + "\n",
    "a host twice": host() + '[hosts.web1]\ntarget = "192.0.2.2"\n',
    "a key twice": host("port = 22", 'tags = ["a"]', "port = 23"),
    "several keys twice": host("port = 22", "port = 23", 'user = "a"', 'user = "b"'),
    "a key twice in an inline table": 'version = 1\nhosts = { web1 = { target = "a", target = "b" } }\n',
    "a table over a value": "version = 1\nhosts = 3\n[hosts.web1]\n",
    # Shape
    "no version": '[hosts.web1]\ntarget = "192.0.2.1"\n',
    "a version of tomorrow": "version = 2\n",
    "a version in quotes": 'version = "1"\n',
    "version zero": "version = 0\n",
    "a version with a point": "version = 1.0\n",
    "hosts is a list": 'version = 1\nhosts = ["web1"]\n',
    "a host is a text": 'version = 1\n[hosts]\nweb1 = "192.0.2.1"\n',
    "hosts as a list of tables": 'version = 1\n[[hosts]]\ntarget = "192.0.2.1"\n',
    "a misspelt table": 'version = 1\n[host.web1]\ntarget = "192.0.2.1"\n',
    "a misspelt key": host('tarket = "192.0.2.2"'),
    "a misspelt key in every table": (
        "version = 1\n[fleet]\nflak = '.'\n[kexec.own]\ninstallabel = '.#x'\n"
        "[defaults]\nusr = 'root'\n[hosts.web1]\ntarget = 'a'\nchecks = [{ htp = 'http://a/' }]\n"
    ),
    "a key in the wrong table": host("jobs = 3"),
    "an unknown key": host("colour = 'blue'"),
    "an unknown key with white space and quotes": host('"odd key \\"\\u001b[31m" = 1'),
    "a host without target": "version = 1\n[hosts.web1]\nport = 22\n",
    "a port in quotes": host('port = "22"'),
    "a port that is true": host("port = true"),
    "a port with a point": host("port = 22.0"),
    "port 0": host("port = 0"),
    "port 65536": host("port = 65536"),
    "a date for a port": host("port = 1979-05-27 07:32:00"),
    "tags as a text": host('tags = "web"'),
    "a number among tags": host('tags = ["web", 3]'),
    "the same tag twice": host('tags = ["web", "web"]'),
    "a misspelt choice": host('install = "if-not-nixo"'),
    "a choice of the wrong kind": host("install = false"),
    "a flag in quotes": host('shared_target = "true"'),
    "a timeout of no time": host("confirm_timeout = 0"),
    "a negative timeout": host("lock_timeout = -1"),
    "an endless timeout": host("install_timeout = inf"),
    "a timeout that is no number": host("install_timeout = nan"),
    "no jobs": fleet("jobs = 0"),
    "a command as a text": fleet('nixos_anywhere = "nixos-anywhere --debug"'),
    "an empty command": fleet("on_finish = []"),
    # Single values
    "an option as target": host(target='target = "-oProxyCommand=reboot"'),
    "an option behind a login": host(target='target = "root@-oProxyCommand=reboot"'),
    "shell text as target": host(target='target = "web1;reboot"'),
    "a substitution as target": host(target='target = "$(reboot)"'),
    "a token of ssh as target": host(target='target = "%h"'),
    "white space in a target": host(target='target = "web1 reboot"'),
    "a newline in a target": host(target='target = "web1\\nProxyCommand reboot"'),
    "a newline at the end of a target": host(target='target = "web1\\n"'),
    "an invisible character in a target": host(target='target = "web\\u200b1"'),
    "a wide space in a target": host(target='target = "web\\u30001"'),
    "a terminal sequence in a target": host(target='target = "web1\\u001b[2J"'),
    "letters of another alphabet in a target": host(target='target = "wеb1"'),  # noqa: RUF001
    "an empty target": host(target='target = ""'),
    "a blank target": host(target='target = "  "'),
    "a URL as target": host(target='target = "ssh://web1"'),
    "a port in a target": host(target='target = "web1:2222"'),
    "a port behind IPv6": host(target='target = "[2001:db8::1]:22"'),
    "no IPv4 address": host(target='target = "192.0.2.256"'),
    "no IPv6 address": host(target='target = "2001:db8:::1"'),
    "a zone of an address without one": host(target='target = "2001:db8::1%eth0"'),
    "a zone with shell text": host(target='target = "fe80::1%eth0;reboot"'),
    "two users": host('user = "admin"', target='target = "root@192.0.2.1"'),
    "an option as user": host('user = "-l"'),
    "shell text as user": host('user = "root;reboot"'),
    "an option as attribute": host('flake_attr = "--impure"'),
    "a string inside an attribute": host('flake_attr = "web1\\".config"'),
    "an interpolation in an attribute": host('flake_attr = "${web1}"'),
    "an option as a host's name": host(name='"-web1"'),
    "a path as a host's name": host(name='"../web1"'),
    "an expression as a host's name": host(name='"a and b"'),
    "a word of expressions as a host's name": host(name="not"),
    "a glob as a host's name": host(name='"web*"'),
    "a tag as a host's name": host(name='"@web"'),
    "a doit separator in a host's name": host(name='"web:1"'),
    "a doit variable as a host's name": host(name='"web=1"'),
    "an empty host's name": host(name='""'),
    "a host's name of 64 characters": host(name="a" * 64),
    "a word of expressions as a tag": host('tags = ["and"]'),
    "a tag with its sign": host('tags = ["@web"]'),
    "an ssh option of nixa's own": host('ssh_options = ["UserKnownHostsFile=/dev/null"]'),
    "an ssh option of nixa's own in small letters": host('ssh_options = ["stricthostkeychecking no"]'),
    "an ssh option with a second line": host('ssh_options = ["LogLevel=ERROR\\nStrictHostKeyChecking=no"]'),
    "an ssh option as on a command line": host('ssh_options = ["-p 22"]'),
    "an ssh option without a value": host('ssh_options = ["Compression"]'),
    "an ssh option that is a key": host('ssh_options = ["Port=22"]'),
    "an unset variable in a path": host('identity = "${NIXA_NO_SUCH_VARIABLE}/key"'),
    "a variable without its brace": host('identity = "${HOME/key"'),
    "a user that is not there": host('identity = "~nixa-no-such-user/key"'),
    "a control character in a path": host('extra_files = "secrets\\u0007"'),
    "a private key as host key": host('host_key = "-----BEGIN OPENSSH PRIVATE KEY-----"'),
    "a host key cut short": host(f'host_key = "ssh-ed25519 {ED25519[:40]}"'),
    "a host key of another type": host(f'host_key = "ssh-rsa {ED25519}"'),
    "a host key with its host": host(f'host_key = "web1 ssh-ed25519 {ED25519}"'),
    "a host key without its type": host(f'host_key = "{ED25519}"'),
    "a host key that is not base64": host('host_key = "ssh-ed25519 AAAA!"'),
    "a fingerprint cut short": host('host_key = "SHA256:47DEQpj8HBSa"'),
    "a fingerprint that no key has": host('host_key = "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFV"'),
    "an MD5 fingerprint": host('host_key = "MD5:d4:1d:8c:d9:8f:00:b2:04:e9:80:09:98:ec:f8:42:7e"'),
    "shell text as kexec flags": host('kexec_extra_flags = "--no-sync; reboot"'),
    "a login for the installer": host('post_kexec_target = "root@192.0.2.9"'),
    "a relative path on the host": host('disk_encryption_keys = { "tmp/key" = "key" }'),
    "a path on the host with dots": host('disk_encryption_keys = { "/tmp/../etc/passwd" = "key" }'),
    "a path on the host with shell text": host('disk_encryption_keys = { "/tmp/$(reboot)" = "key" }'),
    "a secret of the wrong kind": host("extra_files = 3"),
    "a secret from an empty command": host("extra_files = { command = [] }"),
    "a secret from a command as a text": host('extra_files = { command = "sops -d x" }'),
    "a check of nothing": host("checks = [{ retries = 3 }]"),
    "a check of two things": host('checks = [{ tcp = 22, command = "true" }]'),
    "a check's status without http": host("checks = [{ tcp = 22, status = 200 }]"),
    "a check of no units": host("checks = [{ units = false }]"),
    "a check of a file": host('checks = [{ http = "file:///etc/passwd" }]'),
    "a certificate without TLS": host('checks = [{ http = "http://web1/", cert_days = 3 }]'),
    # Images
    "an image without anything": image(),
    "an image without its hash": image('url = "https://example.org/a.tar.gz"'),
    "a hash without its image": image(f'sha256 = "{SRI}"'),
    "an image of both kinds": image(
        'url = "https://example.org/a"', f'sha256 = "{SRI}"', 'installable = ".#a"'
    ),
    "mirrors of what Nix builds": image('installable = ".#a"', 'mirrors = ["https://example.org/a"]'),
    "a hash of another kind": image(
        'url = "https://example.org/a"', 'sha256 = "sha512-z4PhNX7vuL3xVChQ1m2AB9Yg5AULVxXcg/SpIdNs6c4="'
    ),
    "a hash cut short": image('url = "https://example.org/a"', f'sha256 = "{SRI[:-2]}"'),
    "a hash with a wrong character": image('url = "https://example.org/a"', f'sha256 = "{"e" * 63}g"'),
    "a hash with a newline": image('url = "https://example.org/a"', f'sha256 = "{SRI}\\n"'),
    "a URL of another kind": image('url = "ftp://example.org/a"', f'sha256 = "{SRI}"'),
    "an option as a URL": image('url = "--upload-pack=reboot"', f'sha256 = "{SRI}"'),
    "a URL with a login": image('url = "https://me:secret@example.org/a"', f'sha256 = "{SRI}"'),
    "a URL of no server": image('url = "https:///a"', f'sha256 = "{SRI}"'),
    "a URL with shell text": image('url = "https://example.org/`reboot`"', f'sha256 = "{SRI}"'),
    "a mirror with white space": image(
        'url = "https://example.org/a"', f'sha256 = "{SRI}"', 'mirrors = ["https://example.org/a b"]'
    ),
    "an option as installable": image('installable = "--expr#a"'),
    "an installable without attribute": image('installable = "github:nix-community/nixos-images"'),
    "an installable with an expression": image('installable = ".#a;b"'),
    "an option as an image's name": f'version = 1\n[kexec."-x"]\nurl = "a.tar.gz"\nsha256 = "{SRI}"\n',
    # The fleet
    "a flake with its attribute": fleet('flake = ".#web1"'),
    "an option as flake": fleet('flake = "--impure"'),
    "a flake of an unknown kind": fleet('flake = "svn:x"'),
    "a program that is an option": fleet('on_finish = ["-c", "reboot"]'),
    # How the parts fit together
    "an unknown image": image('installable = ".#a"') + '[hosts.web1]\ntarget = "a"\nkexec = "x86_64-linx"\n',
    "an unknown image in defaults": (
        'version = 1\n[defaults]\nkexec = "own"\n[hosts]\na.target = "a"\nb.target = "b"\n'
    ),
    "names that differ only in case": host() + '[hosts.Web1]\ntarget = "192.0.2.2"\n',
    "images whose names differ only in case": image('installable = ".#a"')
    + '[kexec.X86_64-linux]\ninstallable = ".#b"\n',
    "a variable in a reference that is no path": fleet('flake = "git+ssh://git@${HOST}/infra"'),
    "two hosts of one target": host() + '[hosts.web2]\ntarget = "admin@192.0.2.1"\nport = 22\n',
    "two hosts of one name in letters of two sizes": (
        'version = 1\n[hosts]\na.target = "web.example.org"\nb = { target = "WEB.example.org." }\n'
    ),
    "two hosts of one IPv6 address": (
        'version = 1\n[hosts]\na.target = "2001:db8::1"\nb.target = "[2001:0DB8:0::0001]"\n'
    ),
    "a target that only one shares": host("shared_target = true") + '[hosts.web2]\ntarget = "192.0.2.1"\n',
    "a tag that is a host": host('tags = ["prod", "Web1"]'),
    "a wave of nobody": fleet('waves = [["@canary"], ["web1"]]'),
    "a wave that is no expression": fleet('waves = [["web1 and"]]'),
    "an empty wave": fleet("waves = [[]]"),
    "no wave to take back": fleet("rollback_wave = true"),
    "many problems at once": (
        "version = 1\n[fleet]\njobs = 'many'\nwave = []\n[kexec.a]\nurl = 'gopher://x'\nsha256 = 'abc'\n"
        "[defaults]\nport = 0\n[hosts.web1]\ntarget = 'a b'\n[hosts.web2]\nuser = '-x'\nkexec = 'b'\n"
    ),
}


def rendered(folder: Path, content: str | bytes) -> str:
    path = folder / "hosts.toml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ManifestError) as caught:
        load(path, folder / "stamp")
    assert caught.value.exit_status == EXIT_USAGE
    assert not (folder / "stamp").exists()
    return caught.value.render()


def sections() -> dict[str, str]:
    parts = re.split(r"^== (.*)\n", GOLDEN.read_text(), flags=re.MULTILINE)[1:]
    return {name: text.rstrip("\n") for name, text in zip(parts[::2], parts[1::2], strict=True)}


@pytest.fixture(autouse=True)
def in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", CASES)
def test_a_bad_manifest_says_line_key_and_reason(tmp_path: Path, name: str) -> None:
    said = rendered(tmp_path, CASES[name])
    assert said == sections()[name]
    for line in said.splitlines():
        assert re.match(r"hosts\.toml:[1-9][0-9]*: \S", line), "every line says the file and the line"
        assert line.isprintable()


def test_the_golden_file_has_no_other_cases() -> None:
    assert list(sections()) == list(CASES)
    assert len(CASES) >= 45


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        parts = [f"== {name}\n{rendered(Path(folder), content)}\n\n" for name, content in CASES.items()]
    GOLDEN.write_text("".join(parts))
