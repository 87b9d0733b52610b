"""Who sent a request, and whether the sender may do what the request asks for."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Protocol
from urllib.parse import urlsplit

from fastapi import Request

from serving.config import Settings
from serving.errors import ForbiddenError, UnauthorizedError, UnavailableError, UnknownTaskError
from serving.security import sessions
from serving.security.exposure import ONLY_WITH_KEYS, needs_key
from serving.security.keys import ANYONE, Key, Keyring, Principal, Scope, readable
from serving.security.keys_file import KeysFile

COOKIE = "ken_session"
"""How the name of the cookie begins that holds a browser's session, see `serving.security.sessions`."""
CSRF_HEADER = "X-Ken-Csrf"

_READING = ("GET", "HEAD")
_log = logging.getLogger(__name__)

_Records = Mapping[str, Mapping[str, Any]]


class HasKeys(Protocol):
    @property
    def keys(self) -> Mapping[str, dict[str, Any]]: ...


class HasTable(Protocol):
    """What authentication needs of a `serving.tasks.TaskTable`: `current` is another object after every change."""

    @property
    def current(self) -> HasKeys: ...

    @property
    def locked(self) -> bool: ...

    def lock(self) -> None: ...


class Authenticator:
    """Tells who sent a request, by the keys in the task table, the keys in the keys file, and the admin token.

    A request has its key in a header, or in the cookie of a session. Browsers send cookies by themselves, whichever
    page makes them ask. So with a cookie alone, a request that is no GET must also have the session's CSRF token, which
    other sites' pages cannot read. A cookie that is not valid counts as none.

    The keyring is built again only when one of these changes. A request costs one sha256 (two with an admin token),
    and one `stat` where there is a keys file.

    Raises:
        StartError: the keys file cannot be read.
    """

    def __init__(self, settings: Settings, table: HasTable) -> None:
        self._settings = settings
        self._table = table
        self._file = KeysFile(settings.keys_file) if settings.keys_file else None
        self._admin_token = settings.admin_token.get_secret_value() if settings.admin_token else None
        self._records: _Records | None = None
        self._listed: list[Key] | None = None
        self._keyring = Keyring([])
        self.cookie = cookie_of(settings)
        if settings.auth != "off":
            with suppress(UnavailableError):  # the table is not loaded yet; the first request refreshes again
                self._refresh()

    def principal(self, request: Request) -> Principal:
        """Who sent a request.

        Raises:
            UnauthorizedError: requests need a key, and this one has none or one that is not valid.
            ForbiddenError: requests need no key, but a page of another site made a browser send this one; or the key is
                that of a session, and the CSRF token is missing or wrong.
            UnavailableError: the task table, which holds the keys, is not loaded yet.
        """
        if not self.needs_key():
            if self._settings.auth != "off":
                self._refuse_other_sites(request)
            return ANYONE
        self._check_keyring()
        session = self.session(request)
        if session is None:
            return self._keyring.authenticate(_token(request))
        who = self._keyring.authenticate(session.api_key)
        if request.method not in _READING:
            _check_csrf(request, session)
        return who

    def needs_key(self) -> bool:
        """Whether requests need a key at present. Raises `UnavailableError` as `principal` does."""
        if self._settings.auth == "off":
            return False
        self._refresh()
        return needs_key(self._settings, self._table.locked)

    def session(self, request: Request) -> sessions.Session | None:
        """The session whose cookie a request has. None: it has none that is valid, or it has a key in a header."""
        cookie = request.cookies.get(self.cookie)
        if cookie is None or _token(request) is not None:
            return None
        return sessions.opened(cookie, self._keyring.hash_of, time.time())

    def begin_session(self, api_key: str, before: sessions.Session | None = None) -> tuple[Principal, sessions.Session]:
        """A key's holder, and a session for it.

        Args:
            before: the session that goes on; None: a new one begins.

        Raises:
            UnauthorizedError: the key is not valid.
        """
        self._check_keyring()
        who = self._keyring.authenticate(api_key)
        key_id = who.key_id or ""
        return who, sessions.begun(api_key, key_id, self._keyring.hash_of(key_id) or "", time.time(), before)

    def _check_keyring(self) -> None:
        if not len(self._keyring):
            raise UnauthorizedError(f"this needs a key, and the server knows no keys; {ONLY_WITH_KEYS}")

    def require(self, request: Request, scope: Scope, task: str | None = None) -> Principal:
        """Who sent a request, once `permit` allows what the request needs.

        Raises:
            UnauthorizedError, ForbiddenError, UnknownTaskError, UnavailableError: see `principal` and `permit`.
        """
        who = self.principal(request)
        permit(who, scope, task)
        return who

    def _refresh(self) -> None:
        records = self._table.current.keys
        listed = self._file.current() if self._file else None
        if records is self._records and listed is self._listed:
            return
        if records != self._records or listed is not self._listed:
            self._keyring = Keyring([*readable(records), *(listed or ())], self._admin_token)
            if records or len(self._keyring):
                self._table.lock()
            self._warn_if_no_key_is_left()
        self._records, self._listed = records, listed

    def _warn_if_no_key_is_left(self) -> None:
        if needs_key(self._settings, self._table.locked) and not len(self._keyring):
            _log.warning(
                "requests need a key, and the server knows no keys: it refuses every request; %s", ONLY_WITH_KEYS
            )

    def _refuse_other_sites(self, request: Request) -> None:
        """On loopback without keys the server trusts every sender, and a page of any site can make a browser send.

        The site's own name may lead to this machine (DNS rebinding): to the browser, its page is then of this server.
        """
        origin, named = request.headers.get("origin"), set(self._settings.cors_origins)
        if origin is not None:
            if not _is_loopback(origin) and not {origin, "*"} & named:
                raise _of_another_site(f"a page of {origin[:100]!r} sent this request")
        elif request.headers.get("sec-fetch-site") == "cross-site" and not _is_navigation(request):
            raise _of_another_site("a page of another site sent this request")
        host = request.url.hostname or ""
        if not _is_own_name(host) and host not in {urlsplit(origin).hostname for origin in named}:
            raise _of_another_site(f"this request is for the host {host[:100]!r}")


def cookie_of(settings: Settings) -> str:
    """The name of a server's cookie. Cookies are of a host, whatever the port, and several servers may share a host."""
    server = f"{settings.namespace} {settings.base} {settings.data_dir}"  # a replica is not told the port
    return f"{COOKIE}_{hashlib.sha256(server.encode()).hexdigest()[:8]}"


def permit(who: Principal, scope: Scope, task: str | None = None) -> None:
    """Raise unless a caller may do what needs a scope.

    A task that does not match a key's patterns does not exist for that key: the answer is the same whether there is
    such a task or not, so that names do not leak. Call this before the task is looked up, therefore.

    Args:
        scope: what the caller's key must have.
        task: the task's name; an ``@`` and what follows it are ignored. None: the whole server is concerned.

    Raises:
        ForbiddenError: the key lacks the scope, or it is a key of some tasks and the whole server is concerned.
        UnknownTaskError: the key is not one of this task.
    """
    name = task.partition("@")[0] if task is not None else None
    if name is not None and not who.sees(name):
        raise UnknownTaskError(f"there is no task {name!r} for this key; its tasks are {', '.join(who.tasks)}")
    if not who.has(scope):
        raise ForbiddenError(f"this needs the scope {scope!r}; {who.name} has {', '.join(who.scopes)}")
    if not who.may(scope, name):
        raise ForbiddenError(
            f"this concerns the whole server and needs a key of every task ('*'); the tasks of {who.name} are "
            f"{', '.join(who.tasks)}"
        )


def _token(request: Request) -> str | None:
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and value.strip():
        return value.strip()
    return request.headers.get("x-api-key")


def _check_csrf(request: Request, session: sessions.Session) -> None:
    if not hmac.compare_digest(request.headers.get(CSRF_HEADER, "").encode(), session.csrf.encode()):
        raise ForbiddenError(
            f"with a session's cookie, a request that changes something needs the header {CSRF_HEADER}; "
            "`GET /v1/session` tells its value"
        )


def _of_another_site(found: str) -> ForbiddenError:
    return ForbiddenError(
        f"{found}, and the server has no keys; name its origin in KEN_CORS_ORIGINS, or make a key with "
        "`ken keys create`"
    )


def _is_navigation(request: Request) -> bool:
    """Whether a person follows a link, whose answer the other site's page does not get."""
    return request.headers.get("sec-fetch-mode") == "navigate"


def _is_own_name(host: str) -> bool:
    """Whether a host is one that no other site can have: an address, this machine's name, or a name without a dot."""
    try:
        return bool(ipaddress.ip_address(host))
    except ValueError:
        own = {socket.gethostname().lower(), socket.getfqdn().lower()} if "." in host else set()
        return "." not in host or host.endswith(".localhost") or host.lower() in own


def _is_loopback(origin: str) -> bool:
    try:
        host = urlsplit(origin).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
