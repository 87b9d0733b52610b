"""All settings. Sources, the first of which wins: flags, the environment (``KEN_*``), secret files, one YAML file."""

from __future__ import annotations

import os
import re
from functools import cached_property
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    YamlConfigSettingsSource,
)
from yaml import YAMLError

from serving.data_dir import default_data_dir
from serving.errors import StartError
from serving.security.signatures import TrustedKeys

MIB = 1 << 20
_NOT_FOR_REPLICAS = {"replicas", "port", "drain_seconds", "max_connections", "max_connections_per_source"}
"""What only the launcher, Serve or HAProxy reads."""
_ORIGIN = re.compile(r"https?://(\[[0-9a-f:.]+\]|[a-z0-9.-]+)(:\d{1,5})?")


class Settings(BaseSettings):
    """Settings of a server. Sizes are bytes, times seconds unless the name says otherwise."""

    model_config = SettingsConfigDict(
        env_prefix="KEN_",
        yaml_file=os.environ.get("KEN_CONFIG"),
        secrets_dir=os.environ.get("KEN_SECRETS_DIR"),
        extra="forbid",
        frozen=True,
    )

    base: str = Field(description="folder or hub name of the pretrained checkpoint")
    redis_url: SecretStr | None = Field(
        None,
        description="redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://; by default a Valkey starts",
    )
    namespace: str = Field("default", pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="prefix of all keys in the store")
    data_dir: Path = Field(
        default_factory=default_data_dir, description="cached deltas, embedded store, compiled kernels"
    )
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=1, le=65535, description="port to listen on")
    auth: Literal["auto", "on", "off"] = Field(
        "auto",
        description="whether requests need a key; auto: yes beyond loopback, and wherever a key exists or ever existed",
    )
    admin_token: SecretStr | None = Field(None, description="a key with every scope, for the first day and for scripts")
    keys_file: Path | None = Field(
        None, description="JSON list of keys in addition to the store's; read again when it changes"
    )
    trusted_keys: tuple[str, ...] | None = Field(
        None,
        description="public keys, as name=base64 or base64, one of which must sign each delta; by default none must",
    )
    cors_origins: tuple[str, ...] = Field(
        (), description="origins whose pages may call from a browser, such as https://app.example.org; or '*'"
    )
    tls_cert: Path | None = Field(None, description="PEM file of the certificate and its chain; with tls_key")
    tls_key: Path | None = Field(None, description="PEM file of the private key, not encrypted")
    log_format: Literal["auto", "json", "human"] = Field("auto", description="auto: human on a terminal, else json")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is logged")
    replicas: int = Field(1, ge=1, le=1000, description="replicas on this machine, each with a copy of the base")
    threads: int = Field(
        0, ge=0, description="CPU threads that a replica computes with; 0: as many as the process may use"
    )
    concurrent_batches: int = Field(
        0,
        ge=0,
        description="most forward passes at once on a CPU, each on an equal share of the threads; "
        "0: as many as there are threads, 4 at most",
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="auto: the checkpoint's")
    disk_bytes: int = Field(20_000 * MIB, ge=0, description="budget of fetched delta files")
    host_bytes: int = Field(
        2_000 * MIB,
        ge=0,
        description="budget of decoded deltas in host memory; on a CPU only low-rank deltas are kept there. As many "
        "bytes of delta files may be in memory at once while the disk takes none",
    )
    packed_bytes: int = Field(2_000 * MIB, ge=0, description="budget of packed deltas on the device")
    mixed: Literal["auto", "off"] = Field(
        "auto",
        description="whether one forward pass may hold rows and texts of several tasks; auto: where that is faster",
    )
    materialised_bytes: int = Field(
        0,
        ge=0,
        description="budget of full tensors for the tasks with most requests; switching to them needs no exchange",
    )
    verify_seconds: float = Field(
        300.0, gt=0, description="time between two checks of the idle base against its hashes"
    )
    preload: tuple[str, ...] = Field((), description="tasks put on the device before the replica reports ready")
    placement: Literal["auto", "off"] = Field(
        "auto", description="whether each task has a home among the replicas, to which its requests go"
    )
    placement_seconds: float = Field(
        15.0, gt=0, description="from one placement of tasks to the next, while no replica comes or goes"
    )
    batch_rows: int = Field(32, ge=1, le=4096, description="most inputs in one forward pass")
    batch_tokens: int = Field(4096, ge=16, description="most tokens, padding included, in one forward pass")
    max_wait_seconds: float = Field(
        10.0, gt=0, description="age from which a waiting input comes next, whatever that costs"
    )
    queue_rows: int = Field(2048, ge=1, description="most inputs that wait; further requests get 429")
    request_timeout_seconds: float = Field(
        30.0, gt=0, description="longest time that a request may take; generating has its own limit"
    )
    kv_bytes: int = Field(
        1_000 * MIB, ge=MIB, description="budget of the keys and values of all texts that are being generated"
    )
    quantum_seconds: float = Field(
        0.5, gt=0, description="longest time that one task generates while other tasks or inputs wait"
    )
    generation_timeout_seconds: float = Field(600.0, gt=0, description="longest time that generating a text may take")
    drain_seconds: float = Field(30.0, ge=0, description="how long a stop waits for requests that were accepted")
    max_connections: int = Field(4096, ge=64, le=1_000_000, description="most open connections of all clients together")
    max_connections_per_source: int = Field(
        1024,
        ge=0,
        description="most open connections of one address (IPv6: of one /64 network); 0: no limit, for load balancers",
    )
    max_body_bytes: int = Field(
        2 * MIB, ge=1024, description="most bytes in the body of one request; chunks of uploads have their own limit"
    )
    max_tokens: int = Field(262_144, ge=16, description="most tokens in one request, all its inputs together")
    max_requests: int = Field(
        1024, ge=1, description="most predictions at the same time in a replica; further ones get 429"
    )
    accept_token_ids: bool = Field(
        False,
        description="take token ids in place of texts to embed; they must come from the task's own tokenizer",
    )
    max_inputs: int = Field(256, ge=1, description="most inputs in one request")
    max_tasks_per_request: int = Field(64, ge=1, description="most tasks that one request to many tasks may ask")
    max_merges: int = Field(
        16, ge=0, description="most merges of tasks, asked for by requests, that a replica holds at once; 0: none"
    )
    merges_per_minute: int = Field(
        20, ge=1, description="most merges that a replica makes for one client within a minute; further ones get 429"
    )
    metrics_host: str | None = Field(
        None,
        description="address of each replica's own metrics; by default loopback if host is, else all addresses",
    )
    metrics_port: int = Field(0, ge=0, le=65535, description="port of each replica's own metrics; 0: a free one")
    metric_tasks: int = Field(
        100, ge=1, description="tasks that get a metric label of their own; all further tasks share the label 'other'"
    )

    @field_validator("admin_token")
    @classmethod
    def _fits_a_header(cls, token: SecretStr | None) -> SecretStr | None:
        """An empty token, say from a variable that was never set, would let everybody in."""
        if token is not None and not re.fullmatch(r"[\x21-\x7e]+", token.get_secret_value()):
            raise ValueError("expected at least one printable ASCII character, and no spaces")
        return token

    @field_validator("trusted_keys")
    @classmethod
    def _are_keys(cls, keys: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if keys is not None:
            TrustedKeys.read(keys)
        return keys

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"found {origin!r}, expected scheme://host or scheme://host:port and nothing more, or '*'"
                )
        return origins

    @field_validator("keys_file", "tls_cert", "tls_key")
    @classmethod
    def _found_from_everywhere(cls, path: Path | None) -> Path | None:
        """Replicas run in other working directories. Links are kept: Kubernetes renews secrets by moving links."""
        return path.expanduser().absolute() if path else None

    @model_validator(mode="after")
    def _has_both_files_of_tls_or_none(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key belong together: found one of them, expected both or neither")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = os.environ.get("KEN_CONFIG")
        try:
            if file and not Path(file).is_file():
                raise StartError(f"KEN_CONFIG names {file}, which is no file; expected the path of a YAML file")
            yaml = YamlConfigSettingsSource(settings_cls, yaml_file=file)
        except (ValueError, YAMLError) as error:
            raise StartError(f"{file} does not hold a YAML mapping of settings: {error}") from None
        return init_settings, env_settings, file_secret_settings, yaml

    @cached_property
    def redis_secret(self) -> str | None:
        return self.redis_url.get_secret_value() if self.redis_url else None

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def tls(self) -> bool:
        return self.tls_cert is not None

    @property
    def metrics_address(self) -> str:
        """Address of a replica's own metrics port: by default on loopback if the server is, else on all addresses."""
        return self.metrics_host or ("127.0.0.1" if self.on_loopback else "0.0.0.0")  # noqa: S104

    def shareable(self) -> dict[str, Any]:
        """Settings that were set, as plain values without secrets. A replica's environment decides about all others."""
        return self.model_dump(mode="json", exclude={"redis_url", "admin_token"}, exclude_unset=True)

    def for_replicas(self) -> dict[str, Any]:
        """Those of `shareable` that a replica reads. When one of them changes, Serve replaces every replica."""
        return {name: value for name, value in self.shareable().items() if name not in _NOT_FOR_REPLICAS}


def load_settings(**flags: Any) -> Settings:
    """Settings from all sources; flags that are None are not set.

    Raises:
        StartError: a setting is missing or wrong. The message names each such setting, and shows no secret.
    """
    try:
        return Settings(**{k: v for k, v in flags.items() if v is not None})
    except SettingsError as error:
        raise StartError(f"the settings cannot be used: {_unread(str(error))}") from None
    except ValidationError as error:
        problems = "; ".join(_problem(e["type"], ".".join(map(str, e["loc"])), e["msg"]) for e in error.errors())
        raise StartError(f"the settings cannot be used: {problems}") from None


def _unread(message: str) -> str:
    """What to do about a setting of several parts that the environment does not give as JSON."""
    found = re.search(r'field "(\w+)"', message)
    if found is None:
        return message
    variable = f"KEN_{found[1].upper()}"
    return f'{found[1]}: {variable} is not JSON; a list is written as {variable}=\'["one", "two"]\''


def _problem(kind: str, setting: str, message: str) -> str:
    if kind == "missing":
        return f"{setting} is not set: give --{setting.replace('_', '-')}, or KEN_{setting.upper()} in the environment"
    return f"{setting}: {message}" if setting else message
