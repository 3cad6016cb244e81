"""TLS, logins and proxies."""

from __future__ import annotations

import base64
import ssl
from dataclasses import replace
from pathlib import Path

import pytest
import trustme

from nixa_tasks.image.cache.cache import Cache
from nixa_tasks.image.download.fetch import FetchError
from tests.clocks import CLOCK

from .image_server import Try, content, image_of, serving

BODY = content(300_000)


@pytest.fixture
def attempt(tmp_path: Path) -> Try:
    return Try(Cache(tmp_path / "cache", CLOCK))


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A server's certificate for localhost, trusted by this test."""
    authority = trustme.CA()
    bundle = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(bundle))
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return context


def test_https_is_fetched_and_resumed(attempt: Try, tls: ssl.SSLContext) -> None:
    with serving(BODY, tls) as server:
        server.do.stalls = [200_000]
        assert attempt.fetch(image_of(server, BODY)).read_bytes() == BODY
        assert server.served == len(BODY)


def test_https_is_never_left_for_http(attempt: Try, tls: ssl.SSLContext) -> None:
    with serving(BODY, tls) as server, serving(BODY) as plain:
        server.do.redirects = {"/image.tar.gz": plain.url}
        with pytest.raises(FetchError, match="not followed from https"):
            attempt.fetch(image_of(server, BODY))
        assert plain.asked == []


def test_http_may_lead_to_https(attempt: Try, tls: ssl.SSLContext) -> None:
    with serving(BODY, tls) as server, serving(BODY) as plain:
        plain.do.redirects = {"/image.tar.gz": server.url}
        assert attempt.fetch(image_of(plain, BODY)).read_bytes() == BODY


def test_a_certificate_that_nobody_vouches_for(
    attempt: Try, tls: ssl.SSLContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    monkeypatch.setenv("SSL_CERT_FILE", str(other))
    with serving(BODY, tls) as server, pytest.raises(FetchError, match="certificate is not trusted"):
        attempt.fetch(image_of(server, BODY))


def test_a_plain_server_behind_an_https_url(attempt: Try) -> None:
    with serving(BODY) as server:
        image = replace(image_of(server, BODY), url=server.url.replace("http:", "https:"))
        with pytest.raises(FetchError, match=r"TLS failed|connection"):
            attempt.fetch(image)


def test_netrc_is_used_and_not_carried_to_another_host(
    attempt: Try, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with serving(BODY) as server, serving(BODY) as other:
        server.do.redirects = {"/image.tar.gz": other.url.replace("127.0.0.1", "localhost")}
        attempt.fetch(image_of(server, BODY))
        wanted = base64.b64encode(b"me:secret").decode()
        assert server.asked[0].headers["Authorization"] == f"Basic {wanted}"
        assert "Authorization" not in other.asked[0].headers


def test_a_proxy_is_asked(attempt: Try, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(BODY) as proxy:
        monkeypatch.setenv("http_proxy", proxy.base)
        image = replace(image_of(proxy, BODY), url="http://images.example.org/image.tar.gz")
        assert attempt.fetch(image).read_bytes() == BODY
        assert proxy.asked[0].path == "http://images.example.org/image.tar.gz"


def test_proxy_settings_that_are_no_url(attempt: Try, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "gopher://nowhere")
    with serving(BODY) as server, pytest.raises(FetchError, match="proxy settings"):
        attempt.fetch(image_of(server, BODY))
