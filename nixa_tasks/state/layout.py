"""Where everything that is remembered lies: `.nixa/` beside hosts.toml. One home for each path."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class HostLayout:
    """The files of one host."""

    folder: Path

    @property
    def output(self) -> Path:
        """What the flake says: changes only when the output does."""
        return self.folder / "output.json"

    @property
    def facts(self) -> Path:
        """What the last probe saw."""
        return self.folder / "facts.json"

    @property
    def deployed(self) -> Path:
        """The receipt of the last deploy."""
        return self.folder / "deployed.json"

    @property
    def history(self) -> Path:
        """Every receipt since `.nixa/` was made, one a line."""
        return self.folder / "history.jsonl"

    @property
    def logs(self) -> Path:
        return self.folder / "log"


@dataclass(frozen=True, slots=True)
class Layout:
    """The state of one project. `root` is the folder of hosts.toml."""

    root: Path

    @property
    def state(self) -> Path:
        return self.root / ".nixa"

    @property
    def flake(self) -> Path:
        return self.state / "flake.json"

    @property
    def journal(self) -> Path:
        return self.state / "journal.jsonl"

    @property
    def report(self) -> Path:
        """The HTML page about the fleet."""
        return self.state / "report.html"

    @property
    def gcroots(self) -> Path:
        return self.state / "gcroots"

    @property
    def doit_db(self) -> Path:
        return self.state / "doit.db"

    @property
    def manifest_stamp(self) -> Path:
        return self.state / "manifest.stamp"

    @property
    def locks(self) -> Path:
        return self.state / "locks"

    def image_stamp(self, image: str) -> Path:
        """What `checksum:IMAGE` found, for the image of that name in this manifest."""
        return self.state / "kexec" / f"{image}.json"

    def host(self, name: str) -> HostLayout:
        return HostLayout(self.state / "hosts" / name)

    def make(self) -> None:
        """Create `.nixa/`, ignored by git whatever the user's own .gitignore says."""
        self.state.mkdir(exist_ok=True)
        ignore = self.state / ".gitignore"
        if not ignore.exists():
            ignore.write_text("*\n")
