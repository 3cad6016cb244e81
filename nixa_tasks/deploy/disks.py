"""What lies on a machine's disks, as look_at_disks.sh reports it before a wipe."""

from __future__ import annotations

from dataclasses import dataclass

from nixa_tasks.text import size as show_size

_MOST_DISKS = 64
_LONGEST = 120


@dataclass(frozen=True, slots=True)
class Disk:
    """One disk. `size` in bytes; `contents`: what was found on it, in a few words each."""

    name: str
    size: int = 0
    model: str = ""
    contents: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """One line for a person: name, model, size and content."""
        parts = [part for part in (self.model, show_size(self.size) if self.size else "") if part]
        head = f"{self.name} ({', '.join(parts)})" if parts else self.name
        return f"{head}: {', '.join(self.contents) or 'empty'}"


@dataclass(frozen=True, slots=True)
class Disks:
    """All disks. `nixos` and `receipts` name the devices that hold a NixOS, and a receipt of nixa's."""

    disks: tuple[Disk, ...] = ()
    nixos: tuple[str, ...] = ()
    receipts: tuple[str, ...] = ()

    @property
    def has_nixos(self) -> bool:
        return bool(self.nixos or self.receipts)

    @property
    def lines(self) -> tuple[str, ...]:
        return tuple(disk.text for disk in self.disks)


def parse(answer: str) -> Disks:
    """From the script's `key<TAB>value…` lines. Never raises; what is not of its kind is left out."""
    disks: dict[str, Disk] = {}
    contents: dict[str, list[str]] = {}
    nixos: list[str] = []
    receipts: list[str] = []
    for line in answer.splitlines():
        key, *values = [_clean(value) for value in line.split("\t")]
        match key, values:
            case "disk", [name, size, model] if name and len(disks) < _MOST_DISKS:
                disks[name] = Disk(name, int(size) if size.isascii() and size.isdigit() else 0, model)
            case "holds", [name, content] if name in disks and content:
                contents.setdefault(name, []).append(content)
            case "nixos", [device] if device:
                nixos.append(device)
            case "receipt", [device] if device:
                receipts.append(device)
            case _:
                pass
    found = tuple(
        Disk(disk.name, disk.size, disk.model, tuple(dict.fromkeys(contents.get(disk.name, ()))))
        for disk in disks.values()
    )
    return Disks(found, tuple(dict.fromkeys(nixos)), tuple(dict.fromkeys(receipts)))


def _clean(value: str) -> str:
    return "".join(char for char in value.strip() if char.isprintable())[:_LONGEST]
