"""API keys: their tokens, what a token allows its holder to do, and which tokens are valid.

A token is ``ken_<id>_<secret>``. Only the sha256 of the secret is kept. A slow hash (bcrypt, argon2) protects
passwords, which can be guessed. A secret has 256 random bits, which cannot be guessed, and every request would have to
pay for a slow hash.
"""

from __future__ import annotations

import fnmatch
import hashlib
import hmac
import logging
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from serving.errors import InvalidInputError, UnauthorizedError

_log = logging.getLogger(__name__)

Scope = Literal["predict", "publish", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
"""In this order: each scope includes the scopes before it."""

EVERY_TASK = ("*",)
_TOKEN = re.compile(r"ken_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_SECRET_BYTES = 32
_NOBODYS_HASH = "0" * 64
_END_OF_TIME = 253402300799  # the last second of the year 9999, the last that datetime knows

Pattern = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.*?\[\]!-]{1,128}$")]


class Key(BaseModel):
    """The record of a key, as the store and a keys file hold it. Times are Unix seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=r"^[0-9a-f]{12}$")
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_. @-]{0,63}$", description="holder's name, for people and logs")
    hash: str = Field(pattern=r"^[0-9a-f]{64}$", description="sha256 of the secret")
    scopes: tuple[Scope, ...] = Field(min_length=1)
    tasks: tuple[Pattern, ...] = Field(EVERY_TASK, min_length=1, description="glob patterns of task names")
    created: int = Field(ge=0, le=_END_OF_TIME)
    expires: int | None = Field(None, ge=0, le=_END_OF_TIME, description="not valid from then on; None: never expires")

    def record(self) -> dict[str, Any]:
        """The key as plain data, fit for JSON."""
        return self.model_dump(mode="json")


@dataclass(frozen=True)
class Principal:
    """The sender of a request, and what it may do.

    Attributes:
        key_id: of the sender's key; None: no key was needed.
        expires: unix seconds at which the key ends; None: it does not.
    """

    name: str
    scopes: tuple[Scope, ...]
    tasks: tuple[str, ...] = EVERY_TASK
    key_id: str | None = None
    expires: int | None = None

    def has(self, scope: Scope) -> bool:
        """Whether it has a scope, or one that includes it."""
        return SCOPES.index(scope) <= self._highest

    def may(self, scope: Scope, task: str | None = None) -> bool:
        """Whether it may do to this task what needs `scope`.

        Without a task, ``admin`` is for the whole server, with its keys and its base. A key that is limited to some
        tasks does not have it, since it could make itself a key for all tasks.
        """
        if task is None:
            return self.has(scope) and (scope != "admin" or self.sees_every_task)
        return self.has(scope) and self.sees(task)

    def sees(self, task: str) -> bool:
        """Whether one of its patterns matches the task's name."""
        return self.sees_every_task or self._patterns.match(task) is not None

    @property
    def sees_every_task(self) -> bool:
        return "*" in self.tasks

    @cached_property
    def _highest(self) -> int:
        return max(map(SCOPES.index, self.scopes))

    @cached_property
    def _patterns(self) -> re.Pattern[str]:
        return re.compile("|".join(map(fnmatch.translate, self.tasks)))


ANYONE = Principal("anyone", ("admin",))
"""Every client of a server that needs no keys."""

_ADMIN = Principal("admin-token", ("admin",), key_id="admin-token")


def new_key(
    name: str, scopes: Iterable[Scope], tasks: Iterable[str] = EVERY_TASK, expires: int | None = None
) -> tuple[Key, str]:
    """Make a key and its token. The token is kept nowhere, so it cannot be shown again.

    Args:
        tasks: patterns of task names, as `fnmatch` takes them.
        expires: Unix seconds; None for a key that does not expire.

    Raises:
        InvalidInputError: a name, a scope or a pattern is malformed, or `expires` is in the past.
    """
    now = int(time.time())
    if expires is not None and expires <= now:
        raise InvalidInputError(f"expires: found {expires}, which is in the past; expected Unix seconds in the future")
    secret = secrets.token_urlsafe(_SECRET_BYTES)
    described = {"name": name, "scopes": tuple(scopes), "tasks": tuple(tasks), "created": now, "expires": expires}
    try:
        key = Key.model_validate({"id": secrets.token_hex(6), "hash": _sha256(secret), **described})
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise InvalidInputError(f"no key can be made of this: {found}") from None
    return key, f"ken_{key.id}_{secret}"


class Keyring:
    """All keys that are valid at present. A changed list of keys needs a new keyring.

    Args:
        admin_token: the setting `admin_token`: a token with all scopes that is not of a recorded key.
    """

    def __init__(self, keys: Iterable[Key], admin_token: str | None = None) -> None:
        self._keys = {key.id: (key, _principal(key)) for key in keys}
        self._admin = None if admin_token is None else _sha256(admin_token)

    def __len__(self) -> int:
        return len(self._keys) + (self._admin is not None)

    def hash_of(self, key_id: str) -> str | None:
        """The sha256 of a key by the `Principal.key_id` of its holder; None if there is no such key."""
        if key_id == _ADMIN.key_id:
            return self._admin
        known = self._keys.get(key_id)
        return known[0].hash if known else None

    def authenticate(self, token: str | None, now: float | None = None) -> Principal:
        """The principal that holds a token.

        Args:
            now: the time in Unix seconds; by default the current time.

        Raises:
            UnauthorizedError: there is no token, or it is not valid.
        """
        if not token:
            raise UnauthorizedError("this needs a key: send 'Authorization: Bearer <key>' or 'X-Api-Key: <key>'")
        if self._admin is not None and hmac.compare_digest(_sha256(token), self._admin):
            return _ADMIN
        parts = _TOKEN.fullmatch(token)
        known = self._keys.get(parts[1]) if parts else None
        given = _sha256(parts[2] if parts else "")
        if not hmac.compare_digest(given, known[0].hash if known else _NOBODYS_HASH) or known is None:
            raise UnauthorizedError("the key that was sent is not valid here; `ken keys create` makes one")
        key, principal = known
        if key.expires is not None and key.expires <= (time.time() if now is None else now):
            raise UnauthorizedError(f"the key {key.name!r} expired on {moment(key.expires)}; ask for another")
        return principal


def _principal(key: Key) -> Principal:
    return Principal(f"{key.name}/{key.id}", key.scopes, key.tasks, key.id, key.expires)


def readable(records: Mapping[str, Mapping[str, Any]]) -> list[Key]:
    """The store's keys. An invalid record, e.g. one of a newer version, is logged and left out. It must not lock out
    the holders of all other keys."""
    keys = []
    for key_id, record in records.items():
        try:
            keys.append(Key.model_validate({**record, "id": key_id}))
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            _log.error("key %s in the store is not usable: %s: %s", key_id, first["loc"], first["msg"])
    return keys


def moment(seconds: int) -> str:
    """Unix seconds as text for people."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
