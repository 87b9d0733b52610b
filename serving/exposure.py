"""Who may come in without a key, and whether a server may start where others reach it."""

from __future__ import annotations

from collections.abc import Callable

from serving.config import Settings
from serving.errors import StartError


def needs_key(settings: Settings, any_seen: bool) -> bool:
    """Whether requests need a key.

    Args:
        any_seen: whether this process ever saw a key or a token. Once it did, it stays closed: a list that became
            empty must not open the doors.
    """
    if settings.auth == "off":
        return False
    return settings.auth == "on" or not settings.on_loopback or settings.keys_file is not None or any_seen


def check_exposure(settings: Settings, store_has_keys: Callable[[], bool]) -> None:
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


def exposure_warning(settings: Settings) -> str | None:
    """A line about a server that is open to others on purpose."""
    if settings.auth == "off" and not settings.on_loopback:
        return f"auth is off and others can reach {settings.host}: everybody may read, change and delete every task"
    return None
