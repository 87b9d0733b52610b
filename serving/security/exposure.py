"""Who may come in without a key, and whether a server may start where others reach it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

from pydantic import SecretStr

from serving.errors import StartError

ONLY_WITH_KEYS = (
    "make one on the store itself, `ken keys create NAME --scope admin` without --url, or start the server with "
    "KEN_ADMIN_TOKEN set; KEN_AUTH=off opens it to everybody"
)
"""How a person gets in where no key is left."""

FIRST_KEY = (
    "this is the first key: from now on a server of this store answers nobody without one, on loopback too, unless it "
    "runs with KEN_AUTH=off. Requests send 'Authorization: Bearer <key>', ken's commands with --url take KEN_API_KEY; "
    "those on the store itself, without --url, need no key and make one for whoever is locked out now. Revoking keys "
    "does not open a server again"
)
LAST_KEY = (
    "no key is left, and servers of this store do not open by themselves, not after a restart either: they answer only "
    f"KEN_ADMIN_TOKEN and the keys of KEN_KEYS_FILE, where these are set. To get in, {ONLY_WITH_KEYS}"
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
        locked: whether a key was ever known, by this server or by another one of its store. From then on it stays
            so: a list of keys that became empty, or a store that did, must not open the doors.
    """
    if settings.auth == "off":
        return False
    return settings.auth == "on" or not settings.on_loopback or settings.keys_file is not None or locked


def check_exposure(settings: AccessSettings, store_has_keys: Callable[[], bool]) -> None:
    """Raises `StartError` if others reach the server and nobody could have a key.

    Args:
        store_has_keys: asked only where it decides.
    """
    if settings.auth != "auto" or settings.on_loopback or settings.admin_token or settings.keys_file:
        return
    if not store_has_keys():
        raise StartError(
            f"others can reach {settings.host}, and there is no key that would tell them apart; make one with "
            "`ken keys create`, name a file of them in KEN_KEYS_FILE, set KEN_ADMIN_TOKEN, or say --auth off"
        )


def exposure_warning(settings: AccessSettings) -> str | None:
    """A line about a server that is open to others on purpose."""
    if settings.auth == "off" and not settings.on_loopback:
        return f"auth is off and others can reach {settings.host}: everybody may read, change and delete every task"
    return None
