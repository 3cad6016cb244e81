"""A look inside an installer's tarball, before it is sent anywhere.

Its hash says that it is the file that was pinned; this says that the file is an installer, for
the right machine, and that unpacking it touches nothing but `kexec/`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any

from nixa_tasks.errors import NixaError
from nixa_tasks.image import compression
from nixa_tasks.image.archive import Archive, Malformed, Member, Type
from nixa_tasks.image.compression import Content, Damaged

TOP = "kexec"
RUN, KERNEL, INITRD, KEXEC = "kexec/run", "kexec/bzImage", "kexec/initrd", "kexec/kexec"
REQUIRED = (RUN, KERNEL, INITRD, KEXEC)
MOST_MEMBERS = 10_000
MOST_BYTES = 8 << 30
MOST_LINKS = 40  # as Linux follows
_HEAD = 1 << 16

# e_machine of the ELF header (elf.h), by the names that Nix gives to systems.
_MACHINES = {3: "i686", 8: "mipsel", 21: "powerpc64le", 40: "armv7l", 62: "x86_64", 183: "aarch64",
             243: "riscv64", 258: "loongarch64"}  # fmt: skip


class TarballError(NixaError):
    """The image is no installer that nixa would send to a machine."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What is inside. Sizes in bytes; `architecture` as in a Nix system's name; `run_sha256` is of
    `kexec/run`, the program that a machine runs as root; `tree_sha256` of the list of what lies in
    `kexec/` once it is unpacked; `kernel_version` is "" where it can't be told."""

    architecture: str
    compression: str
    size: int
    unpacked: int
    kernel: int
    initrd: int
    members: int
    run_sha256: str
    tree_sha256: str = ""
    kernel_version: str = ""

    def line(self) -> str:
        """One line for the log."""
        return (
            f"installer for {self.architecture}: {_mib(self.size)} ({self.compression}), kernel "
            f"{f'{self.kernel_version}, ' if self.kernel_version else ''}{_mib(self.kernel)}, initrd {_mib(self.initrd)}, {self.members} files, "
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
    """What was met so far, by normalized name: files with their sizes, links with their targets,
    folders, also those that are only implied; and what is inside the programs."""

    files: dict[str, int] = field(default_factory=dict)
    symlinks: dict[str, str] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    heads: dict[str, bytes] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    count: int = 0

    def tree_sha256(self) -> str:
        """The hash of the list that a host makes of the unpacked tree: see `delivery.upload`."""
        lines = [f"d {name}" for name in self.folders]
        lines += [f"f {size} {name}" for name, size in self.files.items()]
        lines += [f"l {target} {name}" for name, target in self.symlinks.items()]
        lines += [f"h {sha256} {name}" for name, sha256 in self.hashes.items()]
        raw = sorted(line.encode("utf-8", "surrogateescape") + b"\n" for line in lines)
        return hashlib.sha256(b"".join(raw)).hexdigest()


def inspect(path: Path, stop: Callable[[], None] = lambda: None) -> Summary:
    """Read all of it once, unpacking nothing, in less than 100 MB of memory. `stop` is called now and
    then, and may raise.

    Raises TarballError with the reason.
    """
    try:
        with path.open("rb") as file:
            said = compression.of_name(path.name)
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
            seen = _read(content, stop)
            size = path.stat().st_size
    except (Damaged, Malformed) as error:
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
        kernel=seen.files[KERNEL],
        initrd=seen.files[INITRD],
        members=seen.count,
        run_sha256=seen.hashes[RUN],
        tree_sha256=seen.tree_sha256(),
        kernel_version=_kernel_version(seen.heads[KERNEL]),
    )


def _read(content: Content, stop: Callable[[], None]) -> _Seen:
    seen = _Seen()
    archive = Archive(content.read)
    for member in archive.members():
        seen.count += 1
        if seen.count > MOST_MEMBERS:
            raise TarballError(f"it holds more than {MOST_MEMBERS} files")
        stop()
        _take(archive, member, seen)
    for name, target in seen.symlinks.items():
        _check_symlink(name, target, seen.symlinks)
    missing = [name for name in REQUIRED if not seen.files.get(name)]
    if missing:
        raise TarballError(f"{', '.join(missing)} is not in it, or empty")
    return seen


def _new_name(member: Member, seen: _Seen) -> str:
    """The member's name, where nothing met so far is in its way; its folders are noted."""
    name = _safe_name(member.name)
    parents = {str(parent) for parent in PurePosixPath(name).parents} - {"."}
    if any(parent in seen.symlinks or parent in seen.files for parent in parents):
        raise TarballError(f"{name} lies behind a link or a file")
    is_folder = member.type is Type.FOLDER
    if name in seen.files or name in seen.symlinks or (name in seen.folders and not is_folder):
        raise TarballError(f"{name} is in it twice")
    if name in ("", TOP) and not is_folder:
        raise TarballError(f"{TOP} is no folder in it")
    seen.folders |= {*parents, name} - {""} if is_folder else parents
    return name


def _take(archive: Archive, member: Member, seen: _Seen) -> None:
    name = _new_name(member, seen)
    if member.type is not Type.FILE and name in REQUIRED:
        raise TarballError(f"{name} is no file")
    match member.type:
        case Type.SYMLINK:
            if not member.target or _has_control(member.target):
                raise TarballError(f"{name} is a link to {member.target!a}")
            seen.symlinks[name] = member.target
        case Type.HARD_LINK:
            target = _safe_name(member.target)
            if target not in seen.files:
                raise TarballError(f"{name} is a hard link to {member.target!a}, which is no file before it")
            seen.files[name] = seen.files[target]
        case Type.FOLDER:
            pass
        case Type.FILE:
            if member.mode & 0o6000:
                raise TarballError(f"{name} is set-user-id or set-group-id")
            seen.files[name] = member.size
            if name in REQUIRED:
                _look_at(archive, member, name, seen)


def _look_at(archive: Archive, member: Member, name: str, seen: _Seen) -> None:
    """The head of each file that is needed, and the hash of the programs."""
    head, digest = b"", hashlib.sha256()
    for piece in archive.content():
        head += piece[: _HEAD - len(head)]
        if name in (RUN, KEXEC):
            digest.update(piece)
    seen.heads[name] = head
    if name not in (RUN, KEXEC):
        return
    seen.hashes[name] = digest.hexdigest()
    if not member.mode & 0o100:
        raise TarballError(f"{name} is not executable")
    if name == RUN and member.size and not head.startswith(b"#!"):
        raise TarballError(f"{name} is no script (it does not begin with #!)")


def _has_control(text: str) -> bool:
    return any(ord(char) < 32 or ord(char) == 127 for char in text)


def _safe_name(name: str) -> str:
    """The name without `./`; refused where it leads out of `kexec/`."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or _has_control(name):
        raise TarballError(f"{name!a} in it leads out of {TOP}/")
    if parts and parts[0] != TOP:
        raise TarballError(f"{name!a} in it lies outside {TOP}/")
    return "/".join(parts)


def _check_symlink(name: str, target: str, symlinks: Mapping[str, str]) -> None:
    """Follow a link as the kernel would, through the others: it must not lead out of `kexec/`."""
    at: list[str] = list(PurePosixPath(name).parent.parts)
    left = target.split("/")[::-1]
    if target.startswith("/"):
        at = []
    followed = 0
    while left:
        part = left.pop()
        if part == "..":
            at = at[:-1]
        elif part not in ("", "."):
            at.append(part)
            further = symlinks.get("/".join(at))
            if further is not None:
                followed += 1
                at = [] if further.startswith("/") else at[:-1]
                left += further.split("/")[::-1]
        if not at or at[0] != TOP or followed > MOST_LINKS:
            raise TarballError(f"{name} is a link to {target!a}, out of {TOP}/")


def _kernel_version(head: bytes) -> str:
    """The version in a kernel for x86 (Documentation/arch/x86/boot.rst, kernel_version), or in one that
    is not compressed; "" where it can't be told."""
    if head[0x202:0x206] == b"HdrS":
        start = int.from_bytes(head[0x20E:0x210], "little") + 0x200
        return _word(head[start:])
    _before, found, after = head.partition(b"Linux version ")
    return _word(after) if found else ""


def _word(data: bytes) -> str:
    found = re.match(rb"[0-9][0-9A-Za-z._+-]{0,60}", data)
    return found[0].decode() if found else ""


def _architecture(path: Path, head: bytes) -> str:
    """The machine that `kexec/kexec` is for, from its ELF header. Raises TarballError."""
    if len(head) < 20 or head[:4] != b"\x7fELF" or head[5] not in (1, 2):
        raise TarballError(
            f"{path}: {KEXEC} is no program for Linux (no ELF header)", hint="pin a kexec installer's image"
        )
    number = int.from_bytes(head[18:20], "little" if head[5] == 1 else "big")
    return _MACHINES.get(number, f"machine-{number}")
