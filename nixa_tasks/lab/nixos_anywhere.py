"""A stand-in for nixos-anywhere, for the practice lab: `python -m nixa_tasks.lab.nixos_anywhere`.

It has the real one's contract (arguments, phases, steps announced as `### … ###`, the order of its
ssh options, its exit statuses, and that it has no deadlines), and does the real work over ssh. Only
the lab uses it. docs/nixos-anywhere.md says what it leaves out, and how to hold it against the real
one (main of July 2026, after 1.13.0).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from nixa_tasks.lab import nixos_anywhere_scripts as scripts
from nixa_tasks.lab.nixos_anywhere_args import USAGE, Ended, Options, abort, parse
from nixa_tasks.lab.nixos_anywhere_nix import Closures
from nixa_tasks.lab.nixos_anywhere_remote import Programs, Remote, complain, step

NOTICE = "This is the practice lab's stand-in for nixos-anywhere, not the real one."
_IMAGES = "github.com/nix-community/nixos-images/releases/download/nixos-25.11"
_NO_SETSID = (
    "no setsid command respecting --wait found, but required to run the kexec script under a new session"
)
_KEXEC = '"$HOME/kexec/nixos-anywhere-kexec.sh"'


class Installation:
    """One run: what was asked for, the machine, and what is known of it so far."""

    def __init__(self, options: Options, folder: Path) -> None:
        self.options = options
        self.folder = folder
        self.programs = Programs(trace=options.debug)
        self.remote = Remote(options, self.programs, folder)
        self.facts: dict[str, str] = {}
        self.sudo = ""
        self.closures = Closures(options, self.programs, self.remote)

    def run(self) -> None:
        """All of it. Raises Ended."""
        options, remote = self.options, self.remote
        if options.vm_test:
            self.closures.test_in_vm()
            return
        self.closures.settle()
        identity = self._identity()
        login = remote.login_user()
        if "kexec" not in options.phases:
            remote.become_root()
        remote.upload_key(identity)
        self._learn()
        self._require_tools()
        if "kexec" in options.phases:
            self._kexec()
        self._prepare_installer(login)
        for phase, work in (("disko", self._format), ("install", self._install), ("reboot", self._reboot)):
            if phase in options.phases:
                work()
        step("Done!")

    def _identity(self) -> Path | None:
        """`-i`, else the key in SSH_PRIVATE_KEY, else None: one is made."""
        if self.options.identity:
            return Path(self.options.identity)
        key = os.environ.get("SSH_PRIVATE_KEY", "")
        if not key:
            return None
        path = self.folder / "from-env"
        path.touch(mode=0o600)
        path.write_text(key + "\n")
        return path

    def _learn(self) -> None:
        step("Gathering machine facts")
        status, text = self.remote.output("sh", stdin=scripts.FACTS.encode())
        if status:
            raise Ended(1)
        self.facts = scripts.read_facts(text)
        for name in scripts.REQUIRED_FACTS:
            if name not in self.facts:
                abort(f"Failed to retrieve fact {name} from host")
        sudo = scripts.privilege(self.facts)
        if sudo is None:
            abort("Unable to find a command to use to escalate privileges: Could not find `sudo` or `doas`")
        self.sudo = sudo

    def _require_tools(self) -> None:
        for fact, what in (
            ("hasTar", "no tar command found, but required to unpack kexec tarball"),
            ("hasCpio", "no cpio command found, but required to build the new initrd"),
            ("hasSetsid", _NO_SETSID),
        ):
            if self.facts[fact] == "n":
                abort(what)
        if self.facts["isOs"] != "Linux":
            abort(f"This script requires Linux as the operating system, but got {self.facts['isOs']}")

    def _image(self) -> str:
        """The image's path or URL: a path that is no file is taken for a URL. Raises Ended."""
        url, machine = self.options.kexec, self.facts["isArch"]
        if not url:
            if machine not in ("x86_64", "aarch64"):
                abort(f"Unsupported architecture: {machine}. Give an image of your own with --kexec.")
            url = f"https://{_IMAGES}/nixos-kexec-installer-noninteractive-{machine}-linux.tar.gz"
        if self.facts["hasIpv6Only"] == "y" and url.startswith("https://github.com/"):
            return url.replace("github.com", "gh-v6.com", 1)
        return url

    def _kexec(self) -> None:
        """From the old system into the installer. Nothing is verified on the way. Raises Ended."""
        if self.facts["isInstaller"] == "y" and not self.options.force_kexec:
            return
        if self.facts["isContainer"] != "none":
            complain(
                f"WARNING: running in a '{self.facts['isContainer']}' container, where kexec hardly works"
            )
        source = self._image()
        step("Switching system into kexec")
        producer: tuple[str, ...] = ()
        feed = 'cat "$HOME/kexec/kexec-tarball.tar.gz"'
        curl = ("curl", "--fail", "-Ss", "-L", source)
        if Path(source).is_file():
            producer = ("cat", source)
        elif self.facts["hasWget"] == "y":
            feed = scripts.quoted(("wget", source, "-O-"))
        elif self.facts["hasCurl"] == "y":
            feed = scripts.quoted(curl)
        else:
            producer = curl
        script = scripts.kexec_script(
            feed, source, self.sudo, self.options.kexec_flags, trace=self.options.debug
        )
        self.remote.run(f'mkdir -p "$HOME/kexec" && cat > {_KEXEC}', stdin=script.encode())
        if producer:
            self.remote.feed(producer, 'cat > "$HOME/kexec/kexec-tarball.tar.gz"')
        try:
            self.remote.run(f"bash {_KEXEC}")
        except Ended:
            self._kexec_failed()
        self.remote.use_port_after_kexec()
        self.remote.wait_until_down()
        self.remote.become_root()
        self.remote.wait_until_up()
        self._learn()
        if self.facts["isInstaller"] == "n":
            abort("Failed to kexec into NixOS installer")

    def _kexec_failed(self) -> None:
        """Show the machine's own log where it can be had. Raises Ended, always."""
        status, text = self.remote.output('cat "$HOME/kexec/nixos-anywhere.log" 2>/dev/null')
        if status == 0:
            complain(f"Remote output log:\n{text}")
        raise Ended(1, "Kexec failed")

    def _prepare_installer(self, login: str) -> None:
        """Between the kexec and the disk: hardware, builds, the way in as root. Raises Ended."""
        if self.options.hardware is not None:
            self._describe_hardware(*self.options.hardware)
        self.closures.settle_with_machine()
        if self.facts["isInstaller"] == "y" and login != "root":
            keys = (
                f"{self.sudo} mkdir -p /root/.ssh; {self.sudo} cp ~/.ssh/authorized_keys /root/.ssh || true"
            )
            self.remote.run(keys)
            self.remote.become_root()
        self.closures.share_substituters()

    def _describe_hardware(self, backend: str, path: str) -> None:
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        sudo = (self.sudo,) if self.sudo else ()
        if backend == "nixos-generate-config":
            step("Generating hardware-configuration.nix using nixos-generate-config")
            self.remote.plain("nixos-generate-config", "--show-hardware-config", "--no-filesystems", to=file)
        elif self.facts.get("hasNixOSFacter") == "n":
            step("Generating facter.json using nixos-facter from nixpkgs")
            shell = scripts.quoted(("nix", "shell", *self.closures.nix_options))
            self.remote.plain(shell, "nixpkgs#nixos-facter", "-c", *sudo, "nixos-facter", to=file)
        else:
            step("Generating facter.json using nixos-facter")
            self.remote.plain(*sudo, "nixos-facter", to=file)
        inside = ("git", "-C", str(file.parent), "rev-parse", "--is-inside-work-tree")
        if self.programs.status(inside, stdout=subprocess.DEVNULL)[0] == 0:
            add = ("add", "--intent-to-add", "--force", "--", str(file.resolve()))
            self.programs.run(("git", "-C", str(file.parent), *add))

    def _format(self) -> None:
        for path, local in self.options.disk_keys:
            step(f"Uploading {local} to {path}")
            folder = scripts.quoted((os.path.dirname(path) or ".",))  # noqa: PTH120 - a path over there
            try:
                with Path(local).open("rb") as key:
                    self.remote.run(
                        f"umask 077; mkdir -p {folder}; cat > {scripts.quoted((path,))}", stdin=key
                    )
            except OSError as error:
                raise Ended(1, f"nixos-anywhere: {local}: {error.strerror}") from None
        disko = self.closures.send_disko()
        step("Formatting hard drive with disko")
        self.remote.run(disko)

    def _install(self) -> None:
        system = self.closures.send_system()
        if self.options.extra_files:
            step("Copying extra files")
            producer = ("tar", "-C", self.options.extra_files, "-cpf-", ".")
            self.remote.feed(producer, "tar -C /mnt -xf- --no-same-owner")
            self.remote.run("chmod 755 /mnt")
        if self.options.owners:
            self.remote.run("sh", stdin=scripts.own_script(self.options.owners).encode())
        step("Installing NixOS")
        script = scripts.install_script(
            system, copy_host_keys=self.options.copy_host_keys, trace=self.options.debug
        )
        self.remote.run("sh", stdin=script.encode())

    def _reboot(self) -> None:
        """Its end means that the machine went down, not that it came back."""
        step("Rebooting")
        self.remote.run("sh", stdin=scripts.REBOOT.encode())
        step("Waiting for the machine to become unreachable due to reboot")
        self.remote.wait_until_down()


def _leave(signum: int, frame: FrameType | None) -> None:
    """Leave by an exception, so that the folder with the private key goes too."""
    raise SystemExit(128 + signum)


def main(argv: Sequence[str]) -> int:
    """Run it; the exit status is 0, 1, or that of the command that failed (255 from ssh)."""
    complain(NOTICE)
    for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(signum, _leave)
    try:
        options = parse(argv)
        with tempfile.TemporaryDirectory(prefix="nixos-anywhere-") as folder:
            Installation(options, Path(folder)).run()
    except Ended as end:
        if end.usage:
            print(USAGE, end="", flush=True)
        if end.message:
            complain(end.message)
        return end.status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
