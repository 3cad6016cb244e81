"""What holds for every valid manifest, in every layout that TOML allows."""

from __future__ import annotations

import itertools
import json
import tempfile
import tomllib
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nixa_tasks.manifest.digest import to_base32, to_sri
from nixa_tasks.manifest.edit import set_host_key, set_pin
from nixa_tasks.manifest.load import load
from nixa_tasks.manifest.locate import locate

digests = st.binary(min_size=32, max_size=32)
quickly = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB9JgoYTUSjWDsCHeuqmQ5iUgoMHqZT5q1kMWWRHVEVs"

names = st.from_regex(r"[a-z][a-z0-9]{0,8}(-[a-z0-9]{1,4})?", fullmatch=True).map("n".__add__)
tags = st.from_regex(r"[a-z][a-z0-9]{0,5}", fullmatch=True).map("t".__add__)
words = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,10}", fullmatch=True)
local = st.from_regex(r"(\./|~/|/)?[a-zA-Z0-9_ äé.-]{0,8}[a-z]", fullmatch=True)
seconds = st.one_of(st.integers(1, 10_000), st.floats(0.1, 10_000))
secrets = st.one_of(
    local,
    st.fixed_dictionaries(
        {"command": st.lists(local, min_size=1, max_size=3).filter(lambda c: c[0][0] != "-")}
    ),
)
checks = st.one_of(
    st.fixed_dictionaries(
        {"http": words.map(lambda path: f"https://example.org/{path}")},
        optional={"status": st.integers(100, 599), "body": words, "cert_days": st.integers(0, 100)},
    ),
    st.fixed_dictionaries({"command": st.sampled_from(["true", "test 1 = 1", "a &&\n\tb"])}),
    st.fixed_dictionaries({"tcp": st.integers(1, 65535)}, optional={"retries": st.integers(0, 9)}),
    st.fixed_dictionaries({"units": st.just(True)}, optional={"deadline": seconds}),
)
optional_host = {
    "user": st.from_regex(r"[a-z_][a-z0-9_-]{0,8}", fullmatch=True),
    "port": st.integers(1, 65535),
    "identity": local,
    "ssh_options": st.lists(words.map(lambda word: f"ProxyJump={word}"), max_size=2),
    "host_key": st.just(f"{KEY} comment"),
    "flake_attr": st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,8}", fullmatch=True),
    "tags": st.lists(tags, max_size=3, unique=True),
    "install": st.sampled_from(["if-not-nixos", "never", "always"]),
    "build_on": st.sampled_from(["local", "remote"]),
    "mode": st.sampled_from(["switch", "boot"]),
    "reboot": st.booleans(),
    "copy_host_keys": st.booleans(),
    "substitute_on_destination": st.booleans(),
    "extra_files": secrets,
    "disk_encryption_keys": st.dictionaries(words.map(lambda w: f"/tmp/x{w}"), secrets, max_size=2),
    "checks": st.lists(checks, max_size=3),
    "on_drift": st.sampled_from(["stop", "deploy"]),
    "confirm_timeout": seconds,
    "lock_timeout": seconds,
}
images = st.one_of(
    st.builds(
        lambda digest, url, way: {"url": url, "sha256": way(digest.hex())},
        digests,
        st.sampled_from(
            ["https://example.org/a.tar.gz", "./a.tar.gz", "file:///a.tar", "http://[::1]:80/a.tar"]
        ),
        st.sampled_from([str, str.upper, to_sri, to_base32]),
    ),
    st.just({"installable": ".#packages.x86_64-linux.installer"}),
)


@st.composite
def manifests(draw: st.DrawFn) -> dict[str, object]:
    kexec = draw(st.dictionaries(names, images, max_size=3))
    keys = dict(optional_host)
    if kexec:
        keys["kexec"] = st.sampled_from(sorted(kexec))
    hosts = {}
    for number, name in enumerate(draw(st.lists(names, unique=True, max_size=4))):
        hosts[name] = {"target": f"192.0.2.{number}"} | draw(st.fixed_dictionaries({}, optional=keys))
    defaults = draw(st.fixed_dictionaries({}, optional=keys))
    return {"version": 1, "kexec": kexec, "defaults": defaults, "hosts": hosts}


def toml_value(value: object) -> str:
    match value:
        case dict():
            return (
                "{ "
                + ", ".join(f"{json.dumps(key)} = {toml_value(one)}" for key, one in value.items())
                + " }"
            )
        case list():
            return "[" + ", ".join(toml_value(one) for one in value) + "]"
        case str():
            return json.dumps(value)
        case bool():
            return str(value).lower()
        case _:
            return repr(value)


class Layouts:
    """One manifest written in the many ways that TOML allows."""

    def __init__(self, draw: st.DrawFn) -> None:
        self._draw = draw
        self._newline = draw(st.sampled_from(["\n", "\r\n"]))

    def document(self, data: dict[str, object]) -> str:
        lines = [self.assignment(("version",), data["version"]), *self.noise()]
        for table in ("kexec", "hosts"):
            members = data[table]
            assert isinstance(members, dict)
            lines += self.table(table, members)
        defaults = data["defaults"]
        assert isinstance(defaults, dict)
        lines += [self.header("defaults"), *(self.assignment((key,), one) for key, one in defaults.items())]
        end = self._draw(st.sampled_from(["", self._newline]))
        return self._newline.join(lines) + end

    def table(self, table: str, members: dict[str, object]) -> list[str]:
        way = self._draw(st.sampled_from(["headers", "dotted", "inline"]))
        lines = [self.header(table)] if way != "headers" else []
        for name, member in members.items():
            assert isinstance(member, dict)
            lines += self.noise()
            if way == "inline":
                lines.append(self.assignment((name,), member))
            elif way == "dotted":
                lines += [self.assignment((name, key), one) for key, one in member.items()]
            else:
                lines.append(self.header(table, name))
                lines += [self.assignment((key,), one) for key, one in member.items()]
        return lines

    def noise(self) -> list[str]:
        return self._draw(
            st.lists(st.sampled_from(["", "  # sha256 = 'x'", "\t", '# [hosts.n1] """', "#"]), max_size=2)
        )

    def key(self, *parts: str) -> str:
        dot = self._draw(st.sampled_from([".", " . "]))
        quoted = (
            self._draw(
                st.sampled_from([part, f'"{part}"', f"'{part}'", f'"\\u{ord(part[0]):04x}{part[1:]}"'])
            )
            for part in parts
        )
        return dot.join(quoted)

    def header(self, *parts: str) -> str:
        return f"[{self.key(*parts)}]{self._draw(st.sampled_from(['', '  # x', ' ']))}"

    def assignment(self, parts: tuple[str, ...], value: object) -> str:
        indent, before, after, comment = (
            self._draw(st.sampled_from(choices))
            for choices in (["", "  ", "\t"], ["", " ", "    "], ["", " "], ["", "  # = '\"", " "])
        )
        return f"{indent}{self.key(*parts)}{before}={after}{self.value(value)}{comment}"

    def value(self, value: object) -> str:
        if isinstance(value, str) and value.isascii() and value.isprintable() and not set("'\\") & set(value):
            return self._draw(
                st.sampled_from([json.dumps(value), f"'{value}'", f'"""{value}"""', f"'''{value}'''"])
            )
        if isinstance(value, list) and value and self._draw(st.booleans()):
            return (
                "[ # list"
                + self._newline
                + f",{self._newline}".join(toml_value(one) for one in value)
                + ", ]"
            )
        return toml_value(value)


Document = tuple[dict[str, object], str]


@st.composite
def documents(draw: st.DrawFn) -> Document:
    data = draw(manifests())
    return data, Layouts(draw).document(data)


@quickly
@given(documents())
def test_any_valid_manifest_loads_and_its_stamp_says_the_same(
    document: Document,
) -> None:
    data, text = document
    with tempfile.TemporaryDirectory() as folder:
        path, stamp = Path(folder) / "hosts.toml", Path(folder) / "stamp"
        path.write_bytes(text.encode())
        slow = load(path, stamp)
        assert stamp.exists()
        assert load(path, stamp) == slow
        assert list(slow.hosts) == list(tomllib.loads(text)["hosts"] if data["hosts"] else [])
        defaults = data["defaults"]
        assert isinstance(defaults, dict)
        for host in slow.hosts.values():
            own = tomllib.loads(text)["hosts"][host.name]
            assert host.port == (defaults | own).get("port")
            assert host.tags == tuple((defaults | own).get("tags", ()))


@quickly
@given(documents())
def test_every_key_is_found_in_the_line_where_it_stands(document: Document) -> None:
    _, text = document
    places = locate(text)
    assert not places.duplicates
    lines = text.split("\n")
    for table in ("kexec", "hosts"):
        for name, member in tomllib.loads(text).get(table, {}).items():
            for key in member:
                line = lines[places.line((table, name, key)) - 1]
                assert key in line or key[1:] in line
                entry = places.entries[table, name, key]
                read = tomllib.loads(f"value = {text[entry.value : entry.end]}")["value"]
                assert repr(read) == repr(member[key])


@quickly
@given(documents(), digests, st.data())
def test_an_edit_changes_the_one_value_and_no_other_line(
    document: Document, digest: bytes, data: st.DataObject
) -> None:
    _, text = document
    before = tomllib.loads(text)
    pins = [name for name, one in before.get("kexec", {}).items() if "sha256" in one]
    targets = [("kexec", name, "sha256") for name in pins]
    targets += [("hosts", name, "host_key") for name in before.get("hosts", {})]
    if not targets:
        return
    table, name, key = data.draw(st.sampled_from(targets))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "hosts.toml"
        path.write_bytes(text.encode())
        value = to_sri(digest.hex()) if table == "kexec" else KEY
        if table == "kexec":
            set_pin(path, name, value)
        else:
            set_host_key(path, name, value)
        after = path.read_bytes().decode()
    was_there = key in before[table][name]
    before[table][name][key] = value
    assert repr_sorted(tomllib.loads(after)) == repr_sorted(before)
    old, new = text.split("\n"), after.split("\n")
    assert ("\r\n" in text) == ("\r\n" in after) or len(old) == 1
    same_beginning = equal_lines(old, new)
    same_end = equal_lines(old[::-1], new[::-1])
    assert same_beginning + same_end >= len(old) - 1, "at most one old line is touched"
    assert len(new) - len(old) == 0 or not was_there


def equal_lines(old: list[str], new: list[str]) -> int:
    """How many lines at the beginning are the same."""
    pairs = zip(old, new, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def repr_sorted(value: object) -> str:
    return json.dumps(value, sort_keys=True)
