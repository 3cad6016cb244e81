"""What is done when nixa is killed with no chance to do it itself (`kill -9`, the OOM killer).

Tools run in sessions of their own and shared ssh connections outlive their last user, so that a
dead nixa would leave them at work on the hosts, beside the next one. A shell that reads from a
pipe learns of the death by the pipe's end, and ends what was on record then.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import IO

# Lines that it reads: `+ PID` a session began, `- PID` it ended, `folder PATH` the private folder
# of a run: it holds the sockets of shared connections, keys and secrets.
CLEANER = (
    "sh",
    "-c",
    """
live= folders=
while read -r word what; do
  case $word in
  +) live="$live $what" ;;
  -) left=; for one in $live; do [ "$one" = "$what" ] || left="$left $one"; done; live=$left ;;
  folder) folders="$folders $what" ;;
  esac
done
left=$live
for folder in $folders; do [ ! -e "$folder" ] || left=yes; done
[ -n "$left" ] || exit 0 # an orderly end
connections() { # SIGNAL: to the masters, which have sessions of their own, and the folder in their title
  for folder in $folders; do
    for file in $(grep -lsF "$folder/" /proc/[0-9]*/cmdline); do
      file=${file%/cmdline} name=
      read -r name 2>/dev/null <"$file/comm"
      [ "$name" = ssh ] || continue # a person may look into the folder, too
      kill "-$1" "${file#/proc/}" 2>/dev/null && found=yes
    done
  done
}
for one in $live; do kill -TERM "-$one" 2>/dev/null; done
for folder in $folders; do
  if [ ! -e /proc/self/cmdline ]; then
    for file in "$folder"/*; do
      [ ! -S "$file" ] || ssh -o ControlPath="$file" -O exit -- gone </dev/null >/dev/null 2>&1
    done
  fi
  rm -rf -- "$folder" # without the socket and the known keys in it, no new connection can be made
done
connections TERM
sleep 1
for one in $live; do kill -KILL "-$one" 2>/dev/null; done
tries=0 found=yes
while [ "$found" = yes ] && [ "$tries" -lt 20 ]; do # one may fork while it is looked for
  found=no tries=$((tries + 1))
  connections KILL
  [ "$found" = no ] || sleep 0.2
done
""",
)


class Cleanup:
    """The pipe to the cleaner. Writing never fails: without it, only a killed nixa leaves more."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe

    def add(self, pid: int) -> None:
        self._write(f"+ {pid}")

    def forget(self, pid: int) -> None:
        self._write(f"- {pid}")

    def add_folder(self, folder: Path) -> None:
        """Remove the folder too, if it is still there; its path must hold no blanks."""
        if len(str(folder).split()) == 1:
            self._write(f"folder {folder}")

    def _write(self, line: str) -> None:
        with contextlib.suppress(OSError):
            os.write(self._pipe.fileno(), f"{line}\n".encode())
