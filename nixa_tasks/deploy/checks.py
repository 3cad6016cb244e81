"""Health checks: what must hold before a deploy counts as done."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable
from datetime import UTC, datetime
from typing import assert_never
from urllib.parse import urlsplit

from nixa_tasks.deploy.reboot import Address
from nixa_tasks.errors import NixaError
from nixa_tasks.host.ssh import Ssh, script
from nixa_tasks.manifest.model import Check, CommandCheck, HttpCheck, TcpCheck, UnitsCheck
from nixa_tasks.process.clock import Clock

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 5.0
_MAX_BODY = 4 << 20


class CheckFailed(NixaError):
    """A health check did not pass within its tries and its time."""


def describe(check: Check) -> str:
    """A check in a few words."""
    match check.probe:
        case HttpCheck(url=url):
            return f"http {url}"
        case CommandCheck(command=command):
            return f"command {command!r}"
        case TcpCheck(port=port):
            return f"tcp port {port}"
        case UnitsCheck():
            return "no newly failed units"
        case _ as never:
            assert_never(never)


def failed_units(ssh: Ssh) -> frozenset[str]:
    """The systemd units that are failed now; empty where there is no systemd."""
    done = ssh.run(script("failed_units", "nixa_tasks.deploy"), deadline=60, root=True, what="units")
    return frozenset(done.stdout.split())


def run_all(
    checks: tuple[Check, ...],
    ssh: Ssh,
    *,
    failed_before: frozenset[str],
    note: Callable[[str], None],
    before_each_try: Callable[[], None] = lambda: None,
) -> None:
    """Run every check until each has passed. Raises CheckFailed at the first that does not."""
    for check in checks:
        _run(check, ssh, failed_before, before_each_try)
        note(f"check passed: {describe(check)}")


def _run(check: Check, ssh: Ssh, failed_before: frozenset[str], before_each_try: Callable[[], None]) -> None:
    until = ssh.clock.monotonic() + check.deadline
    pause = _FIRST_PAUSE
    for attempt in range(check.retries + 1):
        left = until - ssh.clock.monotonic()
        if attempt and left <= 0:
            break
        before_each_try()
        trouble = _try(check, ssh, max(1.0, left), failed_before)
        if trouble is None:
            return
        if attempt < check.retries:
            ssh.clock.sleep(max(0.0, min(pause, until - ssh.clock.monotonic())))
            pause = min(pause * 2, _LONGEST_PAUSE)
    raise CheckFailed(f"check failed: {describe(check)}: {trouble}", host=ssh.host.name)


def _try(check: Check, ssh: Ssh, seconds: float, failed_before: frozenset[str]) -> str | None:
    """One try: None where it passed, else why not."""
    try:
        match check.probe:
            case HttpCheck():
                return _http(check.probe, seconds, ssh.clock)
            case CommandCheck(command=command):
                done = ssh.run(command, deadline=seconds, root=True, check=False, what="check")
                return None if done.is_ok else f"it ended with status {done.status}{_last(done.tail)}"
            case TcpCheck(port=port):
                return _tcp(ssh, port, seconds)
            case UnitsCheck():
                fresh = failed_units(ssh) - failed_before
                return f"failed now: {', '.join(sorted(fresh))}" if fresh else None
            case _ as never:
                assert_never(never)
    except OSError as error:
        return str(error)
    except NixaError as error:
        return error.what


def _tcp(ssh: Ssh, port: int, seconds: float) -> str | None:
    """From here, at the address that ssh's own configuration gives; from the host itself, where the
    way leads over a jump host or another proxy."""
    address = Address.of(ssh)
    if address is not None:
        with contextlib.closing(socket.create_connection((address.host, port), seconds)):
            return None
    text = script("tcp_check", "nixa_tasks.deploy")
    done = ssh.run(text, str(port), deadline=seconds, check=False, what="check")
    return None if done.is_ok else f"nothing accepts connections there{_last(done.tail)}"


def _last(tail: tuple[str, ...]) -> str:
    return f": {tail[-1]}" if tail else ""


def _http(probe: HttpCheck, seconds: float, clock: Clock) -> str | None:
    import httpx

    try:
        with httpx.stream(
            "GET", probe.url, timeout=seconds, follow_redirects=probe.status not in range(300, 400)
        ) as said:
            if said.status_code != probe.status:
                return f"status {said.status_code}, not {probe.status}"
            if probe.body is not None:
                body = b""
                for part in said.iter_bytes():
                    body += part
                    if len(body) > _MAX_BODY:
                        break
                if probe.body.encode() not in body:
                    return f"the answer does not hold {probe.body!r}"
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return str(error) or type(error).__name__
    return _certificate(probe, seconds, clock) if probe.cert_days is not None else None


def _certificate(probe: HttpCheck, seconds: float, clock: Clock) -> str | None:
    where = urlsplit(probe.url)
    if where.scheme != "https" or where.hostname is None:
        return "it has no certificate: not an https URL"
    with (
        socket.create_connection((where.hostname, where.port or 443), seconds) as line,
        ssl.create_default_context().wrap_socket(line, server_hostname=where.hostname) as secure,
    ):
        certificate = secure.getpeercert() or {}
    ends = datetime.fromtimestamp(ssl.cert_time_to_seconds(str(certificate["notAfter"])), UTC)
    days = (ends - clock.now()).days
    wanted = probe.cert_days or 0
    return f"its certificate ends in {days} days, fewer than {wanted}" if days < wanted else None
