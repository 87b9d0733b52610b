"""The documentation page, and the files that it loads."""

from __future__ import annotations

import httpx
import pytest
from over_http import Served
from problems import is_problem

SCRIPT = "/docs/assets/swagger-ui-bundle.js"


def test_the_page_loads_its_script_from_this_server(peers: Served) -> None:
    page = httpx.get(f"{peers.url}/docs")
    assert page.status_code == 200
    assert SCRIPT in page.text


def test_a_file_of_the_page_has_a_head_without_its_body(peers: Served) -> None:
    got, head = httpx.get(f"{peers.url}{SCRIPT}"), httpx.head(f"{peers.url}{SCRIPT}")
    assert (got.status_code, head.status_code, head.content) == (200, 200, b"")
    assert head.headers["content-length"] == str(len(got.content))
    assert "javascript" in head.headers["content-type"]


@pytest.mark.parametrize("name", ["", "nothing.js", "%2e%2e/__init__.py", "%2fetc%2fpasswd", "a%00b", "x" * 300])
def test_what_is_no_file_of_the_page_is_a_problem_with_404(name: str, peers: Served) -> None:
    assert is_problem(httpx.get(f"{peers.url}/docs/assets/{name}"), 404)
    assert httpx.head(f"{peers.url}/docs/assets/{name}").status_code == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize("path", ["/docs", SCRIPT])
def test_the_page_and_its_files_can_only_be_read(method: str, path: str, peers: Served) -> None:
    refused = httpx.request(method, f"{peers.url}{path}")
    assert is_problem(refused, 405)
    assert refused.headers["allow"] == "GET, HEAD"
