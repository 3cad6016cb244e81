"""SHA-256 as people write it: SRI, hex, Nix base32. Strict, with the reason for what is wrong."""

from __future__ import annotations

import base64
import binascii
import re

SIZE = 32
HEX_LENGTH = 64
BASE32_LENGTH = 52

# Nix's own alphabet: no e, o, u, t. (Nix manual, "nix hash"; src/libutil/hash.cc)
_BASE32 = "0123456789abcdfghijklmnpqrsvwxyz"
_VALUES = {char: value for value, char in enumerate(_BASE32)}

_OTHER_LENGTHS = {32: "MD5 in hex", 40: "SHA-1 in hex", 96: "SHA-384 in hex", 128: "SHA-512 in hex"}
_LONGEST_KIND = 20
_SRI = re.compile(r"([A-Za-z0-9]+)-(.*)", re.DOTALL)


def parse_sha256(text: str) -> str:
    """The hash as lower-case hex.

    `text` is SRI (`sha256-…=`), 64 hex digits of any case, or the 52 characters of Nix base32.
    Raises ValueError with the reason.
    """
    text = text.removeprefix("sha256:")  # `nix hash path --base16` and docker write it so
    sri = _SRI.fullmatch(text)
    if sri is not None:
        return _from_sri(sri[1], sri[2])
    if len(text) == HEX_LENGTH:
        return _from_hex(text)
    if len(text) == BASE32_LENGTH:
        return _from_base32(text)
    if len(text) in _OTHER_LENGTHS:
        raise ValueError(f"looks like {_OTHER_LENGTHS[len(text)]}; a SHA-256 is needed")
    raise ValueError(
        f"is {len(text)} characters long; a SHA-256 is `sha256-` and 44 characters of base64,"
        " or 64 hex digits, or 52 characters of Nix base32"
    )


def to_sri(hexadecimal: str) -> str:
    """`sha256-…=` from 64 hex digits. Raises ValueError for anything else."""
    return "sha256-" + base64.b64encode(bytes.fromhex(_from_hex(hexadecimal))).decode("ascii")


def to_base32(hexadecimal: str) -> str:
    """Nix base32 from 64 hex digits, as `nix hash convert --to nix32`. Raises ValueError."""
    number = int.from_bytes(bytes.fromhex(_from_hex(hexadecimal)), "little")
    return "".join(_BASE32[(number >> (5 * place)) & 31] for place in reversed(range(BASE32_LENGTH)))


def _from_sri(algorithm: str, encoded: str) -> str:
    if algorithm != "sha256":
        kind = algorithm if len(algorithm) <= _LONGEST_KIND else f"{algorithm[:_LONGEST_KIND]}…"
        raise ValueError(f"is a hash of the kind `{kind}`; `sha256-…` is needed")
    try:
        digest = base64.b64decode(encoded.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        odd = next((char for char in encoded if not re.fullmatch(r"[A-Za-z0-9+/=]", char)), None)
        if odd is not None:
            raise ValueError(f"contains {odd!a}, which is not a base64 character") from error
        raise ValueError("is incomplete base64: characters or the final `=` are missing") from error
    if len(digest) != SIZE:
        raise ValueError(f"encodes {len(digest)} bytes; a SHA-256 has {SIZE}")
    if base64.b64encode(digest).decode("ascii") != encoded:
        raise ValueError("is not canonical base64: its last characters hold stray bits")
    return digest.hex()


def _from_hex(text: str) -> str:
    for char in text:
        if char not in "0123456789abcdefABCDEF":
            raise ValueError(f"contains {char!a}, which is not a hex digit")
    if len(text) != HEX_LENGTH:
        raise ValueError(f"is {len(text)} characters long; a SHA-256 in hex has {HEX_LENGTH}")
    return text.lower()


def _from_base32(text: str) -> str:
    number = 0
    for char in text:
        if char not in _VALUES:
            raise ValueError(f"contains {char!a}, which is not a Nix base32 character")
        number = number << 5 | _VALUES[char]
    if number >> (8 * SIZE):
        raise ValueError("is not the Nix base32 of a SHA-256: its first character is above `1`")
    return number.to_bytes(SIZE, "little").hex()
