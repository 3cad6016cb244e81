"""Write what is made from the manifest's declarations: the JSON Schema, and the key tables of the manual.

Run it after a change of a key in nixa_tasks/manifest/model.py; a test finds what was not written anew.
"""

from __future__ import annotations

import re
from pathlib import Path

from nixa_tasks.manifest import schema

ROOT = Path(__file__).resolve().parent.parent
MANUAL = ROOT / "docs/manual.md"


def manual(text: str) -> str:
    """The manual with its tables written anew, each between `<!-- keys: NAME -->` and `<!-- end -->`."""
    for name, keys in {
        "fleet": schema.FLEET,
        "kexec": schema.IMAGE,
        "host": schema.HOST,
        "check": schema.CHECK,
    }.items():
        table = schema.manual_table(keys)
        pattern = f"(<!-- keys: {name} -->\n).*?(<!-- end -->)"
        text, count = re.subn(
            pattern, lambda found, table=table: found[1] + table + found[2], text, flags=re.DOTALL
        )
        if count != 1:
            raise SystemExit(f"{MANUAL.name}: {count} places for the table of {name}, not 1")
    return text


def main() -> None:
    schema.SCHEMA.write_text(schema.text(), encoding="utf-8")
    MANUAL.write_text(manual(MANUAL.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
