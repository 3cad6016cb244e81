"""The page: from what is known to one HTML document that needs nothing else. Pure."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nixa_tasks import text
from nixa_tasks.fleet.report.failures import Failure
from nixa_tasks.fleet.report.fleet_table import ATTENTION, Row, badge, fleet_table, when
from nixa_tasks.fleet.report.markup import Child, Html, element
from nixa_tasks.fleet.report.runs import Run, latest
from nixa_tasks.fleet.report.savings import Image
from nixa_tasks.fleet.report.timeline import timeline

# Nothing may be loaded, and nothing may run, whatever a host has said.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


@dataclass(frozen=True, slots=True)
class Report:
    """What the page tells. `made_at`, `since`: seconds since 1970; `since`: what is told of the
    cache begins there. `runs` and `failures` are newest first. `is_live`: the hosts were asked."""

    title: str
    made_at: float
    rows: tuple[Row, ...]
    runs: tuple[Run, ...]
    failures: tuple[Failure, ...]
    images: tuple[Image, ...]
    since: float | None
    is_live: bool = False


def render(report: Report) -> str:
    """The whole document."""
    title = f"{report.title}: fleet report"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        Html(f"<style>{_style()}</style>"),
    )
    body = element("body", element("header", _top(report)), element("main", _sections(report)), _foot())
    return "<!DOCTYPE html>\n" + element("html", head, body, lang="en").text + "\n"


@functools.cache
def _style() -> str:
    return Path(__file__).with_name("style.css").read_text(encoding="utf-8")


def _top(report: Report) -> Child:
    source = (
        "by asking the hosts" if report.is_live else "as remembered here; doit report --live asks the hosts"
    )
    return (
        element("h1", report.title, " ", element("span", "fleet report")),
        element("p", "Made ", when(report.made_at), ", ", source, class_="note"),
        _figures(report) if report.rows else None,
    )


def _figures(report: Report) -> Html:
    """The few things to know at once."""
    states = [row.standing.state for row in report.rows]
    current, bad = states.count("current"), sum(state in ATTENTION for state in states)
    saved = sum(image.saved_download + image.saved_upload for image in report.images)
    figures: list[tuple[str, Child, Child]] = [
        ("Hosts up to date", f"{current} of {len(states)}", _others(states)),
        ("Need attention", str(bad), "drifted, failed or away" if bad else "no host"),
    ]
    if report.runs:
        last = latest(report.runs)
        figures.append(("Last run", badge(last.outcome), (last.what, ", ", when(last.start))))
    if report.images:
        figures.append(("Saved by the cache", text.size(saved), "not downloaded, not sent again"))
    return element("dl", [
        element("div", element("dt", name), element("dd", value), element("dd", said, class_="note"))
        for name, value, said in figures
    ], class_="figures")  # fmt: skip


def _others(states: Sequence[str]) -> str:
    others = [state for state in dict.fromkeys(states) if state != "current"]
    return ", ".join(f"{states.count(state)} {state}" for state in others) or "all of them"


def _sections(report: Report) -> Child:
    return (
        _section("Fleet", fleet_table(report.rows) if report.rows else _no_host()),
        _section("What went wrong", _failures(report.failures)) if report.failures else None,
        _section("Runs", timeline(report.runs) if report.runs else _no_run()),
        _section("Image cache", _cache(report)) if report.images else None,
    )


def _section(name: str, *children: Child) -> Html:
    anchor = name.lower().replace(" ", "-")
    return element("section", element("h2", name, id=anchor), *children, aria_labelledby=anchor)


def _no_host() -> Html:
    return element("p", "hosts.toml declares no host yet. Add a table ", element("code", "[hosts.NAME]"),
                   " with its ", element("code", "target"), ".", class_="empty")  # fmt: skip


def _no_run() -> Html:
    return element(
        "div",
        element("p", "No run yet."),
        element("p", element("code", "doit plan"), " says what a deploy would do, and changes nothing. ",
                element("code", "doit deploy"), " does it. Then make this page again: ",
                element("code", "doit report"), "."),
        class_="empty",
    )  # fmt: skip


def _failures(failures: Sequence[Failure]) -> Html:
    return element("ul", [_failure(one) for one in failures], class_="failures")


def _failure(failure: Failure) -> Html:
    log = failure.log
    return element(
        "li",
        element("h3", failure.host or "flake", ": ", failure.step),
        element("p", when(failure.at), "; a later run ended well" if failure.is_over else "", class_="note"),
        element("p", failure.text or "no reason was noted", class_="reason"),
        element("p", "Whole log: ", element("code", log.path), class_="note") if log else None,
        element("details", element("summary", "last lines"), element("pre", "\n".join(log.tail)))
        if log and log.tail
        else None,
        class_="over" if failure.is_over else None,
    )


def _cache(report: Report) -> Child:
    head = (
        "Image",
        "Size",
        "Installations",
        "Downloaded",
        "Download saved",
        "Sent to hosts",
        "Sending saved",
    )
    since = (" since ", when(report.since)) if report.since is not None else ""
    return (
        element("p", "What the journal says", since, ": without the cache, each installation would fetch its "
                "image again.", class_="note"),
        element(
            "table",
            element("caption", "Bytes that the image cache saved", class_="unseen"),
            element("thead", element("tr", [
                element("th", one, scope="col", class_="num" if number else None)
                for number, one in enumerate(head)
            ])),
            element("tbody", [_image(image, head) for image in report.images]),
            class_="cards cache",
        ),
    )  # fmt: skip


def _image(image: Image, head: Sequence[str]) -> Html:
    size = text.size(image.size) if image.size else "-"
    cells = (
        size,
        str(image.needed),
        text.size(image.downloaded) if image.is_remote else "not from a URL",
        text.size(image.saved_download) if image.is_remote else "-",
        text.size(image.uploaded),
        text.size(image.saved_upload),
    )
    name = (
        element("span", image.name or "image"),
        " ",
        element("code", image.sha256[:12], title=image.sha256),
    )
    return element(
        "tr",
        element("th", name, scope="row"),
        [
            element("td", element("div", cell), data_label=label, class_="num")
            for label, cell in zip(head[1:], cells, strict=True)
        ],
    )


def _foot() -> Html:
    return element(
        "footer", element("p", "Made by nixa. Times are UTC. This page loads nothing and runs nothing.")
    )
