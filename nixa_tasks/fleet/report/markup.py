"""HTML as values: text is escaped because it is text, and only markup made here is not.

What hosts and tools say ends up in the page, so no string gets there by another way.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from dataclasses import dataclass

_LONGEST = 2000
# Control characters, lone surrogates and non-characters are not allowed in HTML; bidirectional
# controls would show a text in another order than it has.
_ODD = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"
)
_VOID = frozenset({"meta", "br", "hr"})


@dataclass(frozen=True, slots=True)
class Html:
    """Markup that is known to be well-formed."""

    text: str


Child = Html | str | int | None | Iterable["Child"]


def clean(text: str) -> str:
    """The text with every character visible and allowed, cut where it is absurdly long."""
    if len(text) > _LONGEST:
        text = text[:_LONGEST] + "…"
    return _ODD.sub(lambda odd: _visible(ord(odd[0])), text)


def _visible(code: int) -> str:
    """The control's own picture (␀ … ␟, ␡), else the replacement character."""
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else "\ufffd"


def element(name: str, /, *children: Child, **attributes: str | int | float | bool | None) -> Html:
    """One element. `class_` is class, `data_label` is data-label; None and False leave one out."""
    opened = f"<{name}" + "".join(_attribute(key, value) for key, value in attributes.items()) + ">"
    return Html(opened if name in _VOID else f"{opened}{''.join(_texts(children))}</{name}>")


def _attribute(key: str, value: str | float | bool | None) -> str:
    name = key.rstrip("_").replace("_", "-")
    if value is None or value is False:
        return ""
    return f" {name}" if value is True else f' {name}="{html.escape(clean(str(value)), quote=True)}"'


def _texts(children: Iterable[Child]) -> Iterable[str]:
    for child in children:
        match child:
            case None:
                pass
            case Html():
                yield child.text
            case str():
                yield html.escape(clean(child), quote=True)
            case int():
                yield str(child)
            case _:
                yield from _texts(child)
