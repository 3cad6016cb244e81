"""From nixa's functions to doit's actions, tasks and up-to-date rules.

Actions run in threads and print nothing: they write to the journal, which feeds the view. Views
(`plan`, `status`, …) hand their text to `run.results.show`, and it is printed at the end, alone on
standard output.
"""

from __future__ import annotations

import errno
import inspect
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from doit.exceptions import TaskError, TaskFailed

from nixa_tasks.errors import NixaError
from nixa_tasks.tasks.options import Params

if TYPE_CHECKING:
    from nixa_tasks.tasks.run import Run

Task = dict[str, Any]

# What a full disk and somebody else's folder give, which is no fault of nixa's.
_OF_THE_MACHINE = frozenset((errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT))
_NO_REPORTER = (
    "nixa's tasks need nixa's reporter, in this process: write DOIT_CONFIG = {**DOIT_CONFIG, …} below the "
    "import in your dodo.py, and use neither -r nor -P process"
)


class Meta(dict[str, Any]):
    """What nixa says of a task beside what doit reads: `host`, `hosts`, `work`, `view`. It carries the
    run, so that the reporter finds it wherever the tasks were loaded from."""

    def __init__(self, run: Run | None, **said: object) -> None:
        super().__init__(said)
        self.run = run


def run_of(tasks: Iterable[Any]) -> Run | None:
    """The run that doit's tasks belong to; None where none of them is nixa's."""
    return next((task.meta.run for task in tasks if isinstance(task.meta, Meta)), None)


def action(run: Run, function: Callable[..., Any], *args: object) -> tuple[Callable[..., Any], list[object]]:
    """A doit action that runs `function(run, *args)` and turns what goes wrong into a failed task."""
    return (call, [run, function, *args])


def action_with_options(
    run: Run, function: Callable[..., Any], args: tuple[object, ...], names: tuple[str, ...]
) -> Callable[..., Any]:
    """As `action`, for a task with options: doit passes those by the names of the parameters, which
    it reads from the signature."""

    def with_options(**options: Any) -> Any:
        return call(run, lambda run: function(run, *args, **options))

    parameters = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names]
    with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return with_options


def call(run: Run, function: Callable[..., Any], *args: object) -> Any:
    """Run it as an action: what goes wrong is recorded, and returned as doit's failure. A dict that
    it returns is what other tasks get by `getargs`."""
    if not run.is_reported:
        return TaskFailed(_NO_REPORTER)
    with run.results.lock:
        run.results.active += 1
    try:
        values = function(run, *args)
    except NixaError as error:
        run.results.fail(error)
        return TaskFailed(error.what)
    except Exception as error:  # noqa: BLE001 -- a fault of nixa itself: reported as such, exit status 2
        if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
            failed = NixaError(f"{error.filename or 'a file'} can't be written: {error.strerror}")
            run.results.fail(failed)
            return TaskFailed(failed.what)
        run.results.crashed = traceback.format_exc()
        return TaskError(str(error))
    finally:
        with run.results.lock:
            run.results.active -= 1
    return values if isinstance(values, dict) else True


class Rule:
    """An up-to-date rule that says why in words: `doit info` prints it.

    `why` gives the reason why the task is due, or None where it is up to date. It never raises:
    what can't be determined is not up to date, and the action then says why.
    """

    __slots__ = ("_name", "_run", "_why", "reason")

    def __init__(self, run: Run, why: Callable[[Run, str], str | None], name: str) -> None:
        self._run, self._why, self._name = run, why, name
        self.reason: str | None = None

    def __call__(self) -> bool:
        try:
            self.reason = self._why(self._run, self._name)
        except NixaError as error:
            self.reason = error.what
        return self.reason is None

    def __repr__(self) -> str:  # type: ignore[explicit-override]  # Python 3.11 has no `override`
        return self.reason or "it is up to date"


class Always:
    """The up-to-date rule of a task that somebody asks for by name: it is never up to date."""

    __slots__ = ()

    def __call__(self) -> bool:
        return False

    def __repr__(self) -> str:  # type: ignore[explicit-override]  # Python 3.11 has no `override`
        return "it runs whenever it is asked for"


def host_task(run: Run, family: str, host: str, function: Any, params: Params = (), **more: Any) -> Task:
    """A task of one host that has work to do only where its rules say so."""
    names = tuple(param["name"] for param in params)
    return {
        "basename": family,
        "name": host,
        "params": list(params),
        "actions": [
            action_with_options(run, function, (host,), names) if names else action(run, function, host)
        ],
        "verbosity": 2,
        "io": {"capture": False},
        "meta": Meta(run, host=host, work=True),
        **more,
    }


def on_demand(
    run: Run, family: str, name: str, function: Any, params: Sequence[Mapping[str, Any]] = (), **more: Any
) -> Task:
    """A task that always runs: somebody asked for it. Its options reach the function by name."""
    names = tuple(param["name"] for param in params)
    return {
        "basename": family,
        "name": name,
        "params": list(params),
        "actions": [action_with_options(run, function, (name,), names)],
        "uptodate": [Always()],
        "verbosity": 2,
        "io": {"capture": False},
        "meta": Meta(run, host=name),
        **more,
    }


def view(run: Run, function: Callable[..., None], params: Params = (), hosts: tuple[str, ...] = ()) -> Task:
    """A task that only looks, at `hosts`: its text is alone on standard output."""
    return {
        "actions": [action_with_options(run, function, (), tuple(param["name"] for param in params))],
        "params": list(params),
        "uptodate": [Always()],
        "verbosity": 2,
        "io": {"capture": False},
        "meta": Meta(run, view=True, hosts=hosts),
    }
