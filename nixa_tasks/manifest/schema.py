"""The JSON Schema of `hosts.toml`, and the tables of the manual, made from the model's declarations. Pure.

`scripts/generate.py` writes both into their files; a test compares them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING
from pathlib import Path
from typing import Any

from nixa_tasks.manifest.keys import NAME, Key, keys_of, plain_value
from nixa_tasks.manifest.model import PROBES, Check, CommandSecret, Fleet, Host, InstallableImage, UrlImage

SCHEMA = Path(__file__).with_name("hosts.schema.json")
VERSION = 1

FLEET = keys_of(Fleet)
IMAGE = keys_of(UrlImage, InstallableImage)
HOST = keys_of(Host)
CHECK = keys_of(*PROBES.values(), Check)


def document() -> dict[str, Any]:
    """The schema (draft 2020-12). `errorMessage` is for nixa's own messages; editors pass over it."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **_table("hosts.toml", "A fleet of NixOS machines, for nixa.", _top()),
        "required": ["version"],
        "$defs": {
            "fleet": _keys("The fleet", "What holds for all hosts.", FLEET),
            "image": _image(),
            "secret": _secret(),
            "check": _check(),
            "host": _keys("A host", "One machine.", HOST),
        },
    }


def text() -> str:
    """The schema's file."""
    return json.dumps(document(), indent=2, ensure_ascii=False) + "\n"


def manual_table(keys: Mapping[str, Key]) -> str:
    """The keys as a table in Markdown: key, meaning, default."""
    rows = ["| key | meaning | default |", "|---|---|---|"]
    for name, one in keys.items():
        meaning = one.meaning.replace("|", "\\|")
        rows.append(f"| `{name}` | {meaning} | {_default(one)} |")
    return "\n".join(rows) + "\n"


def _default(one: Key) -> str:
    if one.otherwise:
        return one.otherwise
    if one.default is MISSING:
        return "-"
    if one.default in ((), ""):
        return "none"
    value = plain_value(one.default)
    return f"`{json.dumps(value)}`" if isinstance(value, bool | str) else str(value)


def _top() -> dict[str, Any]:
    return {
        "version": {
            "title": "Version",
            "description": "The version of this file's format.",
            "type": "integer",
            "const": VERSION,
            "default": VERSION,
            "examples": [VERSION],
        },
        "fleet": {"$ref": "#/$defs/fleet"},
        "kexec": _by_name(
            "Kexec images",
            "Images by name; a host without `kexec` takes the one named like its system.",
            "image",
        ),
        "defaults": {
            "$ref": "#/$defs/host",
            "title": "Defaults",
            "description": "Any host key, for all hosts; a host's own value replaces it.",
        },
        "hosts": _by_name("Hosts", "Machines by name.", "host"),
    }


def _by_name(title: str, description: str, definition: str) -> dict[str, Any]:
    return {
        "title": title,
        "description": description,
        "type": "object",
        "propertyNames": {"pattern": NAME},
        "additionalProperties": {"$ref": f"#/$defs/{definition}"},
    }


def _table(title: str, description: str, properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "title": title,
        "description": description,
        "type": "object",
        "additionalProperties": False,
        "properties": dict(properties),
    }


def _keys(title: str, description: str, keys: Mapping[str, Key]) -> dict[str, Any]:
    return _table(title, description, {name: one.schema for name, one in keys.items()})


def _one_of(names: tuple[str, ...], otherwise: str) -> dict[str, Any]:
    return {"oneOf": [{"required": [name]} for name in names], "errorMessage": {"oneOf": otherwise}}


def _image() -> dict[str, Any]:
    return {
        **_keys(
            "A kexec image",
            "An installer that a running Linux can boot: a pinned URL, or something that Nix builds.",
            IMAGE,
        ),
        **_one_of(("url", "installable"), "needs either `url` with `sha256`, or `installable`"),
        "dependentRequired": {"url": ["sha256"], "sha256": ["url"], "mirrors": ["url"], "store": ["url"]},
    }


def _secret() -> dict[str, Any]:
    both = _keys(
        "A source of secrets", "A path, or a command that prints the secret.", keys_of(CommandSecret)
    )
    return {
        **both,
        "type": ["string", "object"],
        "minLength": 1,
        "required": ["command"],
        "examples": ["secrets/web1", {"command": ["sops", "-d", "secrets/web1.luks"]}],
    }


def _check() -> dict[str, Any]:
    names = tuple(PROBES)
    return {
        **_keys("A health check", "One of http, command, tcp, units; tried until it passes.", CHECK),
        **_one_of(names, f"needs exactly one of {', '.join(f'`{name}`' for name in names)}"),
        "dependentRequired": {"status": ["http"], "body": ["http"], "cert_days": ["http"]},
    }
