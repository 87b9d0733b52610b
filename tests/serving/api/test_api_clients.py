"""Who shares turns."""

from __future__ import annotations

import pytest
from fastapi import Request

from serving.api.clients import client_of
from serving.security.keys import ANYONE, Principal


def asked_from(host: str | None, **headers: str) -> Request:
    sent = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "headers": sent, "client": (host, 1) if host else None})


def test_holders_of_a_key_share_turns_wherever_they_ask_from() -> None:
    shop, other = (Principal(name, ("predict",)) for name in ("shop/1", "address 10.0.0.1"))
    assert client_of(asked_from("10.0.0.1"), shop) == client_of(asked_from("10.0.0.2"), shop)
    assert len({client_of(asked_from("10.0.0.1"), who) for who in (shop, other, ANYONE)}) == 3


@pytest.mark.parametrize(
    ("one", "another", "same"),
    [
        ("10.0.0.1", "10.0.0.1", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("2001:db8::1", "2001:db8::ffff:ffff", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("unix", "unix", True),
    ],
)
def test_without_a_key_those_with_one_address_do(one: str, another: str, same: bool) -> None:
    assert (client_of(asked_from(one), ANYONE) == client_of(asked_from(another), ANYONE)) is same


def test_a_header_does_not_give_anybody_more_turns() -> None:
    claimed = [asked_from("10.0.0.1", x_forwarded_for=f"10.9.9.{i}") for i in range(3)]
    assert len({client_of(request, ANYONE) for request in claimed}) == 1
    assert client_of(asked_from(None), ANYONE) == client_of(asked_from(None), ANYONE)
