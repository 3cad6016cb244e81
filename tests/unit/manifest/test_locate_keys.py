"""The lines of keys, also in files that are broken elsewhere."""

from __future__ import annotations

import pytest

from nixa_tasks.manifest.locate import locate
from nixa_tasks.manifest.problems import KeyPath


@pytest.mark.parametrize(
    ("text", "path", "line"),
    [
        ("a = 1\n[b]\nc = 2\n", ("b", "c"), 3),
        ("a = 1\n[b]\nc = 2\n", ("b",), 2),
        ("a = 1\n\n[b]\nc = 2\n", ("b", "missing"), 3),
        ("\n\n[b.c.d]\n", ("b", "c"), 3),
        ("b . \"c d\" . 'e' = 1\n", ("b", "c d", "e"), 1),
        ('"\\u0061" = 1\n', ("a",), 1),
        ("b = [\n 1, # one\n\n 2,\n]\n", ("b", 1), 4),
        ("b = [\n { c = 1 },\n { c = 2,\n   d.e = 3 }]\n", ("b", 1, "d", "e"), 4),
        ("[[b]]\nc = 1\n[[b]]\nc = 2\n[b.d]\ne = 3\n", ("b", 1, "c"), 4),
        ("[[b]]\nc = 1\n[[b]]\nc = 2\n[b.d]\ne = 3\n", ("b", 1, "d", "e"), 6),
        ('b = """\nc = 1\n"""\nc = 2\n', ("c",), 4),
        ("b = '''it''s \"\"\" '''\nc = 2\n", ("c",), 2),
        ('b = """ends in quotes"""""\nc = 2\n', ("c",), 2),
        ('b = "a # no comment \\" still" # one\nc = 2\n', ("c",), 2),
        ("a = 1979-05-27 07:32:00 # x\r\nc = 2\r\n", ("c",), 2),
        # After what is not understood it goes on at the next line.
        ("b = \nc = 2\n", ("c",), 2),
        ("b c\n[d\ne = 1\n[f]\ng = 2\n", ("f", "g"), 5),
        ("[a]\n[b\nc = 1\n", ("c",), 3),
        ("no such key\n", ("b",), 1),
    ],
)
def test_a_key_is_found_in_its_line(text: str, path: KeyPath, line: int) -> None:
    assert locate(text).line(path) == line


def test_keys_of_a_broken_header_do_not_go_to_the_table_before() -> None:
    assert ("a", "c") not in locate("[a]\n[b\nc = 1\n").entries


def test_an_entry_spans_exactly_its_value() -> None:
    text = 'a = [ 1, "]" ] # x\n[t]\nb = { c = "}" }\r\nd   =   1_000   # x\ne = 1979-05-27 07:32:00\n'
    entries = locate(text).entries
    spans = {
        path[-1]: text[entry.value : entry.end] for path, entry in entries.items() if not entry.is_header
    }
    assert spans == {
        "a": '[ 1, "]" ]',
        0: "1",
        1: '"]"',
        "b": '{ c = "}" }',
        "c": '"}"',
        "d": "1_000",
        "e": "1979-05-27 07:32:00",
    }


def test_what_is_there_twice_is_told() -> None:
    found = locate("a = 1\na = 2\n[b]\n[b]\nc = { d = 1, d = 2 }\n")
    assert [(path, found.line_at(entry.part)) for path, entry in found.duplicates] == [
        (("a",), 2),
        (("b",), 4),
        (("b", "c", "d"), 5),
    ]
