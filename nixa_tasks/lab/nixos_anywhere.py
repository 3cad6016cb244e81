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
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from nixa_tasks.lab import nixos_anywhere_scripts as scripts
from nixa_tasks.lab.nixos_anywhere_args import USAGE, Ended, Options, abort, parse
from nixa_tasks.lab.nixos_anywhere_remote import FEATURES, Programs, Remote, complain, step

NOTICE = "This is the practice lab's stand-in for nixos-anywhere, not the real one."
_IMAGES = "github.com/nix-community/nixos-images/releases/download/nixos-25.11"
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
        self.build_on = options.build_on
        self.disko = options.disko
        self.system = options.system
        logs = ("-L",) if options.build_logs else ()
        self._nix_options = (*FEATURES, "--no-write-lock-file", *options.nix, *logs)

    def run(self) -> None:
        """All of it. Raises Ended."""
        options, remote = self.options, self.remote
        if options.vm_test:
            self._test_in_vm()
            return
        if self.build_on == "auto":
            self._choose_builder(None)
        if options.flake:
            if self.build_on == "local" and options.hardware is None:
                self._build_here()
        elif not (self.disko and self.system):
            abort("--flake or --store-paths must be set")
        elif not (Path(self.disko).exists() and Path(self.system).exists()):
            abort(f"{self.disko} and {self.system} must be existing store-paths")
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
            (
                "hasSetsid",
                "no setsid command respecting --wait found, "
                "but required to run the kexec script under a new session",
            ),
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
        if self.build_on == "auto":
            self._choose_builder(
                self.remote.plain(
                    "nix", "--extra-experimental-features", "nix-command", "config", "show", "system"
                )
            )
            if self.build_on == "auto":
                self.build_on = "remote"
        if self.build_on != "remote" and self.options.flake and not self.disko:
            self._build_here()
        if self.facts["isInstaller"] == "y" and login != "root":
            keys = (
                f"{self.sudo} mkdir -p /root/.ssh; {self.sudo} cp ~/.ssh/authorized_keys /root/.ssh || true"
            )
            self.remote.run(keys)
            self.remote.become_root()
        if self.options.machine_substituters and self.options.flake:
            self._take_substituters()

    def _take_substituters(self) -> None:
        where = f"{self.options.flake}#{self.options.attribute}.nix.settings"
        words = ("nix", "eval", *self._nix_options, "--apply", "toString")
        names = self.programs.output((*words, f"{where}.substituters"))
        keys = self.programs.output((*words, f"{where}.trusted-public-keys"))
        script = scripts.substituters_script(names, keys)
        self.programs.status(self.remote.argv("sh"), stdin=script.encode())

    def _describe_hardware(self, backend: str, path: str) -> None:
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        sudo = (self.sudo,) if self.sudo else ()
        if backend == "nixos-generate-config":
            step("Generating hardware-configuration.nix using nixos-generate-config")
            self.remote.plain("nixos-generate-config", "--show-hardware-config", "--no-filesystems", to=file)
        elif self.facts.get("hasNixOSFacter") == "n":
            step("Generating facter.json using nixos-facter from nixpkgs")
            shell = scripts.quoted(("nix", "shell", *self._nix_options))
            self.remote.plain(shell, "nixpkgs#nixos-facter", "-c", *sudo, "nixos-facter", to=file)
        else:
            step("Generating facter.json using nixos-facter")
            self.remote.plain(*sudo, "nixos-facter", to=file)
        inside = ("git", "-C", str(file.parent), "rev-parse", "--is-inside-work-tree")
        if self.programs.status(inside, stdout=subprocess.DEVNULL)[0] == 0:
            add = ("add", "--intent-to-add", "--force", "--", str(file.resolve()))
            self.programs.run(("git", "-C", str(file.parent), *add))

    def _choose_builder(self, machine: str | None) -> None:
        """`--build-on auto`: here if this Nix can build for the machine. Raises Ended."""
        system = self.programs.output(("nix", *FEATURES, "config", "show", "system"))
        if machine is None and self.system:
            try:
                machine = (Path(self.system) / "system").read_text().strip()
            except OSError as error:
                raise Ended(1, f"nixos-anywhere: {error.filename}: {error.strerror}") from None
        elif machine is None:
            where = f"{self.options.flake}#{self.options.attribute}.pkgs.system"
            status, raw = self.programs.status(
                ("nix", *FEATURES, "eval", "--raw", where), stdout=subprocess.PIPE
            )
            if status:
                return
            machine = raw.decode()
        if system == machine:
            self.build_on = "local"
            return
        probe = (
            f'derivation {{ system = "{machine}"; name = "env-{time.time_ns()}"; '
            'builder = "/bin/sh"; args = [ "-c" "echo > $out" ]; }'
        )
        argv = ("nix", "build", "-L", *self._nix_options, "--expr", probe)
        self.build_on = "remote" if self.programs.status(argv)[0] else "local"

    def _build(self, attribute: str, *more: str) -> str:
        where = f"{self.options.flake}#{self.options.attribute}.system.build.{attribute}"
        words = ("--print-out-paths", "--no-link", *self.options.build_flags, *self._nix_options)
        return self.programs.output(("nix", "build", *words, where, *more), env=self.remote.nix_environment())

    def _build_here(self) -> None:
        if "disko" in self.options.phases:
            self.disko = self._build(self.options.disko_attribute)
        if "install" in self.options.phases:
            self.system = self._build("toplevel")

    def _copy(self, url: str, path: str) -> None:
        substitute = ("--substitute-on-destination",) if self.options.substitute else ()
        words = (*self._nix_options, *self.options.source, *substitute, "--to", url, path)
        self.programs.run(("nix", "copy", *words), env=self.remote.nix_environment())

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
        if self.disko:
            self._copy(self.remote.store("ssh"), self.disko)
        elif self.build_on == "remote":
            step("Building disko script")
            store = self.remote.store("ssh-ng", self.remote.ssh_key_setting())
            self.disko = self._build(self.options.disko_attribute, "--eval-store", "auto", "--store", store)
        step("Formatting hard drive with disko")
        self.remote.run(self.disko)

    def _install(self) -> None:
        root = "remote-store=local%3Froot=%2Fmnt"
        if self.system:
            step("Uploading the system closure")
            self._copy(self.remote.store("ssh", root), self.system)
        elif self.build_on == "remote":
            step("Building the system closure")
            store = self.remote.store("ssh-ng", self.remote.ssh_key_setting(), root)
            self.system = self._build("toplevel", "--eval-store", "auto", "--store", store)
        if self.options.extra_files:
            step("Copying extra files")
            producer = ("tar", "-C", self.options.extra_files, "-cpf-", ".")
            self.remote.feed(producer, "tar -C /mnt -xf- --no-same-owner")
            self.remote.run("chmod 755 /mnt")
        if self.options.owners:
            self.remote.run("sh", stdin=scripts.own_script(self.options.owners).encode())
        step("Installing NixOS")
        script = scripts.install_script(
            self.system, copy_host_keys=self.options.copy_host_keys, trace=self.options.debug
        )
        self.remote.run("sh", stdin=script.encode())

    def _reboot(self) -> None:
        """Its end means that the machine went down, not that it came back."""
        step("Rebooting")
        self.remote.run("sh", stdin=scripts.REBOOT.encode())
        step("Waiting for the machine to become unreachable due to reboot")
        self.remote.wait_until_down()

    def _test_in_vm(self) -> None:
        options = self.options
        if options.hardware is not None:
            abort("--vm-test is not supported with --generate-hardware-config. Generate it first.")
        for refused, flag in (
            (not options.attribute, "--store-paths"),
            (self.build_on == "remote", "--build-on-remote"),
            (bool(options.extra_files), "--extra-files"),
            (bool(options.disk_keys), "--disk-encryption-keys"),
        ):
            if refused:
                raise Ended(1, f"--vm-test is not supported with {flag}")
        where = f"{options.flake}#{options.attribute}.system.build.installTest"
        words = ("--print-out-paths", "--no-link", "-L", *options.build_flags, *self._nix_options)
        self.programs.run(("nix", "build", *words, where))


def _leave(signum: int, frame: FrameType | None) -> None:
    """Leave by an exception, so that the folder with the private key goes too."""
    raise Ended(128 + signum)


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
