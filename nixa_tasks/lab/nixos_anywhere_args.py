"""The command line of nixos-anywhere, read as the real one reads it (July 2026, after 1.13.0).

Its oddities are kept, since a caller that passes here must pass there: an option that is not known
is taken for the ssh host, `--force-kexec` swallows the word after it, `-p` and `--ssh-option` reach
ssh in the order given.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

PHASES = ("kexec", "disko", "install", "reboot")

USAGE = """\
Usage: nixos-anywhere [options] [<ssh-host>]

This is the practice lab's stand-in. It takes the options of the real nixos-anywhere:

  where      --target-host HOST, -i FILE, -p|--ssh-port PORT, --ssh-option OPTION,
             --post-kexec-ssh-port PORT, --env-password
  what       -s|--store-paths DISKO SYSTEM, -f|--flake FLAKE#NAME, --disko-mode disko|mount|format,
             --no-disko-deps, --build-on auto|remote|local, --build-on-remote, --from STORE,
             --generate-hardware-config nixos-facter|nixos-generate-config PATH, --vm-test
  kexec      --kexec PATH|URL, --kexec-extra-flags FLAGS, --force-kexec
  phases     --phases kexec,disko,install,reboot
  files      --copy-host-keys, --extra-files DIR, --chown PATH OWNER,
             --disk-encryption-keys REMOTE LOCAL
  Nix        --option KEY VALUE, --ssh-store-setting KEY VALUE, -L|--print-build-logs, --show-trace,
             --no-substitute-on-destination, --no-use-machine-substituters
  and        --debug, --help
"""


class Ended(Exception):
    """The program ends here: with this status, having said `message` on stderr, or its usage."""

    def __init__(self, status: int, message: str = "", *, usage: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.usage = usage


def abort(message: str) -> NoReturn:
    """End as the real one does where it says why. Raises Ended."""
    raise Ended(1, f"aborted: {message}")


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asked for. `ssh` are ssh's own words; paths are as given."""

    connection: str = ""
    ssh: tuple[str, ...] = ()
    identity: str = ""
    post_kexec_port: str = "22"
    env_password: bool = False
    flake: str = ""
    attribute: str = ""
    disko: str = ""
    system: str = ""
    disko_mode: str = ""
    disko_deps: bool = True
    build_on: str = "auto"
    build_on_remote: bool = False
    build_flags: tuple[str, ...] = ()
    vm_test: bool = False
    hardware: tuple[str, str] | None = None
    kexec: str = ""
    kexec_flags: str = ""
    force_kexec: bool = False
    phases: frozenset[str] = frozenset(PHASES)
    copy_host_keys: bool = False
    extra_files: str = ""
    owners: tuple[tuple[str, str], ...] = ()
    disk_keys: tuple[tuple[str, str], ...] = ()
    substitute: bool = True
    machine_substituters: bool = True
    source: tuple[str, ...] = ()
    nix: tuple[str, ...] = ()
    store_settings: str = "compress=true"
    build_logs: bool = False
    debug: bool = False

    @property
    def disko_attribute(self) -> str:
        """Which script of `system.build` formats the disk."""
        return f"{self.disko_mode or 'disko'}Script{'' if self.disko_deps else 'NoDeps'}"


def _phases(options: Options, text: str) -> Options:
    names = (text.splitlines() or [""])[0].split(",")
    if names[-1] == "":
        names.pop()
    for name in names:
        if name not in PHASES:
            abort(f"Unknown phase: {name}")
    return replace(options, phases=frozenset(names))


def _resolved(path: str) -> str:
    """As `readlink -f`: every part but the last must exist. Raises Ended, without a word as there."""
    try:
        given = Path(os.path.realpath(path))
        given.parent.resolve(strict=True)
    except OSError:
        raise Ended(1) from None
    if path == "":
        raise Ended(1)
    return str(given)


def _store_paths(options: Options, disko: str, system: str) -> Options:
    return replace(options, disko=_resolved(disko), system=_resolved(system))


def _hardware(options: Options, backend: str, path: str) -> Options:
    if backend not in ("nixos-facter", "nixos-generate-config"):
        abort(f"Unknown hardware config backend: {backend}")
    return replace(options, hardware=(backend, path))


def _one_of(flag: str, allowed: Sequence[str], value: str) -> str:
    if value not in allowed:
        abort(
            f"Supported values for {flag} are {allowed[0]}, {allowed[1]} and {allowed[2]}. Unknown mode : {value}"
        )
    return value


def _deprecated(flag: str, instead: str) -> None:
    print(f"WARNING: {flag} is deprecated, use {instead} instead", flush=True)


def _stop_after_disko(options: Options) -> Options:
    _deprecated("--stop-after-disko", "--phases kexec,disko")
    return replace(options, phases=frozenset(("kexec", "disko")))


def _no_reboot(options: Options) -> Options:
    _deprecated("--no-reboot", "--phases kexec,disko,install")
    return replace(options, phases=frozenset(("kexec", "disko", "install")))


def _build_on_remote(options: Options) -> Options:
    _deprecated("--build-on-remote", "--build-on remote")
    return replace(options, build_on="remote", build_on_remote=True)


def _put(pairs: tuple[tuple[str, str], ...], key: str, value: str) -> tuple[tuple[str, str], ...]:
    return tuple({**dict(pairs), key: value}.items())


# What an option does, by its name; beside it, how many words it takes.
_TABLE: dict[str, tuple[int, Callable[..., Options]]] = {
    "--flake": (1, lambda o, v: replace(o, flake=v)),
    "--target-host": (1, lambda o, v: replace(o, connection=v)),
    "-i": (1, lambda o, v: replace(o, identity=v)),
    "--ssh-port": (1, lambda o, v: replace(o, ssh=(*o.ssh, "-p", v))),
    "--ssh-option": (1, lambda o, v: replace(o, ssh=(*o.ssh, "-o", v))),
    "--print-build-logs": (0, lambda o: replace(o, build_logs=True)),
    "--store-paths": (2, _store_paths),
    "--generate-hardware-config": (2, _hardware),
    "--kexec": (1, lambda o, v: replace(o, kexec=v)),
    "--force-kexec": (0, lambda o: replace(o, force_kexec=True)),
    "--kexec-extra-flags": (1, lambda o, v: replace(o, kexec_flags=v)),
    "--ssh-store-setting": (2, lambda o, k, v: replace(o, store_settings=f"{o.store_settings}&{k}={v}")),
    "--post-kexec-ssh-port": (1, lambda o, v: replace(o, post_kexec_port=v)),
    "--copy-host-keys": (0, lambda o: replace(o, copy_host_keys=True)),
    "--show-trace": (0, lambda o: replace(o, build_flags=(*o.build_flags, "--show-trace"))),
    "--debug": (0, lambda o: replace(o, debug=True, build_logs=True)),
    "--disko-mode": (
        1,
        lambda o, v: replace(o, disko_mode=_one_of("--disko-mode", ("disko", "mount", "format"), v)),
    ),
    "--no-disko-deps": (0, lambda o: replace(o, disko_deps=False)),
    "--build-on": (
        1,
        lambda o, v: replace(o, build_on=_one_of("--build-on", ("auto", "local", "remote"), v)),
    ),
    "--extra-files": (1, lambda o, v: replace(o, extra_files=v)),
    "--chown": (2, lambda o, k, v: replace(o, owners=_put(o.owners, k, v))),
    "--disk-encryption-keys": (2, lambda o, k, v: replace(o, disk_keys=_put(o.disk_keys, k, v))),
    "--phases": (1, _phases),
    "--stop-after-disko": (0, _stop_after_disko),
    "--no-reboot": (0, _no_reboot),
    "--from": (1, lambda o, v: replace(o, source=(*o.source, "--from", v))),
    "--option": (2, lambda o, k, v: replace(o, nix=(*o.nix, "--option", k, v))),
    "--no-substitute-on-destination": (
        0,
        lambda o: replace(o, substitute=False, machine_substituters=False),
    ),
    "--no-use-machine-substituters": (0, lambda o: replace(o, machine_substituters=False)),
    "--build-on-remote": (0, _build_on_remote),
    "--env-password": (0, lambda o: replace(o, env_password=True)),
    "--vm-test": (0, lambda o: replace(o, vm_test=True)),
}
_SHORT = {"-f": "--flake", "-p": "--ssh-port", "-L": "--print-build-logs", "-s": "--store-paths"}


def parse(argv: Sequence[str]) -> Options:
    """The options of a command line. Raises Ended: unknown or missing words (1), `--help` (0)."""
    options = Options()
    words = list(argv)
    while words:
        word = words.pop(0)
        name = _SHORT.get(word, word)
        if name == "--help":
            raise Ended(0, usage=True)
        if name in ("-t", "--tty"):
            print(f"the '{word}' flag is deprecated, a tty is now detected automatically", file=sys.stderr)
        elif name in _TABLE:
            count, change = _TABLE[name]
            options = change(options, *_take(words, name, count))
            if name == "--force-kexec":
                _swallow(words)
        elif options.connection == "":
            options = replace(options, connection=word)
        else:
            raise Ended(1, usage=True)
    return _checked(options)


def _take(words: list[str], name: str, count: int) -> list[str]:
    """The words of an option, or the shell's own complaint. Raises Ended."""
    if len(words) < count:
        if name == "--generate-hardware-config":
            abort("Missing arguments for --generate-hardware-config <backend> <path>")
        raise Ended(1, f"nixos-anywhere: ${len(words) + 2}: unbound variable")
    taken = words[:count]
    del words[:count]
    return taken


def _swallow(words: list[str]) -> None:
    """The word after `--force-kexec` is lost, and where there is none it ends without a word."""
    if not words:
        raise Ended(1)
    words.pop(0)


def _checked(options: Options) -> Options:
    """What only the whole line shows. Raises Ended."""
    if options.disko_mode and options.disko:
        abort("--disko-mode cannot be used if --store-paths is used")
    if not options.vm_test and not options.connection:
        abort("ssh-host must be set")
    if options.build_on == "local" and options.build_on_remote:
        abort("Conflicting flags: --build-on local and --build-on-remote used.")
    if not options.flake:
        return options
    found = re.fullmatch(r"(.*)#([^#\"]*)", options.flake, re.DOTALL)
    flake, attribute = (found[1], found[2]) if found else (options.flake, "")
    if not attribute:
        raise Ended(
            1,
            "Please specify the name of the NixOS configuration to be installed, "
            "as a URI fragment in the flake-uri.",
        )
    if not attribute.startswith("nixosConfigurations."):
        attribute = f'nixosConfigurations."{attribute}".config'
    return replace(options, flake=flake, attribute=attribute)
