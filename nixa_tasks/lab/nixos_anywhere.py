"""A stand-in for nixos-anywhere, for the practice lab: `python -m nixa_tasks.lab.nixos_anywhere`.

It keeps the part of the real one's contract that nixa relies on: its arguments, phases and steps
(`### … ###`), the order of its ssh options, its exit statuses, and its quirks (it has no deadlines
and verifies nothing). It installs store paths; it builds no flakes. The wheel leaves it out, since
only the lab of a checkout uses it. docs/nixos-anywhere.md lists the differences, and says how to run
its tests against the real one (main of July 2026, after 1.13.0).
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import IO, Any, Final, NoReturn

NOTICE = "This is the practice lab's stand-in for nixos-anywhere, not the real one."
PHASES: Final = ("kexec", "disko", "install", "reboot")
USAGE: Final = """\
Usage: nixos-anywhere [options] [<ssh-host>]

This is the practice lab's stand-in. Of the real nixos-anywhere it takes these options:

  where      --target-host HOST, -i FILE, -p|--ssh-port PORT, --ssh-option OPTION,
             --post-kexec-ssh-port PORT
  what       -s|--store-paths DISKO SYSTEM --build-on local
  kexec      --kexec PATH|URL, --kexec-extra-flags FLAGS
  phases     --phases kexec,disko,install,reboot
  files      --copy-host-keys, --extra-files DIR, --chown PATH OWNER,
             --disk-encryption-keys REMOTE LOCAL
  and        --debug, --help
"""
_ONCE: Final = ("-o", "ConnectTimeout=10")
# The kexec succeeded if the image's own `run` printed this, whatever any exit status was.
_SUCCESS: Final = "machine will boot into nixos"


class Exit(Exception):
    """The program ends here with this status, after `message` on stderr, or its usage on stdout."""

    def __init__(self, status: int, message: str = "", *, usage: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.usage = usage


def abort(message: str) -> NoReturn:
    """Raises Exit, with the real one's prefix."""
    raise Exit(1, f"aborted: {message}")


def step(text: str) -> None:
    """Announce a step on standard output, where callers look for it."""
    print(f"### {text} ###", flush=True)


def warn(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# -- the command line ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asked for. `ssh` are arguments for ssh, in the order given."""

    connection: str = ""
    ssh: tuple[str, ...] = ()
    identity: str = ""
    post_kexec_port: str = "22"
    disko: str = ""
    system: str = ""
    build_on: str = "auto"
    kexec: str = ""
    kexec_flags: str = ""
    phases: frozenset[str] = frozenset(PHASES)
    copy_host_keys: bool = False
    extra_files: str = ""
    owners: tuple[tuple[str, str], ...] = ()
    disk_keys: tuple[tuple[str, str], ...] = ()
    debug: bool = False


def _phases(options: Options, text: str) -> Options:
    names = text.removesuffix(",").split(",") if text else []
    for name in names:
        if name not in PHASES:
            abort(f"Unknown phase: {name}")
    return replace(options, phases=frozenset(names))


def _store_paths(options: Options, disko: str, system: str) -> Options:
    """As `readlink -f`: every part of a path but the last must exist. Raises Exit without a message."""
    for path in (disko, system):
        if not path or not Path(os.path.realpath(path)).parent.exists():
            raise Exit(1)
    return replace(options, disko=os.path.realpath(disko), system=os.path.realpath(system))


def _build_on(options: Options, where: str) -> Options:
    if where not in ("auto", "local", "remote"):
        abort(f"Supported values for --build-on are auto, local and remote. Unknown mode : {where}")
    return replace(options, build_on=where)


def _put(pairs: tuple[tuple[str, str], ...], key: str, value: str) -> tuple[tuple[str, str], ...]:
    return tuple({**dict(pairs), key: value}.items())


# Each option by its name: how many arguments it takes, and what it changes.
_TABLE: Final[Mapping[str, tuple[int, Callable[..., Options]]]] = {
    "--target-host": (1, lambda o, v: replace(o, connection=v)),
    "-i": (1, lambda o, v: replace(o, identity=v)),
    "--ssh-port": (1, lambda o, v: replace(o, ssh=(*o.ssh, "-p", v))),
    "--ssh-option": (1, lambda o, v: replace(o, ssh=(*o.ssh, "-o", v))),
    "--post-kexec-ssh-port": (1, lambda o, v: replace(o, post_kexec_port=v)),
    "--store-paths": (2, _store_paths),
    "--build-on": (1, _build_on),
    "--kexec": (1, lambda o, v: replace(o, kexec=v)),
    "--kexec-extra-flags": (1, lambda o, v: replace(o, kexec_flags=v)),
    "--phases": (1, _phases),
    "--copy-host-keys": (0, lambda o: replace(o, copy_host_keys=True)),
    "--extra-files": (1, lambda o, v: replace(o, extra_files=v)),
    "--chown": (2, lambda o, k, v: replace(o, owners=_put(o.owners, k, v))),
    "--disk-encryption-keys": (2, lambda o, k, v: replace(o, disk_keys=_put(o.disk_keys, k, v))),
    "--debug": (0, lambda o: replace(o, debug=True)),
}
_SHORT: Final = {"-p": "--ssh-port", "-s": "--store-paths"}


def parse(argv: Sequence[str]) -> Options:
    """The options of a command line, read as the real one reads it.

    An unknown option is taken for the ssh host. Raises Exit: missing arguments (1), `--help` (0).
    """
    options = Options()
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        name = _SHORT.get(word, word)
        if name == "--help":
            raise Exit(0, usage=True)
        if name in _TABLE:
            count, change = _TABLE[name]
            if len(rest) < count:
                raise Exit(1, f"nixos-anywhere: ${len(rest) + 2}: unbound variable")
            options = change(options, *rest[:count])
            del rest[:count]
        elif options.connection:
            raise Exit(1, usage=True)
        else:
            options = replace(options, connection=word)
    _check(options)
    return options


def _check(options: Options) -> None:
    """Raises Exit."""
    if not options.connection:
        abort("ssh-host must be set")
    if not (options.disko and options.system):
        abort("--flake or --store-paths must be set")
    if options.build_on != "local":
        raise Exit(1, "the stand-in builds nothing: give it --store-paths and --build-on local")
    if not (Path(options.disko).exists() and Path(options.system).exists()):
        abort(f"{options.disko} and {options.system} must be existing store-paths")


# -- programs here, and the machine over ssh ----------------------------------------------------


def _shell_status(returncode: int) -> int:
    return 128 - returncode if returncode < 0 else returncode


class Machine:
    """One machine: the ssh options for it, and the user it is reached as.

    Deliberately without deadlines, as the real one. ssh, ssh-keygen, ssh-copy-id and nix come from PATH.
    """

    def __init__(self, options: Options, folder: Path) -> None:
        self._options = options
        self._folder = folder
        self._tty = "-t" if os.isatty(0) else "-T"
        self._key = folder / "nixos-anywhere"
        self.connection = options.connection
        # ssh takes the first value of an option: --ssh-option can't change these.
        self._ssh_options = [
            *("-o", "IdentitiesOnly=yes", "-i", str(self._key)),
            *("-o", "UserKnownHostsFile=/dev/null", "-o", "StrictHostKeyChecking=no"),
            *options.ssh,
        ]

    def local(
        self,
        argv: Sequence[str],
        *,
        stdin: IO[bytes] | bytes | None = None,
        stdout: IO[bytes] | int | None = None,
        env: Mapping[str, str] | None = None,
    ) -> tuple[int, bytes]:
        """Run a program here: its status as a shell counts it, and its output where that is a pipe."""
        if self._options.debug:
            warn("+ " + shlex.join(argv))
        feed: dict[str, Any] = {"input": stdin} if isinstance(stdin, bytes) else {"stdin": stdin}
        try:
            done: subprocess.CompletedProcess[bytes] = subprocess.run(
                argv, stdout=stdout, env={**os.environ, **(env or {})}, check=False, **feed
            )
        except FileNotFoundError:
            warn(f"nixos-anywhere: {argv[0]}: command not found")
            return 127, b""
        return _shell_status(done.returncode), done.stdout or b""

    def checked(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> str:
        """The output of a program here, without its last newline. Raises Exit with its status."""
        status, raw = self.local(argv, stdout=subprocess.PIPE, env=env)
        if status:
            raise Exit(status)
        return raw.decode("utf-8", "replace").rstrip("\n")

    def ssh(self, *remote: str) -> tuple[str, ...]:
        argv = ("ssh", self._tty, *self._ssh_options, self.connection, *remote)
        if self._options.debug:
            print(f"\033[1;34mSSH COMMAND:\033[0m {' '.join(argv)}\n", flush=True)
        return argv

    def run(self, *remote: str, stdin: bytes | IO[bytes] | None = None) -> None:
        """Raises Exit with ssh's status (255 where ssh itself failed)."""
        status, _ = self.local(self.ssh(*remote), stdin=stdin)
        if status:
            raise Exit(status)

    def output(self, *remote: str, stdin: bytes | None = None) -> tuple[int, str]:
        status, raw = self.local(self.ssh(*_ONCE, *remote), stdin=stdin, stdout=subprocess.PIPE)
        return status, raw.decode("utf-8", "replace").replace("\r\n", "\n")

    def pipe(self, producer: Sequence[str], remote: str) -> None:
        """`producer | ssh remote`; either one's failure counts. Raises Exit."""
        try:
            source = subprocess.Popen(producer, stdout=subprocess.PIPE)
        except FileNotFoundError:
            raise Exit(127, f"nixos-anywhere: {producer[0]}: command not found") from None
        with source:
            status, _ = self.local(self.ssh(remote), stdin=source.stdout)
        status = status or _shell_status(source.returncode)
        if status:
            raise Exit(status)

    def become_root(self) -> None:
        """From now on as root. ("a@b@c" has the host "c".)"""
        self.connection = f"root@{self.connection.rpartition('@')[2]}"

    def use_port_after_kexec(self) -> None:
        """Only where `-p` gave a port: without it --post-kexec-ssh-port has no effect."""
        if "-p" in self._ssh_options:
            self._ssh_options[self._ssh_options.index("-p") + 1] = self._options.post_kexec_port

    def login_user(self) -> str:
        """Who ssh would log in as, by its own configuration. Raises Exit."""
        settings = self.checked(("ssh", *self._ssh_options, "-G", self.connection))
        return next((line[5:] for line in settings.splitlines() if line.startswith("user ")), "")

    def wait_until_down(self) -> None:
        """Polled once a second: a machine that is back sooner is never seen down."""
        poll = ("timeout", "10", "ssh", *self._ssh_options, self.connection, "--", "exit", "0")
        while self.local(poll)[0] == 0:
            time.sleep(1)

    def wait_until_up(self) -> None:
        """Polled every 5 s, without a limit."""
        while self.local(self.ssh(*_ONCE, "--", "exit", "0"))[0] != 0:
            time.sleep(5)

    def upload_key(self) -> None:
        """Take `-i` or make a key, and install it with ssh-copy-id, every 3 s without a limit. Raises Exit."""
        (Path.home() / ".ssh").mkdir(parents=True, exist_ok=True)  # ssh-copy-id insists on it
        if self._options.identity:
            try:
                shutil.copy(self._options.identity, self._key)
            except OSError as error:
                raise Exit(1, f"nixos-anywhere: {self._options.identity}: {error.strerror}") from None
            public = self.checked(("ssh-keygen", "-y", "-f", str(self._key)))
            self._key.with_name("nixos-anywhere.pub").write_text(public + "\n")
        else:
            words = ("-t", "ed25519", "-f", str(self._key), "-P", "", "-C", "nixos-anywhere")
            self.checked(("ssh-keygen", *words))
        step("Uploading install SSH keys")
        # The user's own keys and agent may log in here: ssh takes the first value of an option.
        argv = ("ssh-copy-id", "-o", "IdentitiesOnly=no", *_ONCE, *self._ssh_options, self.connection)
        while self.local(argv)[0] != 0:
            time.sleep(3)

    def copy_closure(self, path: str, *settings: str) -> None:
        """`nix copy` to the machine. NIX_SSHOPTS is joined by blanks (and split at blanks by Nix). Raises Exit."""
        flags = ("--extra-experimental-features", "nix-command flakes", "--no-write-lock-file")
        logs = ("-L",) if self._options.debug else ()
        url = f"ssh://{self.connection}?" + "&".join((*settings, "compress=true"))
        status, _ = self.local(
            ("nix", "copy", *flags, *logs, "--substitute-on-destination", "--to", url, path),
            env={"NIX_SSHOPTS": " ".join(self._ssh_options)},
        )
        if status:
            raise Exit(status)


# -- what runs on the machine -------------------------------------------------------------------

_FACTS: Final = r"""
answer() { if "$@" >/dev/null 2>&1; then echo y; else echo n; fi; }
release() { [ -r /etc/os-release ] && grep -Eq "$1" /etc/os-release; }
installer() { release 'ID(_LIKE)?="?nixos' && release '^VARIANT_ID="?installer'; }
waiting_setsid() { command -v setsid && setsid --wait true; }
echo "isOs=$(uname -s)"
echo "isArch=$(uname -m)"
echo "isInstaller=$(answer installer)"
echo "isRoot=$(answer test "$(id -u)" = 0)"
echo "hasSetsid=$(answer waiting_setsid)"
for pair in Tar:tar Cpio:cpio Sudo:sudo Doas:doas Wget:wget Curl:curl; do
  echo "has${pair%%:*}=$(answer command -v "${pair#*:}")"
done
"""
_REQUIRED_FACTS: Final = (
    "isOs", "isArch", "isInstaller", "isRoot", "hasTar", "hasCpio", "hasSudo", "hasDoas", "hasWget",
    "hasCurl", "hasSetsid",
)  # fmt: skip
_REQUIRED_TOOLS: Final = {
    "hasTar": "no tar command found, but required to unpack kexec tarball",
    "hasCpio": "no cpio command found, but required to build the new initrd",
    "hasSetsid": "no setsid command respecting --wait found, but required to run the kexec script under a new session",
}
_REBOOT: Final = """
if command -v zpool >/dev/null && [ "$(zpool list)" != "no pools available" ]; then
  umount -R /mnt
  swapoff -a
  zpool export -a || :
fi
nohup sh -c 'sleep 6; reboot' >/dev/null 2>&1 &
"""
_COPY_HOST_KEYS: Final = """
mkdir -p -m 755 /mnt/etc/ssh
for key in /etc/ssh/ssh_host_*; do
  if [ -e "$key" ] && [ ! -e "/mnt$key" ]; then cp -a "$key" "/mnt$key"; fi
done"""


def _kexec_script(feed: str, source: str, sudo: str, options: Options) -> str:
    """Unpack what `feed` writes, and run it. A failed tar stops nothing: only the log decides.

    tar's flag comes from the suffix of the file's name or URL.
    """
    flags = {".tar.gz": "--gzip", ".tar.xz": "--xz", ".tar.zst": "--zstd"}
    unpack = next((flag for suffix, flag in flags.items() if source.endswith(suffix)), "")
    extra = shlex.quote(options.kexec_flags)
    return f"""
{"set -x" if options.debug else ":"}
cd "$HOME/kexec" || exit 1
{{
  {feed} | tar -xv {unpack}
  TMPDIR="$HOME/kexec" {sudo} setsid --wait "$HOME/kexec/kexec/run" --kexec-extra-flags {extra}
}} 2>&1 | tee "$HOME/kexec/nixos-anywhere.log"
grep -q '{_SUCCESS}' "$HOME/kexec/nixos-anywhere.log" && exit 0
echo 'Kexec may have failed - check output above'
exit 1
"""


def _install_script(options: Options) -> str:
    """Install the system in the store under /mnt. Host keys that are there already stay."""
    return f"""
set -eu{"x" if options.debug else ""}
PATH=$PATH:/run/current-system/sw/bin
export PATH
[ -d /mnt/tmp ] || mkdir -p -m 777 /mnt/tmp
{_COPY_HOST_KEYS if options.copy_host_keys else ":"}
nixos-install --no-root-passwd --no-channel-copy --system {shlex.quote(options.system)}
"""


# -- one run ------------------------------------------------------------------------------------


class Installation:
    """One run: its options, the machine, and the facts about it so far."""

    def __init__(self, options: Options, folder: Path) -> None:
        self._options = options
        self._machine = Machine(options, folder)
        self._facts: dict[str, str] = {}
        self._sudo = ""

    def run(self) -> None:
        """Raises Exit."""
        phases, machine = self._options.phases, self._machine
        login = machine.login_user()
        if "kexec" not in phases:
            machine.become_root()
        machine.upload_key()
        self._gather_facts()
        for fact, message in _REQUIRED_TOOLS.items():
            if self._facts[fact] == "n":
                abort(message)
        if self._facts["isOs"] != "Linux":
            abort(f"This script requires Linux as the operating system, but got {self._facts['isOs']}")
        if "kexec" in phases:
            self._kexec()
        if self._facts["isInstaller"] == "y" and login != "root":
            sudo = self._sudo
            machine.run(f"{sudo} mkdir -p /root/.ssh; {sudo} cp ~/.ssh/authorized_keys /root/.ssh || true")
            machine.become_root()
        for phase, act in (("disko", self._format), ("install", self._install), ("reboot", self._reboot)):
            if phase in phases:
                act()
        step("Done!")

    def _gather_facts(self) -> None:
        """Lines that are no facts (a banner, a warning) are passed over. Raises Exit."""
        step("Gathering machine facts")
        status, text = self._machine.output("sh", stdin=_FACTS.encode())
        if status:
            raise Exit(1)
        self._facts = dict(re.findall(r"^((?:is|has)[A-Za-z0-9_]+)=(\S+)\s*$", text, re.MULTILINE))
        for name in _REQUIRED_FACTS:
            if name not in self._facts:
                abort(f"Failed to retrieve fact {name} from host")
        if self._facts["isRoot"] == "y":
            self._sudo = ""
        elif "y" in (self._facts["hasSudo"], self._facts["hasDoas"]):
            self._sudo = "sudo" if self._facts["hasSudo"] == "y" else "doas"
        else:
            abort("Unable to find a command to use to escalate privileges: Could not find `sudo` or `doas`")

    def _kexec(self) -> None:
        """From the old system into the installer. A path that is no file is taken for a URL. Raises Exit."""
        facts, machine = self._facts, self._machine
        if facts["isInstaller"] == "y":
            return
        source = self._options.kexec
        if not source:
            abort("the stand-in has no image of its own: give it --kexec")
        step("Switching system into kexec")
        producer: tuple[str, ...] = ()
        feed = 'cat "$HOME/kexec/kexec-tarball.tar.gz"'
        if Path(source).is_file():
            producer = ("cat", source)
        elif facts["hasWget"] == "y":
            feed = shlex.join(("wget", source, "-O-"))
        else:
            feed = shlex.join(("curl", "--fail", "-Ss", "-L", source))
        script = _kexec_script(feed, source, self._sudo, self._options)
        path = '"$HOME/kexec/nixos-anywhere-kexec.sh"'
        machine.run(f'mkdir -p "$HOME/kexec" && cat > {path}', stdin=script.encode())
        if producer:
            machine.pipe(producer, 'cat > "$HOME/kexec/kexec-tarball.tar.gz"')
        try:
            machine.run(f"bash {path}")
        except Exit:
            status, text = machine.output('cat "$HOME/kexec/nixos-anywhere.log" 2>/dev/null')
            if status == 0:
                warn(f"Remote output log:\n{text}")
            raise Exit(1, "Kexec failed") from None
        machine.use_port_after_kexec()
        machine.wait_until_down()
        machine.become_root()
        machine.wait_until_up()
        self._gather_facts()
        if self._facts["isInstaller"] == "n":
            abort("Failed to kexec into NixOS installer")

    def _format(self) -> None:
        for path, local in self._options.disk_keys:
            step(f"Uploading {local} to {path}")
            folder = shlex.quote(os.path.dirname(path) or ".")  # noqa: PTH120 - a path over there
            try:
                with Path(local).open("rb") as key:
                    remote = f"umask 077; mkdir -p {folder}; cat > {shlex.quote(path)}"
                    self._machine.run(remote, stdin=key)
            except OSError as error:
                raise Exit(1, f"nixos-anywhere: {local}: {error.strerror}") from None
        self._machine.copy_closure(self._options.disko)
        step("Formatting hard drive with disko")
        self._machine.run(self._options.disko)

    def _install(self) -> None:
        step("Uploading the system closure")
        self._machine.copy_closure(self._options.system, "remote-store=local%3Froot=%2Fmnt")
        if self._options.extra_files:
            step("Copying extra files")
            producer = ("tar", "-C", self._options.extra_files, "-cpf-", ".")
            self._machine.pipe(producer, "tar -C /mnt -xf- --no-same-owner")
            self._machine.run("chmod 755 /mnt")
        if self._options.owners:
            lines = [shlex.join(("chown", "-R", who, f"/mnt/{path}")) for path, who in self._options.owners]
            self._machine.run("sh", stdin="\n".join(("set -e", *lines)).encode())
        step("Installing NixOS")
        self._machine.run("sh", stdin=_install_script(self._options).encode())

    def _reboot(self) -> None:
        """Ends when the machine went down, not when it is back."""
        step("Rebooting")
        self._machine.run("sh", stdin=_REBOOT.encode())
        step("Waiting for the machine to become unreachable due to reboot")
        self._machine.wait_until_down()


def _leave(signum: int, frame: FrameType | None) -> None:
    """Leave by an exception, so that the folder with the private key goes too."""
    raise SystemExit(128 + signum)


def main(argv: Sequence[str]) -> int:
    """Run it; the exit status is 0, 1, or that of the command that failed (255 from ssh)."""
    warn(NOTICE)
    for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(signum, _leave)
    try:
        options = parse(argv)
        with tempfile.TemporaryDirectory(prefix="nixos-anywhere-") as folder:
            Installation(options, Path(folder)).run()
    except Exit as end:
        if end.usage:
            print(USAGE, end="", flush=True)
        if end.message:
            warn(end.message)
        return end.status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
