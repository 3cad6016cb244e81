"""The options of nixa's tasks, as doit declares them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Params = tuple[Mapping[str, Any], ...]

PIN: Params = ({"name": "pin", "long": "pin", "type": bool, "default": False,
                "help": "write the key into hosts.toml as host_key"},)  # fmt: skip
AGAIN: Params = ({"name": "again", "long": "again", "type": bool, "default": False,
                  "help": "deploy an output that was rolled back, and is held for that"},)  # fmt: skip
TO: Params = ({"name": "to", "long": "to", "type": int, "default": 0,
               "help": "the number of a generation: doit generations:HOST lists them"},)  # fmt: skip
YES_WIPE: Params = ({"name": "yes_wipe", "long": "yes-wipe", "type": str, "default": "",
                     "help": "the host's name: wipe its disk without asking"},)  # fmt: skip
JSON: Params = ({"name": "as_json", "long": "json", "type": bool, "default": False,
                 "help": "one JSON document on standard output"},)  # fmt: skip
CHECK: Params = ({"name": "check", "long": "check", "type": bool, "default": False,
                  "help": "say what is out of date, and write nothing"},)  # fmt: skip
DETAILED: Params = ({"name": "detailed_exitcode", "long": "detailed-exitcode", "type": bool, "default": False,
                     "help": "end with 0 where there is nothing to do, with 4 where there is something"},)  # fmt: skip
LIVE: Params = ({"name": "live", "long": "live", "type": bool, "default": False,
                 "help": "ask the hosts themselves"},)  # fmt: skip
DRY_RUN: Params = ({"name": "dry_run", "long": "dry-run", "type": bool, "default": False,
                    "help": "say what and how much, and remove nothing"},)  # fmt: skip
OUTPUT: Params = ({"name": "output", "short": "o", "long": "output", "type": str, "default": "",
                   "help": "the file to write (.nixa/report.html)"},)  # fmt: skip
ON: Params = ({"name": "on", "long": "on", "type": str, "default": "",
               "help": "choose hosts: @tag, names, globs, and, or, not, ( )"},)  # fmt: skip
KEY_OPTIONS: Params = ({"name": "to", "long": "to", "type": str, "default": "",
                        "help": "the file for the private key, such as one below `extra_files`"},
                       {"name": "into", "long": "into", "type": str, "default": "",
                        "help": "a command that reads the private key from its standard input"}, *PIN)  # fmt: skip
