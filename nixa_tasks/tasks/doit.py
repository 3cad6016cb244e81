"""The one adapter to doit: actions, errors, exit status, signals, output.

Actions run in threads and print nothing: they tell the journal, which feeds the view. Views
(`plan`, `status`, …) hand their text to `show`, and it is printed at the end, alone on standard
output.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, TextIO

from doit.exceptions import TaskError, TaskFailed, UnmetDependency

from nixa_tasks.errors import EXIT_FAILED, EXIT_INTERNAL, EXIT_USAGE, Interrupted, NixaError
from nixa_tasks.files import now
from nixa_tasks.fleet.reporter import Result, View, summary, view_for
from nixa_tasks.process import run as process
from nixa_tasks.state.journal import Event, Kind
from nixa_tasks.tasks import waves

_WIND_DOWN_SECONDS = 5.0


@dataclass(slots=True)
class Outcome:
    """What a run gathers for its end. Filled by actions in many threads."""

    results: dict[str, Result] = field(default_factory=dict)
    errors: list[NixaError] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)
    crashed: str | None = None
    status: int = 0
    active: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fail(self, error: NixaError) -> None:
        with self.lock:
            self.errors.append(error)
            self.status = max(self.status, error.exit_status)

    def record(self, result: Result) -> None:
        with self.lock:
            self.results[result.name] = result

    def show(self, text: str, status: int = 0) -> None:
        """Text for standard output, printed alone once all is done."""
        with self.lock:
            self.shown.append(text)
            self.status = max(self.status, status)


outcome = Outcome()


def action(function: Callable[..., Any], *args: object) -> tuple[Callable[..., Any], list[object]]:
    """A doit action that runs `function(*args)` and turns what goes wrong into a failed task."""
    return (_call, [function, args])


def action_with_options(
    function: Callable[..., Any], args: tuple[object, ...], names: tuple[str, ...]
) -> Callable[..., Any]:
    """As `action`, for a task with options: doit passes those by the names of the parameters, which
    it reads from the signature."""

    def call(**options: Any) -> Any:
        return _call(lambda: function(*args, **options), ())

    parameters = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names]
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return call


def _call(function: Callable[..., Any], args: tuple[object, ...]) -> Any:
    with outcome.lock:
        outcome.active += 1
    try:
        function(*args)
    except NixaError as error:
        outcome.fail(error)
        return TaskFailed(error.what)
    except Exception as error:  # noqa: BLE001 -- a fault of nixa itself: told as such, exit status 2
        outcome.crashed = traceback.format_exc()
        return TaskError(str(error))
    finally:
        with outcome.lock:
            outcome.active -= 1
    return True


def is_uptodate(check: Callable[[], bool]) -> Callable[[], bool]:
    """An up-to-date rule that never raises: what can't be told is not up to date, and the action
    then tells why."""

    def ask() -> bool:
        try:
            return check()
        except NixaError:
            return False

    return ask


def unmet_dependencies(fail: Any) -> frozenset[str]:
    """The tasks for whose failure another one was not run; empty where it failed by itself."""
    return frozenset(fail.message.split()) if isinstance(fail, UnmetDependency) else frozenset()


class Reporter:
    """doit's reporter. Its own words are few: the journal's events are what people look at."""

    desc = "nixa: live view or plain lines, errors in full, one table"

    def __init__(self, outstream: TextIO, options: object) -> None:
        self._out = outstream
        self._view: View | None = None
        self._runtime_errors: list[str] = []
        self._started, self._started_at = time.monotonic(), now()
        self._silent = False
        self._wanted: set[str] = set()
        self._held = waves.Held()

    def initialize(self, tasks: dict[str, Any], selected_tasks: list[str]) -> None:
        """Called before anything runs: from here on signals end the whole run in order."""
        from nixa_tasks.tasks import run

        self._wanted = {
            name for chosen in selected_tasks for name in (chosen, *tasks[chosen].task_dep)
            if name == chosen or tasks[chosen].has_subtask
        }  # fmt: skip
        self._silent = all(tasks[name].meta and tasks[name].meta.get("view") for name in selected_tasks)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _stop)
        current = run.peek()
        if current is not None:
            current.journal.subscribe(self._see)

    def _see(self, event: Event) -> None:
        if self._silent and event.kind is not Kind.NOTE:
            return
        if self._view is None:
            # Views keep standard output to themselves.
            self._view = view_for(sys.stderr if self._silent else self._out)
        self._view(event)

    def get_status(self, task: Any) -> None: ...

    def execute_task(self, task: Any) -> None: ...

    def add_success(self, task: Any) -> None: ...

    def skip_ignore(self, task: Any) -> None:
        if self._held.keep(task, ignored=True):
            self._hold(task)
        elif not task.has_subtask:
            self._out.write(f"{task.name}: ignored, as you told doit (doit forget {task.name} undoes it)\n")

    def teardown_task(self, task: Any) -> None: ...

    def skip_uptodate(self, task: Any) -> None:
        if task.meta and task.meta.get("work") and task.name in self._wanted:
            outcome.unchanged.append(task.name)

    def add_failure(self, task: Any, fail: Any) -> None:
        if self._held.keep(task, ignored=False, unmet=unmet_dependencies(fail)):
            self._hold(task)
            return
        text = str(fail.get_msg()).strip()
        if task.meta and task.meta.get("host") and task.meta["host"] not in outcome.results:
            outcome.record(Result(task.meta["host"], "failed", f"{task.name} failed"))
        if not outcome.errors and not outcome.crashed:
            self._runtime_errors.append(f"{task.name}: {text}")
        outcome.status = max(outcome.status, EXIT_FAILED)

    def _hold(self, task: Any) -> None:
        """A wave before did not end well: this host's turn does not come."""
        outcome.status = max(outcome.status, EXIT_FAILED)
        if task.meta.get("host"):
            outcome.record(self._held.tell(task.meta["host"], outcome.results))

    def cleanup_error(self, exception: Any) -> None:
        self._runtime_errors.append(exception.get_msg())

    def runtime_error(self, msg: str) -> None:
        self._runtime_errors.append(msg)
        outcome.status = max(outcome.status, EXIT_USAGE)

    def complete_run(self) -> None:
        """Called at the end, also of a run that was stopped. Sets the exit status."""
        stop = sys.exc_info()[1]
        if not isinstance(stop, SystemExit | KeyboardInterrupt):
            stop = self._afterwards()
        stopped = stop is not None
        if stopped:
            _wind_down()
        if self._view is not None:
            self._view.close()
        self._tell(stopped)
        from nixa_tasks.tasks import run

        run.close()
        if stop is not None:
            raise stop
        if outcome.crashed is not None:
            sys.stderr.write(f"nixa itself is at fault; please report this:\n{outcome.crashed}")
            raise SystemExit(EXIT_INTERNAL)
        if outcome.status:
            raise SystemExit(outcome.status)

    def _afterwards(self) -> BaseException | None:
        """What follows once all tasks have ended; a signal may stop that too."""
        from nixa_tasks.tasks import run

        current = run.peek()
        if current is None or not current.turns:
            return None
        from nixa_tasks.tasks import afterwards

        fleet = current.manifest.fleet
        try:
            broken = waves.now_broken(outcome.results, self._held.ignored)
            if fleet.rollback_wave and broken is not None and broken.failed:
                _call(afterwards.take_back, (broken,))
            seconds = time.monotonic() - self._started
            status = EXIT_INTERNAL if outcome.crashed is not None else outcome.status
            _call(afterwards.tell, (self._started_at, seconds, status))
        except (SystemExit, KeyboardInterrupt) as stop:
            return stop
        return None

    def _tell(self, stopped: bool) -> None:
        for text in outcome.shown:
            self._out.write(text if text.endswith("\n") else text + "\n")
        errors = [error for error in outcome.errors if not isinstance(error, Interrupted)]
        results = list(outcome.results.values())
        unchanged = [name for name in outcome.unchanged if name.partition(":")[2] not in outcome.results]
        if len(results) < 2 and errors:
            results = []
        lines = summary(results, errors)
        if unchanged and not results and not errors:
            lines.append(_nothing_to_do(unchanged, time.monotonic() - self._started))
        elif unchanged:
            lines.append(f"unchanged: {len(unchanged)} more")
        stream = sys.stderr if self._silent else self._out
        for line in lines[1:] if lines[:1] == [""] else lines:
            stream.write(line + "\n")
        for message in self._runtime_errors:
            sys.stderr.write(f"ERROR: {message}\n")
        if stopped:
            sys.stderr.write("stopped; what was finished is kept, and the next run goes on from there\n")


def _nothing_to_do(names: list[str], seconds: float) -> str:
    some = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return f"nothing to do: {some} up to date ({seconds:.2f} s)"


def _stop(number: int, _frame: FrameType | None) -> None:
    """End every tool's whole process group, then the run. A second signal ends it at once."""
    signal.signal(number, lambda *_: os._exit(128 + number))
    process.stop_all()
    raise SystemExit(128 + number)


def _wind_down() -> None:
    """Let the threads note how their steps ended; they are daemons and would be cut off."""
    until = time.monotonic() + _WIND_DOWN_SECONDS
    with contextlib.suppress(KeyboardInterrupt):
        while outcome.active and time.monotonic() < until:
            time.sleep(0.02)
