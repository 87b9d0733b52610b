"""The compose files are consistent."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.config import Settings

Object = dict[str, Any]
SERVICES = ("server", "redis", "prometheus")


def test_runs_server_store_and_prometheus(compose: Object) -> None:
    images = {name: service["image"].partition(":")[0] for name, service in compose["services"].items()}
    assert images == {"server": "ken-serve", "redis": "redis", "prometheus": "prom/prometheus"}


def test_every_image_has_a_tag_that_is_not_latest(compose: Object) -> None:
    tags = [service["image"].partition(":")[2] for service in compose["services"].values()]
    assert all(tag and tag != "latest" for tag in tags)


def test_secrets_are_asked_for_and_never_given(compose: Object) -> None:
    server, redis = compose["services"]["server"], compose["services"]["redis"]
    for value in (server["environment"]["KEN_REDIS_URL"], server["environment"]["KEN_ADMIN_TOKEN"]):
        assert re.search(r"\$\{[A-Z_]+:\?", value)
    options = dict(zip(redis["command"][1::2], redis["command"][2::2], strict=True))
    assert options["--requirepass"].startswith("${REDIS_PASSWORD:?")
    assert options["--requirepass"] == redis["environment"]["REDISCLI_AUTH"]
    assert options["--appendonly"] == "yes"
    assert options["--maxmemory-policy"] == "noeviction"


def test_every_variable_stands_in_the_example(deploy: Path) -> None:
    text = "".join(path.read_text() for path in sorted((deploy / "compose").glob("*.yaml")))
    example = re.findall(r"^([A-Z_]+)=", (deploy / "compose/.env.example").read_text(), re.MULTILINE)
    assert set(re.findall(r"\$\{([A-Z_]+)", text)) == set(example)


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_watched_and_restarted(compose: Object, name: str) -> None:
    assert compose["services"][name]["healthcheck"]["test"]
    assert compose["services"][name]["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_keeps_what_it_must_in_a_volume_and_can_change_nothing_else(compose: Object, name: str) -> None:
    service = compose["services"][name]
    assert {mount.partition(":")[0] for mount in service["volumes"]} & set(compose["volumes"])
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


def test_every_file_that_is_mounted_exists(compose: Object, deploy: Path) -> None:
    sources = [mount.partition(":")[0] for s in compose["services"].values() for mount in s["volumes"]]
    missing = [path for path in sources if path.startswith(".") and not (deploy / "compose" / path).is_file()]
    assert missing == []


def test_the_image_is_built_from_the_repository(compose: Object, deploy: Path) -> None:
    build = compose["services"]["server"]["build"]
    context = (deploy / "compose" / build["context"]).resolve()
    assert context == deploy.parent
    assert (context / build["dockerfile"]).is_file()
    declared = re.findall(r"^ARG (\w+)", (context / build["dockerfile"]).read_text(), re.MULTILINE)
    assert set(build["args"]) == set(declared)


def test_only_the_server_reaches_the_store_and_nobody_from_outside(compose: Object) -> None:
    assert compose["networks"]["store"]["internal"]
    assert [n for n, s in compose["services"].items() if "store" in s["networks"]] == ["server", "redis"]
    assert "ports" not in compose["services"]["redis"]


def test_what_is_published_is_published_on_loopback_unless_told_otherwise(compose: Object) -> None:
    published = [port for s in compose["services"].values() for port in s.get("ports", [])]
    assert published
    assert all(re.match(r"(\$\{\w+:-)?127\.0\.0\.1", port) for port in published)


def test_a_stop_leaves_time_for_accepted_requests(compose: Object) -> None:
    grace = compose["services"]["server"]["stop_grace_period"]
    assert int(grace.removesuffix("s")) >= Settings.model_fields["drain_seconds"].default + 15


def test_the_cuda_file_changes_the_server_alone(deploy: Path) -> None:
    services = yaml.safe_load((deploy / "compose/compose.cuda.yaml").read_text())["services"]
    assert list(services) == ["server"]
    assert services["server"]["image"] == f"ken-serve:{services['server']['build']['args']['TORCH']}"
