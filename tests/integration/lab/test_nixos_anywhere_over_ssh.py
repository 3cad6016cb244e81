"""The stand-in for nixos-anywhere over a real sshd, into an empty /mnt, without a lab.

The machine is this computer once more, in namespaces of its own (mount, network, pid): an empty
Nix store, an empty /mnt, a real sshd. With NIXA_REAL_NIXOS_ANYWHERE=PATH the real script goes
through the same.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.lab

REAL = os.environ.get("NIXA_REAL_NIXOS_ANYWHERE", "")
IMPLEMENTATIONS = [pytest.param((sys.executable, "-m", "nixa_tasks.lab.nixos_anywhere"), id="stand-in")]
if REAL:
    IMPLEMENTATIONS.append(pytest.param(("bash", REAL), id="real"))

# $1: a folder for what is made and seen; the rest: the program and its options but the store paths.
MACHINE = r"""
set -eu
folder=$1; shift
cd "$folder"
ip link set lo up
mkdir -p /root/.ssh /nix
for empty in /mnt /nix /run /root/.ssh /usr/local/bin; do mount -t tmpfs -o mode=755 none "$empty"; done
mkdir -p /run/sshd
ssh-keygen -q -t ed25519 -N '' -f host-key
ssh-keygen -q -t ed25519 -N '' -f id
cp id.pub /root/.ssh/authorized_keys
cat >sshd.conf <<END
ListenAddress 127.0.0.1:2222
HostKey $folder/host-key
PidFile $folder/sshd.pid
PermitRootLogin yes
StrictModes no
SetEnv PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin NIX_USER_CONF_FILES=$folder/nix.conf
END
printf '%s\n' 'build-users-group =' 'sandbox = false' 'substituters =' >nix.conf
export NIX_USER_CONF_FILES=$folder/nix.conf
cat >/usr/local/bin/nixos-install <<END
#!/bin/sh
echo "\$*" >$folder/installed-with
cd /mnt && find . -not -path './nix/var*' -printf '%U:%G %m %y %P\n' >$folder/mnt
cp -a /mnt/etc/ssh $folder/mnt-ssh 2>/dev/null
true
END
printf '#!/bin/sh\ndate +%%s >%s/rebooted\nkill $(cat %s/sshd.pid)\n' "$folder" "$folder" >/usr/local/bin/reboot
chmod +x /usr/local/bin/*
"$(command -v sshd || echo /usr/sbin/sshd)" -f sshd.conf -E sshd.log
printf '#!/bin/sh\nid -un >%s/formatted\n' "$folder" >disko.sh
chmod +x disko.sh
mkdir system && printf hello >system/file
disko=$(nix-store --add disko.sh)
system=$(nix-store --add system)
printf '%s' "$system" >system-path
eval "$(ssh-agent)" >/dev/null
ssh-add -q id
status=0
"$@" --store-paths "$disko" "$system" --build-on local -p 2222 || status=$?
cp /root/.ssh/authorized_keys "$folder/authorized_keys"
exit $status
"""


@dataclass(frozen=True)
class Ran:
    status: int
    out: str
    err: str

    @property
    def steps(self) -> list[str]:
        return re.findall(r"^### (.+) ###$", self.out, re.MULTILINE)


def _run(folder: Path, command: Sequence[str], *options: str) -> Ran:
    done = subprocess.run(
        ("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc",
         "bash", "-c", MACHINE, "machine", str(folder), *command, *options),
        stdin=subprocess.DEVNULL, capture_output=True, timeout=90, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "HOME": "/root"},
    )  # fmt: skip
    return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.mark.parametrize("command", IMPLEMENTATIONS)
def test_closures_files_owners_and_host_keys_arrive(tmp_path: Path, command: Sequence[str]) -> None:
    extra = tmp_path / "extra"
    (extra / "etc" / "ssh").mkdir(parents=True)
    (extra / "of-nixa-tests").mkdir()
    extra.chmod(0o700)
    (extra / "of-nixa-tests" / "of user's").write_text("mine")
    (extra / "etc" / "ssh" / "ssh_host_ed25519_key").write_text("brought along")
    here = Path("/etc/ssh/ssh_host_rsa_key")
    key = tmp_path / "luks"
    key.write_text("secret")
    ran = _run(
        tmp_path, command, "-i", str(tmp_path / "id"), "--phases", "disko,install,reboot", "--copy-host-keys",
        "--extra-files", str(extra), "--chown", "/of-nixa-tests", "7:8",
        "--disk-encryption-keys", str(tmp_path / "over-there" / "luks"), str(key),
        "somebody@127.0.0.1",
    )  # fmt: skip
    assert ran.status == 0, ran.err
    assert ran.steps[-1] == "Done!"
    assert (tmp_path / "over-there" / "luks").read_text() == "secret"
    assert (tmp_path / "over-there" / "luks").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "formatted").read_text() == "root\n"
    system = (tmp_path / "system-path").read_text()
    arguments = (tmp_path / "installed-with").read_text()
    assert arguments == f"--no-root-passwd --no-channel-copy --system {system}\n"
    seen = (tmp_path / "mnt").read_text().splitlines()
    assert "0:0 755 d " in seen
    assert "7:8 644 f of-nixa-tests/of user's" in seen
    assert "0:0 777 d tmp" in seen
    assert any(line.endswith(f"f {system[1:]}/file") for line in seen)
    assert (tmp_path / "mnt-ssh" / "ssh_host_ed25519_key").read_text() == "brought along"
    if here.exists():
        assert (tmp_path / "mnt-ssh" / here.name).read_bytes() == here.read_bytes()
    assert (tmp_path / "rebooted").exists()


@pytest.mark.parametrize("command", IMPLEMENTATIONS)
def test_a_key_of_its_own_is_uploaded_with_the_help_of_the_agent(
    tmp_path: Path, command: Sequence[str]
) -> None:
    """Without `-i` a fresh key goes to the machine; a key in the user's ssh agent opens the door for it."""
    ran = _run(tmp_path, command, "--phases", "disko", "root@127.0.0.1")
    assert ran.status == 0, ran.err
    keys = (tmp_path / "authorized_keys").read_text().splitlines()
    assert len(keys) == 2
    assert keys[1].endswith(" nixos-anywhere")
    assert (tmp_path / "formatted").exists()
    assert not (tmp_path / "installed-with").exists()
