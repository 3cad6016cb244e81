"""What keeps NixOS from switching to a system while another one runs.

Since 26.05 a system names what must not change under a running one in `switch-inhibitors`, a JSON object
of names and values; a name that both systems have with different values makes `switch-to-configuration`
refuse. Earlier versions of that file held a store path a line. (nixpkgs, nixos/modules/system/activation)
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping

from nixa_tasks.deploy.receipts import PACKAGE
from nixa_tasks.host.ssh import Ssh, script

_STORE_PATH = re.compile(r"^/nix/store/[0-9a-z]{32}-(?P<name>.+?)(-[0-9][^/]*)?(/.*)?$")


def inhibitors(text: str) -> dict[str, str]:
    """The content of a `switch-inhibitors` file, values by name. Empty for what is neither format."""
    try:
        found = json.loads(text)
    except ValueError:
        paths = (_STORE_PATH.match(line.strip()) for line in text.splitlines())
        return {path["name"]: path[0] for path in paths if path is not None}
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}


def changed(running: Mapping[str, str], new: Mapping[str, str]) -> tuple[str, ...]:
    """The names of what inhibits a switch, sorted: only what both systems name counts."""
    return tuple(sorted(name for name in running.keys() & new.keys() if running[name] != new[name]))


def of_switch(ssh: Ssh, new: str) -> tuple[str, ...]:
    """What inhibits a switch of a host to the system `new`, which is in its store. Raises as Ssh.run does."""
    done = ssh.run(script("inhibitors", PACKAGE), new, deadline=60, what="inhibitors")
    running, wanted = ((*done.stdout.splitlines(), "", ""))[:2]
    return changed(inhibitors(_decoded(running)), inhibitors(_decoded(wanted)))


def _decoded(line: str) -> str:
    try:
        return base64.b64decode(line, validate=True).decode("utf-8", "replace")
    except binascii.Error:
        return ""
