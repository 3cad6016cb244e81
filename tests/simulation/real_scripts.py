"""The shell scripts that the model stands for, and a hash of each: the one place that knows where
they are.

A script that changes fails `test_scripts.py`: change its model in `scripts.py` or `guard_model.py`
first, then its line here (`python -m tests.simulation.real_scripts` prints them).
"""

from __future__ import annotations

import hashlib
import importlib.resources

from nixa_tasks.deploy import checks, guard, reboot, receipts, situation, switch
from nixa_tasks.host import lock, probe
from nixa_tasks.image.delivery import on_host, upload

FINGERPRINTS = {
    "probe": "507a73822abdbfe2",
    "lock": "642135bb298fed13",
    "write receipt": "4d1b3f189f4ec916",
    "history": "50497ffcbb723cf3",
    "is a system": "8fc5f3ee7875435f",
    "generations": "af18169a82340e5c",
    "live system": "2aac14e1aad6ef82",
    "failed units": "d323b955e7e98e57",
    "launch the guard": "2fa06a83bb2a9500",
    "look at the guard": "a59cf5f24275f0ca",
    "signs of life": "796bb268147e9dae",
    "tell the guard": "e32f58ae2fc687f8",
    "the guard's logs": "f54cdbb46740b840",
    "the guard's receipt": "0cc55ff43cb4bd3a",
    "reboot the installer": "de084682ed5121f7",
    "restart": "4a7cafd41d914060",
    "the image's state": "270b90e1a6d07b56",
    "begin the image anew": "e0c0c251aaca9dcd",
    "append to the image": "498cdfefc17eff99",
    "kexec": "9b1f8b04d788737f",
    "guard.sh": "818a5347249dceaf",
    "boot_once.sh": "d844e4f24a4a4f27",
}


def of_commands() -> dict[str, str]:
    """The scripts that nixa runs over ssh, by name."""
    return {
        "probe": probe.SCRIPT,
        "lock": lock._SCRIPT,
        "write receipt": receipts._WRITE,
        "history": receipts._HISTORY,
        "is a system": situation._IS_SYSTEM,
        "generations": situation._GENERATIONS,
        "live system": switch._LIVE,
        "failed units": checks._FAILED_UNITS,
        "launch the guard": guard._LAUNCH,
        "look at the guard": guard._LOOK,
        "signs of life": guard._BEAT,
        "tell the guard": guard._SAY,
        "the guard's logs": guard._LOGS,
        "the guard's receipt": guard._RECEIPT,
        "reboot the installer": reboot._REBOOT,
        "restart": reboot._RESTART,
        "the image's state": on_host._STATE,
        "begin the image anew": on_host._RESTART,
        "append to the image": upload._APPEND,
        "kexec": upload._BOOT,
    }


def scripts() -> dict[str, str]:
    """All scripts, by name."""
    folder = importlib.resources.files("nixa_tasks.deploy")
    return of_commands() | {name: folder.joinpath(name).read_text() for name in ("guard.sh", "boot_once.sh")}


def fingerprint(script: str) -> str:
    return hashlib.sha256(script.encode()).hexdigest()[:16]


if __name__ == "__main__":
    for name, script in scripts().items():
        print(f'    "{name}": "{fingerprint(script)}",')
