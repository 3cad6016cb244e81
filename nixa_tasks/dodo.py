"""nixa's tasks by name. A flake repository's own dodo.py is one line:

from nixa_tasks.dodo import *
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from doit import task_params
from doit.exceptions import InvalidDodoFile

from nixa_tasks.errors import NixaError
from nixa_tasks.process.run import local
from nixa_tasks.tasks import fleet, hosts, images, manifest, run
from nixa_tasks.tasks.reporter import Reporter
from nixa_tasks.tasks.selection import select

try:
    _manifest = manifest.find(Path.cwd(), local())
    _chosen = select(sys.argv[1:], _manifest)
except NixaError as error:
    raise InvalidDodoFile(error.render()) from None
_run = run.begin(_manifest, _chosen.hosts, _chosen.deploys)

DOIT_CONFIG = {
    "default_tasks": ["plan"],
    "dep_file": str(_run.layout.doit_db),
    "backend": "nixa",
    "reporter": Reporter,
    "continue": True,
    "par_type": "thread",
    "num_process": _manifest.fleet.jobs,
    "verbosity": 2,
}

# Declared so that doit takes it; what it chooses is in `_chosen`.
_ON = [{"name": "on", "long": "on", "type": str, "default": "",
        "help": "choose hosts: @tag, names, globs, and, or, not, ( )"}]  # fmt: skip


@task_params(_ON)
def task_deploy(on: str) -> Iterator[dict[str, Any]]:
    """bring hosts to what the flake says"""
    yield from hosts.deploy_tasks(_run, _chosen.hosts, _chosen.deploys)


@task_params(_ON)
def task_evaluate(on: str) -> Iterator[dict[str, Any]]:
    """the flake's output of each host"""
    yield from hosts.evaluate_tasks(_run, _chosen.hosts)


@task_params(_ON)
def task_build(on: str) -> Iterator[dict[str, Any]]:
    """each host's closure in the local store, with a GC root"""
    yield from hosts.build_tasks(_run, _chosen.hosts)


@task_params(_ON)
def task_reach(on: str) -> Iterator[dict[str, Any]]:
    """is a host there, who is it, what does it run"""
    yield from hosts.reach_tasks(_run, _chosen.hosts)


def task_trust() -> Iterator[dict[str, Any]]:
    """take the host key that a target shows now as the right one"""
    yield from hosts.trust_tasks(_run, _chosen.hosts)


def task_rollback() -> Iterator[dict[str, Any]]:
    """back to the system that ran before"""
    yield from hosts.rollback_tasks(_run, _chosen.hosts)


def task_reinstall() -> Iterator[dict[str, Any]]:
    """wipe a host and install it again: the explicit, destructive way"""
    yield from hosts.reinstall_tasks(_run, _chosen.hosts)


def task_history() -> Iterator[dict[str, Any]]:
    """what was deployed, when, from which revision, by whom, how it ended"""
    yield from hosts.history_tasks(_run, _chosen.hosts)


def task_hardware() -> Iterator[dict[str, Any]]:
    """write a host's hardware report to its file in the flake"""
    yield from hosts.hardware_tasks(_run, _chosen.hosts)


def task_kexec() -> Iterator[dict[str, Any]]:
    """fetch the pinned images into the cache, verified"""
    yield from images.kexec_tasks(_run)


def task_checksum() -> Iterator[dict[str, Any]]:
    """verify the cached images against their pins"""
    yield from images.checksum_tasks(_run)


@task_params(images.CHECK)
def task_pin(check: bool) -> Iterator[dict[str, Any]]:
    """look at an image's URL now, and write the new hash into hosts.toml"""
    yield from images.pin_tasks(_run, check)


def task_remove_images() -> Iterator[dict[str, Any]]:
    """remove what can be fetched again"""
    yield from images.clean_tasks(_run)


@task_params([*_ON, *fleet.JSON])
def task_plan(on: str, as_json: bool) -> dict[str, Any]:
    """what deploy would do to each host, and why; changes nothing"""
    return fleet.plan_task(_run, _chosen.hosts, as_json)


@task_params([*_ON, *fleet.JSON, *fleet.LIVE])
def task_status(on: str, as_json: bool, live: bool) -> dict[str, Any]:
    """a table: host, wanted, live, last deploy, state"""
    return fleet.status_task(_run, _chosen.hosts, as_json, live)


@task_params([*fleet.LIVE, *fleet.OUTPUT])
def task_report(live: bool, output: str) -> dict[str, Any]:
    """one HTML page: the fleet, the last runs as a timeline, what the image cache saved"""
    return fleet.report_task(_run, _chosen.hosts, live, output)


@task_params(fleet.DRY_RUN)
def task_gc(dry_run: bool) -> dict[str, Any]:
    """remove cached images that no manifest pins any more, and GC roots of superseded systems"""
    return fleet.gc_task(_run, dry_run)


# doit takes what begins with `task_`, and its configuration; nothing else goes to a user's dodo.py.
__all__ = [name for name in dir() if name.startswith("task_") and name != "task_params"]
__all__ += ["DOIT_CONFIG"]
