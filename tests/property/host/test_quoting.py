"""What nixa sends through a login shell arrives as it was, whichever POSIX shell reads it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nixa_tasks.host.ssh import remote_command
from nixa_tasks.host.sudo import Elevation, Password

SHELLS = {"dash": "dash", "bash": "bash", "busybox": "busybox"}
# As real as sudo gets without root: `-S` reads one line, byte by byte, where it asks at all. The real
# one is asked in tests/integration/deploy/test_secrets.py.
SUDO = """#!/bin/sh
while [ "$1" != -- ]; do shift; done
shift
[ -z "$STANDIN_ASKS" ] || IFS= read -r password
exec "$@"
"""
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
HOSTILE = st.sampled_from([
    "", "-n", "--", "'", '"', "\\", "\\'", "$(touch owned)", "`touch owned`", "${HOME}", "$'x'", "a\nb", "\r", "\n",
    "!!", "*", "~", "%s", "a;touch owned", "|", "&", ">owned", "#", "é\u2028", "\x1b[2J", "\\n", "\t", " ", "=", "{a,b}",
])  # fmt: skip
WORDS = st.lists(TEXT | HOSTILE, min_size=1, max_size=5)
PASSWORDS = st.text(st.characters(min_codepoint=32, exclude_categories=["Cs", "Cc"]), min_size=1, max_size=60)


class Shell:
    """A login shell on a host where `sh` is the same shell, and where sudo is a stand-in."""

    def __init__(self, name: str, place: Path) -> None:
        program = shutil.which(SHELLS[name])
        assert program is not None
        self.place = place
        (place / "bin").mkdir()
        (place / "bin/sh").symlink_to(program)
        sudo = place / "bin/sudo"
        sudo.write_text(SUDO)
        sudo.chmod(0o755)
        self.home = place / "home"
        self.home.mkdir()

    def read(self, command: str, stdin: bytes = b"", *, asks: bool = False) -> bytes:
        path = f"{self.place / 'bin'}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ("sh", "-c", command),
            executable=self.place / "bin/sh",
            input=stdin,
            capture_output=True,
            check=True,
            cwd=self.home,
            timeout=30,
            env={"PATH": path, "HOME": str(self.home), "STANDIN_ASKS": "yes" if asks else ""},
        )
        assert not list(self.home.iterdir()), "nothing of it was run"
        return done.stdout


@pytest.fixture(scope="module", params=SHELLS)
def shell(request: pytest.FixtureRequest) -> Iterator[Shell]:
    with tempfile.TemporaryDirectory() as place:
        yield Shell(request.param, Path(place))


SAY = ("sh", "-c", 'printf "%s\\0" "$0" "$@"; cat', "nixa")


@settings(max_examples=60, deadline=None)
@given(words=WORDS)
def test_words_arrive_as_they_were(shell: Shell, words: list[str]) -> None:
    said = shell.read(remote_command(("printf", "%s\\0", "x", *words)))
    assert said.split(b"\0")[1:-1] == [word.encode() for word in words]


@settings(max_examples=60, deadline=None)
@given(words=WORDS)
def test_a_script_gets_its_arguments(shell: Shell, words: list[str]) -> None:
    said = shell.read(remote_command((*SAY, *words)))
    assert said.split(b"\0")[:-1] == [b"nixa", *(word.encode() for word in words)]


@pytest.mark.parametrize("asks", [True, False])
@settings(max_examples=40, deadline=None)
@given(words=WORDS, password=PASSWORDS, payload=st.binary(max_size=300))
def test_behind_sudo_it_gets_its_arguments_and_its_own_input_alone(
    shell: Shell, asks: bool, words: list[str], password: str, payload: bytes
) -> None:
    given = b"".join(Password.parse(password).ahead_of(payload))
    said = shell.read(remote_command((*Elevation.PASSWORD.prefix, *SAY, *words)), given, asks=asks)
    assert said == b"\0".join([b"nixa", *(word.encode() for word in words)]) + b"\0" + payload


@given(st.text(max_size=300))
def test_a_password_is_one_line_or_refused_without_a_word_of_it(text: str) -> None:
    try:
        password = Password.parse(text)
    except ValueError as error:
        assert str(error) in {
            "it is empty",
            "it holds a control character",
            "it is longer than 255 bytes",
        }
        return
    assert password.preamble.count(b"\n") == 2
    assert b"\r" not in password.preamble
