"""Nix's errors in people's words: what went wrong, and what to do about it.

Messages were taken from runs of Nix 2.8.0, 2.26 and 2.34. What is not recognised is given as Nix
said it, never hidden.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from nixa_tasks.errors import CommandFailed
from nixa_tasks.process import TAIL_LINES

_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\r")
_ERROR = re.compile(r"^\s*error:\s*(?P<text>.*)$")


class Reason(StrEnum):
    """Why Nix failed, as far as a caller may want to act on it."""

    ATTRIBUTE_MISSING = "attribute-missing"
    UNTRACKED = "untracked"
    NO_FLAKE = "no-flake"
    OWNER = "owner"
    SYMLINK = "symlink"
    BLANK = "blank"
    LOCK_FILE = "lock-file"
    PURE = "pure"
    PATH_INVALID = "path-invalid"
    HASH_MISMATCH = "hash-mismatch"
    DISK_FULL = "disk-full"
    NETWORK = "network"
    SIGNATURE = "signature"
    BUILD_USERS = "build-users"
    PLATFORM = "platform"
    BUILD = "build"
    MEMORY = "memory"
    SYNTAX = "syntax"
    OTHER = "other"


class NixFailed(CommandFailed):
    """A nix command failed. `reason` is what was recognised, `subject` what it names: the
    attribute, path or derivation."""

    reason: Reason = Reason.OTHER
    subject: str = ""


@dataclass(frozen=True, slots=True)
class _Rule:
    reason: Reason
    pattern: re.Pattern[str]
    what: str
    hint: str


def _rule(reason: Reason, pattern: str, what: str, hint: str) -> _Rule:
    return _Rule(reason, re.compile(pattern, re.IGNORECASE), what, hint)


# The first that matches wins: causes stand before their consequences. `{0}` is the first group.
_RULES = (
    _rule(
        Reason.DISK_FULL,
        r"no space left on device|database or disk is full|disk quota exceeded",
        "the disk is full",
        "make room where the Nix store and the temporary folder are (`df -h /nix /tmp`);\n"
        "`doit gc` frees what superseded deploys hold",
    ),
    _rule(
        Reason.BUILD_USERS,
        r"the group '([^']*)' specified in 'build-users-group' does not exist$|"
        r"(?:the build users group '([^']*)' has no members)",
        "Nix finds no build users (group `{0}`)",
        "create the group and its users, or set `build-users-group =` in nix.conf for a single-user Nix",
    ),
    _rule(
        Reason.UNTRACKED,
        r"path '([^']*)' .*is not (?:tracked by git|in git)|path '([^']*)' in the repository .* "
        r"is not tracked by git",
        "{0} is not tracked by git, and Nix sees only tracked files",
        "`git add` it (a commit is not needed)",
    ),
    _rule(
        Reason.OWNER,
        r"repository (?:path )?'([^']*)' is (?:not )?owned by|"
        r"(?:dubious ownership in repository at '([^']*)')",
        "the git tree {0} belongs to another user, so git and Nix refuse it",
        "run doit as the tree's owner, or name it once: git config --global --add safe.directory {0}",
    ),
    _rule(
        Reason.SYMLINK,
        r"'([^']*)' is a symlink|path '([^']*)' is a symlink",
        "the flake's path {0} is a symlink",
        "write the path that it points to as `flake` in hosts.toml",
    ),
    _rule(
        Reason.HASH_MISMATCH,
        r"hash mismatch in fixed-output derivation '([^']*)'|hash mismatch .* '([^']*)'|"
        r"NAR hash mismatch in input '([^']*)'",
        "what was fetched for {0} is not what the flake pins",
        "the lines above give both hashes; if upstream changed and you trust it, pin the new one",
    ),
    _rule(
        Reason.SIGNATURE,
        r"path '([^']*)' because it lacks a (?:valid )?signature|"
        r"'([^']*)' .*lacks a signature by a trusted key",
        "{0} has no signature that this store trusts",
        "add the cache's key to `trusted-public-keys`, or copy by way of a trusted user",
    ),
    _rule(
        Reason.PATH_INVALID,
        r"path '(/[^']*)' is not valid|path '(/[^']*)' does not exist in the store|"
        r"don't know how to build these paths?:?\s*(/\S+)?",
        "{0} is no longer in the store",
        "evaluate again: `doit forget evaluate:HOST`, then the same command",
    ),
    _rule(
        Reason.PLATFORM,
        r"a '([^']*)' with features .* is required to build",
        "this machine can't build for {0}",
        'set up a remote builder of that system, or `build_on = "remote"` for the host',
    ),
    _rule(
        Reason.BUILD,
        r"builder for '([^']*)' failed|cannot build '([^']*)'|build of '([^']*)' .*failed",
        "the build of {0} failed",
        "its whole log: nix log {0}",
    ),
    _rule(
        Reason.NETWORK,
        r"unable to download '([^']*)'|could(?:n't| not) resolve host(?: name)?:?\s*'?([^\s']*)|"
        r"failed to connect to '?([^\s']*)|unable to (?:access|connect to) '([^']*)'",
        "{0} can't be reached",
        "check the network, the proxy (`https_proxy`) and the substituters in nix.conf",
    ),
    _rule(
        Reason.LOCK_FILE,
        r"lock file .*requires? .*|cannot write (?:modified )?lock file|"
        r"'(\S*flake\.lock)' .*(?:needs|requires)",
        "the flake's lock file does not fit its inputs",
        "run `nix flake lock` in the flake, and `git add flake.lock`",
    ),
    _rule(
        Reason.ATTRIBUTE_MISSING,
        r"attribute '([^']*)' missing|does not provide attribute .*?'([^']*)'",
        "the flake has no attribute `{0}`",
        "see what it has: nix flake show",
    ),
    _rule(
        Reason.PURE,
        r"access to (?:absolute )?path '([^']*)' is forbidden in pure eval",
        "the flake reads {0}, which lies outside of it",
        "keep what the configuration reads inside the flake, or make it an input",
    ),
    _rule(
        Reason.NO_FLAKE,
        r"'([^']*)' (?:is not a|does not contain a) .*flake|"
        r"could not find a flake\.nix file|cannot find flake '([^']*)'|"
        r"path '([^']*)' (?:is not part of a flake|does not exist)|"
        r"source tree referenced by '([^']*)' does not contain|"
        r"getting status of '?([^':]*flake\.nix)",
        "there is no flake at {0}",
        "see that `flake` in hosts.toml names a folder with a flake.nix that git tracks",
    ),
    _rule(
        Reason.BLANK,
        r"'([^']* [^']*)' is not a valid URL|invalid character.*'([^']* [^']*)'",
        "this Nix can't take a flake whose path holds a blank: {0}",
        "move the flake, or install Nix 2.19 or newer",
    ),
    _rule(
        Reason.MEMORY,
        r"out of memory|cannot allocate memory|std::bad_alloc",
        "Nix ran out of memory",
        "raise `eval_memory`, or lower `eval_workers`, in `[fleet]`",
    ),
    _rule(
        Reason.SYNTAX,
        r"(syntax error, .*)|(undefined variable '.*')",
        "{0}",
        "the place is in the lines above",
    ),
)


def plain(text: str) -> str:
    """The text without a terminal's control sequences."""
    return _ANSI.sub("", text)


def error_block(lines: tuple[str, ...]) -> tuple[str, ...]:
    """The lines from Nix's first `error:` to the end, plain, without blank ones. Warnings about
    retries are none."""
    clean = [plain(line).rstrip() for line in lines]
    start = next((number for number, line in enumerate(clean) if _ERROR.match(line)), None)
    return tuple(line for line in clean[start or 0 :] if line)


def last_sentence(block: tuple[str, ...]) -> str:
    """What the innermost `error:` of a block says: newer Nix prints the trace before it."""
    found = [(number, m["text"]) for number, line in enumerate(block) if (m := _ERROR.match(line))]
    for number, text in reversed(found):
        said = text or (block[number + 1].strip() if number + 1 < len(block) else "")
        if said and not said.startswith("…") and not said.endswith("failed to build"):
            return said
    return block[-1].strip() if block else ""


def explain(error: CommandFailed, lines: tuple[str, ...], *, what: str, log: Path | None = None) -> NixFailed:
    """The failure of a nix command that printed `lines`, in people's words."""
    block = error_block(lines)
    text = "\n".join(block)
    sentence = last_sentence(block)
    rule, subject = _recognise(sentence, text)
    if error.status == -9 and rule is None:
        said, hint = "Nix was killed, most likely for want of memory", _hint_of(Reason.MEMORY)
        reason = Reason.MEMORY
    elif rule is None:
        said, hint, reason = sentence or error.what, None, Reason.OTHER
    else:
        named = subject or "something that Nix does not name"
        said, hint, reason = rule.what.replace("{0}", named), rule.hint.replace("{0}", named), rule.reason
    failed = NixFailed(
        f"{what}: {said}",
        argv=error.argv,
        status=error.status,
        host=error.host,
        tail=_excerpt(block) or tuple(plain(line) for line in error.tail),
        log=log or error.log,
        hint=hint,
    )
    failed.reason, failed.subject = reason, subject
    return failed


def _excerpt(block: tuple[str, ...]) -> tuple[str, ...]:
    """The part of a block worth a screen: its first lines and its last, where the reason stands."""
    if len(block) <= TAIL_LINES:
        return block
    head = 3
    return (*block[:head], "       …", *block[-(TAIL_LINES - head - 1) :])


def _recognise(sentence: str, text: str) -> tuple[_Rule | None, str]:
    """The rule for what Nix said last; else for anything in the block."""
    for searched in (sentence, text):
        for rule in _RULES:
            found = rule.pattern.search(searched)
            if found is not None:
                return rule, next((group for group in found.groups() if group), "")
    return None, ""


def _hint_of(reason: Reason) -> str:
    return next(rule.hint for rule in _RULES if rule.reason is reason)
