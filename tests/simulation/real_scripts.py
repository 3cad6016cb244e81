"""The shell scripts that the model stands for, and a hash of each: the one place that knows where
they are.

A script that changes fails `test_scripts.py`: change its model in `scripts.py` or `guard_model.py`
first, then its line here (`python -m tests.simulation.real_scripts` prints them).
"""

from __future__ import annotations

import hashlib
import importlib.resources

from nixa_tasks.deploy import guard, install, receipts, rollback, switch
from nixa_tasks.host.ssh import script as read
from nixa_tasks.image.delivery import on_host, upload

DEPLOY = "nixa_tasks.deploy"
FINGERPRINTS = {
    "probe": "1dbd3afeb3422742",
    "lock": "ed1a50bf3fe1eda0",
    "write receipt": "ae6ed69b813a6bb2",
    "history": "50497ffcbb723cf3",
    "is a system": "8fc5f3ee7875435f",
    "generations": "284dbd92888420c6",
    "live system": "2aac14e1aad6ef82",
    "failed units": "1047f2f400c29799",
    "launch the guard": "b5dfb819fc82be1b",
    "look at the guard": "a59cf5f24275f0ca",
    "signs of life": "796bb268147e9dae",
    "tell the guard": "e32f58ae2fc687f8",
    "the guard's logs": "f54cdbb46740b840",
    "the guard's failed units": "c5ce571cb50be621",
    "inhibitors": "995382617403d983",
    "needs a reboot": "8aaa26b9ac3a877f",
    "the guard's receipt": "0cc55ff43cb4bd3a",
    "reboot the installer": "48297a7bcb57ba28",
    "restart": "21610beef4e49362",
    "network": "88ed148f1149d362",
    "look at the disks": "ec38d452b7a3423f",
    "mark the installation": "3a02683a4e2b60d0",
    "the image's state": "270b90e1a6d07b56",
    "begin the image anew": "e0c0c251aaca9dcd",
    "append to the image": "498cdfefc17eff99",
    "kexec": "3e43d93372e5651e",
    "fence.sh": "54e67472763fa1a5",
    "guard.sh": "c8c42b837195f2b3",
    "boot_once.sh": "d844e4f24a4a4f27",
}


def of_commands() -> dict[str, str]:
    """The scripts that nixa runs over ssh, by name."""
    return {
        "probe": read("probe"),
        "lock": read("lock"),
        "write receipt": read("receipt", DEPLOY),
        "history": receipts._HISTORY,
        "is a system": rollback._IS_SYSTEM,
        "generations": read("generations", DEPLOY),
        "live system": switch._LIVE,
        "failed units": read("failed_units", DEPLOY),
        "launch the guard": read("launch", DEPLOY),
        "look at the guard": guard._LOOK,
        "signs of life": guard._BEAT,
        "tell the guard": guard._SAY,
        "the guard's logs": guard._LOGS,
        "the guard's failed units": guard._FAILED_UNITS,
        "inhibitors": read("inhibitors", DEPLOY),
        "needs a reboot": read("needs_reboot", DEPLOY),
        "the guard's receipt": guard._RECEIPT,
        "reboot the installer": read("reboot_installer", DEPLOY),
        "restart": read("reboot_system", DEPLOY),
        "network": read("network"),
        "look at the disks": read("look_at_disks", DEPLOY),
        "mark the installation": install._MARK,
        "the image's state": on_host._STATE,
        "begin the image anew": on_host._RESTART,
        "append to the image": upload._APPEND,
        "kexec": upload._BOOT,
    }


def scripts() -> dict[str, str]:
    """All scripts, by name."""
    folder = importlib.resources.files("nixa_tasks.deploy")
    fence = {"fence.sh": read("fence")}
    return (
        of_commands()
        | fence
        | {name: folder.joinpath(name).read_text() for name in ("guard.sh", "boot_once.sh")}
    )


def fingerprint(script: str) -> str:
    return hashlib.sha256(script.encode()).hexdigest()[:16]


if __name__ == "__main__":
    for name, script in scripts().items():
        print(f'    "{name}": "{fingerprint(script)}",')
