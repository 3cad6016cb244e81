"""Every family of nixa's tasks by name: what it takes, what it needs, and who makes its tasks.

`dodo.py`, the loader of the command `nixa`, the help and the tests read this one table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from doit.task import Task as DoitTask
from doit.task import dict_to_task

from nixa_tasks.tasks import fleet, hosts, images
from nixa_tasks.tasks import help as help_text
from nixa_tasks.tasks.actions import Meta, Params, Task
from nixa_tasks.tasks.run import Run
from nixa_tasks.tasks.selection import Names, Scope

_FLEET = Scope.FLEET
_IMAGE = Scope.IMAGE
_EVALUATE = ("evaluate",)


@dataclass(frozen=True, slots=True)
class Family:
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


ALL = (
    Family("deploy", "bring hosts to what the flake says", hosts.deploy_tasks,
           params=(*fleet.ON, *hosts.AGAIN), own=hosts.AGAIN, needs=_EVALUATE,
           examples=("deploy:web1", "deploy --on '@web and not web3'")),
    Family("evaluate", "the flake's output of each host", hosts.evaluate_tasks, params=fleet.ON,
           examples=("evaluate:web1", "evaluate --on @web")),
    Family("build", "each host's closure in the local store, with a GC root", hosts.build_tasks, params=fleet.ON,
           needs=_EVALUATE, examples=("build:web1", "build --on @web")),
    Family("reach", "is a host reachable, who is it, what does it run", hosts.reach_tasks, params=fleet.ON,
           examples=("reach:web1", "reach --on @web")),
    Family("trust", "take the host key that a target shows now as the right one", hosts.trust_tasks,
           own=hosts.PIN, is_bare_refused=True, examples=("trust:web1", "trust:web1 --pin")),
    Family("keys", "make a host's ssh host key before it is installed", hosts.keys_tasks,
           own=hosts.KEY_OPTIONS, is_bare_refused=True,
           examples=("keys:web1 --to secrets/web1/etc/ssh/ssh_host_ed25519_key --pin",
                     "keys:web1 --into 'sops encrypt --output secrets/web1.key /dev/stdin' --pin")),
    Family("rollback", "back to the system that ran before", hosts.rollback_tasks, needs=_EVALUATE,
           own=hosts.TO, is_bare_refused=True, examples=("rollback:web1", "rollback:web1 --to 41")),
    Family("generations", "the systems that a host can be rolled back to", hosts.generations_tasks,
           examples=("generations:web1",)),
    Family("reinstall", "wipe a host and install it again: the explicit, destructive way",
           hosts.reinstall_tasks, own=hosts.YES_WIPE, needs=_EVALUATE, is_bare_refused=True,
           examples=("reinstall:web1", "reinstall:web1 --yes-wipe web1")),
    Family("history", "what was deployed, when, from which revision, by whom, how it ended",
           hosts.history_tasks, own=hosts.JSON, examples=("history:web1", "history:web1 --json")),
    Family("hardware", "write a host's hardware report to its file in the flake", hosts.hardware_tasks,
           examples=("hardware:web1", "hardware:web*")),
    Family("kexec", "fetch the pinned images into the cache, verified", images.kexec_tasks, _IMAGE,
           examples=("kexec", "kexec:x86_64-linux")),
    Family("checksum", "verify the cached images against their pins", images.checksum_tasks, _IMAGE,
           examples=("checksum", "checksum:x86_64-linux")),
    Family("pin", "look at an image's URL now, and write the new hash into hosts.toml", images.pin_tasks,
           _IMAGE, params=images.CHECK, examples=("pin:x86_64-linux", "pin --check")),
    Family("clean", "remove what can be fetched again", images.clean_tasks, _FLEET, has_hosts=False,
           examples=("clean:kexec", "clean -n deploy:web1")),
    Family("plan", "what deploy would do to each host, and why; changes nothing", fleet.plan_tasks, _FLEET,
           params=(*fleet.ON, *fleet.JSON, *fleet.DETAILED), own=(*fleet.JSON, *fleet.DETAILED),
           examples=("plan", "plan --on @web --json")),
    Family("status", "a table: host, wanted, live, last deploy, state", fleet.status_tasks, _FLEET,
           params=(*fleet.ON, *fleet.JSON, *fleet.LIVE), own=(*fleet.JSON, *fleet.LIVE),
           examples=("status", "status:web1 --live")),
    Family("report", "one HTML page: the fleet, the last runs as a timeline, what the image cache saved",
           fleet.report_tasks, _FLEET, params=(*fleet.LIVE, *fleet.OUTPUT), has_hosts=False,
           examples=("report", "report --live -o fleet.html")),
    Family("gc", "remove cached images that no manifest pins any more, and GC roots of superseded systems",
           fleet.gc_tasks, _FLEET, params=fleet.DRY_RUN, has_hosts=False, examples=("gc --dry-run", "gc")),
)  # fmt: skip
BY_NAME: Mapping[str, Family] = {family.name: family for family in ALL}
NAMES: Mapping[str, Names] = {family.name: family.names for family in ALL}
Creator = Callable[[], Iterator[Task | DoitTask] | None]


def creator(family: Family, run_of_command: Callable[[], Run]) -> Creator:
    """The family's task creator, as doit calls it for each command."""

    def create() -> Iterator[Task | DoitTask] | None:
        run = run_of_command()
        return tasks(family, run) if run.request.has(family.name) else None

    create.__doc__ = family.doc
    create.nixa_family = family.name  # type: ignore[attr-defined]
    return create


def creators(run_of_command: Callable[[], Run]) -> dict[str, Creator]:
    """All task creators. doit refuses one that is named like a command of its own or of a plugin, so
    none has the plain name of a family."""
    return {f"task_nixa_{family.name}": creator(family, run_of_command) for family in ALL}


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
    text = help_text.of_family(
        program,
        family.name,
        family.doc,
        family.scope,
        family.examples,
        family.own,
        has_hosts=family.has_hosts,
    )
    if is_whole and family.params:
        text += f"\n\noptions of {family.name}:\n" + help_text.options(family.params)
    return text if is_whole or not family.params else text + f"\n\noptions of {family.name}:"
