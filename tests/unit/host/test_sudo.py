"""The password for sudo: had once, tried with care, shown to nobody."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nixa_tasks.errors import NixaError
from nixa_tasks.host.ssh import Ssh
from nixa_tasks.host.sudo import Elevation, Password, Passwords
from nixa_tasks.manifest.model import Host
from nixa_tasks.process.run import LocalProcesses, Place
from nixa_tasks.process.sessions import SUDO_PASSWORD

LOCAL = LocalProcesses()
SECRET = "hunter2's $word"


@pytest.fixture(autouse=True)
def given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SUDO_PASSWORD, SECRET)


def quiet(_text: str) -> None:
    pass


def test_it_is_shown_by_nothing_that_holds_it() -> None:
    password = Password.parse(SECRET)
    ssh = replace(
        Ssh.to(Host("web1", "203.0.113.1"), Path("/run/x"), LOCAL, LOCAL.clock),
        elevation=Elevation.PASSWORD,
        password=password,
    )
    assert "hunter2" not in f"{password!r} {password} {ssh!r} {ssh.command('true', root=True)}"
    assert ssh.as_root().password is None


def test_no_child_inherits_it() -> None:
    assert LOCAL.run(("env",), deadline=10).stdout.count(SUDO_PASSWORD) == 0
    place = Place(env=dict(os.environ))
    assert LOCAL.run(("env",), deadline=10, place=place).stdout.count(SUDO_PASSWORD) == 0


def test_hosts_wait_for_the_first_word_on_it_and_then_go_side_by_side() -> None:
    passwords, begun = Passwords(LOCAL.is_stopping), []
    go, together = threading.Event(), threading.Barrier(3)

    def check(host: str) -> bool:
        begun.append(host)
        if host == "first":
            go.wait(20)
        else:
            together.wait(20)
        return True

    def turn(host: str) -> None:
        passwords.checked(host, "admin", lambda _password: check(host), quiet)

    threads = [threading.Thread(target=turn, args=(host,)) for host in ("first", "a", "b", "c")]
    threads[0].start()
    while not begun:
        time.sleep(0.01)
    for thread in threads[1:]:
        thread.start()
    time.sleep(0.2)
    assert begun == ["first"]
    go.set()
    for thread in threads:
        thread.join(20)
    assert sorted(begun) == ["a", "b", "c", "first"]


def test_one_that_a_host_has_taken_is_tried_on_the_others_though_one_refuses_it() -> None:
    passwords = Passwords(LOCAL.is_stopping)
    passwords.checked("a", "admin", lambda _password: True, quiet)
    with pytest.raises(NixaError, match="refused the password of admin") as caught:
        passwords.checked("b", "admin", lambda _password: False, quiet)
    assert SECRET not in caught.value.render()
    passwords.checked("c", "admin", lambda _password: True, quiet)


def test_a_refused_one_is_not_tried_elsewhere() -> None:
    passwords = Passwords(LOCAL.is_stopping)
    tried = []

    def refuse(password: Password) -> bool:
        tried.append(password)
        return False

    for host in ("a", "b", "c"):
        with pytest.raises(NixaError) as caught:
            passwords.checked(host, "admin", refuse, quiet)
        assert SUDO_PASSWORD in (caught.value.hint or "")
    assert len(tried) == 1


def test_one_that_can_not_be_a_line_is_refused_without_being_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SUDO_PASSWORD, f"{SECRET}\nrm")
    with pytest.raises(NixaError, match="control character") as caught:
        Passwords(LOCAL.is_stopping).checked("a", "admin", lambda _password: True, quiet)
    assert "hunter2" not in caught.value.render()


class Terminal:
    """A Python program with a terminal of its own, as seen by who sits at it."""

    def __init__(self, code: str) -> None:
        self._ours, theirs = pty.openpty()
        self.child = subprocess.Popen(
            ("setsid", "--ctty", sys.executable, "-c", code),
            stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={name: value for name, value in os.environ.items() if name != SUDO_PASSWORD},
        )  # fmt: skip
        os.close(theirs)
        self.seen = b""

    def expect(self, text: bytes) -> None:
        while text not in self.seen:
            self.seen += os.read(self._ours, 1024)

    def type(self, text: bytes) -> None:
        os.write(self._ours, text)

    def close(self) -> None:
        os.close(self._ours)
        self.child.kill()
        self.child.communicate()


ASK = """
import threading
from nixa_tasks.process.run import LocalProcesses
from nixa_tasks.errors import Interrupted
from nixa_tasks.host import sudo
local = LocalProcesses()
passwords = sudo.Passwords(local.is_stopping)
def ask():
    try:
        for host in ("web1", "web2"):
            print(passwords.checked(host, "admin", lambda _: True, lambda text: print("note:", text)).line)
    except Interrupted as error:
        print("ended:", error)
thread = threading.Thread(target=ask)
thread.start()
"""


@pytest.fixture
def terminal(request: pytest.FixtureRequest) -> Iterator[Terminal]:
    terminal = Terminal(request.param)
    yield terminal
    terminal.close()


@pytest.mark.parametrize("terminal", [ASK], indirect=True)
def test_it_is_asked_for_once_and_not_echoed(terminal: Terminal) -> None:
    terminal.expect(b"sudo password of admin")
    terminal.type(b"  typed in  \n")
    said, _ = terminal.child.communicate(timeout=30)
    assert said.splitlines() == [
        "note: type the password of admin for sudo, on the terminal",
        *["b'  typed in  \\n'"] * 2,
    ]
    terminal.expect(b"\n")
    assert b"typed in" not in terminal.seen


STOP = f"{ASK}import time; time.sleep(1); local.stop_all(); thread.join(); import os; os.system('stty -a')"


@pytest.mark.parametrize("terminal", [STOP], indirect=True)
def test_a_stop_ends_the_question_and_gives_the_terminal_back(terminal: Terminal) -> None:
    said, _ = terminal.child.communicate(timeout=30)
    assert "ended: stopped" in said
    assert " echo " in said
