"""Hashes in the ways that people write them, against what Nix prints for the same bytes."""

from __future__ import annotations

import hashlib
import subprocess

import pytest

from nixa_tasks.manifest.digest import parse_sha256, to_base32, to_sri

# Of nothing, and of "abc" (FIPS 180-2); base32 as `nix hash to-base32 --type sha256 HEX` prints it.
KNOWN = [
    (
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
        "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73",
    ),
    (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        "sha256-ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=",
        "1b8m03r63zqhnjf7l5wnldhh7c134ap5vpj0850ymkq1iyzicy5s",
    ),
]


@pytest.mark.parametrize(("plain", "sri", "base32"), KNOWN)
def test_the_three_ways_mean_the_same(plain: str, sri: str, base32: str) -> None:
    assert parse_sha256(plain) == parse_sha256(plain.upper()) == parse_sha256(f"sha256:{plain}") == plain
    assert parse_sha256(sri) == parse_sha256(base32) == plain
    assert (to_sri(plain), to_base32(plain)) == (sri, base32)


def test_nix_itself_writes_base32_so() -> None:
    plain = [hashlib.sha256(bytes([number])).hexdigest() for number in range(64)]
    command = ["nix-hash", "--type", "sha256", "--to-base32", *plain]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.split() == [to_base32(one) for one in plain]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is 0 characters long"),
        ("abc", "is 3 characters long"),
        ("sha512-" + "A" * 86 + "==", "of the kind `sha512`"),
        ("SHA256-" + "A" * 43 + "=", "of the kind `SHA256`"),
        ("sha256-", "encodes 0 bytes"),
        ("sha256-" + "A" * 42 + "==", "encodes 31 bytes"),
        ("sha256-" + "A" * 43, "characters or the final `=`"),
        ("sha256-" + "A" * 43 + "=A", "is incomplete base64|contains|encodes"),
        ("sha256-" + "A" * 42 + "B=", "stray bits"),
        ("sha256-" + "A" * 42 + "-=", "contains '-', which is not a base64"),
        ("sha256-" + "A" * 43 + "=\n", r"contains '\\n', which is not a base64"),
        ("sha256-" + "A" * 42 + "é=", "contains '.xe9', which is not a base64"),
        ("g" * 64, "contains 'g', which is not a hex digit"),
        ("０" * 64, "which is not a hex digit"),  # noqa: RUF001
        ("0" * 63, "is 63 characters long"),
        ("0" * 65, "is 65 characters long"),
        (" " + "0" * 63, "contains ' ', which is not a hex digit"),
        ("0" * 32, "looks like MD5"),
        ("0" * 40, "looks like SHA-1"),
        ("0" * 128, "looks like SHA-512"),
        ("0" * 51 + "e", "contains 'e', which is not a Nix base32"),
        ("0" * 51 + "A", "contains 'A', which is not a Nix base32"),
        ("2" + "0" * 51, "above `1`"),
        ("sha256:", "is 0 characters long"),
        ("sha256:" * 2000, "is 13993 characters long"),
        ("x" * 5000 + "-", "of the kind `x{20}…`"),
    ],
)
def test_what_is_no_sha256_is_refused_with_its_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_sha256(text)


@pytest.mark.parametrize("text", ["", "0" * 63, "x" * 64, "00 " * 21 + "0"])
def test_only_hex_is_turned_into_other_ways(text: str) -> None:
    with pytest.raises(ValueError, match="hex"):
        to_sri(text)
