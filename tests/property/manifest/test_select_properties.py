"""What holds for every selection: its meaning is the boolean one."""

from __future__ import annotations

import itertools

from hypothesis import example, given, settings
from hypothesis import strategies as st

from nixa_tasks.manifest.model import Host
from nixa_tasks.manifest.select import SelectionError, select

quickly = settings(max_examples=150, deadline=None)

NAMES = ("web1", "web2", "db1", "db2", "mail")
TAGS = ("web", "db", "prod")
fleets = st.lists(st.sets(st.sampled_from(TAGS)), min_size=5, max_size=5).map(
    lambda tags: {name: Host(name, name, tags=tuple(sorted(t))) for name, t in zip(NAMES, tags, strict=True)}
)
Tree = tuple[object, ...]
atoms: st.SearchStrategy[Tree] = st.sampled_from(
    [("name", name) for name in NAMES] + [("tag", tag) for tag in TAGS] + [("glob", "web"), ("glob", "")]
)
trees: st.SearchStrategy[Tree] = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.tuples(st.just("not"), inner),
        st.tuples(st.sampled_from(["and", "or"]), inner, inner),
    ),
    max_leaves=12,
)


def holds(tree: object, host: Host) -> bool:
    match tree:
        case ("name", str(name)):
            return host.name == name
        case ("tag", str(tag)):
            return tag in host.tags
        case ("glob", str(beginning)):
            return host.name.startswith(beginning)
        case ("not", part):
            return not holds(part, host)
        case ("and", left, right):
            return holds(left, host) and holds(right, host)
        case ("or", left, right):
            return holds(left, host) or holds(right, host)
    raise AssertionError(tree)


def text_of(tree: object, spare: bool, level: int = 0) -> str:
    """The expression, with no more parentheses than needed where `spare`. Levels: or, and, not."""
    match tree:
        case ("name", str(name)):
            return name
        case ("tag", str(tag)):
            return f"@{tag}"
        case ("glob", str(beginning)):
            return f"{beginning}*"
        case ("not", part):
            return f"not {text_of(part, spare, 2)}"
        case (str(word), left, right):
            own = 1 if word == "and" else 0
            text = f"{text_of(left, spare, own)} {word} {text_of(right, spare, own)}"
            return f"({text})" if level > own or not spare else text
    raise AssertionError(tree)


def tags_in(tree: object) -> set[str]:
    if isinstance(tree, tuple):
        return {str(tree[1])} if tree[0] == "tag" else set().union(*(tags_in(part) for part in tree[1:]))
    return set()


@quickly
@given(fleets, trees, st.booleans())
def test_a_selection_is_its_boolean_meaning(fleet: dict[str, Host], tree: Tree, spare: bool) -> None:
    wanted = tuple(name for name, host in fleet.items() if holds(tree, host))
    known = set(itertools.chain.from_iterable(host.tags for host in fleet.values()))
    expression = text_of(tree, spare)
    try:
        assert select(expression, fleet) == wanted
        assert wanted
        assert tags_in(tree) <= known
    except SelectionError:
        assert not wanted or not tags_in(tree) <= known


@quickly
@given(st.text(st.sampled_from("ab@()* \t,notrd[]!\n\x1b"), max_size=40))
@example("((((")
@example("not" * 50)
def test_any_text_is_a_selection_or_an_error_with_its_place(text: str) -> None:
    hosts = {"a": Host("a", "a", tags=("b",)), "ab": Host("ab", "ab")}
    try:
        assert set(select(text, hosts)) <= set(hosts)
    except SelectionError as error:
        assert 0 <= error.position <= len(text)
        assert error.render().replace("\n", "").isprintable()
