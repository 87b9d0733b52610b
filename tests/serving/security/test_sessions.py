"""Tokens of sessions: what opens them, and what does not."""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from serving.security import sessions
from serving.security.keys import Key, new_key
from serving.security.sessions import SECONDS, begun, opened

NOW = 1_800_000_000


@pytest.fixture(scope="module")
def made() -> tuple[Key, str]:
    return new_key("team", ["predict"])


def knowing(*keys: Key) -> dict[str, str]:
    return {key.id: key.hash for key in keys}


def test_a_token_gives_the_key_back_until_it_ends(made: tuple[Key, str]) -> None:
    key, secret = made
    session = begun(secret, key.id, key.hash, NOW)
    assert opened(session.token, knowing(key).get, NOW + SECONDS - 1) == session
    assert opened(session.token, knowing(key).get, NOW + SECONDS) is None
    assert secret not in session.token
    assert secret.rpartition("_")[2] not in session.token


def test_without_its_key_a_token_opens_nothing(made: tuple[Key, str]) -> None:
    key, secret = made
    other, _ = new_key("other", ["admin"])
    token = begun(secret, key.id, key.hash, NOW).token
    assert opened(token, knowing(other).get, NOW) is None
    assert opened(token, {key.id: other.hash}.get, NOW) is None


def test_no_part_of_a_token_can_be_changed(made: tuple[Key, str]) -> None:
    key, secret = made
    other, _ = new_key("other", ["admin"])
    parts = begun(secret, key.id, key.hash, NOW).token.split(".")
    changed = [other.id, str(NOW + 10 * SECONDS), "0" * 32, "A" + parts[3][1:]]
    for place, part in enumerate(changed):
        token = ".".join([*parts[:place], part, *parts[place + 1 :]])
        assert opened(token, knowing(key, other).get, NOW) is None


@pytest.mark.parametrize("token", ["", "a.b.c.d", "....", "x" * 5000, "ken_0123456789ab_" + "a" * 43, "\xe9"])
def test_what_is_no_token_opens_nothing(token: str, made: tuple[Key, str]) -> None:
    assert opened(token, knowing(made[0]).get, NOW) is None


def test_a_session_that_goes_on_keeps_its_id_and_its_csrf_token(made: tuple[Key, str]) -> None:
    key, secret = made
    first = begun(secret, key.id, key.hash, NOW)
    assert not first.is_past_half(NOW + SECONDS // 2)
    assert first.is_past_half(NOW + SECONDS // 2 + 1)
    later = begun(secret, key.id, key.hash, NOW + SECONDS - 1, first.id)
    assert (later.id, later.csrf) == (first.id, first.csrf)
    assert later.token != first.token
    another = begun(secret, key.id, key.hash, NOW)
    assert len({first.id, another.id}) == len({first.csrf, another.csrf}) == 2


def test_whoever_reads_the_stored_hash_cannot_make_a_token_that_holds_a_valid_key(made: tuple[Key, str]) -> None:
    """The hash is enough to seal, but what is sealed is checked against it, and the hash of the hash is another one."""
    from serving.errors import UnauthorizedError
    from serving.security.keys import Keyring

    key, _ = made
    forged = begun(f"ken_{key.id}_{key.hash[:43]}", key.id, key.hash, NOW)
    found = opened(forged.token, knowing(key).get, NOW)
    assert found is not None
    with pytest.raises(UnauthorizedError):
        Keyring([key]).authenticate(found.api_key)


def test_the_key_is_sealed_and_not_only_signed(made: tuple[Key, str]) -> None:
    key, secret = made
    *public, hidden = begun(secret, key.id, key.hash, NOW).token.split(".")
    raw = base64.urlsafe_b64decode(hidden + "=" * (-len(hidden) % 4))
    assert secret.encode() not in raw
    sealing = AESGCM(sessions._derived(key.hash, sessions._SEALING))
    assert sealing.decrypt(raw[:12], raw[12:], ".".join(public).encode()) == secret.encode()
