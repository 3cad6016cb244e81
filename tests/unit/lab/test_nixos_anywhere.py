"""The stand-in for nixos-anywhere keeps the real one's contract.

With NIXA_REAL_NIXOS_ANYWHERE=PATH every test here runs the real script too: what both pass is what
nixa may rely on. `ssh`, `ssh-copy-id` and `nix` are scripts in front of PATH that write
down how they were called and answer as a machine would.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from nixa_tasks.lab import provision
from nixa_tasks.lab.nixos_anywhere import NOTICE
from nixa_tasks.lab.paths import LabPaths

STAND_IN = (sys.executable, "-m", "nixa_tasks.lab.nixos_anywhere")
REAL = os.environ.get("NIXA_REAL_NIXOS_ANYWHERE", "")
IMPLEMENTATIONS = [pytest.param(STAND_IN, id="stand-in")]
if REAL:
    IMPLEMENTATIONS.append(pytest.param(("bash", REAL), id="real"))

# Every call: the program's name and its words, each ended by \036, the record by \035.
RECORD = r"""#!/bin/sh
world=@WORLD@
name=${0##*/}
{ printf '%s\036' "$name" "$@" "NIX_SSHOPTS=${NIX_SSHOPTS-}"; printf '\035'; } >>"$world/calls"
"""
SSH = (
    RECORD
    + r"""
once=
for word in "$@"; do
  [ "$word" = -G ] && { echo "user $(cat "$world/user")"; exit 0; }
  [ "$word" = ConnectTimeout=10 ] && once=y
done
all=$*
case $all in
  *'exit 0') [ -n "$once" ] && exit 0; exit 255 ;;
esac
if [ -s "$world/fails" ]; then
  read -r status pattern <"$world/fails"
  case $all in *"$pattern"*) exit "$status" ;; esac
fi
if [ -e "$world/runs-here" ]; then
  # The words after the destination, as sshd gives them to the login shell.
  while [ "$1" != root@there ] && [ "$1" != there ]; do shift; done
  shift
  while [ "${1-}" = -o ]; do shift 2; done
  HOME=$world/home exec sh -c "$*"
fi
case $all in
  *'bash "$HOME/kexec/nixos-anywhere-kexec.sh"'*) : >"$world/booted" ;;
esac
cat >"$world/stdin"
case $all in *'cat > "$HOME/kexec/nixos-anywhere-kexec.sh"'*) cp "$world/stdin" "$world/script" ;; esac
if grep -q isArch "$world/stdin"; then
  if [ -e "$world/booted" ]; then cat "$world/facts-after"; else cat "$world/facts"; fi
fi
exit 0
"""
)
COPY_ID = (
    RECORD
    + r"""
left=$(cat "$world/refusals")
[ "$left" = 0 ] && exit 0
echo $((left - 1)) >"$world/refusals"
exit 1
"""
)
NIX = RECORD + 'case $1 in build) echo /nix/store/built ;; eval) echo "[ ]" ;; esac\n'

FACTS = {
    "isOs": "Linux", "isArch": "x86_64", "isNixos": "n", "isInstaller": "n", "isContainer": "none",
    "isRoot": "y", "hasIpv6Only": "n", "hasTar": "y", "hasCpio": "y", "hasSudo": "n", "hasDoas": "n",
    "hasWget": "y", "hasCurl": "y", "hasSetsid": "y", "hasNixOSFacter": "n",
}  # fmt: skip
OWN_OPTIONS = (
    "-o", "IdentitiesOnly=yes", "-i", "KEY",
    "-o", "UserKnownHostsFile=/dev/null", "-o", "StrictHostKeyChecking=no",
)  # fmt: skip


@dataclass(frozen=True)
class Ran:
    """How a run ended (None: it was still running and was killed), and what it called."""

    status: int | None
    out: str
    err: str
    calls: tuple[tuple[str, ...], ...]

    def of(self, program: str) -> list[tuple[str, ...]]:
        """The words of every call of a program, without the environment."""
        return [call[1:-1] for call in self.calls if call[0] == program]

    @property
    def steps(self) -> list[str]:
        return re.findall(r"^### (.+) ###$", self.out, re.MULTILINE)


class World:
    """A folder with the programs that it finds, and a machine's answers."""

    def __init__(self, folder: Path, command: Sequence[str]) -> None:
        self.folder = folder
        self.command = tuple(command)
        self.disko = folder / "disko"
        self.system = folder / "system"
        self.home = folder / "home"
        self.image = folder / "image.tar.gz"
        self.home.mkdir()
        self.disko.write_text("#!/bin/sh\n")
        self.system.mkdir()
        self.image.write_bytes(b"no archive")
        programs = folder / "bin"
        programs.mkdir()
        for name, text in (("ssh", SSH), ("ssh-copy-id", COPY_ID), ("nix", NIX)):
            (programs / name).write_text(text.replace("@WORLD@", str(folder)))
            (programs / name).chmod(0o755)
        self.put("user", "root\n")
        self.put("refusals", "0\n")
        self.facts()
        self.facts("facts-after", isInstaller="y", isNixos="y")

    def put(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def facts(self, file: str = "facts", **changed: str) -> None:
        self.put(file, "".join(f"{key}={value}\n" for key, value in {**FACTS, **changed}.items()))

    def store_paths(self) -> tuple[str, ...]:
        return ("--store-paths", str(self.disko), str(self.system), "--build-on", "local")

    def run(self, *argv: str, seconds: float = 30, env: Mapping[str, str] | None = None) -> Ran:
        started = subprocess.Popen(
            (*self.command, *argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.folder,
            env={
                **{key: value for key, value in os.environ.items() if key != "SSH_PRIVATE_KEY"},
                "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
                "PYTHONPATH": str(Path(__file__).parents[3]),
                "HOME": str(self.home),
                "TMPDIR": str(self.folder),
                **(env or {}),
            },
            start_new_session=True,
        )
        status: int | None
        try:
            out, err = started.communicate(timeout=seconds)
            status = started.returncode
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)
            out, err = started.communicate(timeout=10)
            status = None
        return Ran(status, out.decode(), err.decode(), self._calls())

    def _calls(self) -> tuple[tuple[str, ...], ...]:
        log = self.folder / "calls"
        if not log.exists():
            return ()
        text = re.sub(r"/[^\s\036]*/nixos-anywhere(?=[\s\036]|$)", "KEY", log.read_text())
        return tuple(tuple(record.split("\036")[:-1]) for record in text.split("\035")[:-1])


@pytest.fixture(params=IMPLEMENTATIONS)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    return World(tmp_path, request.param)


BAD_LINES = [
    pytest.param(("-p",), r"\$2: unbound variable", id="option without its argument"),
    pytest.param(("--store-paths", "/etc"), r"\$3: unbound variable", id="option with one argument of two"),
    pytest.param((), r"^aborted: ssh-host must be set$", id="no host"),
    pytest.param(("--phases", "disko,wipe"), r"^aborted: Unknown phase: wipe$", id="unknown phase"),
    pytest.param(("--phases", "kexec,,disko"), r"phase", id="empty phase"),
    pytest.param(("--build-on", "moon"), r"Unknown mode : moon$", id="unknown builder"),
    pytest.param(
        ("h", "--build-on", "local"), r"^aborted: --flake or --store-paths must be set$", id="nothing to install"
    ),
    pytest.param(
        ("--frobnicate", "--build-on", "local"), r"^aborted: --flake or --store-paths must be set$",
        id="unknown option is taken for the host",
    ),
    pytest.param(("-s", "/no/such/a", "/etc", "h"), r"", id="store path in no folder"),
    pytest.param(
        ("-s", "/no-such", "/etc", "h", "--build-on", "local"),
        r"^aborted: /no-such and /etc must be existing store-paths$", id="store path that does not exist",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("argv", "message"), BAD_LINES)
def test_a_bad_command_line_ends_with_1_and_touches_nothing(
    world: World, argv: tuple[str, ...], message: str
) -> None:
    ran = world.run(*argv)
    assert ran.status == 1
    assert re.search(message, ran.err, re.MULTILINE), ran.err
    assert not ran.of("ssh")
    assert not ran.of("ssh-copy-id")
    assert "Done!" not in ran.out


def test_a_second_host_shows_the_usage_and_fails(world: World) -> None:
    ran = world.run("one", "two")
    assert ran.status == 1
    assert ran.out.startswith("Usage: nixos-anywhere")


def test_help_names_every_option_that_nixa_gives(world: World) -> None:
    ran = world.run("--help")
    assert ran.status == 0
    for option in (
        "--phases", "--store-paths", "--build-on", "--kexec", "--kexec-extra-flags", "-i", "--ssh-port",
        "--post-kexec-ssh-port", "--copy-host-keys", "--extra-files", "--disk-encryption-keys", "--target-host",
    ):  # fmt: skip
        assert option in ran.out


def test_its_own_ssh_options_come_first_in_every_connection(world: World) -> None:
    ran = world.run(
        *world.store_paths(), "--kexec", str(world.image), "--ssh-option", "StrictHostKeyChecking=yes",
        "-p", "2222", "--ssh-option", "ProxyJump=bastion", "admin@there",
    )  # fmt: skip
    assert ran.status == 0, ran.err
    calls = ran.of("ssh")
    assert len(calls) > 8
    given = (*OWN_OPTIONS, "-o", "StrictHostKeyChecking=yes", "-p")
    for call in calls:
        words = call[1:] if call[0] == "-T" else call
        assert words[: len(given)] == given
        assert words[len(given) + 1 :][:2] == ("-o", "ProxyJump=bastion")
    assert ran.of("ssh-copy-id") == [
        ("-o", "IdentitiesOnly=no", "-o", "ConnectTimeout=10", *given, "2222", "-o", "ProxyJump=bastion", "admin@there")
    ]  # fmt: skip


def test_whole_run_announces_its_steps_in_order(world: World) -> None:
    ran = world.run(*world.store_paths(), "--kexec", str(world.image), "root@there")
    assert ran.status == 0, ran.err
    assert ran.steps == [
        "Uploading install SSH keys",
        "Gathering machine facts",
        "Switching system into kexec",
        "Gathering machine facts",
        "Formatting hard drive with disko",
        "Uploading the system closure",
        "Installing NixOS",
        "Rebooting",
        "Waiting for the machine to become unreachable due to reboot",
        "Done!",
    ]


def _from_destination(call: Sequence[str]) -> tuple[str, ...]:
    """The words of an ssh call from its destination on."""
    return tuple(call[next(i for i, word in enumerate(call) if word.endswith("there")) :])


def test_whole_run_makes_these_connections_in_this_order(world: World) -> None:
    ran = world.run(*world.store_paths(), "--kexec", str(world.image), "admin@there")
    assert ran.status == 0, ran.err
    seen = [_from_destination(call) for call in ran.of("ssh")]
    once, nothing = ("-o", "ConnectTimeout=10"), ("--", "exit", "0")
    # Where the remote text is the implementation's own, only the destination and the program count.
    assert [who[0] for who in seen] == ["admin@there"] * 6 + ["root@there"] * 6
    assert seen[0] == ("admin@there",)
    assert seen[1][1:3] == once
    assert "nixos-anywhere-kexec.sh" in seen[2][1]
    assert seen[3][1] == 'cat > "$HOME/kexec/kexec-tarball.tar.gz"'
    assert seen[4][1] == 'bash "$HOME/kexec/nixos-anywhere-kexec.sh"'
    assert seen[5] == ("admin@there", *nothing)
    assert seen[6] == ("root@there", *once, *nothing)
    assert seen[7][1:3] == once
    assert seen[8:] == [
        ("root@there", str(world.disko)),
        ("root@there", "sh"),
        ("root@there", "sh"),
        ("root@there", *nothing),
    ]


def test_closures_go_by_nix_copy_with_ssh_options_joined_by_blanks(world: World) -> None:
    ran = world.run(
        *world.store_paths(), "--phases", "disko,install", "--ssh-option", "ProxyCommand=nc -X 5 h p",
        "root@there",
    )  # fmt: skip
    assert ran.status == 0, ran.err
    words = (
        "copy", "--extra-experimental-features", "nix-command flakes", "--no-write-lock-file",
        "--substitute-on-destination", "--to",
    )  # fmt: skip
    assert ran.of("nix") == [
        (*words, "ssh://root@there?compress=true", str(world.disko)),
        (*words, "ssh://root@there?remote-store=local%3Froot=%2Fmnt&compress=true", str(world.system)),
    ]
    options = next(call[-1] for call in ran.calls if call[0] == "nix")
    assert options == "NIX_SSHOPTS=" + " ".join((*OWN_OPTIONS, "-o", "ProxyCommand=nc -X 5 h p"))


def test_without_the_kexec_phase_it_is_root_from_the_start(world: World) -> None:
    ran = world.run(*world.store_paths(), "--phases", "disko,install", "admin@there")
    assert ran.status == 0, ran.err
    assert ran.steps[-1] == "Done!"
    assert "Rebooting" not in ran.steps
    assert "Switching system into kexec" not in ran.steps
    assert ran.of("ssh-copy-id")[0][-1] == "root@there"
    assert {_from_destination(call)[0] for call in ran.of("ssh")[1:]} == {"root@there"}


def test_kexec_phase_alone_ends_in_the_installer(world: World) -> None:
    ran = world.run(*world.store_paths(), "--phases", "kexec", "--kexec", str(world.image), "root@there")
    assert ran.status == 0, ran.err
    assert ran.steps[-2:] == ["Gathering machine facts", "Done!"]
    assert not ran.of("nix")


def test_an_installer_is_not_kexeced_again(world: World) -> None:
    world.facts(isInstaller="y", isNixos="y")
    ran = world.run(*world.store_paths(), "--kexec", str(world.image), "root@there")
    assert ran.status == 0, ran.err
    assert "Switching system into kexec" not in ran.steps


def test_a_machine_that_is_no_installer_after_the_kexec_ends_it(world: World) -> None:
    world.facts("facts-after")
    ran = world.run(*world.store_paths(), "--kexec", str(world.image), "root@there")
    assert ran.status == 1
    assert "aborted: Failed to kexec into NixOS installer" in ran.err
    assert "Formatting hard drive with disko" not in ran.steps


@pytest.mark.parametrize(
    ("fact", "value", "message"),
    [
        ("hasTar", "n", "aborted: no tar command found"),
        ("hasCpio", "n", "aborted: no cpio command found"),
        ("hasSetsid", "n", "aborted: no setsid command respecting --wait"),
        ("isOs", "Darwin", "aborted: This script requires Linux as the operating system, but got Darwin"),
        ("isRoot", "n", "aborted: Unable to find a command to use to escalate privileges"),
        ("hasCurl", "", "aborted: Failed to retrieve fact hasCurl from host"),
    ],
)
def test_a_machine_without_what_it_needs_is_left_alone(
    world: World, fact: str, value: str, message: str
) -> None:
    world.facts(**{fact: value})
    ran = world.run(*world.store_paths(), "--kexec", str(world.image), "root@there")
    assert ran.status == 1
    assert message in ran.err
    assert "Switching system into kexec" not in ran.steps


@pytest.mark.parametrize(
    ("facts", "downloader"),
    [
        ({}, ("wget", "https://h/i.tar.xz", "-O-")),
        ({"hasWget": "n"}, ("curl", "--fail", "-Ss", "-L", "https://h/i.tar.xz")),
    ],
)
def test_a_url_is_downloaded_by_the_machine_itself(
    world: World, facts: dict[str, str], downloader: tuple[str, ...]
) -> None:
    world.facts(**facts)
    world.put("fails", "3 bash \n")
    ran = world.run(*world.store_paths(), "--phases", "kexec", "--kexec", "https://h/i.tar.xz", "root@there")
    assert ran.status == 1
    assert "kexec-tarball" not in " ".join(" ".join(call) for call in ran.of("ssh"))
    script = (world.folder / "script").read_text()
    assert " ".join(downloader) in script
    assert "tar -xv --xz" in script


def test_a_broken_image_is_not_noticed(world: World) -> None:
    """tar fails, and what lay there before is run: only the sentence counts."""
    world.put("runs-here", "")
    run = world.home / "kexec" / "kexec" / "run"
    run.parent.mkdir(parents=True)
    run.write_text('#!/bin/sh\necho "flags <$2>"\necho machine will boot into nixos in 6s\n')
    run.chmod(0o755)
    ran = world.run(
        *world.store_paths(), "--phases", "kexec", "--kexec", str(world.image),
        "--kexec-extra-flags", "--no-sync --x='y z'", "root@there",
    )  # fmt: skip
    assert (world.home / "kexec" / "kexec-tarball.tar.gz").read_bytes() == b"no archive"
    assert "flags <--no-sync --x='y z'>" in ran.out
    assert "Kexec failed" not in ran.err
    assert "aborted: Failed to kexec into NixOS installer" in ran.err  # this computer is none
    assert ran.status == 1


def test_a_kexec_without_its_sentence_has_failed_and_shows_the_log(world: World) -> None:
    world.put("runs-here", "")
    run = world.home / "kexec" / "kexec" / "run"
    run.parent.mkdir(parents=True)
    run.write_text("#!/bin/sh\necho no memory left\n")
    run.chmod(0o755)
    ran = world.run(*world.store_paths(), "--phases", "kexec", "--kexec", str(world.image), "root@there")
    assert ran.status == 1
    assert "Remote output log:" in ran.err
    assert "no memory left" in ran.err
    assert ran.err.rstrip().endswith("Kexec failed")


@pytest.mark.parametrize("phases", ["disko", "disko,install"])
def test_exit_status_is_that_of_the_command_that_failed(world: World, phases: str) -> None:
    world.put("fails", f"7 {world.disko}\n")
    ran = world.run(*world.store_paths(), "--phases", phases, "root@there")
    assert ran.status == 7
    assert ran.steps[-1] == "Formatting hard drive with disko"


def test_a_closure_that_cannot_be_copied_ends_it(world: World) -> None:
    (world.folder / "bin" / "nix").write_text("#!/bin/sh\nexit 42\n")
    ran = world.run(*world.store_paths(), "--phases", "disko", "root@there")
    assert ran.status == 42


def test_keys_are_offered_every_three_seconds_without_end(world: World) -> None:
    world.put("refusals", "1000\n")
    ran = world.run(*world.store_paths(), "root@there", seconds=7.5)
    assert ran.status is None
    assert 2 <= len(ran.of("ssh-copy-id")) <= 3
    assert ran.steps == ["Uploading install SSH keys"]


def test_it_goes_on_once_the_key_was_taken(world: World) -> None:
    world.put("refusals", "1\n")
    ran = world.run(*world.store_paths(), "--phases", "disko", "root@there")
    assert ran.status == 0
    assert len(ran.of("ssh-copy-id")) == 2


def _key(path: Path) -> str:
    subprocess.run(("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path), check=True, timeout=20)
    return path.with_suffix(".pub").read_text().split()[1]


def test_it_logs_in_with_the_given_key(world: World) -> None:
    """ssh-copy-id is shown the public half of the key that `-i` names."""
    used = world.folder / "used"
    public = _key(used)
    shim = world.folder / "bin" / "ssh-copy-id"
    shim.write_text(f'#!/bin/sh\nexec cat "$8.pub" >"{world.folder}/shown"\n')  # after three -o and -i
    ran = world.run(*world.store_paths(), "--phases", "disko", "-i", str(used), "root@there")
    assert ran.status == 0, ran.err
    assert (world.folder / "shown").read_text().split()[1] == public


def test_the_port_after_the_kexec_counts_only_beside_a_port(world: World) -> None:
    words = (*world.store_paths(), "--phases", "kexec", "--kexec", str(world.image), "root@there")
    ran = world.run(*words, "--post-kexec-ssh-port", "2200")
    assert all("-p" not in call for call in ran.of("ssh"))
    (world.folder / "calls").unlink()
    (world.folder / "booted").unlink()
    ran = world.run(*words, "--post-kexec-ssh-port", "2200", "-p", "22")
    ports = [call[call.index("-p") + 1] for call in ran.of("ssh")]
    assert ports == ["22"] * 5 + ["2200"] * 3


def test_disk_keys_go_up_before_the_disk_is_formatted(world: World) -> None:
    key = world.folder / "luks.key"
    key.write_text("secret")
    ran = world.run(
        *world.store_paths(), "--phases", "disko", "--disk-encryption-keys", "/run/keys/luks", str(key),
        "root@there",
    )  # fmt: skip
    assert ran.status == 0, ran.err
    assert ran.steps[-3:-1] == [f"Uploading {key} to /run/keys/luks", "Formatting hard drive with disko"]
    remote = next(call[-1] for call in ran.of("ssh") if "/run/keys/luks" in call[-1])
    assert "umask 077" in remote
    assert "secret" not in (world.folder / "calls").read_text()


def test_a_user_who_is_not_root_in_the_installer_becomes_root(world: World) -> None:
    world.put("user", "nixos\n")
    world.facts(isInstaller="y", isNixos="y", isRoot="n", hasSudo="y")
    ran = world.run(*world.store_paths(), "--phases", "kexec,disko", "nixos@there")
    assert ran.status == 0, ran.err
    copied = next(call for call in ran.of("ssh") if "authorized_keys" in call[-1])
    assert _from_destination(copied)[0] == "nixos@there"
    assert "sudo" in copied[-1]
    assert _from_destination(ran.of("ssh")[-1]) == ("root@there", str(world.disko))


def test_debug_shows_the_ssh_commands(world: World) -> None:
    ran = world.run(*world.store_paths(), "--phases", "disko", "--debug", "root@there")
    assert ran.status == 0
    assert "SSH COMMAND:" in ran.out
    assert "-L" in ran.of("nix")[0]


def test_the_private_key_is_removed_on_sigterm(world: World) -> None:
    world.put("refusals", "1000\n")
    started = subprocess.Popen(
        (*world.command, *world.store_paths(), "root@there"),
        stdout=subprocess.PIPE,
        env={
            **os.environ,
            "PATH": f"{world.folder / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(Path(__file__).parents[3]),
            "HOME": str(world.home),
            "TMPDIR": str(world.folder / "tmp"),
        },
        start_new_session=True,
    )
    assert started.stdout is not None
    (world.folder / "tmp").mkdir()
    started.stdout.readline()
    os.killpg(started.pid, signal.SIGTERM)
    assert started.wait(timeout=10) != 0
    started.stdout.close()
    assert list((world.folder / "tmp").iterdir()) == []


def test_the_stand_in_says_first_what_it_is(tmp_path: Path) -> None:
    ran = World(tmp_path, STAND_IN).run("--help")
    assert ran.err.splitlines()[0] == NOTICE


def test_the_wheel_leaves_the_stand_in_out() -> None:
    top = Path(__file__).parents[3]
    wheel = tomllib.loads((top / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert [top / path for path in wheel["exclude"]] == [provision.STAND_IN]
    assert provision.STAND_IN.exists()


def test_a_lab_without_the_stand_in_names_no_nixos_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    paths = LabPaths(tmp_path)
    assert provision.stand_in(paths) is None
    paths.bin.mkdir()
    (paths.bin / "nixos-anywhere").write_text("#!/bin/sh\n")
    assert provision.stand_in(paths) == paths.bin / "nixos-anywhere"
