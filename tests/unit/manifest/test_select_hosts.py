"""Choosing hosts: what an expression means, and where exactly it is wrong."""

from __future__ import annotations

import pytest

from nixa_tasks.errors import EXIT_USAGE
from nixa_tasks.manifest.model import Host
from nixa_tasks.manifest.select import SelectionError, select

HOSTS = {
    name: Host(name, name, tags=tags)
    for name, tags in {
        "web1": ("web", "prod"),
        "web2": ("web", "stage"),
        "web3": ("web", "prod", "canary"),
        "db-1": ("db", "prod"),
        "db-2": ("db", "stage"),
        "alone": (),
    }.items()
}


@pytest.mark.parametrize(
    ("expression", "chosen"),
    [
        ("web1", "web1"),
        ("@web", "web1 web2 web3"),
        ("@web and not web3", "web1 web2"),
        ("web*", "web1 web2 web3"),
        ("*", "web1 web2 web3 db-1 db-2 alone"),
        ("@*", "web1 web2 web3 db-1 db-2"),
        ("not @*", "alone"),
        ("@c*", "web3"),
        ("db-?", "db-1 db-2"),
        ("web[12]", "web1 web2"),
        ("web[!12]", "web3"),
        ("db-2 or web1", "web1 db-2"),
        ("@web or @db and @stage", "web1 web2 web3 db-2"),
        ("(@web or @db) and @stage", "web2 db-2"),
        ("not @web and not @db", "alone"),
        ("not not web1", "web1"),
        ("not (not (web1))", "web1"),
        ("not @web or @canary", "web3 db-1 db-2 alone"),
        ("  (web1)or(web2)  ", "web1 web2"),
        ("@prod and(@web)\tand\nnot @canary", "web1"),
    ],
)
def test_an_expression_chooses_in_the_manifest_s_order(expression: str, chosen: str) -> None:
    assert select(expression, HOSTS) == tuple(chosen.split())


@pytest.mark.parametrize(
    ("expression", "position", "reason"),
    [
        ("", 0, "a host, a tag or `(` is missing at the end"),
        ("   ", 3, "a host, a tag or `(` is missing at the end"),
        ("web1 and", 8, "a host, a tag or `(` is missing at the end"),
        ("and web1", 0, "a host, a tag or `(` is missing before `and`"),
        ("web1 or or web2", 8, "a host, a tag or `(` is missing before `or`"),
        ("not", 3, "a host, a tag or `(` is missing at the end"),
        ("()", 1, "a host, a tag or `(` is missing before `)`"),
        ("web1 web2", 5, "`and` or `or` is missing before `web2`"),
        ("(web1", 5, "the `)` is missing for the `(` at character 1"),
        ("(web1 web2)", 6, "`and`, `or` or `)` is missing for the `(` at character 1"),
        ("web1)", 4, "a `)` without its `(`"),
        ("web1 and wbe2", 9, "no host is called `wbe2`: did you mean `web2`?"),
        ("@wbe", 0, "no tag is called `@wbe`: did you mean `@web`?"),
        ("@", 0, "no tag is called `@`"),
        ("prod", 0, "no host is called `prod`: did you mean the tag `@prod`?"),
        ("WEB1", 0, "no host is called `WEB1`: did you mean `web1`?"),
        ("@web and x*", 9, "no host matches `x*`"),
        ("@web or @x*", 8, "no tag matches `@x*`"),
        ("@web and @db", 0, "`@web and @db` matches no host"),
        ("web1,web2", 0, "no host is called `web1,web2`"),
        ("web1\x1b[2J", 0, "no host matches `web1\\x1b[2J`"),
        ("(" * 200 + "web1", 101, "nested more than 100 deep"),
    ],
)
def test_a_wrong_expression_says_what_and_where(expression: str, position: int, reason: str) -> None:
    with pytest.raises(SelectionError) as caught:
        select(expression, HOSTS)
    assert caught.value.reason.startswith(reason)
    assert caught.value.position == position
    assert caught.value.exit_status == EXIT_USAGE
    assert "\x1b" not in caught.value.render()


def test_the_caret_stands_below_the_word() -> None:
    with pytest.raises(SelectionError) as caught:
        select("@web and wbe2 or web1", HOSTS)
    line, caret = caught.value.tail
    assert line[caret.index("^") :].startswith("wbe2")


def test_a_long_row_of_nots_and_words_is_no_trouble() -> None:
    assert select("not " * 20_000 + "web1", HOSTS) == ("web1",)
    assert select(" or ".join(["web1"] * 20_000), HOSTS) == ("web1",)
