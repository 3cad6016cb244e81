"""The host key that a user pins: an OpenSSH public key, or the fingerprint of one.

The wire format (RFC 4253, section 6.6; RFC 5656; RFC 8709): fields of a 4-byte big-endian length
and that many bytes, of which the first is the type's name.
"""

from __future__ import annotations

import base64
import binascii

from nixa_tasks.manifest.values import clean
from nixa_tasks.text import shown

# Type to the number of fields, the type's name included.
_FIELDS = {
    "ssh-ed25519": 2,
    "ssh-rsa": 3,
    "ecdsa-sha2-nistp256": 3,
    "ecdsa-sha2-nistp384": 3,
    "ecdsa-sha2-nistp521": 3,
    "sk-ssh-ed25519@openssh.com": 3,
    "sk-ecdsa-sha2-nistp256@openssh.com": 4,
}
_ED25519_SIZE = 32
_FINGERPRINT_LENGTH = 43


def parse_host_key(text: str) -> str:
    """`TYPE BLOB` without the comment, or `SHA256:…`. Raises ValueError with the reason."""
    if text.startswith("SHA256:"):
        return _fingerprint(clean(text))
    if text.upper().startswith("MD5:"):
        raise ValueError("is an MD5 fingerprint; `ssh-keygen -lf FILE` prints the SHA256: one")
    return " ".join(parse_public_key(text))


def parse_public_key(text: str) -> tuple[str, str]:
    """Type and base64 blob of an OpenSSH public key, a comment left out. Raises ValueError with the reason."""
    if "PRIVATE KEY" in text:
        raise ValueError("is a private key; the public one is needed (and this one is no longer secret)")
    clean(text)
    if text.startswith("-"):
        raise ValueError("starts with `-`; an OpenSSH public key or a SHA256: fingerprint is needed")
    kind, *rest = text.split()
    if kind not in _FIELDS:
        raise ValueError(_what_else(kind, rest))
    if not rest:
        raise ValueError(f"names the type {shown(kind)} but has no key")
    _check_blob(kind, rest[0])
    return kind, rest[0]


def _fingerprint(text: str) -> str:
    encoded = text.removeprefix("SHA256:")
    if len(encoded) != _FINGERPRINT_LENGTH:
        raise ValueError(
            f"is a fingerprint of {len(encoded)} characters; {_FINGERPRINT_LENGTH} must follow `SHA256:`"
        )
    try:
        digest = base64.b64decode((encoded + "=").encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise ValueError(f"is a fingerprint that is not base64: {shown(text)}") from error
    if base64.b64encode(digest).decode("ascii") != encoded + "=":
        raise ValueError("is not the fingerprint of any key: its last character is wrong")
    return text


def _what_else(kind: str, rest: list[str]) -> str:
    if "-cert-v01@" in kind:
        return "is a certificate; the host's plain public key is needed"
    if kind == "ssh-dss":
        return "is a DSA key, which OpenSSH no longer accepts"
    found = next((word for word in rest if word in _FIELDS), None)
    if found:
        return f"has {shown(kind)} in front (a line of known_hosts?); begin with `{found}`"
    return f"is neither an OpenSSH public key nor a SHA256: fingerprint: {shown(kind)}"


def _check_blob(kind: str, encoded: str) -> None:
    try:
        blob = base64.b64decode(encoded.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise ValueError(f"is not a valid public key: what follows {shown(kind)} is not base64") from error
    fields = _split(blob)
    if fields is None or not fields:
        raise ValueError("is not a complete public key: it is cut off or has something appended")
    if fields[0] != kind.encode("ascii"):
        raise ValueError(f"says {shown(kind)} but contains a {shown(fields[0].decode('latin-1'))} key")
    wrong_size = kind == "ssh-ed25519" and len(fields[-1]) != _ED25519_SIZE
    if len(fields) != _FIELDS[kind] or wrong_size or not all(fields):
        raise ValueError(f"is no {shown(kind)} key: its parts are not those of one")


def _split(blob: bytes) -> list[bytes] | None:
    """The fields, or None where the lengths do not add up."""
    fields, at = [], 0
    while at < len(blob):
        if at + 4 > len(blob):
            return None
        end = at + 4 + int.from_bytes(blob[at : at + 4], "big")
        if end > len(blob):
            return None
        fields.append(blob[at + 4 : end])
        at = end
    return fields
