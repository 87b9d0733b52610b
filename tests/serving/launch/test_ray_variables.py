"""The environment of a private cluster."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from serving.launch.haproxy_file import CHANGE_SECONDS
from serving.launch.ray_variables import LOCAL, for_launcher, forget_other_clusters


def test_a_private_cluster_asks_for_a_token_and_keeps_to_loopback(tmp_path: Path) -> None:
    values = for_launcher(tmp_path, None, 30.0, 600.0)
    assert values["RAY_AUTH_MODE"] == "token"
    assert values["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"


def test_haproxy_is_started_as_told_with_its_files_in_the_private_folder(tmp_path: Path) -> None:
    values = for_launcher(tmp_path, {"RAY_SERVE_HAPROXY_BINARY_PATH": "/entry"}, 30.0, 600.0)
    assert values["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    assert values["RAY_SERVE_HAPROXY_BINARY_PATH"] == "/entry"
    paths = [value for name, value in values.items() if name.startswith("RAY_SERVE_HAPROXY") and "/" in value[1:]]
    assert len(paths) == 5
    assert all(Path(path).is_relative_to(tmp_path) for path in paths)


@pytest.mark.parametrize(("seconds", "waits"), [(30.0, "35"), (0.5, "6"), (120.2, "126")])
def test_haproxy_gives_up_on_a_replica_a_little_later_than_the_replica_on_a_request(
    seconds: float, waits: str, tmp_path: Path
) -> None:
    values = for_launcher(tmp_path, {"RAY_SERVE_HAPROXY_BINARY_PATH": "/entry"}, seconds, 600.0)
    assert values["RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S"] == waits


@pytest.mark.parametrize(
    ("seconds", "text", "stops"),
    [(30.0, 60.0, "720"), (595.0, 60.0, "720"), (900.0, 60.0, "1025"), (30.0, 600.0, "725"), (30.0, 900.0, "1025")],
)
def test_a_haproxy_that_was_replaced_ends_only_when_its_last_request_has_been_answered(
    seconds: float, text: float, stops: str, tmp_path: Path
) -> None:
    """The last request may come when an idle connection is about to end, and may be a change or a long text."""
    values = for_launcher(tmp_path, {"RAY_SERVE_HAPROXY_BINARY_PATH": "/entry"}, seconds, text)
    assert values["RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"] == stops
    longest = max(CHANGE_SECONDS, int(values["RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S"]))
    constants = pytest.importorskip("ray.serve._private.constants", reason="ray is not installed")
    assert int(stops) > longest + constants.DEFAULT_UVICORN_KEEP_ALIVE_TIMEOUT_S


def test_a_port_is_given_to_another_replica_once_no_haproxy_that_was_replaced_is_sent_requests() -> None:
    constants = pytest.importorskip("ray.serve._private.constants", reason="ray is not installed")
    (waits,) = (int(variable.value) for variable in LOCAL if variable.name == "RAY_SERVE_PORT_QUARANTINE_S")
    assert waits > constants.DEFAULT_UVICORN_KEEP_ALIVE_TIMEOUT_S


def test_without_haproxy_replicas_open_no_ports_of_their_own(tmp_path: Path) -> None:
    values = for_launcher(tmp_path, None, 30.0, 600.0)
    assert (values["RAY_SERVE_ENABLE_HA_PROXY"], values["RAY_SERVE_ENABLE_DIRECT_INGRESS"]) == ("0", "0")


def test_what_a_cluster_of_somebody_elses_left_in_the_environment_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = ["RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ENABLE_K8S_TOKEN_AUTH"]
    for name in foreign:
        monkeypatch.setenv(name, "theirs")
    forget_other_clusters()
    assert not [name for name in foreign if name in os.environ]
