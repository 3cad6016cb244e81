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
from nixa_tasks.process.pump import TAIL_LINES

_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\r")
_ERROR = re.compile(r"^\s*error:\s*(?P<text>.*)$")
_NOISE = re.compile(r"^\s*(\d+\s*)?\||^\s+at [^ ]+:\d+:\d+:$|^\s+> |^\(use '--show-trace'|^\s*…")
_CONSEQUENCE = re.compile(r"dependenc(y|ies)\b.* failed")


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
        r"the group '([^']*)' specified in 'build-users-group' does not exist|"
        r"the build users group '([^']*)' has no members",
        "Nix finds no build users (group `{0}`)",
        "create the group and its users, or set `build-users-group =` in nix.conf for a single-user Nix",
    ),
    _rule(
        Reason.UNTRACKED,
        r"path '([^']*)' in the repository .* is not tracked by git|"
        r"path '«git\+[^»]*»/([^']*)' does not exist|"
        r"(?:getting status of|path) ['\"]?/\S*?/[0-9a-z]{32}-source/([^'\"]*)['\"]?:? "
        r"(?:no such file|does not exist)",
        "the flake, as Nix sees it, has no file {0}",
        "in a git tree Nix sees only what git tracks: `git add {0}` (a commit is not needed)",
    ),
    _rule(
        Reason.OWNER,
        r"repository path '([^']*)' is not owned by|dubious ownership in repository at '([^']*)'",
        "the git tree {0} belongs to another user, so git and Nix refuse it",
        "run doit as the tree's owner, or name it once: git config --global --add safe.directory {0}",
    ),
    _rule(
        Reason.SYMLINK,
        r"path '([^']*)' is not a flake \(because it's not a directory\)|file of flake '([^']*)' escapes",
        "the flake's path {0} is not a folder, or leads out of it by a symlink",
        "write the path that it points to as `flake` in hosts.toml",
    ),
    _rule(
        Reason.HASH_MISMATCH,
        r"hash mismatch in (?:fixed-output derivation|input) '([^']*)'|hash mismatch .*'([^']*)'",
        "what was fetched for {0} is not what the flake pins",
        "both hashes stand above; if upstream changed and you trust it, pin the new one",
    ),
    _rule(
        Reason.SIGNATURE,
        r"path '([^']*)' because it lacks a (?:valid )?signature",
        "{0} has no signature that this store trusts",
        "add the cache's key to `trusted-public-keys`, or copy as a trusted user",
    ),
    _rule(
        Reason.PATH_INVALID,
        r"(?:cannot build missing derivation|failed to obtain derivation of) '([^']*)'|"
        r"path '(/[^']*)' is (?:not valid|not a valid store path|required, but there is no substituter)",
        "{0} is no longer in the store",
        "evaluate again: `doit forget evaluate:HOST`, then the same command",
    ),
    _rule(
        Reason.PLATFORM,
        r"a '([^']*)' with features .* is required to build|required system: '([^']*)'",
        "this machine can't build for {0}",
        'set up a remote builder of that system, or `build_on = "remote"` for the host',
    ),
    _rule(
        Reason.BUILD,
        r"builder for '([^']*)' failed|cannot build '([^']*)'|build of '([^']*)' .*failed",
        "the build of {0} failed",
        "its whole log: nix --extra-experimental-features nix-command log {0}",
    ),
    _rule(
        Reason.NETWORK,
        r"unable to (?:download|access|connect to) '([^']*)'|could(?:n't| not) resolve host(?:name)?\S* '?(\S*)|"
        r"failed to fetch git repository '([^']*)'|failed to connect to '?([^\s']*)",
        "{0} can't be reached",
        "check the network, the proxy (`https_proxy`) and the substituters in nix.conf",
    ),
    _rule(
        Reason.LOCK_FILE,
        r"flake '([^']*)' requires lock file changes",
        "the lock file of {0} does not fit its inputs",
        "run `nix flake lock` in the flake, and `git add flake.lock`",
    ),
    _rule(
        Reason.ATTRIBUTE_MISSING,
        r"attribute '([^']*)' missing|does not provide attribute .*'([^']*)'",
        "attribute `{0}` missing",
        "see what the flake has with `nix flake show`; the lines above tell where it is asked for",
    ),
    _rule(
        Reason.PURE,
        r"access to (?:absolute )?path '([^']*)' is forbidden in pure",
        "the flake reads {0}, which lies outside of it",
        "keep what the configuration reads inside the flake, or make it an input",
    ),
    _rule(
        Reason.NO_FLAKE,
        r"could not find a flake\.nix file|"
        r"(?:getting status of|path) ['\"](/[^'\"]*)['\"]:? (?:no such file|does not exist)",
        "there is no flake at {0}",
        "see that `flake` in hosts.toml names a folder with a flake.nix",
    ),
    _rule(
        Reason.BLANK,
        r"'([^']* [^']*)' is not a valid URL",
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
        "the place stands in the lines above",
    ),
)


def plain(text: str) -> str:
    """The text without a terminal's control sequences."""
    return _ANSI.sub("", text)


def error_segments(lines: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """What stands at and behind each `error:`, plain, without blank lines, the telling one first.

    Newer Nix prints a trace first and the error last; a failed build is followed by errors that
    only say that something depended on it. Warnings about retries are no errors.
    """
    segments: list[list[str]] = []
    for line in (plain(line).rstrip() for line in lines):
        if _ERROR.match(line):
            segments.append([line])
        elif segments and line:
            segments[-1].append(line)
    ordered = [tuple(segment) for segment in reversed(segments)]
    return tuple(sorted(ordered, key=lambda segment: _CONSEQUENCE.search(" ".join(segment)) is not None))


def sentence_of(segment: tuple[str, ...]) -> str:
    """What one error says: the text behind `error:`, or the line after it."""
    found = _ERROR.match(segment[0])
    text = found["text"] if found else segment[0]
    rest = (line.strip() for line in segment[1:] if not _NOISE.match(line))
    return text or next(rest, "")


def explain(error: CommandFailed, lines: tuple[str, ...], *, what: str, log: Path | None = None) -> NixFailed:
    """The failure of a nix command that printed `lines`, in people's words."""
    segments = error_segments(lines)
    rule, subject = _recognise(segments, lines)
    sentence = sentence_of(segments[0]) if segments else error.what
    if rule is None and (error.status in {-9, 137} or "terminate called" in "".join(error.tail)):
        rule = next(rule for rule in _RULES if rule.reason is Reason.MEMORY)
        sentence = "Nix was killed, most likely for want of memory"
    elif rule is not None:
        sentence = rule.what.replace("{0}", subject or "a path that Nix does not name")
    failed = NixFailed(
        f"{what}: {sentence}",
        argv=error.argv,
        status=error.status,
        host=error.host,
        tail=_excerpt(segments[0]) if segments else tuple(plain(line) for line in error.tail),
        log=log or error.log,
        hint=rule.hint.replace("{0}", subject) if rule else None,
    )
    failed.reason, failed.subject = (rule.reason if rule else Reason.OTHER), subject
    return failed


def _excerpt(segment: tuple[str, ...]) -> tuple[str, ...]:
    """The part of an error worth a screen: its first lines and its last; long code lines cut."""
    short = [line if len(line) <= 200 else line[:199] + "…" for line in segment]
    kept = [line for line in short if not line.startswith("(use '--show-trace'")]
    if len(kept) <= TAIL_LINES:
        return tuple(kept)
    return (*kept[: TAIL_LINES // 2], "       …", *kept[-(TAIL_LINES // 2 - 1) :])


def _recognise(segments: tuple[tuple[str, ...], ...], lines: tuple[str, ...]) -> tuple[_Rule | None, str]:
    """The rule for the most telling error; else for what git and curl said before it."""
    texts = ["\n".join(line for line in segment if not _NOISE.match(line)) for segment in segments]
    texts.append("\n".join(line for line in map(plain, lines) if line.startswith("fatal: ")))
    for text in texts:
        for rule in _RULES:
            found = rule.pattern.search(text)
            if found is not None:
                return rule, next((group for group in found.groups() if group), "")
    return None, ""
