"""Draw docs/first-deploy.svg: the screen of a terminal in which nixa installs three practice machines.

A real run on the lab, in a real terminal (tmux), as `./quickstart` does it: nothing in the picture is
written by hand. Needs root, tmux and what the lab needs.

    python scripts/terminal_picture.py docs/first-deploy.svg
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

COLUMNS, LINES = 88, 32
PROMPT = "$ "
RUN_SECONDS = 300.0
COMMANDS = (
    "doit deploy",
    "doit deploy",
    """sed -i 's/message = .*/message = "a new release";/' hosts/web2.nix""",
    "doit deploy",
)


class Screen:
    """A tmux session of our own."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self._tmux = ("tmux", "-S", str(folder / "tmux"), "-f", "/dev/null")
        size = ("-x", str(COLUMNS), "-y", str(LINES))
        shell = ("env", f"PS1={PROMPT}", "sh")
        self._run("new-session", "-d", *size, "-c", env["NIXA_LAB"] + "/flake", *shell, env=env)
        self._run("set-option", "status", "off")

    def type(self, line: str) -> None:
        self._run("send-keys", "-l", line)
        self._run("send-keys", "Enter")

    def wait_for_prompts(self, number: int) -> None:
        """Until the shell has shown its prompt `number` times, the screen's history included."""
        until = time.monotonic() + RUN_SECONDS
        while time.monotonic() < until:
            lines = self._run("capture-pane", "-p", "-S", "-").splitlines()
            if sum(line.startswith(PROMPT.rstrip()) for line in lines) >= number and lines[-1:] != []:
                last = [line for line in lines if line.strip()][-1:]
                if last == [PROMPT.rstrip()]:
                    return
            time.sleep(0.3)
        raise SystemExit(f"timed out after {RUN_SECONDS:g} s:\n" + "\n".join(lines))

    def picture(self) -> str:
        """All lines, with their colours as escape sequences."""
        return self._run("capture-pane", "-p", "-e", "-S", "-")

    def close(self) -> None:
        self._run("kill-server")

    def _run(self, *words: str, env: dict[str, str] | None = None) -> str:
        done = subprocess.run(
            (*self._tmux, *words), check=True, capture_output=True, text=True, env=env, timeout=30
        )
        return done.stdout


def recorded() -> str:
    """What the terminal shows of the whole session. Starts and ends the practice machines."""
    folder = Path(tempfile.mkdtemp(prefix="nixa-picture-"))
    lab = folder / "lab"
    env = os.environ | {
        "NIXA_LAB": str(lab),
        "NIX_USER_CONF_FILES": str(lab / "nix.conf"),
        "XDG_STATE_HOME": str(folder / "state"),
        "NIXA_CACHE": str(folder / "cache"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "TERM": "xterm-256color",
        "LANG": "C.UTF-8",
    }
    try:
        control = (sys.executable, "-m", "nixa_tasks.lab")
        subprocess.run((*control, "up", "3"), check=True, stdout=subprocess.DEVNULL, env=env)
        screen = Screen(folder, env)
        try:
            for number, line in enumerate(COMMANDS, start=1):
                screen.wait_for_prompts(number)
                screen.type(line)
            screen.wait_for_prompts(len(COMMANDS) + 1)
            return screen.picture()
        finally:
            screen.close()
            subprocess.run((*control, "down"), check=True, stdout=subprocess.DEVNULL, env=env)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    target = Path(sys.argv[1])
    lines = recorded().rstrip().splitlines()
    while lines and lines[-1].strip() in {"", PROMPT.strip()}:
        lines.pop()
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere, force_terminal=True)
        console.print(Text.from_ansi("\n".join(lines)))
        svg = console.export_svg(title="three machines become NixOS")
    svg = re.sub(r"@font-face \{.*?\}\n", "", svg, flags=re.DOTALL)  # they come from the network
    svg = svg.replace("Fira Code, monospace", "ui-monospace, Menlo, Consolas, monospace")
    target.write_text("\n".join(line.rstrip() for line in svg.splitlines()) + "\n")
    sys.stdout.write(f"{target}: {len(lines)} lines\n")


if __name__ == "__main__":
    main()
