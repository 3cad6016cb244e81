"""The longer messages of a fetch. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from nixa_tasks.image.download.part import Origin
from nixa_tasks.image.errors import FetchError, SourceError, WrongFile
from nixa_tasks.manifest.digest import to_sri


def wrong_file(
    url: str, image: str, expected: str, got: str, size: int, origin: Origin, *, upstream: str, encoding: str
) -> WrongFile:
    """The source has another file than the pinned one."""
    said = [f"Last-Modified {origin.last_modified}"] if origin.last_modified else []
    said += [f"ETag {origin.etag}"] if origin.etag else []
    said += [upstream] if upstream else []
    lines = [
        f"{url}: gave another file than the pinned one",
        f"    expected  {to_sri(expected)}  ({expected})",
        f"    got       {to_sri(got)}  ({got})",
        f"    size      {size} bytes",
        f"    upstream  says: {', '.join(said) or 'nothing of itself'}",
    ]
    if encoding and encoding != "identity":
        lines.append(f"    sent with Content-Encoding: {encoding}, although none was asked for")
    return WrongFile("\n".join(lines), url=url, sha256=got, hint=_ways_on(image))


def _ways_on(image: str) -> str:
    return (
        f"a release's file often changes under the same URL. If you trust the new one: doit pin:{image}\n"
        "If you want the pinned one: name a mirror that still has it (mirrors = [...])"
    )


def none_left(image: str, errors: Sequence[SourceError]) -> FetchError:
    """Every source failed: one error that tells what each said, and the most useful hint."""
    if len(errors) == 1:
        return errors[0]
    wrong = next((error for error in errors if isinstance(error, WrongFile)), None)
    lines = [
        f"image {image} can't be had from any of its {len(errors)} sources",
        *(str(e.what) for e in errors),
    ]
    hint = wrong.hint if wrong else next((error.hint for error in errors if error.hint), None)
    return FetchError("\n".join(lines), hint=hint or "look at the network, or name another mirror")
