"""From the journal's lines to runs, failures and savings: also where lines are cut, damaged or missing."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from nixa_tasks.errors import Interrupted, NixaError
from nixa_tasks.fleet.report.records import Record, find_log, parse, parse_line, read_journal
from nixa_tasks.fleet.report.runs import account, failures, latest, runs
from nixa_tasks.process.run import LocalProcesses
from nixa_tasks.state.journal import Journal, Kind
from nixa_tasks.state.layout import Layout

DISKO_FAILED = "the disk is busy"


def journal_of_two_runs(path: Path) -> tuple[str, str]:
    """A deploy of two hosts, of which one fails, and a second that mends it. The runs' names."""
    first = Journal(path, LocalProcesses().clock)
    with first.step("", "evaluate", "2 hosts"):
        pass
    with first.step("web1", "deploy"):
        first.note("web1", "decide", "install: it does not run NixOS")
        with first.step("web1", "reach"):
            pass
    with pytest.raises(NixaError), first.step("web2", "deploy"), first.step("web2", "disko"):
        raise NixaError(DISKO_FAILED)
    second = Journal(path, LocalProcesses().clock)
    with second.step("web2", "deploy"):
        pass
    return first.run, second.run


def test_what_the_journal_wrote_is_read_back_as_runs_newest_first(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    names = journal_of_two_runs(path)
    second, first = runs(read_journal(path).recent)
    assert (first.id, second.id) == names
    assert [lane.name for lane in first.lanes] == ["", "web1", "web2"]
    assert [lane.outcome for lane in first.lanes] == ["done", "done", "failed"]
    assert first.lanes[1].decision == "install: it does not run NixOS"
    assert [one.step for one in first.lanes[1].stages] == ["reach"]
    assert first.outcome == "failed"
    assert first.what == "deploy"
    assert [lane.name for lane in first.hosts] == ["web1", "web2"]
    assert 0 <= first.seconds < 60


def test_the_run_that_makes_the_report_is_not_in_it(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    first, second = journal_of_two_runs(path)
    assert [run.id for run in runs(read_journal(path).recent, without=second)] == [first]


def test_a_failure_names_the_step_and_its_reason_and_that_a_later_run_mended_it(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    first, _ = journal_of_two_runs(path)
    (failure,) = failures(runs(read_journal(path).recent), lambda host, run: None)
    assert (failure.host, failure.run, failure.step, failure.text) == ("web2", first, "disko", DISKO_FAILED)
    assert failure.is_over
    (again,) = failures(runs(read_journal(path).recent)[1:], lambda host, run: None)
    assert not again.is_over


@pytest.mark.parametrize(("failed", "later", "is_over"), [
    ("deploy", "deploy", True), ("deploy", "reinstall", True), ("deploy", "rollback", False),
    ("deploy", "build", False), ("deploy", "reach", False), ("rollback", "deploy", False), ("build", "build", True),
    ("kexec", "checksum", False),
])  # fmt: skip
def test_a_command_of_another_kind_makes_up_for_no_failure(
    tmp_path: Path, failed: str, later: str, is_over: bool
) -> None:
    path = tmp_path / "journal.jsonl"
    with pytest.raises(NixaError), Journal(path, LocalProcesses().clock).step("web1", failed):
        raise NixaError("it broke")
    with Journal(path, LocalProcesses().clock).step("web1", later):
        pass
    (failure,) = failures(runs(read_journal(path).recent), lambda host, run: None)
    assert failure.is_over == is_over


def test_a_killed_run_has_steps_without_an_end(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal_of_two_runs(path)
    lines = path.read_bytes().splitlines()
    (run,) = runs(parse(lines[: [b'"disko"' in line for line in lines].index(True) + 1]))
    assert run.outcome == "open"
    assert [(one.step, one.outcome) for one in run.lanes[-1].spans] == [("deploy", "open"), ("disko", "open")]


def test_an_end_whose_beginning_was_cut_off_tells_it_by_its_length() -> None:
    (run,) = runs([Record(1000.0, "r", Kind.END, "web1", "copy", outcome="done", seconds=30.0)])
    assert (run.start, run.end) == (970.0, 1000.0)


def test_a_stopped_step_is_no_failure(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl", LocalProcesses().clock)
    with pytest.raises(Interrupted), journal.step("web1", "deploy"):
        raise Interrupted("stopped")
    found = runs(read_journal(journal.path).recent)
    assert found[0].outcome == "stopped"
    assert failures(found, lambda host, run: None) == ()


def test_looking_is_not_the_latest_run_where_one_worked_on_a_host(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    _, deployed = journal_of_two_runs(path)
    with Journal(path, LocalProcesses().clock).step("", "evaluate"):
        pass
    assert latest(runs(read_journal(path).recent)).id == deployed


GOOD: dict[str, object] = {"at": "2026-01-02T03:04:05Z", "run": "r", "event": "end", "host": "h", "step": "s"}


DAMAGE: tuple[dict[str, object], ...] = (
    {"at": None}, {"at": "yesterday"}, {"event": "party"},
    {"event": []}, {"host": 1}, {"run": None}, {"step": {}}, {"seconds": "long"}, {"seconds": []}, {"text": 7},
)  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"{", b"null", b"[]", b"1", b'"x"', b"\xff\xfe", b"[" * 100_000),
        *(json.dumps(GOOD | change).encode() for change in DAMAGE),
    ],
)
def test_a_damaged_line_is_one_that_is_not_there(line: bytes) -> None:
    assert parse_line(json.dumps(GOOD).encode()) is not None
    assert parse_line(line) is None


@pytest.mark.parametrize("seconds", ["NaN", "Infinity", "-Infinity", "-5", "1e300"])
def test_an_absurd_duration_is_bounded(seconds: str) -> None:
    record = parse_line(json.dumps(GOOD).encode()[:-1] + f', "seconds": {seconds}}}'.encode())
    assert record is not None
    assert 0 <= record.seconds <= 31 * 86400


def test_a_long_journal_is_read_in_a_moment_and_its_last_runs_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    line = {"at": "2026-01-02T03:04:05.678Z", "pid": 1, "event": "end", "outcome": "done", "seconds": 1.5}
    with path.open("w") as file:
        for number in range(100_000):
            one = line | {"run": f"{number // 100:012x}", "host": f"web{number % 50}", "step": "copy"}
            file.write(json.dumps(one) + "\n")
    journal_of_two_runs(path)
    with path.open("a") as file:
        file.write('{"at": "2026-01-02T03:04')
    started = time.process_time()
    found = runs(read_journal(path).recent)
    assert time.process_time() - started < 4.0, "processor time; some 0.5 s alone"
    assert len(found) == 20
    assert found[0].what == "deploy"
    assert all(len(run.lanes) == 50 for run in found[2:])


def test_what_a_cut_upload_left_is_not_among_the_bytes_that_travelled(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl", LocalProcesses().clock)
    with journal.step("web1", "upload") as step:
        step.sha256, step.size = "ab" * 32, 100
        for done in (40, 70, 60, 100):  # going on at 40; cut at 70, of which 60 are there
            step.progress(done, 100)
        step.downloaded(7)
    (record,) = read_journal(journal.path).files
    assert (record.sha256, record.moved, record.size) == ("ab" * 32, 30 + 40, 100)
    assert record.upstream == 7


def moved(step: str, host: str, count: int, outcome: str = "done") -> Record:
    return Record(1.0, "r", Kind.END, host, step, "", outcome, 1.0, "ab" * 32, count, 1000)


def test_three_installations_by_one_download_save_two() -> None:
    (image,) = account([
        moved("kexec", "x86_64-linux", 1000), *(moved("upload", f"web{n}", 1000) for n in range(3)),
    ])  # fmt: skip
    assert (image.name, image.needed, image.downloaded) == ("x86_64-linux", 3, 1000)
    assert (image.saved_download, image.saved_upload) == (2000, 0)


def test_what_was_fetched_and_never_used_saves_nothing() -> None:
    (image,) = account([moved("kexec", "x86_64-linux", 1000), moved("upload", "web1", 400, "failed")])
    assert (image.needed, image.saved_download, image.saved_upload) == (0, 0, 0)


def test_what_the_hosts_fetch_by_themselves_is_downloaded_and_not_sent() -> None:
    pulled = replace(moved("upload", "web1", 0), upstream=1000)
    (image,) = account([moved("kexec", "x86_64-linux", 1000), pulled, moved("upload", "web2", 0)])
    assert (image.needed, image.downloaded, image.uploaded) == (2, 2000, 0)
    assert (image.saved_download, image.saved_upload) == (0, 2000)


def test_an_image_that_is_not_downloaded_saves_no_download() -> None:
    (image,) = account([moved("upload", "web1", 600)])
    assert not image.is_remote
    assert (image.saved_download, image.saved_upload) == (0, 400)


def test_a_failures_log_is_found_by_its_run_and_a_name_from_the_journal_is_no_path(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    folder = layout.host("web1").logs
    folder.mkdir(parents=True)
    (folder / "20260102T030405Z-deploy-0123456789ab.log").write_text("".join(f"{n}\n" for n in range(40)))
    log = find_log(layout, "web1", "0123456789ab")
    assert log is not None
    assert log.path == ".nixa/hosts/web1/log/20260102T030405Z-deploy-0123456789ab.log"
    assert log.tail[-1] == "39"
    assert len(log.tail) < 40
    assert find_log(layout, "web1", "ffffffffffff") is None
    for hostile in ("*", "../x", "", "0123456789ab\n"):
        assert find_log(layout, "web1", hostile) is None
