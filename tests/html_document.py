"""An HTML document read back: its elements and its text, and whether every element is closed."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = frozenset({"meta", "br", "hr"})


@dataclass
class Element:
    """One element. `text` is all that is in it, also in its children."""

    tag: str
    attributes: dict[str, str | None]
    children: list[Element] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def all(self, tag: str, class_: str = "") -> list[Element]:
        """Every element of that kind below this one, in the document's order."""
        found = []
        for child in self.children:
            if child.tag == tag and (not class_ or class_ in (child.attributes.get("class") or "").split()):
                found.append(child)
            found += child.all(tag, class_)
        return found

    def every(self) -> list[Element]:
        return [one for child in self.children for one in (child, *child.every())]


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # type: ignore[explicit-override] # not in 3.11
        assert len(dict(attrs)) == len(attrs), f"an attribute twice in <{tag}>"
        element = Element(tag, dict(attrs))
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:  # type: ignore[explicit-override] # not in 3.11
        assert self.open[-1].tag == tag, f"</{tag}> ends <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:  # type: ignore[explicit-override] # not in 3.11
        for element in self.open:
            element.texts.append(data)

    def handle_comment(self, data: str) -> None:  # type: ignore[explicit-override] # not in 3.11
        raise AssertionError(f"a comment: {data!r}")


def read(page: str) -> Element:
    """The document's root. Fails where an element is not closed in order, and at a comment."""
    reader = _Reader()
    reader.feed(page)
    reader.close()
    assert len(reader.open) == 1, f"not closed: {[one.tag for one in reader.open[1:]]}"
    return reader.root
