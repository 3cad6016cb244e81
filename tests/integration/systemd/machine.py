"""A machine whose pid 1 is a real systemd, with a real sshd, logind, networkd and dbus, from the test's side."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from nixa_tasks.lab import network

TOP: Final = Path(__file__).parents[3]
TREE: Final = TOP / ".venv" / "systemd"
PASSWORD: Final = "practice"
_PASSWORD_HASH: Final = (
    "$6$nixalab$55z8v47dzETh3/Qal7/I5uvRzz0637qAnHoxJ2X8fiaoGaHIhiODKqP1w2ni16zaqcgp6afV/BpHr4twrXHXm1"
)
_PAM: Final = "auth sufficient pam_unix.so\nauth required pam_deny.so\naccount required pam_permit.so\n"
_PAM_SESSION: Final = "session required pam_permit.so\nsession optional pam_systemd.so\n"
_SSH_SERVICE: Final = """\
[Unit]
After=network.target
[Service]
Type=exec
ExecStartPre=/bin/mkdir -p /run/sshd
ExecStart=/usr/sbin/sshd -D -e
KillMode=process
Restart=on-failure
[Install]
WantedBy=multi-user.target
"""
_SSHD_CONFIG: Final = """\
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM yes
MaxStartups 100
AuthorizedKeysFile /etc/ssh/authorized_keys
SetEnv PATH=/run/current-system/sw/bin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
"""
_NIX_CONF: Final = (
    "experimental-features = nix-command flakes\nbuild-users-group =\nsandbox = false\nsubstituters =\n"
)
_ADOPT: Final = """
cd /etc/systemd/system
for unit in *; do
  case $(readlink "$unit") in
  /nix/store/*)
    systemctl kill --signal=KILL "$unit" 2>/dev/null
    systemctl stop "$unit"
    rm -f "$unit" ;;
  esac
done
systemctl daemon-reload
systemctl reset-failed
mkdir -p /nix/var/nix/profiles
nix-env -p /nix/var/nix/profiles/system --set "$1"
ln -sfn "$1" /run/booted-system
ln -sfn "$1" /run/current-system
exec "$1/bin/switch-to-configuration" switch
"""


class SystemdMachine:
    """One machine, off until `start`; a context manager that ends it and what it mounted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = "web1"
        self.address = ""
        self.identity = folder / "id_ed25519"
        self.host_key = folder / "host_key"
        self._id = secrets.token_hex(4)
        self._bridge = f"nx{self._id}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> SystemdMachine:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # -- life ----------------------------------------------------------------------------------

    def start(self) -> None:
        assert TREE.is_dir(), f"{TREE} is missing: ./check makes it"
        self.folder.mkdir(parents=True, exist_ok=True)
        for key in (self.identity, self.host_key):
            subprocess.run(("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key), check=True, timeout=30)
        subnet = network.raise_bridge(self._bridge, None)
        self.address = network.machine_address(subnet, 0)
        config = {
            "tree": str(TREE),
            "cgroup": f"nixa-{self._id}",
            "hostname": self.name,
            "files": self._files(),
        }
        (self.folder / "config.json").write_text(json.dumps(config))
        log = (self.folder / "supervisor.log").open("wb")
        with log:
            self._process = subprocess.Popen(
                (sys.executable, "-m", "tests.integration.systemd.supervisor", str(self.folder)),
                cwd=TOP, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(TOP)},
            )  # fmt: skip
        self.wait((self.folder / "ready").exists, "the supervisor")
        network.plug(network.veth(self._id, 0), self._bridge, self._process.pid, self.address)
        self.wait_for_ssh()

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(timeout=30)
        network.lower_bridge(self._bridge, self._id)
        script = (
            'mount -t cgroup2 none "$1" && { for try in 1 2 3 4 5 6 7 8 9; do '
            'find "$1/$2" -depth -type d -exec rmdir {} + 2>/dev/null; [ -e "$1/$2" ] || break; sleep 0.2; done; }'
        )
        place = self.folder / "cgroup"
        place.mkdir(exist_ok=True)
        subprocess.run(
            ("unshare", "--mount", "sh", "-c", script, "sh", place, f"nixa-{self._id}"),
            check=True,
            timeout=30,
        )

    def wait_for_ssh(self, *, other_than: str = "", seconds: float = 60) -> None:
        """Until a login works (in another boot than `other_than`)."""

        def reached() -> bool:
            done = self.ssh("cat /proc/sys/kernel/random/boot_id", check=False)
            return done.returncode == 0 and done.stdout.strip() != other_than

        self.wait(reached, "a login", seconds)

    def wait(self, condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
        until = time.monotonic() + seconds
        while not condition():
            log = (self.folder / "supervisor.log").read_text()
            assert self._process is None or self._process.poll() is None, f"{what}: the machine ended\n{log}"
            assert time.monotonic() < until, f"{what}: not within {seconds:.0f} s\n{log}"
            time.sleep(0.1)

    # -- what runs in it -----------------------------------------------------------------------

    @property
    def boot_id(self) -> str:
        return self.ssh("cat /proc/sys/kernel/random/boot_id").stdout.strip()

    def ssh_command(self, user: str = "root") -> tuple[str, ...]:
        return (
            "ssh", "-F", "none", "-i", str(self.identity), "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes",
            "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR",
            "-o", "ConnectTimeout=5", f"{user}@{self.address}",
        )  # fmt: skip

    def ssh(
        self, script: str, *arguments: str, user: str = "root", stdin: bytes | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell script in it, over a login of its own."""
        command = shlex.join(("sh", "-c", script, "sh", *arguments))
        done = subprocess.run(
            (*self.ssh_command(user), command), input=stdin or b"", capture_output=True, timeout=120, check=False
        )  # fmt: skip
        text = subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
        )
        assert not check or done.returncode == 0, f"{script}: {done.returncode}\n{text.stdout}{text.stderr}"
        return text

    def import_closure(self, path: str, environment: dict[str, str]) -> None:
        """Copy a store path of this computer, with what it refers to."""
        needed = subprocess.run(
            ("nix-store", "-qR", path),
            env=environment,
            capture_output=True,
            timeout=60,
            check=True,
            text=True,
        ).stdout.split()
        exported = subprocess.run(
            ("nix-store", "--export", *needed), env=environment, capture_output=True, timeout=60, check=True
        ).stdout
        self.ssh("nix-store --import", stdin=exported)

    def adopt(self, system: str) -> None:
        """Make a system that is in its store the one that runs, and whose generation is the profile."""
        self.ssh(_ADOPT, system)

    def current_system(self) -> str:
        return self.ssh("readlink -f /run/current-system").stdout.strip()

    def unit(self, name: str, field: str = "ActiveState") -> str:
        return self.ssh(f"systemctl show --property={field} --value {shlex.quote(name)}").stdout.strip()

    # -- what it is made of ----------------------------------------------------------------------

    def _files(self) -> dict[str, str]:
        prefix, gateway = "24", f"{self.address.rpartition('.')[0]}.1"
        return {
            "etc/hostname": f"{self.name}\n",
            "etc/hosts": f"127.0.0.1 localhost\n127.0.1.1 {self.name}\n",
            "etc/machine-id": f"{secrets.token_hex(16)}\n",
            "etc/gshadow": "", "etc/fstab": "", "etc/crypttab": "", "etc/NIXOS": "",
            "etc/os-release": 'ID=nixos\nNAME=NixOS\nPRETTY_NAME="NixOS 26.05 (of a test)"\nVERSION_ID="26.05"\n',
            "etc/passwd": (
                "root:x:0:0:root:/root:/bin/sh\nsshd:x:101:65534::/run/sshd:/usr/sbin/nologin\n"
                "messagebus:x:102:102::/nonexistent:/usr/sbin/nologin\n"
                "systemd-network:x:998:998::/:/usr/sbin/nologin\n"
                "admin:x:1000:1000::/home/admin:/bin/sh\nnobody:x:65534:65534::/nonexistent:/usr/sbin/nologin\n"
            ),
            "etc/group": (
                "root:x:0:\nadm:x:4:\ntty:x:5:\ndisk:x:6:\nsudo:x:27:admin\nshadow:x:42:\nutmp:x:43:\n"
                "messagebus:x:102:\nsystemd-journal:x:997:\nsystemd-network:x:998:\nadmin:x:1000:\n"
                "nogroup:x:65534:\n"
            ),
            "etc/shadow": f"root:*:19000::::::\nadmin:{_PASSWORD_HASH}:19000::::::\n",
            "etc/sudoers.d/admin": "admin ALL=(ALL) ALL\n",
            "etc/doas.conf": "permit admin as root\n",
            "etc/nix/nix.conf": _NIX_CONF,
            "etc/pam.d/sshd": _PAM + _PAM_SESSION,
            "etc/pam.d/sudo": _PAM + "session required pam_permit.so\n",
            "etc/pam.d/doas": _PAM + "session required pam_permit.so\n",
            "etc/pam.d/other": _PAM + "session required pam_permit.so\n",
            "etc/pam.d/systemd-user": "account required pam_permit.so\n" + _PAM_SESSION,
            "etc/ssh/authorized_keys": self.identity.with_suffix(".pub").read_text(),
            "etc/ssh/sshd_config": _SSHD_CONFIG,
            "etc/ssh/ssh_host_ed25519_key": self.host_key.read_text(),
            "etc/ssh/ssh_host_ed25519_key.pub": self.host_key.with_suffix(".pub").read_text(),
            "etc/systemd/logind.conf": "[Login]\nKillUserProcesses=yes\n",
            "etc/systemd/system.conf": "[Manager]\nDefaultTimeoutStopSec=15s\n",
            "etc/systemd/network/eth0.network": (
                f"[Match]\nName=eth0\n[Network]\nAddress={self.address}/{prefix}\nGateway={gateway}\n"
            ),
            "etc/systemd/system/default.target": "-> /usr/lib/systemd/system/multi-user.target",
            "etc/systemd/system/ssh.service": _SSH_SERVICE,
            "etc/systemd/system/multi-user.target.wants/ssh.service": "-> /etc/systemd/system/ssh.service",
            "etc/systemd/system/multi-user.target.wants/systemd-networkd.service":
                "-> /usr/lib/systemd/system/systemd-networkd.service",
            "etc/systemd/system/dbus-org.freedesktop.network1.service":
                "-> /usr/lib/systemd/system/systemd-networkd.service",
            "home/admin/.profile": "",
            "root/.profile": "",
        }  # fmt: skip
