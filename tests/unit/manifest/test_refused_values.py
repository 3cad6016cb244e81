"""No text of a manifest reaches a tool as an option, as a second line, or as shell text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nixa_tasks.manifest.load import ManifestError, load

SRI = "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
HOST = 'version = 1\n[hosts.web1]\n{}target = "192.0.2.1"\n'

# Every key that takes a text, as a manifest with a place for it.
PLACES = {
    "target": "version = 1\n[hosts.web1]\ntarget = VALUE\n",
    "login": "version = 1\n[hosts.web1]\ntarget = LOGIN\n",
    "user": HOST.format("user = VALUE\n"),
    "identity": HOST.format("identity = VALUE\n"),
    "ssh_options": HOST.format("ssh_options = [VALUE]\n"),
    "ssh option's value": HOST.format("ssh_options = [OPTION]\n"),
    "host_key": HOST.format("host_key = VALUE\n"),
    "flake_attr": HOST.format("flake_attr = VALUE\n"),
    "tags": HOST.format("tags = [VALUE]\n"),
    "kexec": HOST.format("kexec = VALUE\n"),
    "kexec_extra_flags": HOST.format("kexec_extra_flags = VALUE\n"),
    "post_kexec_target": HOST.format("post_kexec_target = VALUE\n"),
    "extra_files": HOST.format("extra_files = VALUE\n"),
    "a secret's command": HOST.format("extra_files = { command = [VALUE] }\n"),
    "a path on the host": HOST.format('disk_encryption_keys = { VALUE = "key" }\n'),
    "a key's source": HOST.format('disk_encryption_keys = { "/tmp/k" = VALUE }\n'),
    "hardware": HOST.format("hardware = VALUE\n"),
    "http": HOST.format("checks = [{ http = VALUE }]\n"),
    "http behind a server": HOST.format("checks = [{ http = URL }]\n"),
    "install": HOST.format("install = VALUE\n"),
    "build_on": HOST.format("build_on = VALUE\n"),
    "mode": HOST.format("mode = VALUE\n"),
    "on_drift": HOST.format("on_drift = VALUE\n"),
    "a host's name": 'version = 1\n[hosts.VALUE]\ntarget = "a"\n',
    "an image's name": f'version = 1\n[kexec.VALUE]\nurl = "a"\nsha256 = "{SRI}"\n',
    "url": f'version = 1\n[kexec.a]\nurl = VALUE\nsha256 = "{SRI}"\n',
    "url behind a server": f'version = 1\n[kexec.a]\nurl = URL\nsha256 = "{SRI}"\n',
    "sha256": 'version = 1\n[kexec.a]\nurl = "a"\nsha256 = VALUE\n',
    "mirrors": f'version = 1\n[kexec.a]\nurl = "a"\nsha256 = "{SRI}"\nmirrors = [VALUE]\n',
    "installable": "version = 1\n[kexec.a]\ninstallable = VALUE\n",
    "an installable's attribute": "version = 1\n[kexec.a]\ninstallable = ATTRIBUTE\n",
    "deliver": f'version = 1\n[kexec.a]\nurl = "a"\nsha256 = "{SRI}"\ndeliver = VALUE\n',
    "flake": "version = 1\n[fleet]\nflake = VALUE\n",
    "cache": "version = 1\n[fleet]\ncache = VALUE\n",
    "kexec_phase": "version = 1\n[fleet]\nkexec_phase = VALUE\n",
    "nixos_anywhere": "version = 1\n[fleet]\nnixos_anywhere = [VALUE]\n",
    "on_finish": "version = 1\n[fleet]\non_finish = [VALUE]\n",
    "waves": HOST.format("") + "[fleet]\nwaves = [[VALUE]]\n",
}
FRAMES = {"LOGIN": "{}@web1", "OPTION": "ProxyJump={}", "URL": "https://example.org/{}", "ATTRIBUTE": ".#{}"}
# A local path, or a program, is one argument or a file's name: a blank or a `;` in it does no harm.
LOCAL = {"identity", "extra_files", "a key's source", "hardware", "cache"}
PROGRAMS = {"a secret's command", "nixos_anywhere", "on_finish"}

ATTACKS_EVERYWHERE = {
    "a newline": "x\nProxyCommand reboot",
    "a newline at the end": "x\n",
    "a carriage return": "x\ry",
    "a NUL": "x\0y",
    "an escape": "x\x1b[2Jy",
    "a delete": "x\x7fy",
    "a zero-width space": "x\u200by",
    "a right-to-left mark": "x\u202ey",
    "a line separator": "x\u2028y",
    "a no-break space": "x\u00a0y",
    "a byte-order mark": "\ufeffx",
}
ATTACKS_ON_WORDS = {
    "an option": "-oProxyCommand=reboot",
    "a long option": "--option",
    "white space": "x y",
    "a tab": "x\ty",
    "a substitution": "$(reboot)",
    "backticks": "`reboot`",
    "a second command": "x;reboot",
    "a pipe": "x|reboot",
    "a redirection": "x>y",
    "a quote": 'x"y',
    "a backslash": "x\\y",
    "nothing": "",
}
# Harmless where it is said to be: a URL, an installable or a hash is one argument and no option.
ALLOWED = {
    ("http behind a server", "an option"),
    ("http behind a server", "a long option"),
    ("http behind a server", "a substitution"),
    ("http behind a server", "a second command"),
    ("http behind a server", "nothing"),
    ("url behind a server", "an option"),
    ("url behind a server", "a long option"),
    ("url behind a server", "a substitution"),
    ("url behind a server", "a second command"),
    ("url behind a server", "nothing"),
    ("an installable's attribute", "an option"),
    ("an installable's attribute", "a long option"),
    ("an installable's attribute", "a quote"),
    ("kexec_extra_flags", "an option"),
    ("kexec_extra_flags", "a long option"),
    ("kexec_extra_flags", "white space"),
    ("kexec_extra_flags", "nothing"),
    ("ssh_options", "white space"),  # `Key Value`
}
PATHLIKE = {"url", "mirrors", "flake"}
HARMLESS_IN_A_PATH = {
    "a substitution",
    "backticks",
    "a second command",
    "a pipe",
    "a redirection",
    "a quote",
    "a backslash",
}


def is_word(place: str) -> bool:
    return place not in LOCAL | PROGRAMS | {"ssh option's value"}


def cases() -> list[tuple[str, str]]:
    chosen = [(place, attack) for place in PLACES for attack in ATTACKS_EVERYWHERE]
    for place in PLACES:
        if is_word(place):
            chosen += [(place, attack) for attack in ATTACKS_ON_WORDS if (place, attack) not in ALLOWED]
    chosen += [(place, "an option") for place in sorted(PROGRAMS)]
    chosen += [(place, "nothing") for place in sorted(LOCAL | PROGRAMS | {"ssh option's value"})]
    return [one for one in chosen if not (one[0] in PATHLIKE and one[1] in HARMLESS_IN_A_PATH)]


@pytest.mark.parametrize(("place", "attack"), cases())
def test_an_injection_is_refused_in_every_text(tmp_path: Path, place: str, attack: str) -> None:
    value = ATTACKS_EVERYWHERE.get(attack, ATTACKS_ON_WORDS.get(attack, ""))
    text = PLACES[place]
    for mark, frame in {"VALUE": "{}", **FRAMES}.items():
        text = text.replace(mark, json.dumps(frame.format(value)).replace("\x7f", "\\u007f"))
    path = tmp_path / "hosts.toml"
    path.write_text(text)
    with pytest.raises(ManifestError) as caught:
        load(path)
    for line in caught.value.render().splitlines():
        assert line.isprintable(), "what was refused must not reach the terminal either"
        assert "not TOML" not in line, "the case must reach the value's own check"
    assert "".join(problem.key for problem in caught.value.problems)


def test_values_that_may_hold_blanks_are_kept_whole(tmp_path: Path) -> None:
    path = tmp_path / "hosts.toml"
    path.write_text(
        HOST.format(
            "ssh_options = [\"ProxyCommand=ssh -W '%h:%p'  bastion; true\"]\n"
            'identity = "my keys/deploy; $(x)"\n'
            'checks = [{ command = "test 1 = 1 &&\\n\\ttrue" }]\n'
        )
    )
    host = load(path).hosts["web1"]
    assert host.ssh_options == ("ProxyCommand=ssh -W '%h:%p'  bastion; true",)
    assert host.identity == tmp_path / "my keys/deploy; $(x)"


@pytest.mark.parametrize(
    "target",
    [
        "web1",
        "web1.example.org",
        "web_1",
        "192.0.2.1",
        "2001:db8::1",
        "[::1]",
        "fe80::1%eth0",
        "xn--bcher-kva",
    ],
)
def test_every_kind_of_target_is_taken(tmp_path: Path, target: str) -> None:
    path = tmp_path / "hosts.toml"
    path.write_text(f'version = 1\n[hosts.web1]\ntarget = "root@{target}"\n')
    host = load(path).hosts["web1"]
    assert (host.user, host.target) == ("root", target.strip("[]"))
