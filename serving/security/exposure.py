"""Whether requests need a key, and whether a server may start where other machines can reach it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

from pydantic import SecretStr

from serving.errors import StartError

ONLY_WITH_KEYS = (
    "make a key on the store itself, with `ken keys create NAME --scope admin` without --url, or start the server with "
    "KEN_ADMIN_TOKEN set; KEN_AUTH=off opens the server to everybody"
)
"""How to get access to a server that accepts no key any more."""

FIRST_KEY = (
    "this is the first key: from now on, servers of this store refuse requests without a key, on loopback too, unless "
    "they run with KEN_AUTH=off. Requests send 'Authorization: Bearer <key>'; ken's commands with --url take the key "
    "from KEN_API_KEY. Commands on the store itself, without --url, need no key: use them to make further keys. "
    "Revoking keys does not open a server again"
)
LAST_KEY = (
    "no key is left. Servers of this store stay locked, after a restart too: they accept only KEN_ADMIN_TOKEN and the "
    f"keys in KEN_KEYS_FILE, if these are set. To get access, {ONLY_WITH_KEYS}"
)


class AccessSettings(Protocol):
    """The settings that decide who gets in, among those of `serving.config.Settings`."""

    @property
    def auth(self) -> Literal["auto", "on", "off"]: ...
    @property
    def host(self) -> str: ...
    @property
    def on_loopback(self) -> bool: ...
    @property
    def keys_file(self) -> Path | None: ...
    @property
    def admin_token(self) -> SecretStr | None: ...


def needs_key(settings: AccessSettings, locked: bool) -> bool:
    """Whether requests need a key.

    Args:
        locked: whether this server, or another server of its store, has ever known a key. It stays true from then
            on: a list of keys that became empty, or an empty store, must not open a server.
    """
    if settings.auth == "off":
        return False
    return settings.auth == "on" or not settings.on_loopback or settings.keys_file is not None or locked


def check_exposure(settings: AccessSettings, store_has_keys: Callable[[], bool]) -> None:
    """Raises `StartError` if other machines can reach the server and there is no key that clients could send.

    Args:
        store_has_keys: called only if the settings alone do not decide.
    """
    if settings.auth != "auto" or settings.on_loopback or settings.admin_token or settings.keys_file:
        return
    if not store_has_keys():
        raise StartError(
            f"others can reach {settings.host}, and there is no key for them to send; make one with `ken keys create`, "
            "name a file of keys in KEN_KEYS_FILE, set KEN_ADMIN_TOKEN, or turn keys off with --auth off"
        )


def exposure_warning(settings: AccessSettings) -> str | None:
    """A warning about a server that other machines can use without a key; None if that is not so."""
    if settings.auth == "off" and not settings.on_loopback:
        return f"auth is off and others can reach {settings.host}: everybody may read, change and delete every task"
    return None
