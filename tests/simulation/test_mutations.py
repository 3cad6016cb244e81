"""The simulator notices each safeguard that is missing: in so many histories at most."""

from __future__ import annotations

import pytest

from tests.simulation.mutations import MUTATIONS, Mutation, find


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name.replace(" ", "-"))
def test_a_missing_safeguard_is_noticed(mutation: Mutation) -> None:
    found = find(mutation)
    assert found is not None, f"{mutation.most} histories keep every invariant without it"


def test_there_are_enough_of_them() -> None:
    assert len({mutation.name for mutation in MUTATIONS}) >= 10
