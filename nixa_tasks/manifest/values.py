"""Single values of the manifest: each function takes what the user wrote and returns what the model
keeps, or raises ValueError with a reason that follows the key ("is empty").

What could be taken for an option, for shell text, or for something else than it looks like is
refused here, so that no later step has to think of it.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from urllib.parse import urlsplit

from nixa_tasks.text import escape, shown

RESERVED_WORDS = frozenset({"and", "or", "not"})

_PLAIN_WORD = re.compile(r"[!-,.-~][!-~]*")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_NAME_LENGTH = 63
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\$?")
_HOST_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_HOST_NAME_LENGTH = 253
_ZONE = re.compile(r"[A-Za-z0-9._-]+")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_URL_CHARACTERS = re.compile(r"[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]+")
_ATTRIBUTE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
_KEXEC_FLAGS = re.compile(r"[A-Za-z0-9 _=,.:/@%+-]*")
_REMOTE_PATH = re.compile(r"(/[A-Za-z0-9_.,@+=-]+)+")
_SSH_OPTION = re.compile(r"([A-Za-z][A-Za-z0-9]*)(?:\s*=\s*|\s+)(.+)")

# What nixa decides itself, so that a pin holds in every connection and the shared one is found.
_OWN_SSH_OPTIONS = frozenset(
    name.casefold()
    for name in (
        "StrictHostKeyChecking",
        "UserKnownHostsFile",
        "GlobalKnownHostsFile",
        "KnownHostsCommand",
        "HostKeyAlias",
        "VerifyHostKeyDNS",
        "NoHostAuthenticationForLocalhost",
        "UpdateHostKeys",
        "ControlMaster",
        "ControlPath",
        "ControlPersist",
        "RemoteCommand",
        "RequestTTY",
        "SessionType",
        "StdinNull",
        "ForkAfterAuthentication",
        "Host",
        "Match",
        "Include",
    )
)
_SSH_OPTIONS_WITH_A_KEY = {"user": "user", "port": "port"}


def clean(text: str, *, newlines: bool = False) -> str:
    """A text of one line (or of several, with `newlines`) without control or invisible characters."""
    if not text.strip():
        raise ValueError("is empty" if not text else "contains only white space")
    if text.isascii() and text.isprintable():
        return text
    for char in text:
        category = unicodedata.category(char)
        if char in "\n\t" and newlines:
            continue
        if char in "\n\r":
            raise ValueError("contains a newline")
        if category == "Cc":
            raise ValueError(f"contains the control character {escape(char)}")
        if category[0] in "CZ" and char != " ":
            raise ValueError(f"contains the invisible character U+{ord(char):04X}")
    return text


def prose(text: str) -> str:
    """A text of several lines, such as a shell command."""
    return clean(text, newlines=True)


def character(char: str) -> str:
    """One character for a message, told apart from those that look like it."""
    if char == "`":
        return "a backtick"
    return shown(char) if char.isascii() else f"{shown(char)} (U+{ord(char):04X})"


def word(text: str) -> str:
    """One word for a command line: no white space in it, and no `-` in front."""
    if _PLAIN_WORD.fullmatch(text):
        return text
    clean(text)
    if text.startswith("-"):
        raise ValueError(f"starts with `-`, which a tool would take for an option: {shown(text)}")
    if any(char.isspace() for char in text):
        raise ValueError(f"contains white space: {shown(text)}")
    return text


def name(text: str) -> str:
    """A name of a host, an image or a tag."""
    word(text)
    if not _NAME.fullmatch(text):
        odd = next((char for char in text if not re.fullmatch(r"[A-Za-z0-9._-]", char)), None)
        reason = f"contains {character(odd)}" if odd else f"starts with {shown(text[0])}"
        raise ValueError(
            f"{reason}; a name has letters, digits, `.`, `_` and `-`, and starts with a letter or digit"
        )
    if len(text) > _NAME_LENGTH:
        raise ValueError(f"is {len(text)} characters long; a name has at most {_NAME_LENGTH}")
    if text.casefold() in RESERVED_WORDS:
        raise ValueError(f"is {shown(text)}, which is an operator in `--on '@web and not web3'`")
    return text


def user(text: str) -> str:
    """A login name."""
    word(text)
    if not _USER.fullmatch(text):
        raise ValueError(f"is not a valid login name: {shown(text)}")
    return text


def target(text: str) -> tuple[str | None, str]:
    """`[user@]address` as user and address. The address is a DNS name, an alias of the user's ssh
    config, IPv4, or IPv6 (brackets dropped, a zone kept)."""
    word(text)
    login, at, where = text.rpartition("@")
    if "://" in text:
        raise ValueError(f"is a URL: {shown(text)}; write the address alone")
    return (user(login) if at else None), address(where)


def address(text: str) -> str:
    """A target without a login."""
    word(text)
    if "@" in text:
        raise ValueError(f"contains a login: {shown(text)}; only the address belongs here")
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if bare.count(":") > 1 or bare != text:
        return _ipv6(text, bare)
    if _HOST_NAME.fullmatch(text):
        if len(text) > _HOST_NAME_LENGTH:
            raise ValueError(f"is {len(text)} characters long; a DNS name has at most {_HOST_NAME_LENGTH}")
        if re.fullmatch(r"[0-9.]+", text):
            try:
                ipaddress.IPv4Address(text)
            except ValueError as error:
                raise ValueError(f"is neither an IPv4 address nor a name: {shown(text)}") from error
        return text
    if ":" in text:
        raise ValueError(f"contains a `:`: {shown(text)}; a port belongs to the key `port`")
    odd = next((char for char in text if not re.fullmatch(r"[A-Za-z0-9._-]", char)), text[0])
    raise ValueError(f"contains {character(odd)}, which is not allowed in an address: {shown(text)}")


def _ipv6(text: str, bare: str) -> str:
    number, percent, zone = bare.partition("%")
    try:
        parsed = ipaddress.IPv6Address(number)
    except ValueError as error:
        if text.startswith("[") and "]:" in text:
            raise ValueError(f"contains a port: {shown(text)}; it belongs to the key `port`") from error
        raise ValueError(f"is not a valid IPv6 address: {shown(text)}") from error
    if percent and not (parsed.is_link_local and _ZONE.fullmatch(zone)):
        raise ValueError(f"has a zone, which such an address can't have: {shown(text)}")
    return bare


def url(text: str) -> str:
    """An `https:`, `http:` or `file:` URL. A path is not one: see `paths.url`."""
    word(text)
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"is not a valid URL: {shown(text)}") from error
    if not _URL_CHARACTERS.fullmatch(text):
        odd = next(char for char in text if not _URL_CHARACTERS.fullmatch(char))
        raise ValueError(f"contains {character(odd)}, which is not allowed in a URL: {shown(text)}")
    match parts.scheme.lower():
        case "http" | "https":
            if not parts.hostname or port == 0:
                raise ValueError(f"has no server name: {shown(text)}")
            if "@" in parts.netloc:
                raise ValueError("contains a login; put it into ~/.netrc, where no log shows it")
            address(parts.hostname)
        case "file":
            if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
                raise ValueError(f"is not `file:///absolute/path`: {shown(text)}")
        case other:
            raise ValueError(f"has the scheme {shown(other)}; use https, http, file or a path")
    return text


def web_url(text: str) -> str:
    """A URL that a health check asks."""
    if not re.match(r"(?i:https?)://", text):
        raise ValueError(f"is not an http or https URL: {shown(text)}")
    return url(text)


def scheme(text: str) -> str | None:
    """The part before the first `:` if the text looks like a URL."""
    found = _SCHEME.match(text)
    return found[1].lower() if found else None


def flake_attribute(text: str) -> str:
    """The name below `nixosConfigurations`, without quotes."""
    word(text)
    if not _ATTRIBUTE.fullmatch(text):
        raise ValueError(f"is not a valid name below nixosConfigurations: {shown(text)}")
    return text


def ssh_option(text: str) -> str:
    """`Key=Value` or `Key Value`, as for `ssh -o`; always given back as `Key=Value`."""
    clean(text)
    if text.startswith("-"):
        raise ValueError(f"starts with `-`: {shown(text)}; write it as `Key=Value`")
    found = _SSH_OPTION.fullmatch(text)
    if found is None:
        raise ValueError(f"is not of the form `Key=Value`: {shown(text)}")
    key = found[1].casefold()
    if key in _OWN_SSH_OPTIONS:
        raise ValueError(f"sets `{found[1]}`, which nixa sets itself so that host keys hold everywhere")
    if key in _SSH_OPTIONS_WITH_A_KEY:
        raise ValueError(f"sets `{found[1]}`; write it as the host's key `{_SSH_OPTIONS_WITH_A_KEY[key]}`")
    return f"{found[1]}={found[2].strip()}"


def kexec_flags(text: str) -> str:
    """Flags for `kexec/run --kexec-extra-flags`: a shell on the host will see them."""
    if text and not _KEXEC_FLAGS.fullmatch(text):
        clean(text)
        odd = next(char for char in text if not _KEXEC_FLAGS.fullmatch(char))
        raise ValueError(f"contains {character(odd)}, which the host's shell could interpret: {shown(text)}")
    return text


def remote_path(text: str) -> str:
    """An absolute path on the host, of characters that no shell obeys."""
    clean(text)
    if not text.startswith("/"):
        raise ValueError("is not an absolute path on the host")
    if any(part in ("..", ".") for part in text.split("/")):
        raise ValueError("contains `.` or `..` as a folder")
    if not _REMOTE_PATH.fullmatch(text):
        raise ValueError(
            "is not a plain path on the host: use letters, digits and `_.,@+=-` between single `/`"
        )
    return text


def command(words: list[str]) -> tuple[str, ...]:
    """A command as words, the first of which is the program."""
    for part in words:
        if "\0" in part:
            raise ValueError("contains a NUL character")
    clean(words[0])
    if words[0].startswith("-"):
        raise ValueError(f"starts with `-`, so it can't be a program: {shown(words[0])}")
    return tuple(words)
