"""The model stands for the scripts as they are."""

from __future__ import annotations

from tests.simulation.real_scripts import FINGERPRINTS, fingerprint, scripts


def test_no_script_has_changed_without_its_model() -> None:
    now = {name: fingerprint(text) for name, text in scripts().items()}
    assert now == FINGERPRINTS, "update the model of that script first, then its line in real_scripts.py"
