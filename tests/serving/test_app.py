"""What the application says when it is built."""

from __future__ import annotations

import pytest

from serving.launch.ray_variables import for_cluster

app = pytest.importorskip("serving.app", reason="ray is not installed")


@pytest.mark.parametrize(
    ("seconds", "waits", "warned"), [(30, "35", False), (120, "35", True), (35, "35", True), (120, "125", False)]
)
def test_a_proxy_that_gives_up_before_the_replica_does_is_warned_of(
    seconds: int, waits: str, warned: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S" in for_cluster()
    monkeypatch.setenv("RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S", waits)
    app.build({"base": "b", "request_timeout_seconds": seconds})
    said = f"set RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S to {seconds + 5} in every container"
    assert (said in caplog.text) is warned
    assert bool(caplog.records) is warned


@pytest.mark.parametrize(
    ("seconds", "told", "warned"), [(600, None, False), (601, None, True), (900, "900", False), (900, "60", True)]
)
def test_a_proxy_that_gives_up_before_a_text_is_there_is_warned_of(
    seconds: int, told: str | None, warned: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S", raising=False)
    if told is not None:
        monkeypatch.setenv("KEN_GENERATION_TIMEOUT_SECONDS", told)
    app.build({"base": "b", "generation_timeout_seconds": seconds})
    said = f"set KEN_GENERATION_TIMEOUT_SECONDS to {seconds} in every container"
    assert (said in caplog.text) is warned
    assert bool(caplog.records) is warned


def test_a_proxy_that_waits_as_long_as_it_takes_is_fine(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S", raising=False)
    app.build({"base": "b", "request_timeout_seconds": 120})
    assert not caplog.records


def test_an_autoscaling_configuration_alone_says_how_many_replicas_there_are() -> None:
    """Serve refuses a number beside it, and the code must not state one in the configuration's place."""
    deployment = app.build({"base": "b"})._bound_deployment
    assert "num_replicas" not in deployment._deployment_config.user_configured_option_names
    scaled = deployment.options(autoscaling_config={"min_replicas": 2, "max_replicas": 4})
    assert scaled._deployment_config.autoscaling_config.min_replicas == 2


def test_a_number_of_replicas_in_the_settings_is_the_deployments() -> None:
    assert app.build({"base": "b", "replicas": 3})._bound_deployment.num_replicas == 3


def test_a_number_of_replicas_in_the_environment_is_not_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is for `ken serve`. Serve refuses it beside an autoscaling configuration."""
    monkeypatch.setenv("KEN_REPLICAS", "3")
    deployment = app.build({"base": "b"})._bound_deployment
    assert "num_replicas" not in deployment._deployment_config.user_configured_option_names
