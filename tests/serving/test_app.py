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


def test_a_proxy_that_waits_as_long_as_it_takes_is_fine(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S", raising=False)
    app.build({"base": "b", "request_timeout_seconds": 120})
    assert not caplog.records
