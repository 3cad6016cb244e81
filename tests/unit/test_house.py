"""The rules of the house that no linter knows: no circle, no hidden state, nothing too long.

`KNOWN` counts what a package still breaks. Its numbers only ever go down.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from tests.house import Module, circles, functions, imports, lines, modules, mutable_values, parameters

LONGEST_FUNCTION = 60
MOST_PARAMETERS = 8
MOST_MODULES = 110  # without the lab

# dodo.py is a user's file that happens to be ours: doit reads what stands at its top.
MODULES = {name: module for name, module in modules().items() if module.room != "dodo"}

KNOWN: Mapping[str, Mapping[str, int]] = {
    "circles": {},
    "mutable": {},
    "long": {},
    "parameters": {},
}


def offenders(rule: str, found: Iterable[str]) -> list[str]:
    """What breaks the rule in packages that break it more often than is known."""
    names = list(found)
    counts = Counter(name.split(".")[1] for name in names)
    return [name for name in names if counts[name.split(".")[1]] > KNOWN[rule].get(name.split(".")[1], 0)]


def test_no_module_imports_itself_through_others() -> None:
    graph = {name: imports(module, MODULES) for name, module in MODULES.items()}
    assert offenders("circles", (name for group in circles(graph) for name in group)) == []


def test_no_module_keeps_anything_that_can_change() -> None:
    found = (f"{name}.{value}" for name, module in MODULES.items() for value in mutable_values(module))
    assert offenders("mutable", found) == []


def test_no_function_is_longer_than_a_screen() -> None:
    found = (
        name
        for module in MODULES.values()
        for name, function in functions(module)
        if lines(function) > LONGEST_FUNCTION
    )
    assert offenders("long", found) == []


def test_no_function_takes_more_than_a_person_can_keep_apart() -> None:
    found = (
        name
        for module in MODULES.values()
        for name, function in functions(module)
        if parameters(function) > MOST_PARAMETERS
    )
    assert offenders("parameters", found) == []


def test_the_house_has_few_rooms() -> None:
    assert len(counted()) <= MOST_MODULES


def counted() -> list[Module]:
    return [one for one in MODULES.values() if one.room != "lab" and not one.is_only_a_docstring]
