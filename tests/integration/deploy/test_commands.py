"""Every command of the README, run on practice machines."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest

from nixa_tasks.text import size as readable
from tests.html_document import read
from tests.integration.deploy.conftest import Fleet

pytestmark = pytest.mark.lab


def gets(fleet: Fleet) -> int:
    return sum(1 for one in fleet.lab.requests() if one["method"] == "GET")


def test_the_first_steps_of_the_readme(fleet: Fleet) -> None:
    """pin, reach, plan, deploy: from a manifest whose pin is not right yet."""
    manifest = fleet.flake / "hosts.toml"
    text = manifest.read_text()
    wrong = text.replace(fleet.lab.image_sha256, "sha256-" + "A" * 43 + "=")
    assert wrong != text
    manifest.write_text(wrong)
    image = next(line for line in text.splitlines() if line.startswith("[kexec."))[7:-1]
    assert fleet.lab.image_sha256 in fleet.doit(f"pin:{image}")
    assert manifest.read_text() == text
    assert gets(fleet) == 2  # over plain http only two transfers that agree are a proof
    assert "is pinned" not in fleet.doit("reach:web1")
    assert "install" in fleet.doit("plan")
    fleet.doit("deploy:web1")
    assert gets(fleet) == 2, "what pin has fetched is not fetched again"


def test_day_to_day(fleet: Fleet) -> None:
    fleet.doit("deploy:web*")
    fleet.change("web1", '{ message = "new"; }\n')
    assert "switched" in fleet.doit("deploy", "--on", "web1 or web2")
    assert "current" in fleet.doit("-a", "deploy:web1")
    rows = json.loads(fleet.doit("status", "--live", "--json"))["hosts"]
    assert {row["state"] for row in rows} == {"current"}
    fleet.doit("rollback:web1")
    assert [one["mode"] for one in json.loads(fleet.doit("history:web1", "--json"))["deploys"]] == [
        "install", "switch", "rollback",
    ]  # fmt: skip
    fleet.doit("reinstall:web2", "--yes-wipe", "web2")
    assert fleet.lab.machines["web2"].wipes() == 2
    assert "SHA256:" in fleet.doit("trust:web3")
    report(fleet)


def report(fleet: Fleet) -> None:
    """What the day was is on one page: four installations by one download."""
    fleet.doit("report", "--live")
    page = read((fleet.flake / ".nixa/report.html").read_text())
    (table,) = page.all("table", "fleet")
    states = [" ".join(row.all("td")[2].text.split()[:2]) for row in table.all("tbody")[0].all("tr")]
    assert states == ["● held", "✓ current", "✓ current"]
    did = [one.all("b")[0].text for one in page.all("details", "run")]
    assert [one for one in did if one != "evaluate"] == [
        "reinstall",
        "rollback",
        "deploy",
        "deploy",
        "deploy",
    ]
    (image,) = page.all("table", "cache")[0].all("tbody")[0].all("tr")
    size = fleet.lab.image.stat().st_size
    told = [cell.text for cell in image.all("td")]
    assert told == [readable(size), "4", readable(size), readable(3 * size), readable(4 * size), "0 B"]


def test_images_are_fetched_verified_and_removed(fleet: Fleet) -> None:
    fleet.doit("kexec")
    assert gets(fleet) == 1
    assert "nothing to do" in fleet.doit("kexec")
    image = fleet.doit("list", "--all").split("checksum:")[1].split()[0]
    assert "as pinned" in fleet.doit(f"checksum:{image}")
    size = fleet.lab.image.stat().st_size
    freed = fleet.doit("clean:kexec")
    assert int(freed.split("clean:kexec: ")[1].split()[0]) >= size
    assert "removed" in fleet.doit("gc", "--dry-run")
    fleet.doit("kexec")
    assert gets(fleet) == 2


def test_a_file_that_is_no_installer_fails_again_and_again(fleet: Fleet) -> None:
    """Its hash is right, so it stays in the cache; that alone makes nothing up to date."""
    other = fleet.flake.parent / "other.tar.gz"
    other.write_bytes(b"not a tarball")
    pin = f'url = "{other.as_uri()}"\nsha256 = "{hashlib.sha256(b"not a tarball").hexdigest()}"'
    with (fleet.flake / "hosts.toml").open("a") as file:
        file.write(f"\n[kexec.other]\n{pin}\n")
    for _ in range(2):
        assert "is no tarball" in fleet.doit("kexec:other", status=1)


def test_what_changes_no_output_contacts_nobody(fleet: Fleet) -> None:
    fleet.doit("deploy")
    before, seen = fleet.contacts(), gets(fleet)
    manifest = fleet.flake / "hosts.toml"
    # Another pin, an image that nobody has: a machine is never re-installed for it.
    manifest.write_text(manifest.read_text().replace(fleet.lab.image_sha256, "sha256-" + "A" * 43 + "="))
    assert "nothing to do" in fleet.doit("deploy") or fleet.contacts() == before
    with (fleet.flake / "flake.nix").open("a") as file:
        file.write("# a comment that changes no output\n")
    fleet.doit("deploy")
    assert fleet.contacts() == before
    for database in fleet.flake.glob(".nixa/doit.db*"):
        database.unlink()
    systems = {name: machine.current_system() for name, machine in fleet.lab.machines.items()}
    fleet.doit("deploy")
    assert {name: machine.current_system() for name, machine in fleet.lab.machines.items()} == systems
    assert gets(fleet) == seen
    shutil.rmtree(fleet.flake / ".nixa")
    assert fleet.doit("deploy").count("current") >= 3
