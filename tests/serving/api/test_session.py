"""Sessions of browsers: how one begins, what its cookie may do, and how it ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import httpx
import pytest
from over_http import Served
from problems import is_problem

from serving.api.auth import cookie_of
from serving.config import load_settings
from serving.security import sessions

ADMIN = "of-the-admin"
Keys = Callable[..., tuple[str, str]]


@pytest.fixture
def closed(pair: tuple[Served, Served]) -> Served:
    """A server that needs a key."""
    return pair[0]


@pytest.fixture
def browser(closed: Served) -> Iterator[httpx.Client]:
    """Keeps cookies, as a browser does."""
    with httpx.Client(base_url=closed.url, timeout=30) as client:
        yield client


def begin(browser: httpx.Client, key: str) -> dict[str, str]:
    """The headers with which a page changes something."""
    begun = browser.post("/v1/session", json={"key": key})
    assert begun.status_code == 200, begun.text
    return {"X-Ken-Csrf": begun.json()["csrf"]}


def test_a_cookie_stands_for_the_key(closed: Served, browser: httpx.Client, key_of: Keys) -> None:
    before = browser.get("/v1/session")
    told = {"needs_key": True, "key": None, "csrf": None, "expires": None, "base": None, "replica": None}
    assert {name: before.json()[name] for name in told} == told
    assert is_problem(browser.get("/v1/tasks"), 401)

    key, token = key_of("publish", tasks=("spam*",))
    begun = browser.post("/v1/session", json={"key": token})
    cookie = begun.headers["set-cookie"].lower()
    assert {"httponly", "samesite=strict", "path=/", "max-age=3600"} <= {part.strip() for part in cookie.split(";")}
    assert "secure" not in cookie  # without TLS the browser would not send it back
    assert token not in begun.text + cookie
    shown = {"id": key, "name": "team", "scopes": ["publish"], "tasks": ["spam*"], "expires": None}
    assert begun.json()["key"] == shown
    assert 3590 < begun.json()["expires"] - time.time() <= 3600

    again = browser.get("/v1/session")
    assert again.json() == begun.json()
    assert again.json()["replica"] == closed.service.replica
    assert "set-cookie" not in again.headers
    assert [task["name"] for task in browser.get("/v1/tasks").json()] == ["spam"]


def test_a_change_needs_the_csrf_token_and_is_refused_before_its_body_is_read(
    closed: Served, browser: httpx.Client
) -> None:
    csrf = begin(browser, ADMIN)
    inputs = {"inputs": "how nice"}
    for headers in ({}, {"X-Ken-Csrf": "0" * 64}, {"X-Ken-Csrf": "\xe9"}):
        raw = {name: value.encode("latin-1") for name, value in headers.items()}
        assert is_problem(browser.post("/v1/tasks/spam/predict", json=inputs, headers=raw), 403)
        assert is_problem(browser.delete("/v1/tasks/mood?force=true", headers=raw), 403)
        assert is_problem(browser.put("/v1/tasks/spam/route", content=b"no JSON", headers=raw), 403)
    assert browser.post("/v1/tasks/spam/predict", json=inputs, headers=csrf).status_code == 200
    assert browser.put("/v1/tasks/spam/route", json={"weights": {"live": 1}}, headers=csrf).status_code == 200


def test_a_key_in_a_header_needs_no_csrf_token_whatever_the_cookie_is(
    closed: Served, browser: httpx.Client, key_of: Keys
) -> None:
    begin(browser, key_of("predict")[1])
    promote = {"digest": closed.service.table.live["spam"]}
    for headers in ({"Authorization": f"Bearer {ADMIN}"}, {"X-Api-Key": ADMIN}):
        assert browser.post("/v1/tasks/spam/promote", json=promote, headers=headers).status_code == 200
    assert is_problem(browser.get("/v1/tasks", headers={"X-Api-Key": "wrong"}), 401)


def test_a_key_that_is_not_valid_begins_nothing(closed: Served, browser: httpx.Client, key_of: Keys) -> None:
    _, late = key_of("admin", expires=int(time.time()))
    for key in ("wrong", "ken_0123456789ab_" + "a" * 43, late):
        refused = browser.post("/v1/session", json={"key": key})
        assert is_problem(refused, 401)
        assert key not in refused.text
        assert "set-cookie" not in refused.headers
    assert is_problem(browser.post("/v1/session", json={"key": ["x"]}), 422)
    assert is_problem(browser.post("/v1/session", content=b""), 400)


def test_a_session_ends_with_its_key(closed: Served, browser: httpx.Client, key_of: Keys) -> None:
    key, token = key_of("admin")
    begin(browser, token)
    assert browser.get("/v1/keys").status_code == 200
    store = closed.service.store
    assert not store.replicas.wait(store.keys.drop(key), 10).pending
    assert is_problem(browser.get("/v1/keys"), 401)
    assert browser.get("/v1/session").json()["key"] is None


def test_leaving_takes_the_cookie_and_only_the_page_itself_can_leave(browser: httpx.Client) -> None:
    csrf = begin(browser, ADMIN)
    assert is_problem(browser.delete("/v1/session"), 403)
    assert browser.delete("/v1/session", headers=csrf).status_code == 204
    assert not browser.cookies
    assert browser.delete("/v1/session").status_code == 204  # once more, from another tab


def test_a_session_past_its_half_goes_on_with_another_cookie(
    browser: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    csrf, first = begin(browser, ADMIN), dict(browser.cookies)
    monkeypatch.setattr(sessions.Session, "is_to_be_renewed", lambda self, now: True)
    renewed = browser.get("/v1/session")
    assert dict(browser.cookies) != first
    assert renewed.json()["csrf"] == csrf["X-Ken-Csrf"]  # which other tabs have
    assert browser.delete("/v1/tasks/spam/route", headers=csrf).status_code == 200


def test_a_cookie_that_is_not_valid_counts_as_none(closed: Served) -> None:
    named = cookie_of(closed.service.settings)
    for cookie in ("", "x", "a.b.c.d", "admin-token.9999999999.1." + "0" * 32 + "." + "A" * 80):
        asked = httpx.get(f"{closed.url}/v1/tasks", headers={"Cookie": f"{named}={cookie}"})
        assert is_problem(asked, 401)
        assert "this needs a key" in asked.json()["detail"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
    ],
)
def test_a_page_of_another_site_begins_no_session(headers: dict[str, str], browser: httpx.Client) -> None:
    """Else it could sign its visitors in with a key of its own."""
    refused = browser.post("/v1/session", json={"key": ADMIN}, headers=headers)
    assert is_problem(refused, 403)
    assert "set-cookie" not in refused.headers


def test_the_servers_own_page_does(closed: Served, browser: httpx.Client) -> None:
    for headers in ({"Sec-Fetch-Site": "same-origin", "Origin": "https://proxied.example"}, {"Origin": closed.url}):
        assert browser.post("/v1/session", json={"key": ADMIN}, headers=headers).status_code == 200


def test_servers_of_one_host_have_cookies_of_their_own() -> None:
    settings = [load_settings(base=base, data_dir=folder) for base, folder in (("a", "x"), ("a", "y"), ("b", "x"))]
    assert len({cookie_of(one) for one in settings}) == 3


def test_replicas_of_a_server_have_one_cookie() -> None:
    """A replica is told less than the server, such as no port."""
    server = load_settings(base="a", port=9000, namespace="n", data_dir="x")
    assert cookie_of(load_settings(**server.for_replicas())) == cookie_of(server)


def test_behind_a_proxy_that_ends_tls_the_cookie_stays_on_tls(browser: httpx.Client) -> None:
    begun = browser.post("/v1/session", json={"key": ADMIN}, headers={"X-Forwarded-Proto": "https"})
    assert "secure" in begun.headers["set-cookie"].lower()


def test_an_open_server_needs_no_session(peers: Served) -> None:
    asked = peers.get("/v1/session").json()
    assert (asked["needs_key"], asked["key"], asked["csrf"]) == (False, None, None)
    assert asked["base"] is not None
    begun = peers.post("/v1/session", json={"key": "anything"})
    assert begun.json() == asked
    assert "set-cookie" not in begun.headers
    assert is_problem(httpx.get(f"{peers.url}/v1/session", headers={"Origin": "https://evil.example"}), 403)
