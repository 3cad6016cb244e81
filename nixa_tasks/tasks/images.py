"""The tasks of kexec images: fetch, verify, clean, pin."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeGuard

from nixa_tasks.errors import NixaError
from nixa_tasks.files import write_json
from nixa_tasks.manifest.model import Image, UrlImage
from nixa_tasks.tasks.actions import Always, Meta, Rule, Task, action, on_demand
from nixa_tasks.tasks.options import CHECK

if TYPE_CHECKING:
    from nixa_tasks.image.obtain import Obtained
    from nixa_tasks.image.tarball import Summary
    from nixa_tasks.tasks.run import Run


def kexec_tasks(run: Run, names: Iterable[str]) -> Iterator[Task]:
    for name in names:
        yield _task(
            run,
            "kexec",
            name,
            _fetch,
            "fetch it into the cache, verified",
            uptodate=[Rule(run, why_fetch, name)],
        )


def checksum_tasks(run: Run, names: Iterable[str]) -> Iterator[Task]:
    for name in names:
        yield _task(
            run,
            "checksum",
            name,
            _verify,
            "verify the cached file against its pin",
            targets=[str(run.layout.image_stamp(name))],
            uptodate=[Always()],
        )


def clean_tasks(run: Run, _names: Iterable[str]) -> Iterator[Task]:
    yield {
        "basename": "clean",
        "name": "kexec",
        "doc": "remove the cached images that hosts.toml pins",
        "actions": [action(run, _clean)],
        "uptodate": [Always()],
        "meta": Meta(run),
        "io": {"capture": False},
    }


def pin_tasks(run: Run, names: Iterable[str]) -> Iterator[Task]:
    for name in names:
        if isinstance(run.manifest.images[name], UrlImage):
            doc, meta = "the hash that its URL has now", Meta(run)
            yield on_demand(run, "pin", name, _pin, CHECK, doc=doc, meta=meta)


def obtain(run: Run, image: Image) -> Obtained:
    """The image in the cache, verified and looked into; fetched if it has to be. One host's thread
    fetches, the others wait for it."""
    from nixa_tasks.image.obtain import obtain as obtain_image

    with run.image_locks[image.name], run.journal.step(image.name, "kexec") as step:
        if _is_remote(image):
            step.sha256 = image.sha256
        obtained = obtain_image(
            image,
            cache=run.cache,
            manifest=run.manifest.path,
            gcroots=run.layout.gcroots,
            progress=step.progress,
            note=lambda text: run.journal.note(image.name, "kexec", text),
            nix=run.nix,
        )
        step.size = obtained.path.stat().st_size
        return obtained


def _is_remote(image: Image) -> TypeGuard[UrlImage]:
    """Whether it is downloaded, where it is not in the cache."""
    return isinstance(image, UrlImage) and any(
        url.startswith(("http://", "https://")) for url in (image.url, *image.mirrors)
    )


def _task(run: Run, family: str, name: str, function: Any, doc: str, **more: Any) -> Task:
    return {
        "basename": family,
        "name": name,
        "doc": doc,
        "actions": [action(run, function, name)],
        "verbosity": 2,
        "io": {"capture": False},
        "meta": Meta(run, work=True),
        **more,
    }


def why_fetch(run: Run, name: str) -> str | None:
    """Why the image has to be fetched; None where the cache has it, verified and looked into."""
    image = run.manifest.images[name]
    if not isinstance(image, UrlImage):
        return f"{name} is built by Nix, and only Nix knows whether it is there"
    if run.cache.find(image) is None:
        return f"{name} is not in the image cache"
    if run.cache.entry(image.sha256).summary is None:
        return f"{name} is in the image cache, but nobody has found an installer in it yet"
    run.cache.record_pin(image, run.manifest.path)  # another project's file may serve this one too
    return None


def _fetch(run: Run, name: str) -> None:
    obtained = obtain(run, run.manifest.images[name])
    run.journal.note(name, "kexec", obtained.summary.line())


def _verify(run: Run, name: str) -> None:
    image = run.manifest.images[name]
    with run.journal.step(name, "checksum"):
        if not isinstance(image, UrlImage):
            obtained = obtain(run, image)
            write_json(run.layout.image_stamp(name), {"sha256": obtained.sha256, "path": str(obtained.path)})
            return
        verified = run.cache.verify(image)
        if verified is None:
            raise NixaError(f"{name} is not in the cache", hint=f"doit kexec:{name}")
        write_json(
            run.layout.image_stamp(name),
            {"sha256": image.sha256, "path": str(verified), "size": verified.stat().st_size},
        )
    run.results.show(f"{name}: {verified} is sha256 {image.sha256}, as pinned")


def _clean(run: Run) -> None:
    from nixa_tasks.text import size

    images = [image for image in run.manifest.images.values() if isinstance(image, UrlImage)]
    freed = run.cache.clean(images)
    run.results.show(f"clean:kexec: {freed} bytes freed ({size(freed)})")


def _pin(run: Run, name: str, check: bool) -> None:
    from nixa_tasks.image.tarball import Summary, check_architecture
    from nixa_tasks.manifest.digest import to_sri
    from nixa_tasks.manifest.edit import set_pin

    image = run.manifest.images[name]
    check = check or bool(run.options.get("pin", {}).get("check"))  # of all of them: doit pin --check
    if not isinstance(image, UrlImage):
        raise NixaError(f"{name} is pinned by the flake's lock file", hint="nix flake update")
    if check:
        from nixa_tasks.image.pin import check as check_pin

        said = check_pin(image, cache=run.cache)
        run.results.show(f"{name}: {said.text}", status=1 if said.is_outdated else 0)
        return
    from nixa_tasks.image.pin import look

    with run.journal.step(name, "pin") as step:
        found = look(
            image,
            cache=run.cache,
            progress=step.progress,
            note=lambda text: run.journal.note(name, "pin", text),
        )
        step.sha256 = found.sha256 if _is_remote(image) else ""
    if found.summary is not None:
        for system in _systems(run, name):
            check_architecture(found.summary, system, image=name)
    if found.sha256 == image.sha256:
        run.results.show(f"{name}: the pin is right: {to_sri(image.sha256)}")
        return
    pinned = replace(image, sha256=found.sha256)
    run.cache.record_pin(pinned, run.manifest.path, is_pending=True)  # gc for another project waits for us
    set_pin(run.manifest.path, name, to_sri(found.sha256))
    run.cache.record_pin(pinned, run.manifest.path)
    old = run.cache.entry(image.sha256)
    old_summary = Summary.from_json({k: v for k, v in (old.summary or {}).items() if k != "suffix"})
    run.results.show(
        f"{name}: old {to_sri(image.sha256)}{_facts(old_summary, old.last_modified)}\n"
        f"{name}: new {to_sri(found.sha256)}{_facts(found.summary, found.modified)}\n"
        f"{name}: found by {found.source}\n"
        f"{name}: written to {run.manifest.path.name}"
    )


def _systems(run: Run, name: str) -> list[str]:
    """The systems that the image has to serve: its name's own, else those of the hosts that use it, as
    far as their flake outputs are known."""
    from nixa_tasks.flake.output import remembered

    if name.endswith("-linux"):
        return [name]
    outputs = [
        remembered(run.layout, host.name) for host in run.manifest.hosts.values() if host.kexec == name
    ]
    return sorted({output.system for output in outputs if output is not None})


def _facts(summary: Summary | None, modified: str) -> str:
    if summary is None:
        return ""
    return f"\n{' ' * 6}{summary.line()}{f', of {modified}' if modified else ''}"
