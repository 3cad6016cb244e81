"""The index of what is settled: the hosts of which a deploy would find nothing to do, without a look at each.

It is a cache of the stamps and never the only one that knows. An entry is believed only while everything that
it was made from looks as it did then: hosts.toml and every tracked file of the flake (size, times, inode), the
host's stamps, its rows in doit's database, and nixa's own rules. Whatever differs is looked at the long way.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

_VERSION = 1
_FEW = 100
_RACY_NS = 2_000_000_000  # what changed so shortly before it was looked at may change again unseen
# What has git look at another tree, or in another way, than the one that the index was made from.
_GITS = ("GIT_DIR", "GIT_WORK", "GIT_INDEX", "GIT_OBJECT", "GIT_ALT", "GIT_CONFIG", "GIT_ATTR", "GIT_COMMON",
         "GIT_CEILING", "GIT_NAMESPACE", "GIT_LITERAL", "GIT_GLOB")  # fmt: skip
_PACKAGE = Path(__file__).parents[1]
_RULES = ("deploy/decide.py", "state/receipt.py", "tasks/hosts.py", "tasks/settled.py", "flake/fingerprint.py",
          "flake/git_tree.py", "flake/output.py", "manifest/model.py", "manifest/load.py")  # fmt: skip

Looks = list[int] | None


class Index(NamedTuple):
    """The index of a folder, of which all that its entries rest on looks as it did. `hosts`: all, in the
    manifest's order."""

    state: Path
    jobs: int
    hosts: tuple[str, ...]
    entries: Mapping[str, list[Any]]

    def settled(self, hosts: Iterable[str]) -> frozenset[str]:
        """Those of the hosts that have nothing to do."""
        hosts = tuple(hosts)
        now = rows(self.state, hosts)
        return frozenset(host for host in hosts if self.entries.get(host) == entry(self.state, host, now))


class Basis(NamedTuple):
    """What all entries rest on, as it looks now."""

    rules: list[Any]
    manifest: Looks
    flake: dict[str, Looks]
    evaluated: Looks


def looks(path: str | Path) -> Looks:
    """By what a change of a file is known; None where there is none."""
    try:
        status = os.stat(path)  # noqa: PTH116 -- the fastest way: twice for each host
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def basis(state: Path, files: Iterable[str]) -> Basis:
    """How what the entries rest on looks. `files`: those of the flake; `state`: the folder `.nixa`."""
    rules = [str(_PACKAGE), *(looks(_PACKAGE / name) for name in _RULES)]
    manifest = looks(state.parent / "hosts.toml")
    return Basis(rules, manifest, {name: looks(name) for name in files}, looks(state / "flake.json"))


def is_calm(now: Basis, at_ns: int) -> bool:
    """Whether nothing of it changed so shortly before `at_ns` that a second change could go unseen."""
    seen = (now.manifest, now.evaluated, *now.flake.values())
    return all(one is None or max(one[1], one[2]) < at_ns - _RACY_NS for one in seen)


def entry(state: Path, host: str, rows: Mapping[str, int]) -> list[Any]:
    """What one host's entry rests on."""
    folder = f"{state}/hosts/{host}"
    return [
        looks(f"{folder}/output.json"),
        looks(f"{folder}/deployed.json"),
        rows.get(f"deploy:{host}"),
        rows.get(f"evaluate:{host}"),
    ]


def rows(state: Path, hosts: Collection[str] = ()) -> dict[str, int]:
    """A checksum of what doit's database says of each task; of some `hosts` alone, where they are few."""
    import sqlite3

    query, names = "select task_id, task_data from doit", []
    if 0 < len(hosts) <= _FEW:
        names = [f"{family}:{host}" for family in ("deploy", "evaluate") for host in hosts]
        query += f" where task_id in ({','.join('?' * len(names))})"
    try:
        database = sqlite3.connect(f"file:{state / 'doit.db'}?mode=ro", uri=True, timeout=1)
        try:
            found = database.execute(query, names).fetchall()
        finally:
            database.close()
    except sqlite3.Error:
        return {}
    return {name: zlib.crc32(data if isinstance(data, bytes) else data.encode()) for name, data in found}


def read(state: Path) -> Index | None:
    """The index, if it holds for the folder as it is now; else all has to be found out the long way."""
    index = _index(state)
    if index is None or any(name.startswith(_GITS) for name in os.environ):
        return None
    if list(basis(state, index["flake"])) != [index[name] for name in Basis._fields]:
        return None
    return Index(state, index["jobs"], tuple(index["hosts"]), index["entries"])


def write(state: Path, jobs: int, hosts: Iterable[str], now: Basis, entries: Mapping[str, list[Any]]) -> None:
    """Write the index anew, whole or not at all."""
    from nixa_tasks.files import write_bytes

    index = {"version": _VERSION, "jobs": jobs, "hosts": list(hosts), "entries": entries, **now._asdict()}
    write_bytes(_path(state), json.dumps(index, separators=(",", ":")).encode())


def known(state: Path, now: Basis) -> dict[str, list[Any]]:
    """The entries that an index which rests on the same has."""
    index = _index(state)
    if index is None or list(now) != [index[name] for name in Basis._fields]:
        return {}
    entries: dict[str, list[Any]] = index["entries"]
    return entries


def _index(state: Path) -> dict[str, Any] | None:
    try:
        index = json.loads(_path(state).read_bytes())
    except (OSError, ValueError):
        return None
    fields = {"version", "jobs", "hosts", "entries", *Basis._fields}
    if not isinstance(index, dict) or index.keys() != fields or index["version"] != _VERSION:
        return None
    return index


def _path(state: Path) -> Path:
    return state / "settled.json"
