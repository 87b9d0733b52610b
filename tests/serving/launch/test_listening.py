"""The address that clients connect to."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.config import load_settings
from serving.launch.listening import behind_haproxy, frontend, in_front, url
from tests.certificates import self_signed


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("localhost", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://0.0.0.0:8000"),
        ("::1", "http://[::1]:8000"),
        ("::", "http://[::]:8000"),
        ("app.example.org", "http://app.example.org:8000"),
    ],
)
def test_the_url_is_one(host: str, expected: str) -> None:
    assert url(load_settings(base="b", host=host)) == expected


@pytest.mark.parametrize(
    ("host", "binds"),
    [
        ("127.0.0.1", ("127.0.0.1:8000",)),
        ("localhost", ("127.0.0.1:8000",)),
        ("0.0.0.0", ("0.0.0.0:8000",)),
        ("::1", ("::1:8000",)),
        ("::", ("0.0.0.0:8000", ":::8000 v6only")),
        ("192.0.2.7", ("192.0.2.7:8000",)),
    ],
)
def test_haproxy_listens_where_it_is_told_and_serve_on_loopback(
    host: str, binds: tuple[str, ...], tmp_path: Path
) -> None:
    settings = load_settings(base="b", host=host, max_connections=100, max_connections_per_source=0)
    found = frontend(settings, tmp_path)
    assert (found.binds, found.connections, found.per_source) == (binds, 100, 0)
    assert behind_haproxy(settings) == {"host": "127.0.0.1", "port": 8000}


def test_without_haproxy_serve_listens_where_it_is_told(tmp_path: Path) -> None:
    cert, key = self_signed(tmp_path)
    assert in_front(load_settings(base="b", host="::1")) == {"host": "::1", "port": 8000}
    tls = in_front(load_settings(base="b", tls_cert=cert, tls_key=key))
    assert tls == {"host": "127.0.0.1", "port": 8000, "ssl_certfile": str(cert), "ssl_keyfile": str(key)}


def test_certificate_and_key_go_into_one_file_of_the_owners(tmp_path: Path) -> None:
    cert, key = self_signed(tmp_path)
    cert.write_bytes(cert.read_bytes().rstrip())  # a file may well end without a newline
    private = tmp_path / "private"
    private.mkdir()
    (bind,) = frontend(load_settings(base="b", tls_cert=cert, tls_key=key), private).binds
    both = private / "tls.pem"
    assert bind == f"127.0.0.1:8000 ssl crt {both} alpn http/1.1"
    assert both.read_bytes() == cert.read_bytes() + b"\n" + key.read_bytes()
    assert both.stat().st_mode & 0o777 == 0o600
