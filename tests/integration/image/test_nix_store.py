"""Images and a real Nix."""

from __future__ import annotations

import gzip
import http.server
import io
import os
import shutil
import subprocess
import tarfile
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from nixa_tasks.errors import NixaError
from nixa_tasks.files import hash_file
from nixa_tasks.image import nix_store as nixstore
from nixa_tasks.image.cache.cache import Cache
from nixa_tasks.image.obtain import Obtained, obtain
from nixa_tasks.manifest.digest import to_sri
from nixa_tasks.manifest.model import Image, InstallableImage, UrlImage
from nixa_tasks.nix.command import Nix
from nixa_tasks.process.run import LocalProcesses
from tests.clocks import CLOCK

pytestmark = pytest.mark.skipif(shutil.which("nix-store") is None, reason="needs Nix")

CONF = """extra-experimental-features = nix-command flakes
build-users-group =
substituters =
flake-registry =
sandbox = false
sandbox-paths =
"""
ELF = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\x3e\x00" + bytes(40)


@pytest.fixture(autouse=True)
def settings(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nix without a network, whoever runs the test."""
    conf = tmp_path_factory.mktemp("nix") / "nix.conf"
    conf.write_text(CONF)
    monkeypatch.setenv("NIX_USER_CONF_FILES", str(conf))


def installer() -> bytes:
    """A tarball of the right shape, other than every other one."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data, mode in (
            ("kexec/run", b"#!/bin/sh\n", 0o755),
            ("kexec/bzImage", b"kernel", 0o644),
            ("kexec/initrd", uuid.uuid4().bytes * 10, 0o644),
            ("kexec/kexec", ELF, 0o755),
        ):
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), mode
            archive.addfile(info, io.BytesIO(data))
    return gzip.compress(out.getvalue(), 1)


@dataclass
class Project:
    """A server with one image, a cache, and a project that pins it."""

    folder: Path
    base: str
    asked: list[str]

    @property
    def cache(self) -> Cache:
        return Cache(self.folder / "cache", CLOCK)

    def image(self, name: str = "nixos-kexec-installer.tar.gz") -> UrlImage:
        file = self.folder / "www" / name
        file.write_bytes(installer())
        return UrlImage("own", f"{self.base}/{name}", hash_file(file), store=True)

    def obtain(self, image: Image) -> Obtained:
        return obtain(
            image,
            cache=self.cache,
            manifest=self.folder / "hosts.toml",
            gcroots=self.folder / ".nixa/gcroots",
            progress=lambda _done, _total: None,
            note=lambda _text: None,
            nix=Nix(LocalProcesses()),
        )


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    (tmp_path / "www").mkdir()
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(tmp_path / "www"))  # type: ignore[arg-type]

        def log_message(self, *_args: object) -> None:  # type: ignore[explicit-override] # not in 3.11
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield Project(tmp_path, f"http://127.0.0.1:{server.server_port}", asked)
        server.shutdown()
        thread.join(5)


def forget(path: Path, gcroot: Path) -> None:
    gcroot.unlink(missing_ok=True)
    subprocess.run(["nix-store", "--delete", str(path)], check=False, capture_output=True)


def test_the_path_is_the_one_of_fetchurl(project: Project) -> None:
    image = project.image()
    expression = f"""(derivation {{
      name = "nixos-kexec-installer.tar.gz"; system = "x86_64-linux"; builder = "/none";
      outputHashMode = "flat"; outputHashAlgo = "sha256"; outputHash = "{to_sri(image.sha256)}";
    }}).outPath"""
    asked = subprocess.run(
        ["nix-instantiate", "--eval", "-E", expression], check=True, capture_output=True, text=True
    )
    assert nixstore.store_path(Nix(LocalProcesses()), image) == Path(asked.stdout.strip().strip('"'))


def test_a_fetched_image_is_in_the_store_and_taken_from_there(project: Project) -> None:
    image = project.image()
    first = project.obtain(image)
    stored, root = (
        nixstore.find_in_store(Nix(LocalProcesses()), image),
        project.folder / ".nixa/gcroots/kexec-own",
    )
    try:
        assert stored is not None
        assert stored.read_bytes() == first.path.read_bytes()
        assert root.readlink() == stored
        roots = subprocess.run(
            ["nix-store", "--query", "--roots", str(stored)], check=True, capture_output=True, text=True
        )
        assert str(root) in roots.stdout
        project.cache.clean([image])
        again = project.obtain(image)
        assert again.path == first.path
        assert project.cache.find(image) == first.path
        assert len(project.asked) == 1  # nothing is downloaded that Nix has
        first.check_architecture("x86_64-linux", host="web1")
        with pytest.raises(NixaError, match="for x86_64, and the host is aarch64-linux") as caught:
            first.check_architecture("aarch64-linux", host="web1")
        assert caught.value.host == "web1"
    finally:
        if stored is not None:
            forget(stored, root)


def test_without_store_nix_is_not_asked(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    image = replace(project.image(), store=False)
    monkeypatch.setenv("PATH", "/nowhere")
    assert project.obtain(image).path.exists()


def test_a_name_that_nix_does_not_allow_is_said(project: Project) -> None:
    with pytest.raises(NixaError, match="can't be a name in the Nix store"):
        nixstore.store_path(
            Nix(LocalProcesses()), replace(project.image(), url="https://example.org/a%20b.tar.gz")
        )


def flake(folder: Path, script: str) -> InstallableImage:
    """A flake with one package that busybox builds; reached by a relative installable."""
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("needs busybox")
    (folder / "bin").mkdir()
    shutil.copy(busybox, folder / "bin/busybox")
    (folder / "installer.tar.gz").write_bytes(installer())
    (folder / "flake.nix").write_text(
        """{ outputs = { self }: { packages.x86_64-linux.image = derivation {
          name = "image"; system = "x86_64-linux"; builder = "${./bin}/busybox";
          args = [ "sh" "-c" "export PATH=${./bin}; b=${./bin}/busybox; t=${./installer.tar.gz}; SCRIPT" ];
        }; }; }""".replace("SCRIPT", script)
    )
    return InstallableImage("own", ".#packages.x86_64-linux.image")


@pytest.mark.parametrize(
    "script",
    [
        "$b mkdir -p $out; $b cp $t $out/nixos-kexec-installer-x86_64-linux.tar.gz",
        "$b mkdir -p $out/tarball; $b cp $t $out/tarball/x.tar.gz",
    ],
)
def test_an_installable_is_built_from_the_manifests_folder(project: Project, script: str) -> None:
    image = flake(project.folder, script)
    built = project.obtain(image)
    assert built.path.name.endswith(".tar.gz")
    assert built.sha256 == hash_file(built.path)
    assert built.summary.architecture == "x86_64"
    root = project.folder / ".nixa/gcroots/kexec-own"
    assert Path(str(root.resolve())).is_dir()
    assert project.obtain(image).path == built.path


def test_an_output_without_a_tarball_is_said(project: Project) -> None:
    image = flake(project.folder, "$b mkdir -p $out")
    with pytest.raises(NixaError, match="no tarball in what Nix built"):
        project.obtain(image)


def test_a_broken_installable_shows_what_nix_said(project: Project) -> None:
    image = replace(flake(project.folder, ""), installable=".#packages.x86_64-linux.nothing")
    with pytest.raises(NixaError) as caught:
        project.obtain(image)
    assert "nothing" in caught.value.render()


def test_this_nix_is_one_that_is_supported() -> None:
    assert Nix(LocalProcesses()).version() >= (2, 8)
    assert os.environ["NIX_USER_CONF_FILES"]
