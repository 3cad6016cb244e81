"""A look inside an installer's tarball, before it is sent anywhere.

Its hash says that it is the file that was pinned; this says that the file is an installer, for
the right machine, and that unpacking it touches nothing but `kexec/`.
"""

from __future__ import annotations

import tarfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any

from nixa_tasks.errors import Interrupted, NixaError
from nixa_tasks.image import compression
from nixa_tasks.image.compression import Content, Damaged
from nixa_tasks.process.run import is_stopping

TOP = "kexec"
RUN, KERNEL, INITRD, KEXEC = "kexec/run", "kexec/bzImage", "kexec/initrd", "kexec/kexec"
REQUIRED = (RUN, KERNEL, INITRD, KEXEC)
MOST_MEMBERS = 10_000
MOST_BYTES = 8 << 30
_HEAD = 64

# e_machine of the ELF header (elf.h), by the names that Nix gives to systems.
_MACHINES = {3: "i686", 8: "mipsel", 21: "powerpc64le", 40: "armv7l", 62: "x86_64", 183: "aarch64",
             243: "riscv64", 258: "loongarch64"}  # fmt: skip


class TarballError(NixaError):
    """The image is no installer that nixa would send to a machine."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What is inside. Sizes in bytes; `architecture` as in a Nix system's name; `run_sha256` is of
    `kexec/run`, the program that a machine runs as root."""

    architecture: str
    compression: str
    size: int
    unpacked: int
    kernel: int
    initrd: int
    members: int
    run_sha256: str

    def line(self) -> str:
        """One line for the log."""
        return (
            f"installer for {self.architecture}: {_mib(self.size)} ({self.compression}), kernel "
            f"{_mib(self.kernel)}, initrd {_mib(self.initrd)}, {self.members} files, "
            f"run sha256:{self.run_sha256[:12]}"
        )

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any] | None) -> Summary | None:
        """None where it is not a summary of this version."""
        names = {one.name: one.type for one in fields(cls)}
        if value is None or set(value) != set(names):
            return None
        is_right = all(isinstance(value[name], str if kind == "str" else int) for name, kind in names.items())
        return cls(**value) if is_right else None


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"


def check_architecture(summary: Summary, system: str, *, image: str = "", host: str | None = None) -> None:
    """Raises TarballError where the image is for other machines than `system` (`x86_64-linux`)."""
    wanted = system.split("-", 1)[0]
    if summary.architecture != wanted:
        raise TarballError(
            f"image {image or 'of this host'} is for {summary.architecture}, and the host is {system}",
            host=host,
            hint=f"name an image for {system} by `kexec`, or pin one as [kexec.{system}]",
        )


@dataclass(slots=True)
class _Seen:
    """What was met so far, by normalized name."""

    sizes: dict[str, int] = field(default_factory=dict)
    links: set[str] = field(default_factory=set)
    heads: dict[str, bytes] = field(default_factory=dict)
    count: int = 0
    run_sha256: str = ""


def inspect(path: Path, name: str | None = None) -> Summary:
    """Read all of it once, unpacking nothing. `name`: where the file's own says nothing.

    Raises TarballError with the reason, Interrupted.
    """
    try:
        with path.open("rb") as file:
            said = compression.of_name(name or path.name)
            kind = compression.of_bytes(file.read(512))
            file.seek(0)
            if kind is None:
                raise TarballError(f"{path} is no tarball: neither gzip, xz, zstd nor plain tar")
            if said is not None and said is not kind:
                raise TarballError(
                    f"{path} is named {said} and is {kind}: whoever unpacks it by its name would fail",
                    hint="pin a URL whose suffix says what the file is",
                )
            content = Content(file, kind, MOST_BYTES)
            seen = _read(content)
            size = path.stat().st_size
    except (Damaged, tarfile.TarError) as error:
        raise TarballError(f"{path} can't be unpacked: {error}") from error
    except OSError as error:
        raise TarballError(f"{path} can't be read: {error.strerror or error}") from error
    except TarballError as error:
        raise TarballError(f"{path}: {error.what}" if str(path) not in error.what else error.what,
                           hint=error.hint or "pin another image: this one is not a kexec installer") from error  # fmt: skip
    return Summary(
        architecture=_architecture(path, seen.heads[KEXEC]),
        compression=kind.value,
        size=size,
        unpacked=content.count,
        kernel=seen.sizes[KERNEL],
        initrd=seen.sizes[INITRD],
        members=seen.count,
        run_sha256=seen.run_sha256,
    )


def _read(content: Content) -> _Seen:
    seen = _Seen()
    # tarfile only reads from a stream; its types ask for a writable one
    with tarfile.open(fileobj=content, mode="r|", bufsize=1 << 18) as archive:  # type: ignore[call-overload]
        for member in archive:
            seen.count += 1
            if seen.count > MOST_MEMBERS:
                raise TarballError(f"it holds more than {MOST_MEMBERS} files")
            if is_stopping():
                raise Interrupted("stopped while looking into the image")
            _take(archive, member, seen)
    while content.read(1 << 18):  # to its very end: a checksum may stand there
        pass
    missing = [name for name in REQUIRED if not seen.sizes.get(name)]
    if missing:
        raise TarballError(f"{', '.join(missing)} is not in it, or empty")
    return seen


def _take(archive: tarfile.TarFile, member: tarfile.TarInfo, seen: _Seen) -> None:
    name = _safe_name(member.name)
    if member.isdir():
        if name in seen.sizes or name in seen.links:
            raise TarballError(f"{name} is in it twice")
        return
    if name in seen.sizes or name in seen.links:
        raise TarballError(f"{name} is in it twice")
    if name in ("", TOP):
        raise TarballError(f"{TOP} is no folder in it")
    if any(str(parent) in seen.links or str(parent) in seen.sizes for parent in PurePosixPath(name).parents):
        raise TarballError(f"{name} lies behind a link or a file")
    if member.issym() or member.islnk():
        _check_link(member, name, seen)
        seen.links.add(name)
        if name in REQUIRED:
            raise TarballError(f"{name} is a link")
        return
    if not member.isreg() or member.issparse():
        raise TarballError(f"{name} is a device, a pipe or a sparse file")
    if member.mode & 0o6000:
        raise TarballError(f"{name} is set-user-id or set-group-id")
    seen.sizes[name] = member.size
    if name in (RUN, KEXEC):
        _check_program(archive, member, name, seen)


def _check_program(archive: tarfile.TarFile, member: tarfile.TarInfo, name: str, seen: _Seen) -> None:
    import hashlib

    if not member.mode & 0o100:
        raise TarballError(f"{name} is not executable")
    file = archive.extractfile(member)
    head = b"" if file is None else file.read(_HEAD)
    if name == RUN and member.size and not head.startswith(b"#!"):
        raise TarballError(f"{name} is no script (it does not begin with #!)")
    seen.heads[name] = head
    if name == RUN and file is not None:
        digest = hashlib.sha256(head)
        while block := file.read(1 << 18):
            digest.update(block)
        seen.run_sha256 = digest.hexdigest()


def _safe_name(name: str) -> str:
    """The name without `./`; refused where it leads out of `kexec/`."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or any(ord(char) < 32 or ord(char) == 127 for char in name):
        raise TarballError(f"{name!a} in it leads out of {TOP}/")
    if parts and parts[0] != TOP:
        raise TarballError(f"{name!a} in it lies outside {TOP}/")
    return "/".join(parts)


def _check_link(member: tarfile.TarInfo, name: str, seen: _Seen) -> None:
    target = member.linkname
    if member.islnk():
        if _safe_name(target) not in seen.sizes:
            raise TarballError(f"{name} is a hard link to {target!a}, which is no file before it")
        return
    at = [] if target.startswith("/") else list(PurePosixPath(name).parent.parts)
    for part in target.split("/"):
        if part == "..":
            at = at[:-1]
        elif part not in ("", "."):
            at.append(part)
        if not at or at[0] != TOP:
            raise TarballError(f"{name} is a link to {target!a}, out of {TOP}/")


def _architecture(path: Path, head: bytes) -> str:
    """The machine that `kexec/kexec` is for, from its ELF header. Raises TarballError."""
    if len(head) < 20 or head[:4] != b"\x7fELF" or head[5] not in (1, 2):
        raise TarballError(
            f"{path}: {KEXEC} is no program for Linux (no ELF header)", hint="pin a kexec installer's image"
        )
    number = int.from_bytes(head[18:20], "little" if head[5] == 1 else "big")
    return _MACHINES.get(number, f"machine-{number}")
