"""Whether a request may do what it asks for."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fastapi import Request

from serving.api.auth import Authenticator, permit
from serving.config import load_settings
from serving.errors import ForbiddenError, UnauthorizedError, UnknownTaskError
from serving.security.keys import Key, new_key

Record = dict[str, Any]


@dataclass(frozen=True)
class Snapshot:
    keys: dict[str, Record] = field(default_factory=dict)


@dataclass
class Table:
    """What `serving.tasks.TaskTable` is to an authenticator: another object after every change."""

    current: Snapshot = field(default_factory=Snapshot)
    locked: bool = False

    def lock(self) -> None:
        self.locked = True

    def take(self, *keys: Key) -> None:
        self.current = Snapshot({key.id: key.record() for key in keys})


def asking(**headers: str) -> Request:
    raw = [(name.replace("_", "-").lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    return Request({"type": "http", "path": "/", "server": ("127.0.0.1", 8000), "headers": raw})


def bearing(token: str) -> Request:
    return asking(Authorization=f"Bearer {token}")


@pytest.fixture
def table() -> Table:
    return Table()


def authenticator(table: Table, **settings: Any) -> Authenticator:
    return Authenticator(load_settings(base="b", **settings), table)


# With and without a key


def test_on_loopback_everybody_may_everything_until_there_is_a_key(table: Table) -> None:
    auth = authenticator(table)
    assert auth.require(asking(), "admin").name == "anyone"
    key, token = new_key("ci", ["predict"])
    table.take(key)
    with pytest.raises(UnauthorizedError):
        auth.principal(asking())
    assert auth.principal(bearing(token)).name == f"ci/{key.id}"


def test_once_closed_it_stays_closed_when_the_last_key_is_revoked(table: Table) -> None:
    auth = authenticator(table)
    key, token = new_key("ci", ["predict"])
    table.take(key)
    assert auth.principal(bearing(token))
    table.take()
    for request in (asking(), bearing(token)):
        with pytest.raises(UnauthorizedError):
            auth.principal(request)


def test_a_server_that_once_knew_a_key_stays_locked_and_says_how_to_get_in(
    table: Table, caplog: pytest.LogCaptureFixture
) -> None:
    table.lock()
    with caplog.at_level(logging.WARNING, "serving.api.auth"):
        auth = authenticator(table)
    for text in ("ken keys create NAME --scope admin", "without --url", "KEN_AUTH=off"):
        assert text in caplog.text
        for request in (asking(), bearing("ken_" + "0" * 12 + "_" + "a" * 43)):
            with pytest.raises(UnauthorizedError, match=text):
                auth.principal(request)
    key, token = new_key("ci", ["predict"])
    table.take(key)
    assert auth.principal(bearing(token))
    with pytest.raises(UnauthorizedError, match="this needs a key: send"):
        auth.principal(asking())
    table.take()
    with pytest.raises(UnauthorizedError, match="knows no keys"):
        auth.principal(bearing(token))
    assert caplog.text.count("it refuses every request") == 2


def test_a_server_that_was_told_to_be_open_is_not_locked(table: Table) -> None:
    table.lock()
    assert authenticator(table, auth="off").principal(asking()).name == "anyone"


@pytest.mark.parametrize("given", ["admin_token", "keys_file"])
def test_keys_of_the_settings_lock_before_the_first_request(given: str, table: Table, tmp_path: Path) -> None:
    key, _ = new_key("filed", ["predict"])
    (tmp_path / "keys.json").write_text(json.dumps([key.record()]))
    authenticator(table, **{given: "open-sesame" if given == "admin_token" else tmp_path / "keys.json"})
    assert table.locked


def test_no_key_does_not_lock(table: Table) -> None:
    authenticator(table)
    assert not table.locked


def test_a_record_that_cannot_be_read_closes_too(table: Table) -> None:
    table.current = Snapshot({"0" * 12: {"from": "the future"}})
    with pytest.raises(UnauthorizedError):
        authenticator(table).principal(asking())


@pytest.mark.parametrize("settings", [{"host": "0.0.0.0"}, {"auth": "on"}, {"admin_token": "open-sesame"}])
def test_beyond_loopback_with_auth_on_or_a_token_it_is_closed_from_the_start(
    settings: dict[str, str], table: Table
) -> None:
    with pytest.raises(UnauthorizedError):
        authenticator(table, **settings).principal(asking())


def test_with_auth_off_keys_are_not_asked_for_and_do_not_matter(table: Table) -> None:
    table.take(new_key("ci", ["predict"])[0])
    auth = authenticator(table, auth="off", host="0.0.0.0", admin_token="open-sesame")
    for request in (asking(), bearing("wrong")):
        assert auth.require(request, "admin").name == "anyone"


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer open-sesame"},
        {"Authorization": "bearer  open-sesame"},
        {"X_Api_Key": "open-sesame"},
        {"Authorization": "Basic dXNlcjpwYXNz", "X_Api_Key": "open-sesame"},
        {"Authorization": "Bearer ", "X_Api_Key": "open-sesame"},
    ],
)
def test_a_key_may_stand_in_either_header(headers: dict[str, str], table: Table) -> None:
    assert authenticator(table, admin_token="open-sesame").principal(asking(**headers)).name == "admin-token"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": "open-sesame"},
        {"Authorization": "Basic open-sesame"},
        {"Authorization": "Bearer wrong", "X_Api_Key": "open-sesame"},
        {"X_Api_Key": ""},
        {"X_Api_Key": "\xe9"},
    ],
)
def test_anything_else_is_refused(headers: dict[str, str], table: Table) -> None:
    with pytest.raises(UnauthorizedError) as found:
        authenticator(table, admin_token="open-sesame").principal(asking(**headers))
    assert "open-sesame" not in str(found.value)


def test_keys_of_store_and_file_and_the_token_are_all_valid(table: Table, tmp_path: Path) -> None:
    (stored, first), (filed, second) = new_key("stored", ["predict"]), new_key("filed", ["predict"])
    table.take(stored)
    (tmp_path / "keys.json").write_text(json.dumps([filed.record()]))
    auth = authenticator(table, keys_file=tmp_path / "keys.json", admin_token="open-sesame")
    found = [auth.principal(bearing(token)).name.partition("/")[0] for token in (first, second, "open-sesame")]
    assert found == ["stored", "filed", "admin-token"]


def test_a_changed_file_of_keys_counts_at_the_next_request(table: Table, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    (before, first), (after, second) = new_key("before", ["predict"]), new_key("afterwards", ["predict"])
    file.write_text(json.dumps([before.record()]))
    auth = authenticator(table, keys_file=file)
    assert auth.principal(bearing(first))
    file.write_text(json.dumps([after.record()]))
    assert auth.principal(bearing(second))
    with pytest.raises(UnauthorizedError):
        auth.principal(bearing(first))
    file.write_text("[]")
    with pytest.raises(UnauthorizedError):
        auth.principal(asking())


# What a key is for


@pytest.fixture
def restricted(table: Table) -> Request:
    """A request with a key that may publish to tasks that begin with trec."""
    key, token = new_key("ci", ["publish"], ["trec*"])
    table.take(key)
    return bearing(token)


def test_what_a_key_is_for_it_may(table: Table, restricted: Request) -> None:
    auth = authenticator(table)
    for task in ("trec", "trec-2", "trec@canary", None):
        for scope in ("predict", "publish"):
            assert auth.require(restricted, scope, task).name.startswith("ci/")  # type: ignore[arg-type]


def test_a_missing_scope_is_named(table: Table, restricted: Request) -> None:
    for task in ("trec", None):
        with pytest.raises(ForbiddenError, match=r"'admin'.* has publish"):
            authenticator(table).require(restricted, "admin", task)


@pytest.mark.parametrize("task", ["mood", "mood@trec", "atrec"])
def test_a_task_of_others_is_not_there_for_a_key_whether_it_exists_or_not(
    task: str, table: Table, restricted: Request
) -> None:
    for scope in ("predict", "publish", "admin"):
        with pytest.raises(UnknownTaskError, match=r"trec\*"):
            authenticator(table).require(restricted, scope, task)  # type: ignore[arg-type]


def test_an_admin_of_some_tasks_is_told_that_the_server_is_not_one(table: Table) -> None:
    key, token = new_key("team", ["admin"], ["trec*"])
    table.take(key)
    auth = authenticator(table)
    assert auth.require(bearing(token), "admin", "trec")
    with pytest.raises(ForbiddenError, match=r"whole server.*trec\*"):
        auth.require(bearing(token), "admin")


def test_who_is_refused_is_known_before(table: Table, restricted: Request) -> None:
    """So that an audit line can name them."""
    who = authenticator(table).principal(restricted)
    assert who.name.startswith("ci/")
    with pytest.raises(ForbiddenError):
        permit(who, "admin")


# Pages of other sites


@pytest.mark.parametrize("origin", ["https://evil.example", "http://127.0.0.1.evil.example", "null", "http://[", ""])
def test_without_keys_a_page_of_another_site_is_refused(origin: str, table: Table) -> None:
    with pytest.raises(ForbiddenError, match="KEN_CORS_ORIGINS"):
        authenticator(table).principal(asking(Origin=origin))


@pytest.mark.parametrize(
    "origin", ["http://localhost:8000", "http://127.0.0.1:3000", "http://[::1]:8000", "https://app.example"]
)
def test_a_page_of_this_machine_or_of_a_named_origin_is_not(origin: str, table: Table) -> None:
    assert authenticator(table, cors_origins=("https://app.example",)).principal(asking(Origin=origin))


@pytest.mark.parametrize("host", ["evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example"])
def test_without_keys_a_name_of_another_site_that_leads_here_is_refused(host: str, table: Table) -> None:
    with pytest.raises(ForbiddenError, match="KEN_CORS_ORIGINS"):
        authenticator(table).principal(asking(Host=host))


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1:8000", "[::1]:8000", "ken", "app.example", ""])
def test_a_name_of_this_machine_or_of_a_named_origin_is_not_refused(host: str, table: Table) -> None:
    assert authenticator(table, cors_origins=("https://app.example",)).principal(asking(Host=host))


def test_without_keys_another_sites_page_may_link_here_and_not_load_anything(table: Table) -> None:
    auth = authenticator(table)
    assert auth.principal(asking(Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate"))
    with pytest.raises(ForbiddenError, match="another site"):
        auth.principal(asking(Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors"))


def test_with_a_key_the_origin_does_not_matter(table: Table) -> None:
    auth = authenticator(table, admin_token="open-sesame")
    assert auth.principal(asking(Origin="https://evil.example", Authorization="Bearer open-sesame"))
