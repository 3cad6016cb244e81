"""Processes end when they should, with everything that they started."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nixa_tasks.errors import CommandFailed, DeadlinePassed, Interrupted, NixaError
from nixa_tasks.process.run import Heartbeat, LocalProcesses, Output, Place


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    return state != "Z"


def test_output_is_kept_and_both_streams_reach_the_sink_as_they_come() -> None:
    lines: list[str] = []
    done = LocalProcesses().run(
        ("sh", "-c", "echo out; echo err >&2"), deadline=10, output=Output(lines.append)
    )
    assert done.stdout == "out\n"
    assert sorted(lines) == ["err", "out"]


def test_a_failure_carries_its_status_and_last_lines() -> None:
    with pytest.raises(CommandFailed) as caught:
        LocalProcesses().run(("sh", "-c", "echo why >&2; exit 7"), deadline=10, host="web1", what="a step")
    assert caught.value.status == 7
    assert caught.value.tail == ("why",)
    assert "a step" in caught.value.render()


def test_past_its_deadline_the_whole_group_is_ended(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    with pytest.raises(DeadlinePassed):
        LocalProcesses().run(("sh", "-c", f"sleep 60 & echo $! >{note}; wait"), deadline=0.5)
    time.sleep(0.2)
    assert not is_alive(int(note.read_text()))


def test_a_background_child_that_keeps_the_pipe_is_not_waited_for() -> None:
    started = time.monotonic()
    assert LocalProcesses().run(("sh", "-c", "sleep 5 & echo hi"), deadline=30).stdout == "hi\n"
    assert time.monotonic() - started < 4


def test_input_flows_as_the_process_takes_it() -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(64):
            yield b"x" * (1 << 16)

    done = LocalProcesses().run(("sh", "-c", "sleep 0.2; wc -c"), deadline=20, stdin=chunks())
    assert int(done.stdout) == 64 << 16


def test_a_process_that_reads_nothing_does_not_hang_its_writer() -> None:
    assert LocalProcesses().run(("true",), deadline=10, stdin=b"x" * (8 << 20)).is_ok


def test_a_missing_program_says_what_to_install() -> None:
    with pytest.raises(NixaError, match="no-such-program") as caught:
        LocalProcesses().run(("no-such-program",), deadline=5)
    assert caught.value.hint


def test_after_a_stop_everything_is_ended_and_nothing_starts(tmp_path: Path) -> None:
    code = (
        "import threading, time\n"
        "from nixa_tasks.process.run import LocalProcesses; process = LocalProcesses()\n"
        "from nixa_tasks.errors import Interrupted\n"
        "ends = []\n"
        "def work():\n"
        "    try: process.run(('sh', '-c', 'echo $$ > pid; sleep 60'), deadline=100)\n"
        "    except Interrupted: ends.append('interrupted')\n"
        "t = threading.Thread(target=work); t.start(); time.sleep(0.5)\n"
        "process.stop_all(); t.join(5)\n"
        "try: process.run(('true',), deadline=5)\n"
        "except Interrupted: ends.append('nothing starts')\n"
        "print(ends)\n"
    )
    done = LocalProcesses().run((sys.executable, "-c", code), deadline=30, place=Place(tmp_path))
    assert done.stdout.strip() == "['interrupted', 'nothing starts']"
    assert not is_alive(int((tmp_path / "pid").read_text()))


def test_a_hold_that_is_stopped_while_it_waits_is_interrupted_and_has_not_failed(tmp_path: Path) -> None:
    processes = LocalProcesses()

    def stop_once_started() -> None:
        while not (tmp_path / "started").exists():
            time.sleep(0.01)
        processes.stop_all()

    stopper = threading.Thread(target=stop_once_started)
    stopper.start()
    with (
        pytest.raises(Interrupted),
        processes.hold(
            ("sh", "-c", f": >{tmp_path}/started; sleep 60"),
            is_ready=lambda _line: False,
            deadline=60,
            heartbeat=Heartbeat(b"", 1),
            what="the lock",
        ),
    ):
        pass
    stopper.join(30)


def test_a_held_process_lives_as_long_as_the_body(tmp_path: Path) -> None:
    script = (
        f"echo $$ >{tmp_path}/pid; echo ready; while read -r beat; do echo $beat >>{tmp_path}/beats; done"
    )
    with LocalProcesses().hold(
        ("sh", "-c", script),
        is_ready=lambda line: line == "ready",
        deadline=10,
        heartbeat=Heartbeat(b"beat\n", 0.1),
        what="lock",
    ):
        time.sleep(0.5)
        assert is_alive(int((tmp_path / "pid").read_text()))
    assert (tmp_path / "beats").read_text().startswith("beat\n")
    assert not is_alive(int((tmp_path / "pid").read_text()))


def test_a_held_process_that_is_never_ready_is_an_error() -> None:
    with (
        pytest.raises(CommandFailed, match="too soon"),
        LocalProcesses().hold(
            ("sh", "-c", "exit 75"),
            is_ready=lambda _line: True,
            deadline=5,
            heartbeat=Heartbeat(b"", 1),
            what="lock",
        ),
    ):
        pass


@pytest.mark.parametrize("flood", ["cat /dev/zero", "yes", "cat /dev/zero >&2", "yes >&2"])
def test_who_says_too_much_is_cut_off(flood: str) -> None:
    """By its amount, long before its deadline; and nothing of it fills the memory or the log."""
    lines: list[int] = []
    started = time.monotonic()
    with pytest.raises(NixaError, match="printed more than") as caught:
        LocalProcesses().run(
            ("sh", "-c", flood),
            deadline=120,
            output=Output(lambda line: lines.append(len(line)), keep=1 << 20, limit=8 << 20),
            what="probe",
        )
    assert time.monotonic() - started < 60
    assert sum(lines) <= 8 << 20
    assert max(lines) < 1 << 18
    assert len(caught.value.render()) < 10_000


@pytest.mark.parametrize("flood", ["cat /dev/zero", "yes"])
def test_a_held_command_that_says_too_much_is_ended(flood: str) -> None:
    with (
        pytest.raises(NixaError, match="ended too soon"),
        LocalProcesses().hold(
            ("sh", "-c", flood),
            is_ready=lambda _line: False,
            deadline=60,
            heartbeat=Heartbeat(b"", 1),
            what="lock",
        ),
    ):
        pytest.fail("it was never ready")


KILLED = """
import os, sys, threading, time
from pathlib import Path
from nixa_tasks.process.run import LocalProcesses
process = LocalProcesses()
folder = Path(sys.argv[1])
folder.mkdir()
(folder / "secret").write_text("x")
process.remove_at_death(folder)
process.run(("true",), deadline=9)
threading.Thread(
    target=process.run, args=(("sh", "-c", "echo $$ >$1/pid; sleep 1000; :", "sh", sys.argv[1]),), kwargs={"deadline": 999}
).start()
while not (folder / "pid").exists() or not (folder / "pid").read_text():
    pass
time.sleep(0.3)  # it must be on record
print((folder / "pid").read_text(), flush=True)
os.kill(os.getpid(), 9)
"""


def test_a_killed_nixa_leaves_no_tool_at_work_and_no_secret(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = subprocess.run(
        (sys.executable, "-c", KILLED, str(folder)), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    session = int(done.stdout)
    until = time.monotonic() + 20
    while folder.exists() or is_alive(session):
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.skipif(not Path("/proc/self/comm").exists(), reason="processes are found by /proc")
def test_a_killed_nixa_ends_its_shared_connections_and_nobody_elses_process(tmp_path: Path) -> None:
    folder, program = tmp_path / "run", tmp_path / "ssh"
    folder.mkdir()
    shutil.copy(shutil.which("sleep") or "", program)
    code = "import os, sys; from pathlib import Path; from nixa_tasks.process.run import LocalProcesses\n"
    code += "process = LocalProcesses(); process.remove_at_death(Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    with (
        subprocess.Popen((f"ssh: {folder}/socket [mux]", "100"), executable=program) as master,
        subprocess.Popen((f"tail -f {folder}/log", "100"), executable=shutil.which("sleep")) as person,
    ):
        try:
            subprocess.run((sys.executable, "-c", code, str(folder)), timeout=60, check=False)
            assert master.wait(20) == -signal.SIGTERM
            time.sleep(2)  # past what ends by force
            assert person.poll() is None
            assert not folder.exists()
        finally:
            person.kill()
            master.kill()
