"""doit's reporter: the run's events, its end, exit status, signals and output."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO

from doit.exceptions import InvalidTask, UnmetDependency
from doit.runner import MRunner, MThreadRunner

from nixa_tasks.errors import EXIT_FAILED, EXIT_INTERNAL, EXIT_USAGE, Interrupted, NixaError
from nixa_tasks.tasks.actions import Meta, call, run_of
from nixa_tasks.tasks.families import BY_NAME
from nixa_tasks.tasks.results import Results
from nixa_tasks.tasks.selection import choose
from nixa_tasks.text import write

if TYPE_CHECKING:
    from nixa_tasks.fleet.reporter import View
    from nixa_tasks.state.journal import Event
    from nixa_tasks.tasks.run import Run
    from nixa_tasks.tasks.waves import Held

_WIND_DOWN_SECONDS = 5.0


def _runs_in_processes() -> bool:
    """Whether doit's runner, which is about to start, gives tasks to processes of their own. The
    reporter is not told; but it is the runner that calls it."""
    caller = sys._getframe(3).f_locals.get("self")
    return isinstance(caller, MRunner) and not isinstance(caller, MThreadRunner)


def unmet_dependencies(fail: Any) -> frozenset[str]:
    """The tasks for whose failure another one was not run; empty where it failed by itself."""
    return frozenset(fail.message.split()) if isinstance(fail, UnmetDependency) else frozenset()


class Reporter:
    """doit's reporter. Its own words are few: the journal's events are what people look at."""

    desc = "nixa: live view or plain lines, errors in full, one table"

    def __init__(self, outstream: TextIO, options: object) -> None:
        self._out = outstream
        self._view: View | None = None
        self._run: Run | None = None
        self._results = Results()
        self._runtime_errors: list[str] = []
        self._users_errors: list[str] = []
        self._started, self._started_at = time.monotonic(), time.time()
        self._silent = False
        self._wanted: set[str] = set()
        self._held: Held | None = None
        self._order: dict[str, int] = {}
        self._handlers: dict[signal.Signals, Any] = {}

    def initialize(self, tasks: dict[str, Any], selected_tasks: list[str]) -> None:
        """Called before anything runs: from here on signals end the whole run in order."""
        self._run = run_of(tasks.values())
        if self._run is not None:
            self._results = self._run.results
            self._check(tasks, selected_tasks)
            self._begin(self._run, tasks, selected_tasks)
        elif any(isinstance(tasks[name].meta, Meta) for name in selected_tasks):
            self._check(tasks, selected_tasks)
        for name in selected_tasks:
            hosts = (tasks[name].meta or {}).get("settled", ())
            self._results.unchanged += [f"deploy:{host}" for host in hosts]
        self._wanted = {
            name for chosen in selected_tasks for name in (chosen, *tasks[chosen].task_dep)
            if name == chosen or tasks[chosen].has_subtask
        }  # fmt: skip
        self._silent = all(tasks[name].meta and tasks[name].meta.get("view") for name in selected_tasks)
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                self._handlers[number] = signal.signal(number, self._stop)

    def _begin(self, run: Run, tasks: dict[str, Any], selected: list[str]) -> None:
        from nixa_tasks.tasks import waves

        self._held = waves.Held()
        for name in selected:
            run.options[name] = dict(tasks[name].options or {})
            self._choose(run, tasks[name])
        graph = waves.graph_of(tasks, selected)
        about = waves.hosts_in(tasks, graph.names)
        run.asked = tuple(host for host in run.manifest.hosts if host in about)
        deploys = waves.deploys_in(graph.names)
        run.deploys = tuple(host for host in run.asked if host in deploys)
        self._results.unchanged += [f"deploy:{host}" for host in run.settled]
        if "deploy" in graph.names and not deploys and not run.settled:
            raise InvalidTask("there is nothing to deploy: hosts.toml declares no host")
        waves.close_gates(tasks, graph, run.manifest)
        run.journal.subscribe(self._see)
        run.reporting_process = os.getpid()

    def _choose(self, run: Run, task: Any) -> None:
        """Take `--on` at its word: the group, or the view, has the hosts that it chooses. Raises
        InvalidTask."""
        expression = run.options[task.name].get("on")
        if not expression or not isinstance(task.meta, Meta):
            return
        try:
            hosts = choose(expression, run.manifest)
        except NixaError as error:
            raise InvalidTask(error.render()) from None
        if task.has_subtask:
            wanted = {f"{task.name}:{host}" for host in hosts}
            task.task_dep = [name for name in task.task_dep if name in wanted]
        else:
            task.meta["hosts"] = hosts

    def _check(self, tasks: dict[str, Any], selected: list[str]) -> None:
        """Refuse what would do harm, or nothing. Raises InvalidTask."""
        if not selected:
            raise InvalidTask("no task has such a name: doit list --all shows them")
        for name in selected:
            family = BY_NAME.get(name)
            if family is not None and family.is_bare_refused:
                raise InvalidTask(
                    f"{name} never acts on all hosts at once: name them, as in doit {name}:HOST, or "
                    f"doit '{name}:*' for every one"
                )
        if _runs_in_processes():
            raise InvalidTask("nixa's tasks run in threads: leave -P process out (-P thread is the default)")

    def _see(self, event: Event) -> None:
        if self._silent and event.kind != "note":
            return
        if self._view is None:
            from nixa_tasks.fleet.reporter import view_for

            # Views keep standard output to themselves.
            self._view = view_for(sys.stderr if self._silent else self._out)
        self._view(event)

    def get_status(self, task: Any) -> None: ...

    def execute_task(self, task: Any) -> None:
        if _is_users(task):
            self._out.write(f".  {task.title()}\n")

    def add_success(self, task: Any) -> None: ...

    def skip_ignore(self, task: Any) -> None:
        if self._held is not None and self._held.keep(task, ignored=True):
            self._hold(task)
        elif not task.has_subtask:
            self._out.write(f"{task.name}: ignored, as you told doit (doit forget {task.name} undoes it)\n")

    def teardown_task(self, task: Any) -> None: ...

    def skip_uptodate(self, task: Any) -> None:
        if _is_users(task):
            self._out.write(f"-- {task.title()}\n")
        if task.meta and task.meta.get("work") and task.name in self._wanted:
            self._results.unchanged.append(task.name)

    def add_failure(self, task: Any, fail: Any) -> None:
        if self._held is not None and self._held.keep(task, ignored=False, unmet=unmet_dependencies(fail)):
            self._hold(task)
            return
        text = str(fail.get_msg()).strip()
        if _is_users(task):
            said = "".join(part for one in task.actions for part in (one.out, one.err) if part)
            self._users_errors.append("\n".join((f"{task.name}: {text}", *said.splitlines()[-20:])))
            self._results.raise_status(EXIT_FAILED)
            return
        if task.meta and task.meta.get("host") and task.meta["host"] not in self._results.hosts:
            from nixa_tasks.fleet.reporter import Result

            self._results.record(Result(task.meta["host"], "failed", f"{task.name} failed"))
        if not self._results.errors and not self._results.crashed:
            self._runtime_errors.append(f"{task.name}: {text}")
        self._results.raise_status(EXIT_FAILED)

    def _hold(self, task: Any) -> None:
        """A wave before did not end well: this host's turn does not come."""
        self._results.raise_status(EXIT_FAILED)
        if self._run is not None and self._held is not None and task.meta.get("host"):
            self._results.record(self._held.not_started(self._run, task.meta["host"]))

    def cleanup_error(self, exception: Any) -> None:
        self._runtime_errors.append(exception.get_msg())

    def runtime_error(self, msg: str) -> None:
        self._runtime_errors.append(msg)
        self._results.raise_status(EXIT_USAGE)

    def complete_run(self) -> None:
        """Called at the end, also of a run that was stopped. Sets the exit status."""
        stop = sys.exc_info()[1]
        if not isinstance(stop, SystemExit | KeyboardInterrupt):
            stop = self._afterwards()
        stopped = stop is not None
        if stopped:
            self._wind_down()
        if self._view is not None:
            self._view.close()
        self._print_end(stopped)
        if self._run is not None:
            self._run.close()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if stop is not None:
            raise stop
        if self._results.crashed is not None:
            write(sys.stderr, f"internal error in nixa; please report this:\n{self._results.crashed}")
            raise SystemExit(EXIT_INTERNAL)
        if self._results.status:
            raise SystemExit(self._results.status)

    def _afterwards(self) -> BaseException | None:
        """What follows once all tasks have ended; a signal may stop that too."""
        run = self._run
        if run is None or self._held is None or not (run.turns or run.is_plain_deploy):
            return None
        from nixa_tasks.tasks import finish, waves

        try:
            unchanged = {name.removeprefix("deploy:") for name in run.results.unchanged}
            if run.is_plain_deploy and (fresh := unchanged & {*run.deploys}):
                with contextlib.suppress(NixaError, OSError):  # the index is a cache
                    finish.record_settled(run, fresh)
            if not run.turns:
                return None
            broken = waves.now_broken(run, self._held.ignored)
            if run.manifest.fleet.rollback_wave and broken is not None and broken.failed:
                call(run, finish.take_back, broken)
            seconds = time.monotonic() - self._started
            status = EXIT_INTERNAL if run.results.crashed is not None else run.results.status
            started_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._started_at))
            call(run, finish.report_end, finish.Ended(started_at, seconds, status))
        except (SystemExit, KeyboardInterrupt) as stop:
            return stop
        return None

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        """End every tool's whole process group, then the run. A second signal ends it at once."""
        signal.signal(number, lambda *_: os._exit(128 + number))
        if self._run is not None:
            self._run.processes.stop_all()
        raise SystemExit(128 + number)

    def _wind_down(self) -> None:
        """Let the threads note how their steps ended; they are daemons and would be cut off."""
        until = time.monotonic() + _WIND_DOWN_SECONDS
        with contextlib.suppress(KeyboardInterrupt):
            while self._results.active and time.monotonic() < until:
                time.sleep(0.02)

    def _rank(self, host: str) -> int:
        """A host's place in the manifest; -1 for what is no host."""
        return self._order.get(host, -1)

    def _shown(self) -> list[str]:
        """The text for standard output, in the order of the manifest's hosts."""
        return [text for _, text in sorted(self._results.shown, key=lambda one: self._rank(one[0]))]

    def _print_end(self, stopped: bool) -> None:
        if self._run is not None and (self._results.shown or self._results.hosts):
            self._order = {host: rank for rank, host in enumerate(self._run.manifest.hosts)}
        for text in self._shown():
            write(self._out, text if text.endswith("\n") else text + "\n")
        errors = [error for error in self._results.errors if not isinstance(error, Interrupted)]
        results = list(self._results.hosts.values())
        unchanged = [
            name for name in self._results.unchanged if name.partition(":")[2] not in self._results.hosts
        ]
        held = self._run.held if self._run else {}
        unchanged = [name for name in unchanged if name.removeprefix("deploy:") not in held]
        lines = []
        if results or errors or held:
            from nixa_tasks.fleet.reporter import Result, summary

            results += [
                Result(host, "held", f"it {why}")
                for host, why in held.items()
                if host not in self._results.hosts
            ]
            results = (
                [] if len(results) < 2 and errors else sorted(results, key=lambda one: self._rank(one.name))
            )
            lines = summary(results, errors)
        if unchanged and not results and not errors:
            lines.append(_nothing_to_do(unchanged, time.monotonic() - self._started))
        elif unchanged:
            lines.append(f"unchanged: {len(unchanged)} more")
        stream = sys.stderr if self._silent else self._out
        for line in lines[1:] if lines[:1] == [""] else lines:
            write(stream, line + "\n")
        for message in (*self._runtime_errors, *self._users_errors):
            write(sys.stderr, f"ERROR: {message}\n")
        if stopped:
            write(sys.stderr, "stopped; finished steps are not repeated by the next run\n")


def _is_users(task: Any) -> bool:
    """Whether it is a task of somebody's own that does something."""
    return bool(task.actions) and not isinstance(task.meta, Meta) and not task.name.startswith("_")


def _nothing_to_do(names: list[str], seconds: float) -> str:
    some = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return f"nothing to do: {some} up to date ({seconds:.2f} s)"
