"""The one ssh command line, and ssh's own words told apart."""

from __future__ import annotations

import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from nixa_tasks.host.ssh import Fence, FenceBroken, Ssh, Stale, explain
from nixa_tasks.manifest.model import Host
from nixa_tasks.process.run import LocalProcesses

HOST = Host("web1", "203.0.113.1", port=2222, identity=Path("/k"), ssh_options=("ProxyCommand=nc %h %p",))


def ssh_to(folder: Path = Path("/run/x")) -> Ssh:
    local = LocalProcesses()
    return Ssh.to(HOST, folder, local, local.clock)


def test_the_pins_come_before_the_hosts_own_options() -> None:
    words = ssh_to().command("true")
    assert words.index("StrictHostKeyChecking=yes") < words.index("ProxyCommand=nc %h %p")
    assert words.index("UserKnownHostsFile=" + str(ssh_to().known_hosts)) < words.index("-i")


def test_an_option_with_blanks_stays_one_word() -> None:
    assert "ProxyCommand=nc %h %p" in ssh_to().command("true")


def test_the_target_can_not_be_read_as_an_option() -> None:
    words = ssh_to().command("true")
    assert words[words.index("--") + 1] == HOST.target


def test_two_addresses_of_one_host_share_no_socket() -> None:
    here = ssh_to()
    assert here.socket != replace(here, target="203.0.113.2").socket
    assert len(str(here.socket)) < 90


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("ssh: connect to host x port 22: Connection refused", "refused"),
        ("ssh: connect to host x port 22: Connection timed out", "timeout"),
        ("ssh: connect to host x port 22: No route to host", "timeout"),
        ("ssh: Could not resolve hostname x: Name or service not known", "unknown"),
        ("Host key verification failed.", "hostkey"),
        ("root@x: Permission denied (publickey).", "login"),
        ("kex_exchange_identification: Connection closed by remote host", "closed"),
        ("Unable to negotiate with x: no matching host key type found.", "protocol"),
        ("something else", "ssh"),
        ("", "lost"),
    ],
)
def test_ssh_failures_are_told_apart(said: str, kind: str) -> None:
    error = explain(ssh_to(), (said,))
    assert error.kind == kind
    assert error.hint
    assert error.host == "web1"


def test_a_tool_sees_at_once_that_an_ssh_behind_a_password_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it waits for an answer and has nothing to send, as in a long build on the host."""
    real = tmp_path / "bin/ssh"
    real.parent.mkdir()
    real.write_text("#!/bin/sh\nhead -n 2; exit 255\n")
    real.chmod(0o755)
    monkeypatch.setenv("PATH", str(real.parent), prepend=":")
    preamble = tmp_path / "preamble"
    preamble.write_text("password\n\n")
    env = ssh_to(tmp_path).tool_environment(preamble=preamble)
    with subprocess.Popen(
        ("sh", "-c", 'exec ssh "$@"', "sh", "h", "sudo nix-daemon --stdio"),
        env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as tool:  # fmt: skip
        assert tool.stdout is not None
        timer = threading.Timer(20, tool.kill)
        timer.start()
        assert tool.stdout.read() == b"password\n\n"
        assert timer.is_alive(), "the output stayed open although ssh is gone"
        timer.cancel()
        assert tool.stdin is not None
        tool.stdin.close()
        assert tool.wait(20) == 255


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("-o", "A=b", "-T", "root@h", "wipe", "it"), "root@h FENCE wipe it"),
        (("-T", "root@h", "-o", "A=b", "-i", "key", "--", "wipe"), "-o A=b -i key -- FENCE wipe"),
        (("-G", "root@h"), "-G root@h"),
        (("-p", "22", "root@h", "sh", "-c", "x"), "-p 22 root@h FENCE sh -c x"),
    ],
)
def test_a_tools_commands_run_behind_the_fence(
    words: tuple[str, ...], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tmp_path / "bin/ssh"
    real.parent.mkdir()
    real.write_text(
        '#!/bin/sh\nfor word; do case $word in *nixa_fence*) word=FENCE;; esac; echo "$word"; done\n'
    )
    real.chmod(0o755)
    monkeypatch.setenv("PATH", str(real.parent), prepend=":")
    ssh = replace(ssh_to(tmp_path), fence=Fence("boot", "7", None))
    env = ssh.tool_environment(is_fenced=True)
    done = subprocess.run(
        ("sh", "-c", 'exec ssh "$@"', "sh", *words), env=env, capture_output=True, check=True
    )
    assert " ".join(done.stdout.decode().split()).endswith(expected)


def test_a_fence_that_does_not_hold_is_told_apart_and_leaves_the_script_alone(tmp_path: Path) -> None:
    here = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    for fence, status in ((Fence(here, "", None), 7), (Fence("other", "", None), FenceBroken.REBOOTED),
                          (Fence(here, "", "/nix/store/x"), FenceBroken.OTHER_SYSTEM)):  # fmt: skip
        done = subprocess.run(("sh", "-c", f"{fence.text}exit $1", "sh", "7"), check=False, timeout=20)
        assert done.returncode == status


def test_a_command_behind_a_broken_fence_is_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "ssh"
    script.write_text(f"#!/bin/sh\nexit {FenceBroken.LOCK_LOST}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    ssh = replace(ssh_to(tmp_path), fence=Fence("boot", "7", None))
    with pytest.raises(Stale, match="lock was lost") as caught:
        ssh.run("wipe", root=True, deadline=20)
    assert caught.value.broken is FenceBroken.LOCK_LOST
