"""The manifest that doit's tasks are made from.

Run as `python -m nixa_tasks.tasks.manifest hosts.toml` it checks one and leaves its stamp.
"""

from __future__ import annotations

import sys
from pathlib import Path

from nixa_tasks.errors import NixaError
from nixa_tasks.manifest.load import is_found_valid, load
from nixa_tasks.manifest.model import Manifest
from nixa_tasks.process.run import Processes
from nixa_tasks.state.layout import Layout

MANIFEST = "hosts.toml"
_CHECK_SECONDS = 300.0


def find(folder: Path, processes: Processes) -> Manifest:
    """The manifest in that folder. Raises ManifestError.

    A changed file is checked in a process of its own, once, so that not even then this one has to
    import jsonschema; it is checked here only where that finds fault, for its errors.
    """
    path = folder / MANIFEST
    stamp = Layout(folder).manifest_stamp
    if not is_found_valid(path, stamp):
        argv = (sys.executable, "-m", "nixa_tasks.tasks.manifest", str(path))
        processes.run(argv, deadline=_CHECK_SECONDS, check=False, what="the check of hosts.toml")
    return load(path, stamp)


def main(path: Path) -> int:
    """Exit status 0 and a stamp for a valid file, else 3; nothing is written beside a bad one."""
    layout = Layout(path.parent)
    try:
        if not layout.state.is_dir():
            load(path)
            layout.make()
        load(path, layout.manifest_stamp)
    except NixaError as error:
        return error.exit_status
    except OSError:
        return 1  # a folder that can't be written: the next run checks again
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
