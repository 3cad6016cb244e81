"""The local Nix: its command lines, its environment, and its errors explained.

Works with Nix 2.8.0 (Debian 12's nix-bin) and newer. Both take flakes only behind an experimental
feature, so every command asks for it and nobody has to write a nix.conf first.
"""

from __future__ import annotations

import grp
import os
import re
import shutil
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from nixa_tasks.errors import CommandFailed, NixaError
from nixa_tasks.nix import errors as nix_errors
from nixa_tasks.process.pump import Sink
from nixa_tasks.process.run import Argv, Completed, Output, Place, Processes

FEATURES = "nix-command flakes"
INSTALL_HINT = (
    "install Nix: `apt-get install nix-bin` on Debian and Ubuntu, https://nixos.org/download elsewhere,\n"
    "and see that `nix` is on the PATH of the user who runs doit (sudo has a PATH of its own)"
)
_VERSION_DEADLINE = 20.0
_LINES_TO_EXPLAIN = 400
_ELSEWHERE = ("/nix/var/nix/profiles/default/bin", "/run/current-system/sw/bin")
_STORE_NAME = re.compile(r"[0-9a-z]{32}-[0-9A-Za-z+\-._?=]+")


class NixMissing(NixaError):
    """Nix is not installed on this machine."""


def command(*args: str) -> Argv:
    """A `nix` command line with the features and options that it needs here."""
    return (_program("nix"), "--extra-experimental-features", FEATURES, *_single_user_option(), *args)


def store_command(*args: str) -> Argv:
    """A `nix-store` command line with the options that it needs here."""
    return (_program("nix-store"), *_single_user_option(), *args)


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for nix and git: ours, without what a git hook sets, with `extra`.

    A deploy that is started by a git hook has GIT_DIR and GIT_INDEX_FILE set, which would show
    every git that Nix starts the wrong repository.
    """
    inherited = {name: value for name, value in os.environ.items() if not _is_of_a_hook(name)}
    return {**inherited, **(extra or {})}


class Nix:
    """The local Nix. `processes` start its commands; its version is asked once an object."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self._version: tuple[int, ...] | None = None

    def run(
        self,
        argv: Argv,
        *,
        deadline: float,
        sink: Sink | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        check: bool = True,
        host: str | None = None,
        what: str = "nix",
    ) -> Completed:
        """Run a nix command to its end, within `deadline` seconds.

        `sink` gets the lines of standard error; `env` is added to `environment()`; `what` names the
        step in an error. Raises NixMissing, `nix.errors.NixFailed` (with `check`), DeadlinePassed,
        Interrupted.
        """
        full = environment(env)
        if shutil.which(argv[0], path=full.get("PATH")) is None:
            raise NixMissing(f"{what}: {argv[0]} not found", host=host, hint=INSTALL_HINT)
        lines: deque[str] = deque(maxlen=_LINES_TO_EXPLAIN)

        def collect(line: str) -> None:
            lines.append(line)
            if sink is not None:
                sink(line)

        try:
            return self.processes.run(
                argv,
                deadline=deadline,
                place=Place(cwd, full),
                output=Output(sink=collect, sink_stdout=False),
                check=check,
                host=host,
                what=what,
            )
        except CommandFailed as error:
            raise nix_errors.explain(error, tuple(lines), what=what) from error

    def version(self) -> tuple[int, ...]:
        """The version of the Nix on PATH. Raises NixMissing, NixaError."""
        if self._version is None:
            done = self.run((_program("nix"), "--version"), deadline=_VERSION_DEADLINE)
            self._version = parse_version(done.stdout)
        return self._version


def parse_version(text: str) -> tuple[int, ...]:
    """`nix (Nix) 2.8.0` → (2, 8, 0). Lix and Determinate Nix put their own names in front.

    Raises NixaError where there is no number.
    """
    first = text.strip().split("\n", 1)[0]
    found = re.search(r"(\d+(?:\.\d+)+)[^ ]*$", first)
    if found is None:
        raise NixaError(f"nix --version printed {first!r}, which holds no version", hint=INSTALL_HINT)
    return tuple(int(part) for part in found[1].split("."))


def is_store_path(text: str) -> bool:
    """Whether `text` is the absolute path of a store object itself, as tools print it."""
    return text.startswith("/") and "\n" not in text and _STORE_NAME.fullmatch(Path(text).name) is not None


def _program(name: str) -> str:
    """`name` where PATH has it, else where Nix installs itself: sudo's PATH often lacks that."""
    if shutil.which(name) is None:
        for folder in (*_ELSEWHERE, str(Path.home() / ".nix-profile/bin")):
            if os.access(f"{folder}/{name}", os.X_OK):
                return f"{folder}/{name}"
    return name


def _is_of_a_hook(name: str) -> bool:
    return name in {
        "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_OBJECT_DIRECTORY",
        "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_COMMON_DIR", "GIT_QUARANTINE_PATH",
    }  # fmt: skip


def _single_user_option() -> Argv:
    """`--option build-users-group ""` where root has a Nix without a daemon and without that group.

    Debian's nix-bin is installed so, and then every build fails with "the group 'nixbld' … does
    not exist". With a daemon, the group, or the setting in a nix.conf, nothing is overridden.
    """
    if os.geteuid() != 0 or _has_daemon() or _has_group("nixbld") or _is_configured():
        return ()
    return ("--option", "build-users-group", "")


def _has_daemon() -> bool:
    remote = os.environ.get("NIX_REMOTE", "")
    if remote.startswith(("local", "/")):  # a store that this process opens itself
        return False
    if remote not in {"", "auto"}:
        return True
    state = os.environ.get("NIX_STATE_DIR", "/nix/var/nix")
    socket = Path(os.environ.get("NIX_DAEMON_SOCKET_PATH", f"{state}/daemon-socket/socket"))
    return socket.exists()


def _has_group(name: str) -> bool:
    try:
        grp.getgrnam(name)
    except KeyError:
        return False
    return True


def _is_configured() -> bool:
    """Whether a configuration file sets how builds run. Files as in nix.conf(5)."""
    texts = [os.environ.get("NIX_CONFIG", "")]
    seen: set[Path] = set()
    waiting = list(_configuration_files())
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        try:
            text = path.read_text(errors="replace")
        except OSError:
            continue
        texts.append(text)
        waiting += [path.parent / name for name in re.findall(r"(?m)^\s*!?include\s+(\S+)", text)]
    setting = re.compile(r"(?m)^\s*(build-users-group\s*=|auto-allocate-uids\s*=\s*true)")
    return any(setting.search(text) for text in texts)


def _configuration_files() -> tuple[Path, ...]:
    system = Path(os.environ.get("NIX_CONF_DIR", "/etc/nix")) / "nix.conf"
    if "NIX_USER_CONF_FILES" in os.environ:
        return (system, *(Path(name) for name in os.environ["NIX_USER_CONF_FILES"].split(":") if name))
    folders = [os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")]
    folders += (os.environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":")
    return (system, *(Path(folder) / "nix/nix.conf" for folder in folders))
