"""Paths and references of the manifest, made absolute: `~` and `${VAR}` expanded, the rest taken
from the folder of hosts.toml. Every function raises ValueError with the reason."""

from __future__ import annotations

import os
import re
from pathlib import Path

from nixa_tasks.manifest import values
from nixa_tasks.text import shown

_VARIABLE = re.compile(r"\$\{([^}]*)\}")
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Kinds of flake references that are complete by themselves; `path:` and `git+file:` are local.
_FLAKE_KINDS = frozenset(
    {
        "github", "gitlab", "sourcehut", "git", "git+https", "git+http", "git+ssh", "git+git", "git+file",
        "path", "tarball", "tarball+https", "tarball+http", "tarball+file", "file", "file+https",
        "file+http", "file+file", "https", "http", "hg+https", "hg+http", "hg+ssh", "hg+file", "flake",
    }
)  # fmt: skip
_LOCAL_KINDS = frozenset({"path", "git+file"})
_INSTALLABLE_ATTRIBUTE = re.compile(r"[A-Za-z0-9_.\"'^*,+-]*")


def expand(text: str) -> str:
    """The text with `~` and `${VAR}` replaced."""
    values.clean(text)

    def value_of(found: re.Match[str]) -> str:
        variable = found[1]
        if not _VARIABLE_NAME.fullmatch(variable):
            raise ValueError(f"contains {shown(found[0])}, which is not a variable name")
        value = os.environ.get(variable, "")
        if not value:
            raise ValueError(f"needs the environment variable `{variable}`, which is not set")
        return value

    replaced = _VARIABLE.sub(value_of, text)
    if "${" in _VARIABLE.sub("", text):
        raise ValueError(f"contains a `${{` without its `}}`: {shown(text)}")
    if text.startswith("~"):
        try:
            replaced = str(Path(replaced).expanduser())
        except RuntimeError:
            raise ValueError(f"names an unknown user: {shown(text.partition('/')[0])}") from None
    return values.clean(replaced)


def path(text: str, root: Path) -> Path:
    """A local path, absolute and without `..`."""
    return Path(os.path.normpath(root / expand(text)))


def program(words: list[str], root: Path) -> tuple[str, ...]:
    """A command whose program may be a path (`./tool`, `~/bin/tool`), seen from hosts.toml."""
    first, *rest = values.command(words)
    if "/" in first or first.startswith("~"):
        first = str(path(first, root))
    return (first, *rest)


def url(text: str, root: Path) -> str:
    """A URL; a path becomes a `file:` URL."""
    if values.scheme(text) is not None:
        return values.url(text)
    return path(values.word(text), root).as_uri()


def flake(text: str, root: Path) -> str:
    """A flake reference that means the same from any folder."""
    kind = values.scheme(text)
    if "#" in text:
        raise ValueError(f"contains a `#`: {shown(text)}; the attribute belongs to a host's `flake_attr`")
    if kind is not None and kind not in _FLAKE_KINDS:
        raise ValueError(f"has the scheme {shown(kind)}, which is none of a flake reference's")
    values.word(text)
    if "${" in text and kind not in (None, *_LOCAL_KINDS):
        raise ValueError(f"contains `${{`: {shown(text)}; variables are expanded in paths only")
    if kind is None:
        place, mark, query = text.partition("?")
        return _local(place, root) + mark + query
    if kind in _LOCAL_KINDS and not text.startswith(f"{kind}:/"):
        place, mark, query = text.removeprefix(f"{kind}:").partition("?")
        prefix = "git+file://" if kind == "git+file" else f"{kind}:"
        return prefix + _local(place, root) + mark + query
    return text


def _local(place: str, root: Path) -> str:
    absolute = str(path(place or ".", root))
    odd = next((char for char in "#?" if char in absolute), None)
    if odd:
        raise ValueError(f"lies in a folder with `{odd}` in its name, which Nix reads as something else")
    return absolute


def installable(text: str, root: Path) -> str:
    """What `nix build` takes: `REFERENCE#ATTRIBUTE`, or a path into the store."""
    values.word(text)
    if text.startswith("/nix/store/"):
        return text
    reference, mark, attribute = text.partition("#")
    if not mark or not attribute:
        raise ValueError(f"has no attribute: {shown(text)}; write `FLAKE#packages.SYSTEM.NAME`")
    if not _INSTALLABLE_ATTRIBUTE.fullmatch(attribute):
        raise ValueError(f"has an invalid attribute: {shown(attribute)}")
    if values.scheme(reference) is None and not reference.startswith((".", "/", "~")) and reference:
        return text  # `nixpkgs#hello`: a name of the flake registry
    return f"{flake(reference or '.', root)}#{attribute}"
