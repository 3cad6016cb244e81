"""What GitHub's release API says of an asset. Pure but for the one question."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from nixa_tasks.image.download.http import Wire
from nixa_tasks.image.errors import SourceError

API = "https://api.github.com"


@dataclass(frozen=True, slots=True)
class Asset:
    """A file of a release, as its URL names it."""

    owner: str
    repository: str
    tag: str
    name: str


@dataclass(frozen=True, slots=True)
class Said:
    """What the API says: `sha256` in hex of what was uploaded (not who built it), or None for an
    asset from before June 2025; `size` in bytes; `updated_at` as RFC 3339."""

    sha256: str | None
    size: int | None
    updated_at: str


def asset(url: str) -> Asset | None:
    """The asset of a release URL; None for any other URL.

    >>> asset("https://github.com/o/r/releases/download/v1/x.tar.gz").name
    'x.tar.gz'
    """
    parts = urlsplit(url)
    if parts.scheme not in ("https", "http") or parts.hostname not in ("github.com", "www.github.com"):
        return None
    found = re.fullmatch(r"/([^/]+)/([^/]+)/releases/download/(.+)/([^/]+)", parts.path)
    return Asset(found[1], found[2], unquote(found[3]), unquote(found[4])) if found else None


def said_of(answer: Mapping[str, Any], name: str) -> Said | None:
    """The asset of that name in the API's answer about a release; None where it has none."""
    assets = answer.get("assets")
    for one in assets if isinstance(assets, list) else []:
        if isinstance(one, dict) and one.get("name") == name:
            digest, size = one.get("digest"), one.get("size")
            found = re.fullmatch(r"sha256:([0-9a-fA-F]{64})", digest) if isinstance(digest, str) else None
            return Said(
                found[1].lower() if found else None,
                size if type(size) is int else None,
                str(one.get("updated_at") or ""),
            )
    return None


def ask(wire: Wire, wanted: Asset, api: str | None = None) -> Said:
    """What the release API says now. `api`, or NIXA_GITHUB_API, is another address of it;
    GITHUB_TOKEN is honoured. Raises SourceError."""
    base = (api or os.environ.get("NIXA_GITHUB_API") or API).rstrip("/")
    url = (
        f"{base}/repos/{quote(wanted.owner)}/{quote(wanted.repository)}"
        f"/releases/tags/{quote(wanted.tag, safe='')}"
    )
    headers = {"Accept": "application/vnd.github+json", "X-GitHub-Api-Version": "2022-11-28"}
    if token := os.environ.get("GITHUB_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    said = said_of(wire.json(url, headers), wanted.name)
    if said is None:
        raise SourceError(
            f"{url}: the release {wanted.tag} has no file {wanted.name}",
            url=url,
            status=404,
            hint="its name may have changed, or it is being uploaded right now; look at the release's page",
        )
    return said
