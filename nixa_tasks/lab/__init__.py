"""Practice machines on this computer: what the quick start and the tests run on.

with Lab("/tmp/lab") as lab:
    lab.up(3)
    print(lab.hosts_toml())
"""

from __future__ import annotations

from nixa_tasks.lab.errors import LabError
from nixa_tasks.lab.lab import Lab
from nixa_tasks.lab.machine import Machine
from nixa_tasks.lab.root import ADMIN_PASSWORD
from nixa_tasks.lab.sequence import Stage

__all__ = ["ADMIN_PASSWORD", "Lab", "LabError", "Machine", "Stage"]
