"""Whatever the bytes: a manifest, or an error that names lines of the file. Nothing else."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nixa_tasks.manifest.load import ManifestError, load
from nixa_tasks.manifest.locate import Entry, locate
from nixa_tasks.manifest.model import Manifest

VALID = """\
version = 1
[fleet]
flake = "."
jobs = 16
waves = [["@web"], ["web2"]]
[kexec.x86_64-linux]
url = "https://example.org/a.tar.gz"
sha256 = "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
[kexec.own]
installable = ".#packages.x86_64-linux.kexec"
[defaults]
user = "root"
identity = "~/.ssh/${HOME}"
[hosts.web1]
target = "fe80::1%eth0"
tags = ["web", 'prod']
host_key = "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU"
kexec = "own"
disk_encryption_keys = { "/tmp/k" = "k", "/tmp/l" = { command = ["sops", "-d"] } }
checks = [{ http = "https://example.org/" }, { units = true }]
[hosts]
web2 = { target = "admin@web2", port = 22, confirm_timeout = 1.5 }
"""
PIECES = [
    *(b"", b'"', b"'", b'"""', b"[", b"]", b"[[", b"{", b"}", b"=", b",", b".", b"#", b"\n", b"\r", b"\r\n"),
    *(b"\0", b"\\", b"\\u0000", b"\\ud800", b"\xff", b"\xef\xbb\xbf", b"\xe2\x80\x8b", b"\x1b[2J", b"-"),
    *(b"nan", b"inf", b"1e999", b"0x" + b"f" * 5000, b"9" * 5000, b"true", b"1979-05-27", b"07:32:00"),
    *(b"[" * 2000, b"{a=" * 300, b"a." * 300, b"hosts", b"[hosts.web1]\n", b"[[hosts]]\n", b"kexec"),
    *(b"${", b"~", b"$(x)", b"web1", b"and", b"@"),
]
Change = tuple[int, int, bytes]
mutations = st.lists(
    st.tuples(st.integers(0, len(VALID)), st.integers(0, 30), st.sampled_from(PIECES)), min_size=1, max_size=4
)


def loaded(content: bytes) -> Manifest | ManifestError:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "hosts.toml"
        path.write_bytes(content)
        try:
            return load(path, Path(folder) / "stamp")
        except ManifestError as error:
            return error


def assert_answered(content: bytes) -> None:
    answer = loaded(content)
    if isinstance(answer, ManifestError):
        lines = content.count(b"\n") + 1
        assert answer.problems
        for problem in answer.problems:
            assert 1 <= problem.line <= lines
            assert problem.text.isprintable()
            assert problem.key.isprintable()
            assert len(problem.text) < 1000


def test_what_the_fuzzer_starts_from_is_valid() -> None:
    assert isinstance(loaded(VALID.encode()), Manifest)


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mutations)
def test_a_damaged_manifest_is_a_manifest_or_an_error_with_lines(
    changes: list[tuple[int, int, bytes]],
) -> None:
    content = VALID.encode()
    for place, length, piece in changes:
        content = content[:place] + piece + content[place + length :]
    assert_answered(content)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from(VALID.splitlines(keepends=True)), max_size=30).map("".join))
def test_shuffled_lines_are_a_manifest_or_an_error_with_lines(text: str) -> None:
    assert_answered(text.encode())


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_a_manifest_or_an_error_with_lines(content: bytes) -> None:
    assert_answered(content)


scalars = st.one_of(st.text(max_size=8), st.integers(), st.floats(), st.booleans())
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
)
PLACES = [entry for path, entry in locate(VALID).entries.items() if len(path) > 1 and not entry.is_header]


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


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(PLACES), values)
def test_any_value_in_any_place_is_a_manifest_or_an_error_with_lines(place: Entry, value: object) -> None:
    assert_answered((VALID[: place.value] + toml_value(value) + VALID[place.end :]).encode())
