"""Every family of nixa's tasks by name: what it takes, what it needs, and who makes its tasks.

`dodo.py`, the loader of the command `nixa`, the help and the tests read this one table.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from doit.task import Task as DoitTask
from doit.task import dict_to_task

from nixa_tasks.tasks import options
from nixa_tasks.tasks.actions import Meta, Task
from nixa_tasks.tasks.options import Params
from nixa_tasks.tasks.selection import Names, Scope

if TYPE_CHECKING:
    from nixa_tasks.tasks.run import Run

_FLEET = Scope.FLEET
_IMAGE = Scope.IMAGE
_EVALUATE = ("evaluate",)
_WIDTH = 26
_WITH_STAMPS = ("deploy", "evaluate", "build")
_SHOWN = ("list", "info", "forget", "ignore", "clean")


class Family(NamedTuple):
    """A family of tasks. `make` gives the tasks of these hosts or images; of a fleet's family also
    those of all of them together. `params`: options of the whole family; `own`: of each task in it.
    `examples`: what a person would type. `is_bare_refused`: it never acts on all hosts at once."""

    name: str
    doc: str
    make: Callable[..., Iterable[Task | DoitTask]]
    scope: Scope = Scope.HOST
    params: Params = ()
    own: Params = ()
    needs: tuple[str, ...] = ()
    has_hosts: bool = True
    is_bare_refused: bool = False
    examples: tuple[str, ...] = ()

    @property
    def names(self) -> Names:
        """What it takes on the command line."""
        options = (*self.params, *self.own)
        valued = {f"--{one['long']}" for one in options if one["type"] is not bool}
        valued |= {f"-{one['short']}" for one in options if "short" in one and one["type"] is not bool}
        return Names(self.name, self.scope, self.needs, frozenset(valued), self.has_hosts)


def _made_by(module: str, function: str) -> Callable[[Run, Iterable[str]], Iterable[Task | DoitTask]]:
    """A maker of tasks whose module is imported only for a command that needs the family."""

    def make(run: Run, names: Iterable[str]) -> Iterable[Task | DoitTask]:
        made: Iterable[Task | DoitTask] = getattr(
            importlib.import_module(f"nixa_tasks.tasks.{module}"), function
        )(run, names)
        return made

    return make


ALL = (
    Family("deploy", "bring hosts to what the flake says", _made_by("hosts", "deploy_tasks"),
           params=(*options.ON, *options.AGAIN), own=options.AGAIN, needs=_EVALUATE,
           examples=("deploy:web1", "deploy --on '@web and not web3'")),
    Family("evaluate", "the flake's output of each host", _made_by("hosts", "evaluate_tasks"), params=options.ON,
           examples=("evaluate:web1", "evaluate --on @web")),
    Family("build", "each host's closure in the local store, with a GC root", _made_by("hosts", "build_tasks"), params=options.ON,
           needs=_EVALUATE, examples=("build:web1", "build --on @web")),
    Family("reach", "is a host reachable, who is it, what does it run", _made_by("hosts", "reach_tasks"), params=options.ON,
           examples=("reach:web1", "reach --on @web")),
    Family("trust", "take the host key that a target shows now as the right one", _made_by("hosts", "trust_tasks"),
           own=options.PIN, is_bare_refused=True, examples=("trust:web1", "trust:web1 --pin")),
    Family("keys", "make a host's ssh host key before it is installed", _made_by("hosts", "keys_tasks"),
           own=options.KEY_OPTIONS, is_bare_refused=True,
           examples=("keys:web1 --to secrets/web1/etc/ssh/ssh_host_ed25519_key --pin",
                     "keys:web1 --into 'sops encrypt --output secrets/web1.key /dev/stdin' --pin")),
    Family("rollback", "back to the system that ran before", _made_by("hosts", "rollback_tasks"), needs=_EVALUATE,
           own=options.TO, is_bare_refused=True, examples=("rollback:web1", "rollback:web1 --to 41")),
    Family("generations", "the systems that a host can be rolled back to", _made_by("hosts", "generations_tasks"),
           examples=("generations:web1",)),
    Family("reinstall", "wipe a host and install it again: the explicit, destructive way",
           _made_by("hosts", "reinstall_tasks"), own=options.YES_WIPE, needs=_EVALUATE, is_bare_refused=True,
           examples=("reinstall:web1", "reinstall:web1 --yes-wipe web1")),
    Family("history", "what was deployed, when, from which revision, by whom, how it ended",
           _made_by("hosts", "history_tasks"), own=options.JSON, examples=("history:web1", "history:web1 --json")),
    Family("hardware", "write a host's hardware report to its file in the flake", _made_by("hosts", "hardware_tasks"),
           examples=("hardware:web1", "hardware:web*")),
    Family("kexec", "fetch the pinned images into the cache, verified", _made_by("images", "kexec_tasks"), _IMAGE,
           examples=("kexec", "kexec:x86_64-linux")),
    Family("checksum", "verify the cached images against their pins", _made_by("images", "checksum_tasks"), _IMAGE,
           examples=("checksum", "checksum:x86_64-linux")),
    Family("pin", "look at an image's URL now, and write the new hash into hosts.toml", _made_by("images", "pin_tasks"),
           _IMAGE, params=options.CHECK, examples=("pin:x86_64-linux", "pin --check")),
    Family("clean", "remove what can be fetched again", _made_by("images", "clean_tasks"), _FLEET, has_hosts=False,
           examples=("clean:kexec", "clean -n deploy:web1")),
    Family("plan", "what deploy would do to each host, and why; changes nothing", _made_by("fleet", "plan_tasks"), _FLEET,
           params=(*options.ON, *options.JSON, *options.DETAILED), own=(*options.JSON, *options.DETAILED),
           examples=("plan", "plan --on @web --json")),
    Family("status", "a table: host, wanted, live, last deploy, state", _made_by("fleet", "status_tasks"), _FLEET,
           params=(*options.ON, *options.JSON, *options.LIVE), own=(*options.JSON, *options.LIVE),
           examples=("status", "status:web1 --live")),
    Family("report", "one HTML page: the fleet, the last runs as a timeline, what the image cache saved",
           _made_by("fleet", "report_tasks"), _FLEET, params=(*options.LIVE, *options.OUTPUT), has_hosts=False,
           examples=("report", "report --live -o fleet.html")),
    Family("gc", "remove cached images that no manifest pins any more, and GC roots of superseded systems",
           _made_by("fleet", "gc_tasks"), _FLEET, params=options.DRY_RUN, has_hosts=False, examples=("gc --dry-run", "gc")),
)  # fmt: skip
BY_NAME: Mapping[str, Family] = {family.name: family for family in ALL}
NAMES: Mapping[str, Names] = {family.name: family.names for family in ALL}
Made = Iterator[Any] | None


def creators(tasks_of: Callable[[Family], Made]) -> dict[str, Callable[[], Made]]:
    """All task creators. doit refuses one that is named like a command of its own or of a plugin, so
    none has the plain name of a family."""
    return {f"task_nixa_{family.name}": _creator(family, tasks_of) for family in ALL}


def _creator(family: Family, tasks_of: Callable[[Family], Made]) -> Callable[[], Made]:
    def create() -> Made:
        return tasks_of(family)

    create.__doc__ = family.doc
    create.nixa_family = family.name  # type: ignore[attr-defined]
    return create


def is_nixas(creator: object) -> bool:
    """Whether a task creator is one of ours."""
    return hasattr(creator, "nixa_family")


def tasks(family: Family, run: Run) -> Iterator[Task | DoitTask]:
    """The family's tasks that the run's command needs."""
    known = run.manifest.images if family.scope is Scope.IMAGE else run.manifest.hosts
    names = run.request.names(family.name, known) if family.has_hosts else ()
    if family.scope is not _FLEET:
        yield _group(family, run)
    for task in family.make(run, names):
        if isinstance(task, dict) and "name" not in task:
            task.setdefault("doc", family.doc)
            is_help = run.request.command == "help"
            yield (
                _explained(family, dict_to_task({"name": task.pop("basename"), **task})) if is_help else task
            )
        else:
            yield task


def _group(family: Family, run: Run) -> Task | DoitTask:
    params = list(family.params)
    if run.request.command != "help":
        return {"basename": family.name, "name": None, "doc": family.doc, "params": params, "meta": Meta(run)}
    return _explained(family, DoitTask(family.name, None, has_subtask=True, params=params))


def _explained(family: Family, task: DoitTask) -> DoitTask:
    """For `doit help FAMILY`, which prints the line about a task: all that there is to say."""
    task.doc = explain(family, "doit")
    return task


def explain(family: Family, program: str, *, is_whole: bool = False) -> str:
    """Help on a family for people; `is_whole`: with the family's own options, which doit adds itself."""
    text = of_family(
        program,
        family.name,
        family.doc,
        family.scope,
        family.examples,
        family.own,
        has_hosts=family.has_hosts,
    )
    if is_whole and family.params:
        text += f"\n\noptions of {family.name}:\n" + described(family.params)
    return text if is_whole or not family.params else text + f"\n\noptions of {family.name}:"


def overview(program: str, families: Sequence[tuple[str, str]]) -> str:
    """What the command is for, and each family with its line."""
    lines = [
        f"usage: {program} [-a] [-n JOBS] [-d FOLDER] TASK[:HOST] [--on EXPRESSION] …",
        "",
        "make for NixOS machines: the least work after which every host of hosts.toml runs what the flake says.",
        "",
        *(_columns(name, doc) for name, doc in families),
        "",
        f"  {program}                      plan: what would be done, and why",
        f"  {program} deploy:web1          one host; deploy:web* by a pattern; deploy for all of them",
        f"  {program} deploy --on '@web'   hosts by tags, names and patterns with and, or, not, ( )",
        f"  {program} TASK --help          what a task takes",
        "",
        "options before the task are doit's:",
        _columns("-a", "ask the hosts whatever the stamps say"),
        _columns("-n JOBS", "how many at the same time ([fleet] jobs)"),
        _columns("-d FOLDER", "where hosts.toml is; otherwise here, or in a folder above"),
        f"commands of doit's: {', '.join(_SHOWN)}; {program} help COMMAND",
    ]
    return "\n".join(lines) + "\n"


def of_family(
    program: str, name: str, doc: str, scope: Scope, examples: Sequence[str], own: Params, *, has_hosts: bool
) -> str:
    """What a family of tasks is for, how it is called, and the options of its single tasks."""
    one = {Scope.HOST: "HOST", Scope.IMAGE: "IMAGE", Scope.FLEET: "HOST" if has_hosts else ""}[scope]
    lines = [doc, ""]
    if one:
        lines.append(f"  {program} {name}:{one}")
    lines += [f"  {program} {example}" for example in examples]
    if name in _WITH_STAMPS:
        lines.append(f"  {program} -a {name}:{one}    whatever the stamps say")
    if own:
        lines += ["", f"options of {name}:{one}:", *(option_line(option) for option in own)]
    return "\n".join(lines)


def described(params: Params) -> str:
    """The options, one a line."""
    return "\n".join(map(option_line, params))


def option_line(option: Mapping[str, Any]) -> str:
    """`-o ARG, --output=ARG` and what it is for."""
    argument = "" if option["type"] is bool else option["name"].upper()
    short = f"-{option['short']} {argument}".rstrip() + ", " if "short" in option else ""
    long = f"--{option['long']}" + (f"={argument}" if argument else "")
    return _columns(short + long, option["help"])


def _columns(left: str, right: str) -> str:
    return f"  {left:<{_WIDTH - 2}}{right}"
