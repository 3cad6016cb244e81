"""Only the tasks of the hosts that a command line is about are made."""

from __future__ import annotations

from pathlib import Path

import pytest

from nixa_tasks.errors import UsageError
from nixa_tasks.manifest.model import Fleet, Host, Manifest, UrlImage
from nixa_tasks.tasks.selection import select

MANIFEST = Manifest(
    Path("/x/hosts.toml"),
    Fleet("/x"),
    {"x86_64-linux": UrlImage("x86_64-linux", "https://example.org/x.tar.gz", "0" * 64)},
    {name: Host(name, f"{name}.example.org", tags=(name[:3],)) for name in ("web1", "web2", "db1")},
)


@pytest.mark.parametrize(
    ("words", "hosts"),
    [
        ([], "web1 web2 db1"),
        (["deploy"], "web1 web2 db1"),
        (["deploy:web1"], "web1"),
        (["-a", "deploy:web1"], "web1"),
        (["-n", "4", "deploy:web1", "reach:db1"], "web1 db1"),
        (["deploy:web*"], "web1 web2"),
        (["deploy", "--on", "@web and not web2"], "web1"),
        (["deploy", "--on=db1 or web1"], "web1 db1"),
        (["list"], "web1 web2 db1"),
        (["info", "deploy:web1"], "web1 web2 db1"),
        (["run", "deploy:web1"], "web1"),
        (["kexec"], ""),
        (["clean:kexec"], ""),
        (["plan"], "web1 web2 db1"),
        (["reinstall:db1", "--yes-wipe", "db1"], "db1"),
    ],
)
def test_what_a_command_line_is_about(words: list[str], hosts: str) -> None:

    assert select(words, MANIFEST).hosts == tuple(hosts.split())


@pytest.mark.parametrize(
    ("words", "deploys"),
    [
        (["deploy"], "web1 web2 db1"),
        (["deploy:web1", "reach:db1"], "web1"),
        (["deploy:web1", "plan"], "web1"),
        (["deploy:web*", "-a"], "web1 web2"),
        (["*:db1"], "db1"),
        (["deploy", "--on", "@web and not web2"], "web1"),
        (["reach", "--on", "@web"], ""),
        (["info", "deploy:web1"], "web1"),
        (["plan"], ""),
        ([], ""),
    ],
)
def test_only_what_is_to_be_deployed_keeps_the_order_of_the_waves(words: list[str], deploys: str) -> None:
    assert select(words, MANIFEST).deploys == tuple(deploys.split())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["deploy:wbe1"], "did you mean deploy:web1"),
        (["deploy:x*"], "no host in hosts.toml matches"),
        (["kexec:x86-64-linux"], "did you mean kexec:x86_64-linux"),
        (["deploy", "--on", ""], "expression must follow"),
        (["deploy", "--on"], "expression must follow"),
        (["deploy", "--on", "@nobody"], "nobody"),
        (["deploy:web1", "--on", "@web"], "--on can't stand behind deploy:web1"),
        (["kexec", "--on", "@web"], "--on can't stand behind kexec"),
    ],
)
def test_a_choice_that_can_not_be_served_is_a_usage_error(words: list[str], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        select(words, MANIFEST)
    assert says in caught.value.render()
    assert caught.value.exit_status == 3
