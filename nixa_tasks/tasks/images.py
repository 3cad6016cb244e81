"""The tasks of kexec images: fetch, verify, clean, pin."""

from __future__ import annotations

import functools
import threading
from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeGuard

from nixa_tasks.errors import NixaError
from nixa_tasks.files import write_json
from nixa_tasks.manifest.model import Image, UrlImage
from nixa_tasks.tasks import run
from nixa_tasks.tasks.doit import action, action_with_options, is_uptodate, outcome

if TYPE_CHECKING:
    from nixa_tasks.image.cache.cache import Cache
    from nixa_tasks.image.obtain import Obtained

Task = dict[str, Any]
_locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)


def kexec_tasks() -> Iterator[Task]:
    for name in run.manifest().images:
        yield _task(
            "kexec",
            name,
            _fetch,
            "fetch it into the cache, verified",
            uptodate=[is_uptodate(functools.partial(_is_cached, name))],
        )


def checksum_tasks() -> Iterator[Task]:
    for name in run.manifest().images:
        yield _task(
            "checksum",
            name,
            _verify,
            "verify the cached file against its pin",
            targets=[str(run.layout().image_stamp(name))],
            uptodate=[False],
        )


def clean_tasks() -> Iterator[Task]:
    yield {
        "basename": "clean",
        "name": "kexec",
        "doc": "remove the cached images that hosts.toml pins",
        "actions": [action(_clean)],
        "uptodate": [False],
        "meta": {},
        "io": {"capture": False},
    }


_CHECK = {
    "name": "check",
    "long": "check",
    "type": bool,
    "default": False,
    "help": "tell what is out of date, and write nothing",
}
CHECK = [_CHECK]


def pin_tasks(check: bool) -> Iterator[Task]:
    """`check`: what was said of all of them, `doit pin --check`; each one can be told by itself too."""
    images = run.manifest().images
    yield {"basename": "pin", "name": None, "doc": "look upstream, and write new hashes into hosts.toml"}
    for name, image in images.items():
        if isinstance(image, UrlImage):
            yield {
                "basename": "pin",
                "name": name,
                "doc": "the hash that its URL has now",
                "params": [{**_CHECK, "default": check}],
                "actions": [action_with_options(_pin, (name,), ("check",))],
                "uptodate": [False],
                "meta": {},
                "io": {"capture": False},
            }


def cache() -> Cache:
    """The cache that this manifest uses."""
    from nixa_tasks.image.cache.cache import Cache, cache_dir

    return Cache(cache_dir(run.manifest().fleet.cache))


def obtain(image: Image) -> Obtained:
    """The image in the cache, verified and looked into; fetched if it has to be. One host's thread
    fetches, the others wait for it."""
    from nixa_tasks.image.obtain import obtain as obtain_image

    now = run.current()
    with _locks[image.name], now.journal.step(image.name, "kexec") as step:
        if _is_remote(image):
            step.sha256 = image.sha256
        obtained = obtain_image(
            image,
            cache=cache(),
            manifest=now.manifest.path,
            gcroots=now.layout.gcroots,
            progress=step.progress,
            note=lambda text: now.journal.note(image.name, "kexec", text),
        )
        step.size = obtained.path.stat().st_size
        return obtained


def _is_remote(image: Image) -> TypeGuard[UrlImage]:
    """Whether it is downloaded, where it is not in the cache."""
    return isinstance(image, UrlImage) and any(
        url.startswith(("http://", "https://")) for url in (image.url, *image.mirrors)
    )


def _task(family: str, name: str, function: Any, doc: str, **more: Any) -> Task:
    return {
        "basename": family,
        "name": name,
        "doc": doc,
        "actions": [action(function, name)],
        "verbosity": 2,
        "io": {"capture": False},
        "meta": {"work": True},
        **more,
    }


def _is_cached(name: str) -> bool:
    image = run.manifest().images[name]
    if not isinstance(image, UrlImage) or cache().find(image) is None:
        return False
    if cache().entry(image.sha256).summary is None:
        return False  # as pinned, but nobody has found an installer in it
    cache().record_pin(image, run.manifest().path)  # another project's file may serve this one too
    return True


def _fetch(name: str) -> None:
    obtained = obtain(run.manifest().images[name])
    run.current().journal.note(name, "kexec", obtained.summary.line())


def _verify(name: str) -> None:
    now = run.current()
    image = now.manifest.images[name]
    with now.journal.step(name, "checksum"):
        if not isinstance(image, UrlImage):
            obtained = obtain(image)
            write_json(now.layout.image_stamp(name), {"sha256": obtained.sha256, "path": str(obtained.path)})
            return
        verified = cache().verify(image)
        if verified is None:
            raise NixaError(f"{name} is not in the cache", hint=f"doit kexec:{name}")
        write_json(
            now.layout.image_stamp(name),
            {"sha256": image.sha256, "path": str(verified), "size": verified.stat().st_size},
        )
    outcome.show(f"{name}: {verified} is sha256 {image.sha256}, as pinned")


def _clean() -> None:
    from nixa_tasks.text import size

    images = [image for image in run.manifest().images.values() if isinstance(image, UrlImage)]
    freed = cache().clean(images)
    outcome.show(f"clean:kexec: {freed} bytes freed ({size(freed)})")


def _pin(name: str, check: bool) -> None:
    from nixa_tasks.manifest.digest import to_sri
    from nixa_tasks.manifest.edit import set_pin

    now = run.current()
    image = now.manifest.images[name]
    if not isinstance(image, UrlImage):
        raise NixaError(f"{name} is pinned by the flake's lock file", hint="nix flake update")
    if check:
        from nixa_tasks.image.pin import check as check_pin

        said = check_pin(image, cache=cache())
        outcome.show(f"{name}: {said.text}", status=1 if said.is_outdated else 0)
        return
    from nixa_tasks.image.pin import look

    with now.journal.step(name, "pin") as step:
        found = look(
            image,
            cache=cache(),
            progress=step.progress,
            note=lambda text: now.journal.note(name, "pin", text),
        )
        step.sha256 = found.sha256 if _is_remote(image) else ""
    old, new = to_sri(image.sha256), to_sri(found.sha256)
    if found.sha256 == image.sha256:
        outcome.show(f"{name}: the pin is right: {new}")
        return
    set_pin(now.manifest.path, name, new)
    outcome.show(f"{name}: old {old}\n{name}: new {new}\n{name}: written to {now.manifest.path.name}")
