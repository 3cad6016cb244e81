"""What the rules of the house look at: the modules, what they import, define and keep."""

from __future__ import annotations

import ast
import ctypes
import functools
import importlib
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from datetime import timedelta
from enum import Enum
from functools import cached_property
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path, PurePath
from types import MappingProxyType, ModuleType
from typing import Any

import nixa_tasks

ROOT = Path(nixa_tasks.__file__).parent
PACKAGE = ROOT.name
Function = ast.FunctionDef | ast.AsyncFunctionDef

_MUTATORS = frozenset(
    ("append", "extend", "insert", "add", "update", "setdefault", "pop", "popitem", "remove", "discard", "clear")
)  # fmt: skip
_ATOMS = (str, bytes, int, float, complex, type(None), type(...), re.Pattern, PurePath, Enum, type, range,
          IPv4Network, IPv6Network, ctypes.CDLL, timedelta)  # fmt: skip
_CODE = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, ModuleType)


@dataclass(frozen=True)
class Module:
    """One file of the package."""

    name: str
    path: Path

    @property
    def room(self) -> str:
        """The folder below the package that it lies in; its own name for what lies in none."""
        return self.name.split(".")[1]

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.path.read_text())

    @property
    def is_only_a_docstring(self) -> bool:
        return self.path.name == "__init__.py" and all(isinstance(one, ast.Expr) for one in self.tree.body)


def modules() -> dict[str, Module]:
    """Every module of the package that users get, by its dotted name."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name != PACKAGE:
            found[name] = Module(name, path)
    return found


def imports(module: Module, known: Mapping[str, Module]) -> set[str]:
    """The package's own modules that it imports: at the top, in functions, and for type checkers."""
    found: set[str] = set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(module, node)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.add(inner if inner in known else base)
    return {name for name in found if name in known and name != module.name}


def _absolute(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    is_package = module.path.name == "__init__.py"
    parts = module.name.split(".")
    base = parts[: len(parts) - node.level + is_package]
    return ".".join([*base, *([node.module] if node.module else [])])


def circles(graph: Mapping[str, Iterable[str]]) -> list[tuple[str, ...]]:
    """The groups of nodes that reach each other, sorted (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[tuple[str, ...]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph.get(node, ())):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            at = stack.index(node)
            group = tuple(sorted(stack[at:]))
            del stack[at:]
            if len(group) > 1 or node in graph.get(node, ()):
                found.append(group)

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return sorted(found)


def functions(module: Module) -> Iterator[tuple[str, Function]]:
    """Every function with its dotted name, methods and inner ones too."""
    yield from _functions(module.name, module.tree)


def _functions(prefix: str, node: ast.AST) -> Iterator[tuple[str, Function]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function):
            name = f"{prefix}.{child.name}"
            yield name, child
            yield from _functions(name, child)
        elif isinstance(child, ast.ClassDef):
            yield from _functions(f"{prefix}.{child.name}", child)
        else:
            yield from _functions(prefix, child)


def lines(function: Function) -> int:
    """How long it is, from its `def` to its last line."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def parameters(function: Function) -> int:
    """How many it takes, `self` and `cls` not counted."""
    given = function.args
    names = [one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    names += [one.arg for one in (given.vararg, given.kwarg) if one is not None]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def mutable_values(module: Module) -> list[str]:
    """Module-level names that hold something that can change. A list, dict or set in capitals that
    its module never changes is a constant."""
    found = [name for name in module_names(module) if not _is_constant(module, name)]
    changed = {node.names[0] for node in ast.walk(module.tree) if isinstance(node, ast.Global)}
    cached = [
        node.name
        for node in module.tree.body
        if isinstance(node, Function)
        and any("cache" in ast.unparse(one) for one in node.decorator_list)
        and not parameters(node)  # a memo of a pure function is none; without arguments it is a variable
    ]
    return sorted({*found, *changed, *cached})


def module_names(module: Module) -> list[str]:
    """What the module's top level assigns, `if` and `try` included."""
    names: list[str] = []
    waiting = list(module.tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If | ast.Try | ast.With | ast.For):
            waiting += [one for one in ast.iter_child_nodes(node) if isinstance(one, ast.stmt)]
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign) and node.value is not None:
            targets = [node.target]
        names += [one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name)]
    return names


def _is_constant(module: Module, name: str) -> bool:
    value = getattr(importlib.import_module(module.name), name, None)
    if name == "__all__" or is_frozen(value):
        return True
    return name.isupper() and is_frozen(value, or_literal=True) and name not in _changed(module)


def _changed(module: Module) -> set[str]:
    """Names whose value the module changes in place, by a method or by an item."""
    found: set[str] = set()
    for node in ast.walk(module.tree):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=method)) if method in _MUTATORS:
                found.add(name)
            case ast.Subscript(value=ast.Name(id=name), ctx=ast.Store() | ast.Del()):
                found.add(name)
            case ast.AugAssign(target=ast.Name(id=name)):
                found.add(name)
    return found


def is_frozen(value: Any, *, or_literal: bool = False) -> bool:
    """Whether nothing can change it, as far as that can be seen; `or_literal`: lists, dicts and sets
    of such values pass too."""
    is_fine = functools.partial(is_frozen, or_literal=or_literal)
    if or_literal and isinstance(value, list | set | dict):
        return all(is_fine(one) for one in (value.values() if isinstance(value, dict) else value))
    if isinstance(value, _ATOMS + _CODE) or _is_typing(value) or value is MISSING:
        return True
    if isinstance(value, tuple | frozenset):
        return all(is_fine(one) for one in value)
    if isinstance(value, MappingProxyType):
        return all(is_fine(one) for one in value.values())
    if is_dataclass(value):
        is_fixed = bool(getattr(type(value), "__dataclass_params__").frozen)  # noqa: B009 -- not declared
        return is_fixed and all(is_fine(getattr(value, one.name)) for one in fields(value))
    return isinstance(value, functools.partial) and all(is_fine(one) for one in (*value.args, value.func))


def _is_typing(value: Any) -> bool:
    return type(value).__module__ in ("typing", "types") or hasattr(value, "__origin__")
