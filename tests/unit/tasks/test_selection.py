"""Only the tasks that a doit command needs are made, for the hosts that it is about."""

from __future__ import annotations

from pathlib import Path

import pytest

from nixa_tasks.errors import UsageError
from nixa_tasks.manifest.model import Fleet, Host, Manifest, UrlImage
from nixa_tasks.tasks.families import NAMES
from nixa_tasks.tasks.selection import Command, Request, read

MANIFEST = Manifest(
    Path("/x/hosts.toml"),
    Fleet("/x"),
    {"x86_64-linux": UrlImage("x86_64-linux", "https://example.org/x.tar.gz", "0" * 64)},
    {name: Host(name, f"{name}.example.org", tags=(name[:3],)) for name in ("web1", "web2", "db1")},
)


def request(*words: str, command: str = "run", is_all_nixa: bool = True) -> Request:
    return read(Command(command, words, is_all_nixa), MANIFEST, NAMES)


@pytest.mark.parametrize(
    ("words", "families"),
    [
        ("deploy", {"deploy": "web1 web2 db1", "evaluate": "web1 web2 db1"}),
        ("deploy:web1", {"deploy": "web1", "evaluate": "web1"}),
        ("deploy:web1 reach:db1", {"deploy": "web1", "evaluate": "web1", "reach": "db1"}),
        ("deploy:web*", {"deploy": "web1 web2", "evaluate": "web1 web2"}),
        ("deploy --on not(web2)", {"deploy": "web1 db1", "evaluate": "web1 db1"}),
        ("deploy --on=db1", {"deploy": "db1", "evaluate": "db1"}),
        ("evaluate --on @db1", {"evaluate": "db1"}),
        ("kexec", {"kexec": "x86_64-linux"}),
        ("clean:kexec", {"clean": ""}),
        ("plan --json", {"plan": ""}),
        ("plan:web2 --json", {"plan": "web2"}),
        ("reinstall:db1 --yes-wipe db1 reach:web1", {"reinstall": "db1", "evaluate": "db1", "reach": "web1"}),
        ("report -o web1", {"report": ""}),
    ],
)
def test_only_what_the_words_need_is_made(words: str, families: dict[str, str]) -> None:
    made = request(*words.split())
    assert made.families is not None
    known = {name: MANIFEST.images if name == "kexec" else MANIFEST.hosts for name in made.families}
    assert {name: " ".join(made.names(name, known[name])) for name in made.families} == families


@pytest.mark.parametrize("command", ["forget", "info", "clean", "ignore", "run"])
def test_a_command_about_one_host_makes_that_hosts_tasks(command: str) -> None:
    made = request("deploy:web1", command=command)
    assert made.families == {"deploy": ("web1",), "evaluate": ("web1",)}


@pytest.mark.parametrize(
    ("words", "command", "is_all_nixa"),
    [
        ("", "run", True),
        ("", "list", True),
        ("deploy", "list", True),
        ("*:web1", "run", True),
        (".nixa/hosts/web1/deployed.json", "run", True),
        ("deploy:web1", "run", False),
        ("release", "run", False),
    ],
)
def test_everything_is_made_where_any_task_may_be_needed(words: str, command: str, is_all_nixa: bool) -> None:
    assert request(*words.split(), command=command, is_all_nixa=is_all_nixa).families is None


def test_everything_is_made_where_doit_can_not_be_asked() -> None:
    made = read(None, MANIFEST, NAMES)
    assert made.families is None
    assert made.names("deploy", MANIFEST.hosts) == ("web1", "web2", "db1")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("deploy:wbe1", "did you mean deploy:web1"),
        ("deploy:x*", "no host in hosts.toml matches"),
        ("kexec:x86-64-linux", "did you mean kexec:x86_64-linux"),
        ("deploy --on", "expression must follow"),
        ("deploy --on=", "expression must follow"),
        ("deploy --on @nobody", "nobody"),
        ("plan --on @nobody", "nobody"),
        ("deploy:web1 --on @web", "--on can't follow deploy:web1"),
        ("kexec --on @web", "--on can't follow kexec"),
        ("deploy:web1,web2", "doit deploy --on 'web1 or web2'"),
        ("delpoy:web1", "did you mean deploy:web1?"),
        ("statsu", "did you mean status?"),
        ("web1", "for example: doit deploy:web1"),
        ("deploy web1", "web1 is a host, not a task"),
        ("xyzzy", "doit list shows every task"),
    ],
)
def test_what_can_not_be_meant_is_a_usage_error_with_a_way_on(words: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        request(*words.split())
    assert says in caught.value.render()
    assert caught.value.exit_status == 3


def test_a_name_of_somebody_elses_task_is_left_to_doit() -> None:
    assert request("release", "--version", "2", is_all_nixa=False).families is None
    with pytest.raises(UsageError):
        request("release", "deploy:wbe1", is_all_nixa=False)
