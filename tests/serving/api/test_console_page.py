"""The console's page and its files: what browsers get, and what they may do with it."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from over_http import Served
from problems import is_problem

import serving

CONSOLE = Path(serving.__file__).parent / "console"


def test_the_root_is_the_page(peers: Served) -> None:
    page = peers.get("/")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert page.text == (CONSOLE / "index.html").read_text("utf-8")


@pytest.mark.parametrize("path", ["/console", "/console/"])
def test_the_name_of_the_console_leads_to_the_page(path: str, peers: Served) -> None:
    led = httpx.get(f"{peers.url}{path}", follow_redirects=True)
    assert (led.status_code, led.url.path) == (200, "/")
    assert not urlsplit(led.history[0].headers["location"]).path.startswith("/"), "a proxy may serve it below a prefix"


def test_every_file_is_there_and_asked_for_again_only_if_it_changed(peers: Served) -> None:
    for file in (path for path in CONSOLE.rglob("*") if path.is_file()):
        url = f"{peers.url}/console/{file.relative_to(CONSOLE).as_posix()}"
        got = httpx.get(url)
        assert (got.status_code, got.content) == (200, file.read_bytes())
        assert got.headers["cache-control"] == "no-cache"
        assert httpx.get(url, headers={"If-None-Match": got.headers["etag"]}).status_code == 304


@pytest.mark.parametrize("path", ["/", "/console/index.html", "/console/nothing.js"])
def test_it_runs_only_its_own_scripts_and_stays_out_of_frames(path: str, peers: Served) -> None:
    parts = [part.strip() for part in peers.get(path).headers["content-security-policy"].split(";")]
    assert {"default-src 'none'", "script-src 'self'", "style-src 'self'", "frame-ancestors 'none'"} <= set(parts)
    assert "unsafe" not in " ".join(parts)


@pytest.mark.parametrize("name", ["nothing.js", "%2e%2e/config.py", "%2fetc%2fpasswd", "a%00b", "x" * 300])
def test_what_is_no_file_of_the_page_is_a_problem_with_404(name: str, peers: Served) -> None:
    assert is_problem(httpx.get(f"{peers.url}/console/{name}"), 404)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_the_page_can_only_be_read(method: str, peers: Served) -> None:
    for path in ("/", "/console/index.html"):
        refused = httpx.request(method, f"{peers.url}{path}")
        assert is_problem(refused, 405)
        assert refused.headers["allow"] == "GET, HEAD"
