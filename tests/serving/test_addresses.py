"""Joins and splits hosts and ports, with IPv6 addresses."""

from __future__ import annotations

from urllib.parse import urlsplit

import httpx
import pytest
from prometheus_client import CollectorRegistry, Gauge

from serving.addresses import host_and_port, split_host_and_port, url_of
from serving.client import Client, ClientError
from serving.telemetry.scrape import ScrapePort

HOSTS = ["127.0.0.1", "localhost", "ken.example.org", "::1", "::", "2001:db8::7", "fe80::1%eth0"]


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("tls", [False, True])
def test_a_url_names_the_host_and_the_port_it_was_made_of(host: str, tls: bool) -> None:
    parts = urlsplit(url_of(host, 8000, tls=tls))
    assert (parts.hostname, parts.port) == (host.replace("%", "%25"), 8000)
    assert parts.scheme == ("https" if tls else "http")
    httpx.URL(url_of(host, 8000))


@pytest.mark.parametrize("host", HOSTS)
def test_what_was_joined_is_parted_again(host: str) -> None:
    assert split_host_and_port(host_and_port(host, 8000), 1) == (host, 8000)


@pytest.mark.parametrize(
    ("address", "found"),
    [("redis", ("redis", 7)), ("[::1]", ("::1", 7)), ("redis:", ("redis", 7)), ("[::1]:", ("::1", 7))],
)
def test_an_address_without_a_port_has_the_usual_one(address: str, found: tuple[str, int]) -> None:
    assert split_host_and_port(address, 7) == found


@pytest.mark.parametrize("address", ["::1:26379", "[::1", "[::1]26379", "[::1]:port", "redis:port"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match=r"invalid literal|expected \[address\]:port"):
        split_host_and_port(address, 7)


def test_metrics_on_an_ipv6_address_are_reached_at_the_address_told() -> None:
    registry = CollectorRegistry()
    Gauge("here", "of this test", registry=registry).set(1)
    port = ScrapePort(registry, "::1")
    try:
        assert port.address.startswith("[::1]:")
        assert "here 1.0" in httpx.get(f"http://{port.address}/metrics").text
    finally:
        port.close()


@pytest.mark.parametrize("url", ["http://::1:8000", "http://::1", "http://[::1"])
def test_an_ipv6_address_without_brackets_is_no_url_and_the_client_says_how_it_is_one(url: str) -> None:
    with pytest.raises(ClientError, match=r"http://\[::1\]:8000"):
        Client(url)
