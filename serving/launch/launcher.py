"""``ken serve``: a private Ray cluster with the application on it, from first check to last process.

Stop = admit nothing more (503 with Retry-After), let accepted requests finish, close the proxy, end the cluster.
Nothing here imports torch.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
import signal
import ssl
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import redis

from serving.config import Settings
from serving.cores import usable_cores
from serving.errors import StartError, StoreError
from serving.launch.haproxy_start import check_startable, variables
from serving.launch.listening import address, behind_haproxy, frontend, in_front, plain_host, url
from serving.launch.rayenv import can_listen, clear_foreign, find_haproxy, for_launcher
from serving.launch.supervisor import supervise
from serving.security.exposure import check_exposure
from serving.security.keys_file import KeysFile
from serving.store import Store
from serving.store.embedded import embedded_store
from serving.store.urls import connect, printable
from serving.tasks import TaskTable
from serving.telemetry.logs import chosen_format, configure

_log = logging.getLogger(__name__)
_OBJECT_STORE_BYTES = 80 << 20
Say = Callable[[str], None]


def serve(settings: Settings, say: Say) -> int:
    """Serve until SIGTERM or SIGINT; the exit code.

    Args:
        say: shows one line to the person at the terminal.

    Raises:
        StartError: a port in use, no base, no store, no keys where others reach it; found before anything was started.
    """
    settings = settings.model_copy(update={"log_format": chosen_format(settings)})
    configure(settings)
    say = _as_configured(settings, say, logging.INFO)
    check_address(settings)
    check_tls(settings)
    check_base(settings.base)
    haproxy = choose_proxy(settings, say)
    with ExitStack() as stack:
        store_url = settings.redis_secret or stack.enter_context(embedded_store(settings.data_dir))
        check_store(store_url, settings, say)
        check_keys(store_url, settings)
        folder = Path(stack.enter_context(_private_folder()))
        return supervise(lambda: _drive(settings, haproxy, store_url, folder, say))


def check_address(settings: Settings) -> None:
    """Raises `StartError` if the server cannot listen where it is told to."""
    if (error := can_listen(plain_host(settings.host), settings.port)) is not None:
        raise StartError(f"cannot listen on {address(settings)} ({error.strerror}); choose another with --port")


def check_tls(settings: Settings) -> None:
    """Raises `StartError` if certificate and key cannot be read or do not belong together."""
    if settings.tls_cert is None or settings.tls_key is None:
        return
    for name, path in (("tls_cert", settings.tls_cert), ("tls_key", settings.tls_key)):
        try:
            path.read_bytes()
        except OSError as error:
            raise StartError(f"{name} {path} cannot be read: {error.strerror}") from None
    try:
        # without a password of some kind, an encrypted key would ask for one at the terminal
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.tls_cert, settings.tls_key, password="")
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise StartError(
            f"tls_cert {settings.tls_cert} and tls_key {settings.tls_key} are not usable ({reason}); "
            "expected PEM files of a certificate and of its own key, not encrypted"
        ) from None


def check_base(base: str) -> None:
    """Raises `StartError` if the base is a path without a checkpoint; a hub name is tried later."""
    path = Path(base).expanduser()
    if not path.exists():
        if base.startswith((".", "/", "~")) or base.count("/") > 1:
            raise StartError(f"base {base}: no such folder")
        return
    if not (path / "config.json").is_file():
        raise StartError(f"base {path}: expected a folder with a config.json, as save_pretrained writes it")
    if not any(path.glob("*.safetensors")) and not any(path.glob("pytorch_model*.bin")):
        raise StartError(f"base {path} has a config.json but no weights (no *.safetensors)")


def choose_proxy(settings: Settings, say: Say) -> str | None:
    """HAProxy, if there is one for this platform; None is Ray's stock proxy.

    Raises:
        StartError: it could not hold the connections asked for.
    """
    haproxy = find_haproxy()
    if haproxy is None:
        say("no HAProxy for this platform; Ray's stock proxy serves, at a lower rate and without limits on connections")
    else:
        check_startable(settings.max_connections)
    return haproxy


def check_store(url: str, settings: Settings, say: Say) -> None:
    """Raises `StartError` if the store is down and the disk holds no task table to serve from."""
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
    """Raises `StartError` if the keys file is not usable, or others reach the server and nobody could have a key."""
    if settings.keys_file:
        KeysFile(settings.keys_file)
    check_exposure(settings, lambda: _store_has_keys(url, settings))


def _store_has_keys(url: str, settings: Settings) -> bool:
    """With the store down, those that count are on disk with the tasks."""
    try:
        return bool(Store(url, settings.namespace).keys.all())
    except StoreError:
        table = TaskTable(_table_file(settings))
        return table.load_from_disk() and bool(table.current.keys)


def _table_file(settings: Settings) -> Path:
    return settings.data_dir.expanduser() / f"tasks-{settings.namespace}.json"


def _drive(settings: Settings, haproxy: str | None, store_url: str, folder: Path, say: Say) -> int:
    """Start the cluster, wait for a signal, stop it. Runs in the supervised child."""
    clear_foreign()
    os.environ.update(for_launcher(folder, variables(haproxy, frontend(settings, folder)) if haproxy else None))
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(_new_token(folder))
    os.environ["KEN_REDIS_URL"] = store_url
    if settings.admin_token:
        os.environ["KEN_ADMIN_TOKEN"] = settings.admin_token.get_secret_value()
    _let_workers_import_us()
    stop = _StopFlag()
    stop.install()
    import ray

    code = 1
    try:
        _start_cluster(settings, folder)
        stop.install()  # ray.init puts its own handlers in their place
        _start_application(settings, behind_haproxy(settings) if haproxy else in_front(settings))
        _watch(settings, stop, say)
        code = 0
    except (_StoppedError, SystemExit):  # the latter from ray.init's own handler
        say("stopped before it was ready")
    except Exception as error:
        if stop.asked:
            say("stopped before it was ready")
        else:
            _as_configured(settings, say, logging.ERROR)(f"the server did not start: {_reason(error)}")
    finally:
        stop.ignore()
        _end(ray)
    return code


def _as_configured(settings: Settings, say: Say, level: int) -> Say:
    """What shows a line: where logs are JSON it is a record like any other."""
    return say if settings.log_format == "human" else partial(_log.log, level)


def _start_cluster(settings: Settings, folder: Path) -> None:
    import ray

    gpus = settings.replicas if settings.device.startswith("cuda") else 0
    ray.init(
        address="local",
        namespace="ken",
        num_cpus=settings.replicas + 1,
        num_gpus=gpus,
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE_BYTES,
        log_to_driver=True,
        logging_level=logging.WARNING,
        _temp_dir=str(folder / "r"),  # Ray opens it to every user; the folder around it is shut
        _node_ip_address="127.0.0.1",
    )
    _show_replicas_only()


def _start_application(settings: Settings, where: dict[str, Any]) -> None:
    from ray import serve as ray_serve
    from ray.serve.schema import LoggingConfig

    from serving.app import APP, build

    configure(settings)  # again: ray.init gave its loggers handlers of their own
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    ray_serve.start(proxy_location="HeadOnly", http_options=where, logging_config=quiet)
    ray_serve.run(build(_with_threads(settings).shareable()), name=APP, route_prefix="/", logging_config=quiet)


def _with_threads(settings: Settings) -> Settings:
    """All replicas of a private cluster share this machine: each computes with its part of the cores."""
    threads = settings.threads or max(1, usable_cores() // settings.replicas)
    return settings.model_copy(update={"threads": threads})


def _watch(settings: Settings, stop: _StopFlag, say: Say) -> None:
    from ray import serve as ray_serve

    from serving.app import APP

    say(f"ready on {url(settings)}")
    stop.ready = True
    while not stop.asked:
        time.sleep(0.05)
    say(f"stopping: letting accepted requests finish, at most {settings.drain_seconds:g} s")
    handle = ray_serve.get_app_handle(APP)
    left = handle.broadcast("drain", settings.drain_seconds).results(timeout_s=settings.drain_seconds + 10)
    cut = sum(left)
    say("stopped" if not cut else f"stopped; {cut} requests were cut off after {settings.drain_seconds:g} s")


def _end(ray: Any) -> None:
    """End the cluster. Deleting the application first would only have the proxy answer 404 meanwhile."""
    _close_proxy()
    try:
        if ray.is_initialized():
            ray.shutdown()
    except Exception:
        logging.getLogger(__name__).debug("ending the cluster failed; the supervisor ends it", exc_info=True)


def _close_proxy() -> None:
    """HAProxy's soft stop: it listens no more, so that late clients are refused rather than answered by nobody."""
    for process in psutil.Process().children(recursive=True):
        try:
            if process.name() == "haproxy":
                process.send_signal(signal.SIGUSR1)
        except psutil.Error:
            continue


class _StoppedError(BaseException):
    """A signal came before the server was ready."""


class _StopFlag:
    """Signals set a flag once the server is ready, and interrupt its start before."""

    def __init__(self) -> None:
        self.asked = False
        self.ready = False

    def install(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def ignore(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)

    def _on_signal(self, number: int, frame: object) -> None:
        first, self.asked = not self.asked, True
        if first and not self.ready:
            raise _StoppedError


@contextmanager
def _private_folder() -> Iterator[str]:
    """Short, since Ray and HAProxy put sockets deep below it."""
    folder = tempfile.mkdtemp(prefix="ken", dir="/tmp")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _new_token(folder: Path) -> Path:
    """A file with the secret without which nothing in the cluster runs code."""
    file = folder / "token"
    with open(file, "x", opener=lambda path, flags: os.open(path, flags, 0o600)) as opened:
        opened.write(secrets.token_hex(32))
    return file


def _let_workers_import_us() -> None:
    root = str(Path(__file__).resolve().parents[2])
    parts = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(parts))


def _show_replicas_only() -> None:
    """Pass on the replicas' lines, without Ray's own chatter. Ray has no public switch for that."""
    try:
        from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

        dispatcher.remove_handler("ray_print_logs")
        dispatcher.add_handler("ken", _print_replica_lines)
    except (ImportError, AttributeError):
        return


def _print_replica_lines(data: dict[str, Any]) -> None:
    if str(data.get("actor_name") or "").startswith("ServeReplica:"):
        for line in data["lines"]:
            print(line, file=sys.stderr, flush=True)


def _reason(error: Exception) -> str:
    """The replica's own message, which Serve hides in its status."""
    from ray import serve as ray_serve

    from serving.app import APP

    text = str(error)
    try:
        application = ray_serve.status().applications.get(APP)
        messages = [d.message for d in application.deployments.values() if d.message] if application else []
        text = messages[0] if messages else text
    except Exception:
        logging.getLogger(__name__).debug("no status", exc_info=True)
    ours = re.findall(r"^(?:serving\.errors|ken_core\.errors)\.\w+: (.+)$", text, re.MULTILINE)
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return str(ours[-1] if ours else lines[-1] if lines else repr(error))
