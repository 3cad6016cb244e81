"""What holds for every hash."""

from __future__ import annotations

import base64

from hypothesis import given
from hypothesis import strategies as st

from nixa_tasks.manifest.digest import parse_sha256, to_base32, to_sri

digests = st.binary(min_size=32, max_size=32)


@given(digests)
def test_a_hash_survives_every_way_of_writing_it(digest: bytes) -> None:
    plain = digest.hex()
    assert to_sri(plain) == "sha256-" + base64.b64encode(digest).decode()
    for written in (plain, plain.upper(), to_sri(plain), to_base32(plain)):
        assert parse_sha256(written) == plain


@given(digests, st.integers(0, 60), st.characters())
def test_a_changed_character_is_another_hash_or_none(digest: bytes, place: int, char: str) -> None:
    for written in (to_sri(digest.hex()), to_base32(digest.hex())):
        changed = written[:place] + char + written[place + 1 :]
        try:
            assert parse_sha256(changed) != digest.hex() or changed == written
        except ValueError as error:
            assert str(error)
