"""The page is whole, readable and self-contained, whatever there is to tell."""

from __future__ import annotations

import re
from importlib import resources

import pytest

from nixa_tasks.deploy.decide import Action, State
from nixa_tasks.fleet.report.page import Report, Row, render
from nixa_tasks.fleet.report.records import Log, Record
from nixa_tasks.fleet.report.runs import Failure, Image, Run, runs
from nixa_tasks.fleet.report.timeline import MOST_LANES
from nixa_tasks.fleet.status import Standing
from nixa_tasks.manifest.model import Host
from nixa_tasks.state.journal import Kind
from nixa_tasks.state.receipt import How, Outcome, Receipt
from tests.html_document import Element, read

EMPTY = Report("infra", 1.7e9, (), (), (), (), None)
WANTED = "/nix/store/" + "a" * 32 + "-nixos-system-web1-25.11"
RUNS = "/nix/store/" + "b" * 32 + "-nixos-system-web1-25.05"
STYLE = (resources.files("nixa_tasks.fleet.report") / "style.css").read_text()


def row() -> Row:
    receipt = Receipt(
        "203.0.113.1", "k", RUNS, RUNS, None, How.INSTALL, None, None, "2026-01-02T03:04:05Z", 95.0, "lena@here",
        Outcome.DONE,
    )  # fmt: skip
    host = Host("web1", "203.0.113.1", user="deploy", port=2222, tags=("web", "prod"))
    return Row(
        host,
        Standing("web1", WANTED, RUNS, None, State.STALE, Action.ASK, "has a new output", is_live=False),
        receipt,
    )


def a_run(hosts: int = 1, outcome: str = "done") -> tuple[Run, ...]:
    records = []
    for number in range(hosts):
        host, ends = f"web{number}", outcome if number == hosts - 1 else "done"
        records += [
            Record(1000.0, "r", Kind.BEGIN, host, "deploy"),
            Record(1000.0, "r", Kind.BEGIN, host, "copy"),
            Record(1030.0, "r", Kind.END, host, "copy", "it broke", ends, 30.0),
            Record(1040.0, "r", Kind.BEGIN, host, "switch"),
            Record(1100.0, "r", Kind.END, host, "switch", "", "done", 60.0),
            Record(1100.0, "r", Kind.END, host, "deploy", "", ends, 100.0),
        ]
    return runs(records)


def full() -> Report:
    failure = Failure(
        "web1", "r", "copy", 1030.0, "it broke", Log(".nixa/hosts/web1/log/x.log", ("last",)), False
    )
    image = Image("ab" * 32, "x86_64-linux", 350_000_000, 3, 350_000_000, 1_050_000_000, True)
    return Report("infra", 1.7e9, (row(),), a_run(2, "failed"), (failure,), (image,), 900.0)


def words(element: Element) -> str:
    return " ".join(element.text.split())


@pytest.mark.parametrize("report", [EMPTY, full()], ids=["empty", "full"])
def test_the_page_is_one_document_that_loads_and_runs_nothing(report: Report) -> None:
    page = render(report)
    document = read(page)
    assert page.startswith("<!DOCTYPE html>")
    (html,) = document.all("html")
    assert html.attributes["lang"] == "en"
    assert words(document.all("title")[0]) == "infra: fleet report"
    assert len(document.all("h1")) == 1
    assert not document.all("script") + document.all("link") + document.all("img")
    assert not re.search(r"(?i)\b(src|href|action)=|url\(|@import", page)
    policy = next(
        one for one in document.all("meta") if one.attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert "default-src 'none'" in (policy.attributes["content"] or "")


@pytest.mark.parametrize("report", [EMPTY, full()], ids=["empty", "full"])
def test_every_heading_cell_says_what_it_heads_and_every_section_has_a_name(report: Report) -> None:
    document = read(render(report))
    assert all(cell.attributes.get("scope") in ("col", "row", "rowgroup") for cell in document.all("th"))
    assert all(table.all("caption") for table in document.all("table"))
    ids = [one.attributes["id"] for one in document.every() if "id" in one.attributes]
    assert len(ids) == len(set(ids))
    assert [one.attributes["aria-labelledby"] for one in document.all("section")] == ids


def test_a_project_without_runs_or_hosts_is_told_what_to_do() -> None:
    text = words(read(render(EMPTY)))
    assert "[hosts.NAME]" in text
    assert "doit deploy" in text


def test_a_hosts_row_tells_how_it_stands() -> None:
    (table,) = read(render(full())).all("table", "fleet")
    (line,) = table.all("tbody")[0].all("tr")
    cells = {cell.attributes["data-label"]: words(cell) for cell in line.all("td")}
    assert words(line.all("th")[0]) == "web1"
    assert cells == {
        "Target": "deploy@203.0.113.1 port 2222",
        "Tags": "webprod",
        "State": "● stale",
        "Last deploy": "2026-01-02 03:04 UTC ✓ doneinstall in 1 min 35 s, by lena@here",
        "Wanted": "aaaaaaa 25.11",
        "Runs": "bbbbbbb 25.05",
    }
    assert [one.attributes.get("title") for one in line.all("code")][1:] == [WANTED, RUNS]


def test_bars_stand_where_and_are_as_long_as_the_stages_were() -> None:
    (table,) = read(render(full())).all("table", "gantt")
    bars = table.all("ol")[-1].all("li")
    assert [bar.attributes["title"] for bar in bars] == ["copy: 30 s, failed", "switch: 1 min 00 s"]
    assert [bar.attributes["style"] for bar in bars] == [
        "left:0.00%;width:30.00%",
        "left:40.00%;width:60.00%",
    ]
    assert "failed" in (bars[0].attributes["class"] or "").split()
    assert "it broke" in words(table)


def test_a_failure_tells_where_its_log_lies_and_how_that_ends() -> None:
    (item,) = read(render(full())).all("ul", "failures")[0].all("li")
    assert "web1: copy" in words(item)
    assert "it broke" in words(item)
    assert ".nixa/hosts/web1/log/x.log" in words(item)
    assert words(item.all("pre")[0]) == "last"


def test_what_the_cache_saved_is_told_in_bytes() -> None:
    (table,) = read(render(full())).all("table", "cache")
    assert [words(cell) for cell in table.all("td")] == ["350 MB", "3", "350 MB", "700 MB", "1.1 GB", "0 B"]


def test_a_huge_run_shows_what_failed_and_says_how_much_it_left_out() -> None:
    report = Report("infra", 1.7e9, (), a_run(MOST_LANES + 20, "failed"), (), (), None)
    document = read(render(report))
    (table,) = document.all("table", "gantt")
    names = [words(line.all("th")[0]) for line in table.all("tbody")[0].all("tr")]
    assert len(names) == MOST_LANES
    assert names[0] == f"web{MOST_LANES + 19}"
    assert "and 20 more" in words(document)


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(one * 2 for one in colour[1:])
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """As WCAG 2 defines it."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_has_the_contrast_that_wcag_aa_asks_for(scheme: int) -> None:
    colours = dict(
        re.findall(r"--([\w-]+):(#[0-9a-f]{3,6})", STYLE.split(":root{")[1 + scheme].split("}")[0])
    )
    tones = ("good", "todo", "bad", "quiet", "look", "build", "send", "change", "check")
    pairs = [(ink, ground) for ink in ("ink", "soft", "bad") for ground in ("bg", "card")]
    pairs += [(tone, f"{tone}-bg") for tone in tones]
    assert [(a, b) for a, b in pairs if contrast(colours[a], colours[b]) < 4.5] == []
    assert [tone for tone in tones if contrast(colours[tone], colours["card"]) < 3] == []
