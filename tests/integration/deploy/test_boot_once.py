"""How a boot loader is told to boot a system once, under the shells that hosts have.

Run with menus as NixOS writes them, in a mount namespace whose /boot is the test's own.
"""

from __future__ import annotations

import importlib.resources
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.geteuid() != 0 and not os.environ.get("CI"), reason="needs root")

SHELLS = [("dash",), ("bash",), ("busybox", "sh")]
OLD, NEW = (f"/nix/store/{letter * 32}-nixos-system-web1" for letter in "ab")
SAVED = 'if [ "${next_entry}" ]; then\n  set default="${next_entry}"\nelse\n  set default="0"\nfi\n'


@dataclass
class Loader:
    """A /boot, and the loader's own tool, which leaves its argument in `told`."""

    root: Path

    def boot(self, path: str, text: str) -> None:
        file = self.root / "boot" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def tool(self, name: str, body: str) -> None:
        file = self.root / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/bin/sh\n{body}\n")
        file.chmod(0o755)

    def systemd_boot(self, default: int, **systems: str) -> None:
        for number, system in systems.items():
            entry = f"title NixOS\nlinux /EFI/nixos/linux.efi\noptions init={system}/init loglevel=4\n"
            self.boot(f"loader/entries/nixos-generation-{number[1:]}.conf", entry)
        self.boot(
            "loader/loader.conf", f"timeout 5\ndefault nixos-generation-{default}.conf\nconsole-mode keep\n"
        )
        self.tool(
            "bootctl",
            "case $1 in is-installed) exit 0 ;; --print-*) echo /boot ;; "
            f'set-oneshot) echo "$2" >{self.root}/told ;; esac',
        )

    def grub(self, *systems: str, head: str = SAVED, file_system: str = "ext2/ext3") -> None:
        def entry(title: str, system: str) -> str:
            linux = f"  linux ($drive1)//kernels/linux-bzImage init={system}/init loglevel=4\n"
            return f'menuentry "{title}" --class nixos --unrestricted {{\n{linux}}}\n'

        text = head + entry("NixOS", systems[0]) + 'submenu "NixOS - All configurations" --class submenu {\n'
        for number, system in enumerate(reversed(systems), start=1):
            text += entry(f"NixOS - Configuration {number} (2026-01-0{number} - 26.05)", system)
        self.boot("grub/grub.cfg", text + "}\n")
        self.tool("grub-reboot", f'echo "$1" >{self.root}/told')
        self.tool("bootctl", "exit 1")
        self.tool("stat", f"echo {file_system}")

    def ask(self, shell: tuple[str, ...]) -> tuple[int, str]:
        script = importlib.resources.files("nixa_tasks.deploy").joinpath("boot_once.sh").read_text()
        (self.root / "boot_once.sh").write_text(script + f"\nboot_once {NEW} {OLD}\n")
        done = subprocess.run(
            ("unshare", "-m", "sh", "-c",
             f"mount --bind {self.root}/boot /boot; exec {' '.join(shell)} {self.root}/boot_once.sh"),
            env=os.environ | {"PATH": f"{self.root}/bin:{os.environ['PATH']}"},
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        return done.returncode, done.stderr

    @property
    def told(self) -> str | None:
        file = self.root / "told"
        return file.read_text().strip() if file.exists() else None


@pytest.fixture
def loader(tmp_path: Path) -> Loader:
    (tmp_path / "boot").mkdir()
    return Loader(tmp_path)


@pytest.fixture(params=SHELLS, ids=" ".join)
def shell(request: pytest.FixtureRequest) -> tuple[str, ...]:
    words: tuple[str, ...] = request.param
    assert shutil.which(words[0]), f"{words[0]} must be here"
    return words


def test_systemd_boot_boots_the_newest_entry_of_the_new_system_once(
    loader: Loader, shell: tuple[str, ...]
) -> None:
    loader.systemd_boot(8, n7=NEW, n8=OLD, n9=OLD, n10=NEW)
    assert loader.ask(shell) == (0, "")
    assert loader.told == "nixos-generation-10.conf"


def test_systemd_boot_is_not_armed_while_the_new_system_is_the_default(loader: Loader) -> None:
    loader.systemd_boot(10, n8=OLD, n10=NEW)
    status, said = loader.ask(("dash",))
    assert status != 0
    assert "its default is nixos-generation-10.conf" in said
    assert loader.told is None


def test_an_entry_that_the_loader_does_not_have_is_told(loader: Loader) -> None:
    loader.systemd_boot(8, n8=OLD)
    status, said = loader.ask(("dash",))
    assert status != 0
    assert f"no entry for {NEW}" in said
    assert loader.told is None


def test_grub_boots_the_new_systems_entry_in_the_submenu_once(loader: Loader, shell: tuple[str, ...]) -> None:
    loader.grub(OLD, NEW)
    assert loader.ask(shell) == (0, "")
    assert loader.told == "NixOS - All configurations>NixOS - Configuration 1 (2026-01-01 - 26.05)"


@pytest.mark.parametrize(
    ("head", "file_system", "systems", "says"),
    [
        (SAVED, "zfs", (OLD, NEW), "can't write"),
        (SAVED, "ext2/ext3", (NEW, OLD), f"first entry is not {OLD}"),
        (SAVED, "ext2/ext3", (OLD, OLD), f"no entry for {NEW}"),
        ('set default="0"\n', "ext2/ext3", (OLD, NEW), "grub-reboot"),
        (SAVED.replace('"0"', "saved"), "ext2/ext3", (OLD, NEW), "default is not the first"),
    ],
)
def test_grub_is_not_armed_where_it_could_not_come_back(
    loader: Loader, head: str, file_system: str, systems: tuple[str, ...], says: str
) -> None:
    loader.grub(*systems, head=head, file_system=file_system)
    status, said = loader.ask(("dash",))
    assert status != 0
    assert says in said
    assert loader.told is None
