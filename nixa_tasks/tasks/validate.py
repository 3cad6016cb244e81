"""Checks a manifest and leaves its stamp: `python -m nixa_tasks.tasks.validate hosts.toml`."""

from __future__ import annotations

import sys
from pathlib import Path

from nixa_tasks.errors import NixaError
from nixa_tasks.manifest.load import load
from nixa_tasks.state.layout import Layout


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
