"""Nix, as the stand-in for nixos-anywhere uses it: building here or there, and copying."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from nixa_tasks.lab import nixos_anywhere_scripts as scripts
from nixa_tasks.lab.nixos_anywhere_args import Ended, Options, abort
from nixa_tasks.lab.nixos_anywhere_remote import FEATURES, Programs, Remote, step

_ROOT = "remote-store=local%3Froot=%2Fmnt"


class Closures:
    """The two closures of a run, the disk script's and the system's, wherever they come from."""

    def __init__(self, options: Options, programs: Programs, remote: Remote) -> None:
        self.disko = options.disko
        self.system = options.system
        self.build_on = options.build_on
        self._options = options
        self._programs = programs
        self._remote = remote
        logs = ("-L",) if options.build_logs else ()
        self.nix_options = (*FEATURES, "--no-write-lock-file", *options.nix, *logs)

    def settle(self) -> None:
        """Before the machine is touched: where to build, and what can be built. Raises Ended."""
        if self.build_on == "auto":
            self._choose_builder(None)
        if self._options.flake:
            if self.build_on == "local" and self._options.hardware is None:
                self._build_here()
        elif not (self.disko and self.system):
            abort("--flake or --store-paths must be set")
        elif not (Path(self.disko).exists() and Path(self.system).exists()):
            abort(f"{self.disko} and {self.system} must be existing store-paths")

    def settle_with_machine(self) -> None:
        """The same, once the machine can be asked. Raises Ended."""
        if self.build_on == "auto":
            words = ("nix", "--extra-experimental-features", "nix-command", "config", "show", "system")
            self._choose_builder(self._remote.plain(*words))
        if self.build_on != "remote" and self._options.flake and not self.disko:
            self._build_here()

    def _choose_builder(self, machine: str | None) -> None:
        """`--build-on auto`: here, if this Nix can build for the machine. Raises Ended."""
        system = self._programs.output(("nix", *FEATURES, "config", "show", "system"))
        if machine is None and self.system:
            try:
                machine = (Path(self.system) / "system").read_text().strip()
            except OSError as error:
                raise Ended(1, f"nixos-anywhere: {error.filename}: {error.strerror}") from None
        elif machine is None:
            where = f"{self._options.flake}#{self._options.attribute}.pkgs.system"
            argv = ("nix", *FEATURES, "eval", "--raw", where)
            status, raw = self._programs.status(argv, stdout=subprocess.PIPE)
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
        argv = ("nix", "build", "-L", *self.nix_options, "--expr", probe)
        self.build_on = "remote" if self._programs.status(argv)[0] else "local"

    def _attribute(self, name: str) -> str:
        return f"{self._options.flake}#{self._options.attribute}.{name}"

    def _build(self, name: str, *more: str) -> str:
        words = ("--print-out-paths", "--no-link", *self._options.build_flags, *self.nix_options)
        argv = ("nix", "build", *words, self._attribute(f"system.build.{name}"), *more)
        return self._programs.output(argv, env=self._remote.nix_environment())

    def _build_here(self) -> None:
        if "disko" in self._options.phases:
            self.disko = self._build(self._options.disko_attribute)
        if "install" in self._options.phases:
            self.system = self._build("toplevel")

    def _build_there(self, name: str, *settings: str) -> str:
        store = self._remote.store("ssh-ng", self._remote.ssh_key_setting(), *settings)
        return self._build(name, "--eval-store", "auto", "--store", store)

    def _copy(self, url: str, path: str) -> None:
        substitute = ("--substitute-on-destination",) if self._options.substitute else ()
        words = (*self.nix_options, *self._options.source, *substitute, "--to", url, path)
        self._programs.run(("nix", "copy", *words), env=self._remote.nix_environment())

    def send_disko(self) -> str:
        """Bring the disk's script into the installer's store; its path. Raises Ended."""
        if self.disko:
            self._copy(self._remote.store("ssh"), self.disko)
        elif self.build_on == "remote":
            step("Building disko script")
            self.disko = self._build_there(self._options.disko_attribute)
        return self.disko

    def send_system(self) -> str:
        """Bring the system into the store under /mnt; its path. Raises Ended."""
        if self.system:
            step("Uploading the system closure")
            self._copy(self._remote.store("ssh", _ROOT), self.system)
        elif self.build_on == "remote":
            step("Building the system closure")
            self.system = self._build_there("toplevel", _ROOT)
        return self.system

    def share_substituters(self) -> None:
        """Let the installer fetch from where the system to come fetches. Raises Ended."""
        if not (self._options.machine_substituters and self._options.flake):
            return
        words = ("nix", "eval", *self.nix_options, "--apply", "toString")
        names = self._programs.output((*words, self._attribute("nix.settings.substituters")))
        keys = self._programs.output((*words, self._attribute("nix.settings.trusted-public-keys")))
        script = scripts.substituters_script(names, keys)
        self._programs.status(self._remote.argv("sh"), stdin=script.encode())

    def test_in_vm(self) -> None:
        """`--vm-test`: no machine at all. Raises Ended."""
        options = self._options
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
        words = ("--print-out-paths", "--no-link", "-L", *options.build_flags, *self.nix_options)
        self._programs.run(("nix", "build", *words, self._attribute("system.build.installTest")))
