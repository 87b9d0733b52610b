"""What `ken serve` checks before it starts anything: address, certificate, base, proxy, store and keys."""

from __future__ import annotations

import ssl
from pathlib import Path

import redis

from serving.config import Settings
from serving.errors import StartError, StoreError
from serving.launch.announcing import Say
from serving.launch.haproxy_binary import find_haproxy
from serving.launch.haproxy_start import check_startable
from serving.launch.listening import address, plain_host
from serving.launch.ports import can_listen
from serving.security.exposure import check_exposure
from serving.security.keys_file import KeysFile
from serving.store import Store
from serving.store.urls import connect, printable
from serving.tasks import TaskTable


def check_address(settings: Settings) -> None:
    """Raises `StartError` if the server cannot listen on its address."""
    if (error := can_listen(plain_host(settings.host), settings.port)) is not None:
        raise StartError(f"cannot listen on {address(settings)} ({error.strerror}); choose another with --port")


def check_tls(settings: Settings) -> None:
    """Raises `StartError` if the certificate or its key cannot be read, or if they do not belong together."""
    if settings.tls_cert is None or settings.tls_key is None:
        return
    for name, path in (("tls_cert", settings.tls_cert), ("tls_key", settings.tls_key)):
        try:
            path.read_bytes()
        except OSError as error:
            raise StartError(f"{name} {path} cannot be read: {error.strerror}") from None
    try:
        # without the argument `password`, OpenSSL would ask for the password of an encrypted key at the terminal
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.tls_cert, settings.tls_key, password="")
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise StartError(
            f"tls_cert {settings.tls_cert} and tls_key {settings.tls_key} are not usable ({reason}); "
            "expected PEM files of a certificate and of its own key, not encrypted"
        ) from None


def check_base(base: str) -> None:
    """Raises `StartError` if the base is a folder without a checkpoint. The name of a hub model is not checked here."""
    path = Path(base).expanduser()
    if not path.exists():
        if base.startswith((".", "/", "~")) or base.count("/") > 1:
            raise StartError(f"base {base}: there is no such folder")
        return
    if not (path / "config.json").is_file():
        raise StartError(f"base {path}: expected a folder with a config.json, as save_pretrained writes it")
    if not any(path.glob("*.safetensors")) and not any(path.glob("pytorch_model*.bin")):
        raise StartError(f"base {path}: found a config.json but no weights; expected *.safetensors files")


def choose_proxy(settings: Settings, say: Say) -> str | None:
    """The path of HAProxy if there is one for this platform; None to use Ray's stock proxy.

    Raises:
        StartError: HAProxy could not hold the number of connections in the settings.
    """
    haproxy = find_haproxy()
    if haproxy is None:
        say("found no HAProxy for this platform; Ray's proxy serves, more slowly and without limits on connections")
    else:
        check_startable(settings.max_connections)
    return haproxy


def check_store(url: str, settings: Settings, say: Say) -> None:
    """Raises `StartError` if the store is down and there is no task table on disk to serve from."""
    try:
        connect(url).ping()
    except redis.RedisError as error:
        if not _table_file(settings).is_file():
            raise StartError(
                f"the store at {printable(url)} does not answer ({error}), and {settings.data_dir} holds no tasks "
                "from an earlier run; start the store or correct the URL"
            ) from None
        say(f"the store at {printable(url)} does not answer; serving what the disk holds")


def check_keys(url: str, settings: Settings) -> None:
    """Raises `StartError` if the keys file is not usable, or if other machines reach the server and there is no key."""
    if settings.keys_file:
        KeysFile(settings.keys_file)
    check_exposure(settings, lambda: _store_has_keys(url, settings))


def _store_has_keys(url: str, settings: Settings) -> bool:
    """Whether there is a key, in the store or, if the store is down, in the task table on disk."""
    try:
        return bool(Store(url, settings.namespace).keys.all())
    except StoreError:
        table = TaskTable(_table_file(settings))
        return table.load_from_disk() and bool(table.current.keys)


def _table_file(settings: Settings) -> Path:
    return settings.data_dir.expanduser() / f"tasks-{settings.namespace}.json"
