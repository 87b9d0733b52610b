"""Settings from flags, environment, secret files and YAML, in that order."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from serving.config import Settings, load_settings
from serving.data_dir import default_data_dir
from serving.errors import StartError

SECRET = "hunter2"
SOURCES = Path(__file__).resolve().parents[2] / "serving"


@pytest.fixture
def yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write the file that KEN_CONFIG names."""

    def write(text: str) -> None:
        (tmp_path / "ken.yaml").write_text(text)
        monkeypatch.setenv("KEN_CONFIG", str(tmp_path / "ken.yaml"))

    return write


def in_a_process(code: str, **environment: str) -> str:
    """What a fresh interpreter prints: some sources are looked up when the module is imported."""
    found = subprocess.run(
        [sys.executable, "-c", f"from serving.config import load_settings\n{code}"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return found.stdout.strip()


def test_only_the_base_must_be_given() -> None:
    settings = load_settings(base="minilm")
    assert (settings.base, settings.host, settings.port, settings.namespace) == ("minilm", "127.0.0.1", 8000, "default")
    assert settings.redis_secret is None
    assert settings.admin_token is None


def test_a_flag_that_was_not_given_does_not_hide_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEN_PORT", "9001")
    assert load_settings(base="minilm", port=None).port == 9001


def test_flags_come_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEN_PORT", "9001")
    assert load_settings(base="minilm", port=9000).port == 9000


def test_the_environment_comes_before_yaml(yaml: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    yaml("base: from-yaml\nport: 9002\nthreads: 3\n")
    monkeypatch.setenv("KEN_PORT", "9001")
    settings = load_settings()
    assert (settings.base, settings.port, settings.threads) == ("from-yaml", 9001, 3)


def test_secret_files_come_after_the_environment_and_before_yaml(tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "ken_redis_url").write_text("redis://file:6379\n")
    (secrets / "ken_admin_token").write_text("token-in-file\n")
    (tmp_path / "ken.yaml").write_text("base: b\nredis_url: redis://yaml:6379\nadmin_token: token-in-yaml\n")
    code = "s = load_settings(); print(s.redis_secret, s.admin_token.get_secret_value())"
    sources = {"KEN_SECRETS_DIR": str(secrets), "KEN_CONFIG": str(tmp_path / "ken.yaml")}
    assert in_a_process(code, **sources) == "redis://file:6379 token-in-file"
    assert in_a_process(code, **sources, KEN_ADMIN_TOKEN="token-in-env") == "redis://file:6379 token-in-env"


def test_every_setting_may_come_from_yaml(yaml: Any) -> None:
    yaml("base: minilm\npreload: [spam, topic]\ndevice: cpu\nmax_wait_seconds: 0.5\n")
    settings = load_settings()
    assert settings.preload == ("spam", "topic")
    assert settings.max_wait_seconds == 0.5


def test_the_environment_may_name_several_tasks_to_preload(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEN_PRELOAD", '["spam", "topic"]')
    assert load_settings(base="minilm").preload == ("spam", "topic")


def test_a_base_that_was_not_given_is_asked_for() -> None:
    with pytest.raises(StartError, match=r"base is not set: give --base, or KEN_BASE in the environment$"):
        load_settings()


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({}, "base"),
        ({"base": "b", "port": 0}, "port"),
        ({"base": "b", "port": "http"}, "port"),
        ({"base": "b", "dtype": "int8"}, "dtype"),
        ({"base": "b", "namespace": "a b"}, "namespace"),
        ({"base": "b", "namespace": "a:b"}, "namespace"),
        ({"base": "b", "namespace": "{a}"}, "namespace"),
        ({"base": "b", "replicas": 0}, "replicas"),
        ({"base": "b", "max_wait_seconds": 0}, "max_wait_seconds"),
        ({"base": "b", "max_body_bytes": -1}, "max_body_bytes"),
        ({"base": "b", "batch_size": 4}, "batch_size"),
        ({"base": "b", "auth": "maybe"}, "auth"),
        ({"base": "b", "log_format": "xml"}, "log_format"),
        ({"base": "b", "log_level": "INFO"}, "log_level"),
        ({"base": "b", "admin_token": ""}, "admin_token"),
        ({"base": "b", "admin_token": "two words"}, "admin_token"),
        ({"base": "b", "admin_token": "line\n"}, "admin_token"),
        ({"base": "b", "cors_origins": ("app.example",)}, "cors_origins"),
        ({"base": "b", "cors_origins": ("https://app.example/",)}, "cors_origins"),
        ({"base": "b", "cors_origins": ("https://*.example",)}, "cors_origins"),
        ({"base": "b", "cors_origins": ("null",)}, "cors_origins"),
        ({"base": "b", "tls_cert": "cert.pem"}, "tls_key"),
        ({"base": "b", "tls_key": "key.pem"}, "tls_cert"),
    ],
)
def test_a_setting_that_is_missing_wrong_or_unknown_is_named(flags: dict[str, Any], named: str) -> None:
    with pytest.raises(StartError, match=rf"the settings cannot be used: .*\b{named}\b"):
        load_settings(**flags)


def test_every_wrong_setting_is_named_at_once() -> None:
    with pytest.raises(StartError, match=r"(?s)port.*replicas"):
        load_settings(base="b", port=0, replicas=0)


def test_a_wrong_value_in_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEN_THREADS", "many")
    with pytest.raises(StartError, match="threads"):
        load_settings(base="b")


def test_a_list_in_the_environment_that_is_no_json_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEN_PRELOAD", "spam,topic")
    with pytest.raises(StartError, match=r"""preload: KEN_PRELOAD is not JSON; .* KEN_PRELOAD='\["one", "two"\]'"""):
        load_settings(base="b")


def test_an_unknown_key_in_yaml_is_named(yaml: Any) -> None:
    yaml("base: b\nportt: 9000\n")
    with pytest.raises(StartError, match="portt"):
        load_settings()


@pytest.mark.parametrize("text", ["base: [", "- base", "just words"])
def test_yaml_that_is_none_is_a_start_error_that_names_the_file(text: str, yaml: Any) -> None:
    yaml(text)
    with pytest.raises(StartError, match=r"ken\.yaml"):
        load_settings(base="b")


def test_a_yaml_file_that_is_not_there_is_a_start_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEN_CONFIG", "/nowhere/ken.yaml")
    with pytest.raises(StartError, match=r"/nowhere/ken\.yaml"):
        load_settings(base="b")


@pytest.fixture
def secretive() -> Settings:
    settings = load_settings(base="b", redis_url=f"redis://:{SECRET}@host:6379", admin_token=SECRET, preload=("spam",))
    assert settings.redis_secret == f"redis://:{SECRET}@host:6379"
    return settings


def test_secrets_are_in_no_representation_of_the_settings(secretive: Settings) -> None:
    for text in (repr(secretive), str(secretive), secretive.model_dump_json(), repr(secretive.model_dump())):
        assert SECRET not in text


def test_secrets_are_not_in_what_a_deployment_shows(secretive: Settings) -> None:
    shared = secretive.shareable()
    assert SECRET not in repr(shared)
    assert not {"redis_url", "admin_token", "redis_secret"} & set(shared)


def test_what_a_deployment_shows_gives_the_same_settings_but_for_the_secrets(secretive: Settings) -> None:
    again = load_settings(**pickle.loads(pickle.dumps(secretive.shareable())))
    assert again.shareable() == secretive.shareable()
    assert again.preload == ("spam",)
    assert again.redis_secret is None


def test_replicas_get_nothing_that_they_do_not_read() -> None:
    """Serve replaces replicas when what they get changes, so nobody waits for that in vain."""
    told = {"base": "b", "threads": 2, "port": 9000, "drain_seconds": 5, "max_connections": 100}
    one, more = (load_settings(**told, replicas=replicas, max_connections_per_source=9) for replicas in (1, 4))
    assert one.for_replicas() == more.for_replicas() == {"base": "b", "threads": 2}
    assert more.shareable()["replicas"] == 4
    reads = re.compile(r"settings\.(replicas|port|drain_seconds|max_connections)")
    readers = {p.relative_to(SOURCES).parts[0] for p in SOURCES.rglob("*.py") if reads.search(p.read_text())}
    assert readers <= {"app.py", "cli", "launch"}


@pytest.mark.parametrize("name", ["redis_url", "admin_token"])
def test_a_wrong_secret_is_named_and_not_repeated(name: str) -> None:
    with pytest.raises(StartError, match=name) as found:
        load_settings(base="b", **{name: [SECRET]})
    assert SECRET not in str(found.value)


def test_files_are_found_by_replicas_whose_working_directory_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mounted").symlink_to(tmp_path / "renewed-later")
    shared = load_settings(base="b", keys_file="mounted", tls_cert="cert.pem", tls_key="~/key.pem").shareable()
    assert shared["keys_file"] == str(tmp_path / "mounted")
    assert shared["tls_cert"] == str(tmp_path / "cert.pem")
    assert shared["tls_key"] == str(Path.home() / "key.pem")


def test_replicas_are_told_who_may_come_in_and_how_to_log() -> None:
    told = {"auth": "on", "cors_origins": ["https://app.example:8443"], "log_format": "json", "log_level": "warning"}
    shared = load_settings(base="b", **told).shareable()
    assert {name: shared[name] for name in told} == told


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        load_settings(base="b").port = 1


@pytest.mark.parametrize(
    ("host", "alone"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.7", False),
        ("localhost.example.org", False),
        ("", False),
    ],
)
def test_only_loopback_addresses_count_as_loopback(host: str, alone: bool) -> None:
    assert load_settings(base="b", host=host).on_loopback is alone


def test_data_lies_where_the_desktop_standard_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_data_dir() == tmp_path / "ken"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_data_dir() == tmp_path / ".local/share/ken"
