"""Whatever machines, tools and a damaged journal say, the page stays the page."""

from __future__ import annotations

import json
import re

from hypothesis import example, given
from hypothesis import strategies as st

from nixa_tasks.deploy.decide import Action, State
from nixa_tasks.fleet.report.page import Report, Row, clean, environment, render
from nixa_tasks.fleet.report.records import Log, parse
from nixa_tasks.fleet.report.runs import account, failures, runs
from nixa_tasks.fleet.status import Standing
from nixa_tasks.manifest.model import Host
from nixa_tasks.state.receipt import How, Outcome, Receipt
from tests.html_document import read

ENGINE = environment()


def make(report: Report) -> str:
    return render(report, ENGINE)


ATTRIBUTES = frozenset({
    "aria-hidden", "aria-label", "aria-labelledby", "charset", "class", "content", "data-label", "datetime",
    "http-equiv", "id", "lang", "name", "open", "rowspan", "scope", "style", "title",
})  # fmt: skip
TAGS = frozenset({
    "b", "body", "caption", "code", "dd", "details", "div", "dl", "dt", "footer", "h1", "h2", "h3", "head",
    "header", "html", "i", "li", "main", "meta", "ol", "p", "pre", "section", "small", "span", "style",
    "summary", "table", "tbody", "td", "th", "thead", "time", "title", "tr", "ul",
})  # fmt: skip
CLASSES = re.compile(r"[a-z ]*")
STYLES = re.compile(r"(left|width|--tick):\d+\.\d\d%(;width:\d+\.\d\d%)?")
FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
ATTACKS = (
    "<script>alert(1)</script>", "</title><script>", '" onmouseover="alert(1)', "' autofocus='", "]]>", "<!--",
    "-->", "</style>", "&lt;b&gt;", "&#0;", "\x00\x1b[31m\x07", "\ud800", "\u202egnp.exe", "\u2028", "%s{}",
    "../../etc/passwd", "`", "=", "<",
)  # fmt: skip
# Any code point at all, lone surrogates among them: a journal's \ud800 is one.
CHARACTERS = st.characters(codec=None, categories=None)
HOSTILE = (
    st.sampled_from(ATTACKS) | st.text(CHARACTERS, max_size=40) | st.sampled_from(ATTACKS).map(str.upper)
)
STATES = st.sampled_from(State)
TIMES = st.sampled_from(
    ["2026-01-02T03:04:05Z", "2026-01-02T03:04:05.5Z", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z",
     "0001-01-01T00:00:00+23:59"]
)  # fmt: skip


def page_full_of(text: str, state: State, outcome: str) -> str:
    """A page in which every text that comes from elsewhere is that one."""
    lines = [
        json.dumps({"at": at, "run": "r", "event": event, "host": text, "step": step, "text": text,
                    "outcome": outcome, "seconds": 2.5, "sha256": sha256, "bytes": 1, "size": 10}).encode()
        for at, event, step, sha256 in (
            ("2026-01-02T03:04:05Z", "begin", "deploy", ""), ("2026-01-02T03:04:05Z", "begin", text, ""),
            ("2026-01-02T03:04:05Z", "note", "decide", ""), ("2026-01-02T03:04:06Z", "end", text, text),
            ("2026-01-02T03:04:07Z", "end", "upload", text), ("2026-01-02T03:04:07Z", "end", "deploy", ""),
        )
    ]  # fmt: skip
    records = list(parse(lines))
    found = runs(records)
    receipt = Receipt(text, text, text, text, text, How.SWITCH, text, text, text, 1.0, text, Outcome.FAILED)
    host = Host(text, text, user=text, port=1, tags=(text,))
    rows = (
        Row(
            host,
            Standing(text, text, f"/nix/store/{text}", text, state, Action.ASK, text, is_live=True),
            receipt,
        ),
    )
    broken = failures(found, lambda _host, _run: Log(text, (text, text)))
    return make(Report(text, 1.7e9, rows, found, broken, account(records), 1.6e9, is_live=True))


@given(HOSTILE, STATES, st.sampled_from(["done", "failed", "stopped"]) | HOSTILE)
@example("<script>alert(1)</script>", State.FAILED, "failed")
@example('"\x00\ud800', State.HELD, "done")
def test_hostile_words_stay_words(text: str, state: State, outcome: str) -> None:
    page = page_full_of(text, state, outcome)
    page.encode()
    assert not FORBIDDEN.search(page)
    document = read(page)
    for one in document.every():
        assert one.tag in TAGS
        assert set(one.attributes) <= ATTRIBUTES
        assert CLASSES.fullmatch(one.attributes.get("class") or "")
        assert STYLES.fullmatch(one.attributes.get("style") or "left:0.00%")
    assert len(document.all("style")) == 1
    shown = document.all("table", "fleet")[0].all("tbody")[0].all("th")[0].text
    assert shown == clean(text)


@given(HOSTILE | TIMES, st.floats(), STATES)
def test_any_receipt_and_any_state_make_a_row(text: str, seconds: float, state: State) -> None:
    receipt = Receipt("t", "k", text, text, None, How.ADOPT, None, None, text, seconds, text, Outcome.DONE)
    row = Row(
        Host("web1", "t"), Standing("web1", text, text, None, state, Action.ASK, text, is_live=False), receipt
    )
    read(make(Report("x", 1.7e9, (row,), (), (), (), None)))


@given(HOSTILE)
def test_a_text_and_an_attribute_are_read_back_as_they_were(text: str) -> None:
    template = ENGINE.from_string('<p title="{{ text }}">{{ text }}</p>')
    (one,) = read(template.render(text=text)).children
    assert one.text == clean(text)
    assert one.attributes == {"title": clean(text)}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | HOSTILE,
    lambda inner: st.lists(inner, max_size=3),
)
EVENTS = st.fixed_dictionaries(
    {"at": TIMES | JSON, "run": st.sampled_from(["a", "b"]),
     "event": st.sampled_from(["begin", "end", "note", "progress"]), "host": st.sampled_from(["", "web1", "web2"]),
     "step": st.sampled_from(["deploy", "upload", "kexec", "decide", "x"])},
    optional=dict.fromkeys(("text", "outcome", "seconds", "sha256", "bytes", "size"), JSON),
).map(lambda value: json.dumps(value).encode())  # fmt: skip


@given(st.lists(EVENTS | st.binary(max_size=60), max_size=25))
def test_any_journal_makes_a_page(lines: list[bytes]) -> None:
    records = list(parse(lines))
    found = runs(records)
    broken = failures(found, lambda _host, _run: None)
    read(make(Report("x", 1.7e9, (), found, broken, account(records), None)))
