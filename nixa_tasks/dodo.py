"""nixa's tasks by name. A flake repository's own dodo.py is one line:

from nixa_tasks.dodo import *

Beside it there may be tasks of the user's own, and `DOIT_CONFIG = {**DOIT_CONFIG, …}`.
"""

from __future__ import annotations

from pathlib import Path

from nixa_tasks.tasks.commands import Commands

_commands = Commands(Path.cwd())

DOIT_CONFIG = _commands.configuration()
globals().update(_commands.creators())  # the tasks by name: tasks/families.py

# doit takes what begins with `task_`, and its configuration; nothing else goes to a user's dodo.py.
__all__ = [name for name in dir() if name.startswith("task_")]
__all__ += ["DOIT_CONFIG"]
