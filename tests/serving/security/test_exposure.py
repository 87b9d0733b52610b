"""When requests need a key, and when a server does not start without one."""

from __future__ import annotations

from typing import Any

import pytest

from serving.config import load_settings
from serving.errors import StartError
from serving.security.exposure import check_exposure, exposure_warning, needs_key

LOOPBACK, BEYOND = "127.0.0.1", "0.0.0.0"


@pytest.mark.parametrize(
    ("host", "auth", "locked", "needed"),
    [
        (LOOPBACK, "auto", False, False),
        (LOOPBACK, "auto", True, True),
        (LOOPBACK, "on", False, True),
        (LOOPBACK, "on", True, True),
        (LOOPBACK, "off", False, False),
        (LOOPBACK, "off", True, False),
        (BEYOND, "auto", False, True),
        (BEYOND, "auto", True, True),
        (BEYOND, "on", False, True),
        (BEYOND, "on", True, True),
        (BEYOND, "off", False, False),
        (BEYOND, "off", True, False),
    ],
)
def test_a_key_is_needed(host: str, auth: str, locked: bool, needed: bool) -> None:
    assert needs_key(load_settings(base="b", host=host, auth=auth), locked) is needed


def test_a_key_is_needed_where_a_file_of_them_was_named_empty_or_not() -> None:
    assert needs_key(load_settings(base="b", keys_file="keys.json"), locked=False)


@pytest.mark.parametrize(
    ("host", "auth", "given", "starts"),
    [
        (LOOPBACK, "auto", "nothing", True),
        (LOOPBACK, "on", "nothing", True),
        (LOOPBACK, "off", "nothing", True),
        (BEYOND, "auto", "nothing", False),
        (BEYOND, "auto", "admin_token", True),
        (BEYOND, "auto", "keys_file", True),
        (BEYOND, "auto", "store", True),
        (BEYOND, "on", "nothing", True),
        (BEYOND, "off", "nothing", True),
        ("::", "auto", "nothing", False),
        ("10.0.0.7", "auto", "nothing", False),
    ],
)
def test_a_server_starts(host: str, auth: str, given: str, starts: bool) -> None:
    settings: dict[str, Any] = {given: "something"} if given in ("admin_token", "keys_file") else {}
    chosen = load_settings(base="b", host=host, auth=auth, **settings)
    if starts:
        check_exposure(chosen, lambda: given == "store")
    else:
        with pytest.raises(StartError, match=r"(?s)ken keys create.*KEN_KEYS_FILE.*--auth off"):
            check_exposure(chosen, lambda: given == "store")


@pytest.mark.parametrize(
    ("host", "auth", "warned"), [(BEYOND, "off", True), (LOOPBACK, "off", False), (BEYOND, "on", False)]
)
def test_only_a_server_that_is_open_to_others_warns(host: str, auth: str, warned: bool) -> None:
    warning = exposure_warning(load_settings(base="b", host=host, auth=auth))
    assert (warning is not None) is warned
