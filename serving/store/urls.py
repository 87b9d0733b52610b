"""URLs of Redis or Valkey: a client for a single server, a Sentinel's service or a cluster; URLs fit for a log."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote, urlsplit

import redis
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.cluster import RedisCluster
from redis.retry import Retry
from redis.sentinel import Sentinel

from serving.addresses import split_host_and_port
from serving.errors import StartError

Client = Any
"""`redis.Redis` or `redis.cluster.RedisCluster`; redis-py gives them no common type."""

_SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "redis+cluster", "rediss+cluster")


def connect(url: str, timeout: float = 5.0) -> Client:
    """A client that retries twice on broken connections. Sends nothing yet, except to a cluster.

    Args:
        url: ``redis://[user:password@]host:port/db``, ``rediss://`` (TLS), ``unix:///path``,
            ``redis+sentinel://[user:password@]host:port,host:port/service[/db]`` or ``redis+cluster://host:port``.
            TLS files go into the query under redis-py's names, e.g. ``?ssl_ca_certs=/run/ca.pem``.
        timeout: seconds for connecting, and for an answer.

    Raises:
        StartError: the URL has another form.
    """
    try:
        scheme = urlsplit(url).scheme
    except ValueError as error:
        raise StartError(f"the store's URL is not usable: {error}") from None
    if scheme not in _SCHEMES:
        raise StartError(f"the store's URL starts with {scheme!r}; expected one of {', '.join(_SCHEMES)}")
    options: dict[str, Any] = {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "retry": Retry(ExponentialBackoff(cap=0.5, base=0.05), 2),
        "retry_on_error": [redis.ConnectionError, redis.TimeoutError],
        "health_check_interval": 15,
    }
    try:
        if scheme == "redis+sentinel":
            return _through_sentinel(url, options)
        if scheme.endswith("+cluster"):
            return RedisCluster.from_url(url.replace("+cluster", "", 1), socket_timeout=timeout)
        return redis.Redis.from_url(url, **options)
    except ValueError:
        raise StartError(
            "the store's URL is not usable; percent-encode marks in user and password, and put an IPv6 address in "
            "brackets, as in redis://[::1]:6379"
        ) from None


def printable(url: str) -> str:
    """The URL without user, password and query, for messages and logs."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0].partition('#')[0]}"


def store_name(url: str) -> str:
    """Tells one store from another. A store on this machine has one name, wherever its socket is."""
    return "local" if url.startswith("unix:") else printable(url)


def _through_sentinel(url: str, options: dict[str, Any]) -> Client:
    parts = urlsplit(url)
    credentials, _, hosts = parts.netloc.rpartition("@")
    service, _, database = parts.path.strip("/").partition("/")
    if not service:
        raise StartError("a redis+sentinel URL names its service: redis+sentinel://host:26379/service")
    user, _, password = credentials.partition(":")
    places = [split_host_and_port(host, 26379) for host in hosts.split(",")]
    sentinel = Sentinel(places, socket_timeout=options["socket_timeout"], retry=Retry(NoBackoff(), 0))
    return sentinel.master_for(
        service,
        db=int(database or 0),
        username=unquote(user) or None,
        password=unquote(password) or None,
        **options,
    )
