"""From nixa's functions to doit's actions, tasks and up-to-date rules.

Actions run in threads and print nothing: they write to the journal, which feeds the view. Views
(`plan`, `status`, …) hand their text to `run.results.show`, and it is printed at the end, alone on
standard output.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterable
from typing import Any

from doit.exceptions import TaskError, TaskFailed

from nixa_tasks.errors import NixaError
from nixa_tasks.tasks.run import Run

Task = dict[str, Any]


class Meta(dict[str, Any]):
    """What nixa says of a task beside what doit reads: `host` or `work` or `view`. It carries the
    run, so that the reporter finds it wherever the tasks were loaded from."""

    def __init__(self, run: Run, **said: object) -> None:
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
    """Run it as an action: what goes wrong is recorded, and returned as doit's failure."""
    with run.results.lock:
        run.results.active += 1
    try:
        function(run, *args)
    except NixaError as error:
        run.results.fail(error)
        return TaskFailed(error.what)
    except Exception as error:  # noqa: BLE001 -- a fault of nixa itself: reported as such, exit status 2
        run.results.crashed = traceback.format_exc()
        return TaskError(str(error))
    finally:
        with run.results.lock:
            run.results.active -= 1
    return True


def is_uptodate(run: Run, check: Callable[..., bool], *args: object) -> Callable[[], bool]:
    """An up-to-date rule that never raises: what can't be determined is not up to date, and the
    action then says why."""

    def ask() -> bool:
        try:
            return check(run, *args)
        except NixaError:
            return False

    return ask


def view(run: Run, function: Callable[..., None], *args: object) -> Task:
    """A task that only looks: its text is alone on standard output."""
    return {
        "actions": [action(run, function, *args)],
        "uptodate": [False],
        "verbosity": 2,
        "io": {"capture": False},
        "meta": Meta(run, view=True),
    }
