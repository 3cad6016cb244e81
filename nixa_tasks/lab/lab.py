"""A lab: machines, their network, an image behind a web server, and a flake for them."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nixa_tasks.lab import image, linux, manifest, network, provision, requirements, toyflake
from nixa_tasks.lab.errors import LabError
from nixa_tasks.lab.machine import Machine
from nixa_tasks.lab.paths import LabPaths, default_root, read_json, write_json

_SECONDS = 60.0
_DEFAULTS: dict[str, Any] = {
    "boot_delay": 0.3, "kexec_delay": 1, "image_mb": image.DEFAULT_MB, "disk_mb": 2048,
}  # fmt: skip


class Lab:
    """One folder with practice machines. `up` and `down` can be called from anywhere, any time;
    used with `with`, the machines end with the block."""

    def __init__(self, root: str | Path | None = None, **settings: Any) -> None:
        """`settings`: boot_delay and kexec_delay (seconds), image_mb, disk_mb (MiB)."""
        unknown = set(settings) - set(_DEFAULTS)
        if unknown:
            raise TypeError(f"unknown settings: {', '.join(sorted(unknown))}")
        self.paths = LabPaths(Path(root if root is not None else default_root()).expanduser().absolute())
        self._settings = {name: value for name, value in settings.items() if value is not None}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    @property
    def root(self) -> Path:
        return self.paths.root

    @property
    def identity(self) -> Path:
        """The private key that every machine lets in."""
        return self.paths.identity

    @property
    def flake(self) -> Path:
        return self.paths.flake

    @property
    def image(self) -> Path:
        """The kexec tarball, as the web server serves it."""
        return self.paths.image

    @property
    def image_url(self) -> str:
        """On the bridge's address: this computer and the machines reach it alike."""
        config = self._config()
        return f"http://{network.bridge_address(config['subnet'])}:{config['port']}/{self.image.name}"

    @property
    def image_sha256(self) -> str:
        return image.sri(self.image)

    @property
    def machines(self) -> dict[str, Machine]:
        """By name, in the order in which they were made."""
        config = read_json(self.paths.config)
        return {
            name: Machine(self.paths, name, index, network.machine_address(config["subnet"], index))
            for name, index in sorted(config.get("machines", {}).items(), key=lambda item: int(item[1]))
        }

    def up(
        self,
        machines: int | Sequence[str],
        *,
        say: Callable[[str], None] = lambda _text: None,
        write_manifest: bool = True,
    ) -> None:
        """See that so many machines (web1, web2, …), or those named, are up; more is never taken
        away. Raises LabError."""
        requirements.check()
        names = [f"web{n}" for n in range(1, machines + 1)] if isinstance(machines, int) else list(machines)
        _check_names(names)
        with self._lock() as lock:
            known = self._prepare(names, lock)
            started = self._start(known, lock)
            say(f"{len(started)} of {len(known)} machines to start")
            self._publish(known)
            for machine in self.machines.values():
                if machine.name in started:
                    machine.wait(lambda machine=machine: _has_booted(machine), "start")  # type: ignore[misc]
            if write_manifest:
                self._write_manifest()

    def down(self) -> None:
        """End everything that runs or is mounted; the files stay. Never fails for what is gone."""
        if not self.root.exists():
            return
        with self._lock():
            machines = [m for m in self.machines.values() if m.is_supervised]
            for machine in machines:
                machine.stop()
            if (server := self._server()) is not None:
                os.kill(int(server["pid"]), signal.SIGKILL)
                _await_end(int(server["pid"]), server["start"])
            self.paths.www_state.unlink(missing_ok=True)
            network.lower_bridge(self.paths.bridge, self.paths.id)

    def hosts_toml(self, *, flake: str | None = None, **fleet: Any) -> str:
        """A complete manifest. `fleet`: further keys of its table, such as `jobs=2`."""
        return manifest.render(
            hosts=[manifest.Host(m.name, m.address, m.host_key_public) for m in self.machines.values()],
            image=manifest.Image(self.image_url, self.image_sha256),
            identity=str(self.identity),
            flake=flake or str(self.flake),
            nix_conf=str(self.paths.nix_conf),
            stand_in=provision.stand_in(self.paths),
            fleet=fleet,
        )

    def requests(self) -> list[dict[str, Any]]:
        """What the web server was asked: time, client, method, path, status, range, bytes."""
        try:
            return [json.loads(line) for line in self.paths.www_log.read_text().splitlines()]
        except FileNotFoundError:
            return []

    def env(self) -> dict[str, str]:
        """The environment for nix, doit and nixos-anywhere on these machines."""
        path = requirements.path()
        if provision.stand_in(self.paths) is not None:
            path = f"{self.paths.bin}:{path}"
        return {**os.environ, "NIX_USER_CONF_FILES": str(self.paths.nix_conf), "PATH": path}

    def _config(self) -> dict[str, Any]:
        config = read_json(self.paths.config)
        if not config:
            raise LabError(f"there is no lab in {self.root}", hint="python -m nixa_tasks.lab up 3")
        return config

    @contextlib.contextmanager
    def _lock(self) -> Iterator[int]:
        """One at a time. What is started inherits the lock and lets go of it when it is on record, so
        that whoever comes after a killed starter finds everything."""
        self.root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)

    def _prepare(self, names: list[str], lock: int) -> dict[str, int]:
        """Files, keys and the network; returns all machines with their indices."""
        config = {**_DEFAULTS, **read_json(self.paths.config), **self._settings}
        known: dict[str, int] = config.get("machines", {})
        for name in names:
            if name not in known:
                known[name] = next(n for n in range(network.MAX_MACHINES) if n not in known.values())
        config["machines"] = known
        write_json(self.paths.config, config)  # before anything exists that `down` must find
        config["subnet"] = network.raise_bridge(self.paths.bridge, config.get("subnet"))
        write_json(self.paths.config, config)
        provision.write(self.paths, config)
        for name in known:
            folder = self.paths.machine(name)
            folder.host_key.parent.mkdir(parents=True, exist_ok=True)
            provision.key(folder.host_key, f"root@{name}")
            (folder.root / "kexec-delay").write_text(f"{config['kexec_delay']}\n")
        self._serve(config, lock)
        return known

    def _serve(self, config: dict[str, Any], lock: int) -> None:
        """Start the web server if it does not run, at the port it had before if that is free."""
        server = self._server()
        if server is None:
            server = self._start_server(lock)
        if config.get("port") != server["port"]:
            config["port"] = server["port"]
            write_json(self.paths.config, config)

    def _server(self) -> dict[str, Any] | None:
        """pid, start and port of the web server, if it runs."""
        server = read_json(self.paths.www_state)
        return server if server and linux.start_time(int(server["pid"])) == server["start"] else None

    def _start_server(self, lock: int) -> dict[str, Any]:
        self.paths.www_state.unlink(missing_ok=True)
        with (self.root / "www.stderr").open("w") as log:
            process = subprocess.Popen(
                (sys.executable, "-m", "nixa_tasks.lab.www", str(self.root), str(lock)),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env=provision.python_environment(), pass_fds=(lock,),
            )  # fmt: skip
        until = time.monotonic() + _SECONDS
        while (server := self._server()) is None:
            if process.poll() is not None or time.monotonic() > until:
                raise LabError(
                    "the lab's web server did not start",
                    tail=tuple((self.root / "www.stderr").read_text().splitlines()[-5:]),
                )
            time.sleep(0.01)
        process.returncode = 0  # it is a daemon: nobody waits for it
        return server

    def _start(self, known: dict[str, int], lock: int) -> set[str]:
        """Supervisors for the machines that have none."""
        missing = {name for name, machine in self.machines.items() if not machine.is_supervised}
        if missing:
            arguments = [text for name in missing for text in (name, str(known[name]))]
            subprocess.run(
                (sys.executable, "-m", "nixa_tasks.lab.supervisor", str(self.root), str(lock), *arguments),
                stdin=subprocess.DEVNULL, timeout=_SECONDS, check=True, pass_fds=(lock,), env=provision.python_environment(),
            )  # fmt: skip
        return missing

    def _publish(self, known: dict[str, int]) -> None:
        busybox = requirements.busybox()
        assert busybox is not None  # noqa: S101
        toyflake.write(self.paths, known, busybox)

    def _write_manifest(self) -> None:
        (self.flake / "hosts.toml").write_text(self.hosts_toml(flake="."))
        toyflake.commit(self.paths, "The lab's machines")


def _has_booted(machine: Machine) -> bool:
    state = machine.state
    return machine.is_supervised and bool(
        state["up"] or (state["begun"] and state["stage"] in {"dark", "off"})
    )


def _check_names(names: list[str]) -> None:
    if not 1 <= len(names) <= network.MAX_MACHINES:
        raise LabError(f"a lab has 1 to {network.MAX_MACHINES} machines, not {len(names)}")
    for name in names:
        if (
            not name.isascii()
            or not name.replace("-", "").isalnum()
            or name.startswith("-")
            or len(name) > 63
        ):
            raise LabError(f"{name!r} can't be a machine's name: letters, digits and - only")


def _await_end(pid: int, start: str) -> None:
    until = time.monotonic() + 5
    while linux.start_time(pid) == start and time.monotonic() < until:
        time.sleep(0.005)
