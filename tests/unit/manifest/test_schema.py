"""The schema, and what else is generated from the declarations of the keys."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import MISSING
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from nixa_tasks.manifest import schema
from nixa_tasks.manifest.keys import Key, Place, keys_of
from nixa_tasks.manifest.model import CommandSecret

ROOT = Path(__file__).parents[3]
KEYS = {
    (table, name): key
    for table, keys in {
        "fleet": schema.FLEET, "image": schema.IMAGE, "host": schema.HOST, "check": schema.CHECK,
        "secret": keys_of(CommandSecret),
    }.items()
    for name, key in keys.items()
}  # fmt: skip


def test_the_files_made_from_the_declarations_are_current() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "scripts/generate.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert schema.SCHEMA.read_text() == schema.text(), "run: python scripts/generate.py"
    assert script.manual(script.MANUAL.read_text()) == script.MANUAL.read_text(), (
        "run: python scripts/generate.py"
    )


def test_the_schema_is_valid_and_closed() -> None:
    document = json.loads(schema.SCHEMA.read_bytes())
    Draft202012Validator.check_schema(document)
    for table in (document, *document["$defs"].values()):
        assert table["additionalProperties"] is False
        assert {"title", "description"} <= set(table)


@pytest.mark.parametrize(("table", "name"), KEYS)
def test_every_key_has_a_title_a_description_a_default_and_an_example(table: str, name: str) -> None:
    key = KEYS[table, name]
    said = key.schema
    assert said["title"]
    assert said["description"].endswith(".")
    assert said["examples"]
    assert "default" in said or "Default: " in said["description"] or key.default is MISSING


@pytest.mark.parametrize(("table", "name"), KEYS)
def test_the_examples_and_defaults_are_allowed(table: str, name: str, tmp_path: Path) -> None:
    key = KEYS[table, name]
    said = key.schema
    document = schema.document()
    Draft202012Validator.check_schema(document)
    for value in [*said["examples"], *([said["default"]] if "default" in said else [])]:
        _is_allowed(key, value, document, tmp_path)


def _is_allowed(key: Key, value: object, document: dict[str, object], folder: Path) -> None:
    errors = list(Draft202012Validator({**key.schema, "$defs": document["$defs"]}).iter_errors(value))
    assert not errors
    place = Place((key.name,), folder, [])
    key.kind.read(place, value)
    assert not place.findings
