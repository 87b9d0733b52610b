"""Names under deploy/ are names of the server: settings, metrics, paths, ports. No secrets are among them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from serving.admission import Admission
from serving.config import Settings

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
OF_COMMANDS = {"KEN_API_KEY", "KEN_URL"}
VARIABLES = {f"KEN_{name.upper()}" for name in Settings.model_fields} | {"KEN_CONFIG", "KEN_SECRETS_DIR"} | OF_COMMANDS
PORT = Settings.model_fields["port"].default
OUR_SECRETS = ("redis-password", "gcs-redis-password", "redis-url", "admin-token", "REDIS_PASSWORD", "KEN_ADMIN_TOKEN")
PLACEHOLDER = "change-me"


def files() -> list[Path]:
    private = {"secrets.yaml", ".env"}
    found = [p for p in sorted(DEPLOY.rglob("*")) if p.is_file() and "__pycache__" not in p.parts]
    return [path for path in found if path.name not in private]


each_file = pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(DEPLOY)))


def unknown_variables(text: str) -> set[str]:
    return set(re.findall(r"\bKEN_[A-Z0-9_]*[A-Z0-9]\b", text)) - VARIABLES


@each_file
def test_every_variable_is_a_setting(path: Path) -> None:
    assert not unknown_variables(path.read_text())


def test_a_variable_that_is_no_setting_is_found() -> None:
    assert unknown_variables("KEN_REPLICAS=1\nKEN_REPLICA=1") == {"KEN_REPLICA"}


@each_file
def test_no_file_names_a_place_of_one_machine_or_a_private_registry(path: Path) -> None:
    text = path.read_text()
    assert not re.findall(r"(?:^|[\s\"'=])/(?:root/(?!\.cache)|work/|Users/|home/(?!ken\b))\S*", text)
    images = re.findall(r"(?:image: |FROM )(\S+)", text)
    assert not [image for image in images if "." in image.partition("/")[0] and "/" in image]


@pytest.fixture(scope="module")
def exposed() -> set[str]:
    """The names of all samples, with those of the gauges that a service adds."""
    from serving.telemetry.metrics import Metrics

    names = set()
    for family in text_string_to_metric_families(Metrics("r").exposition().decode()):
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
        names |= {family.name + suffix for suffix in suffixes}
    for source in (ROOT / "serving").rglob("*.py"):
        names |= set(re.findall(r'metrics\.gauge(?:_by)?\(\s*"(ken_\w+)"', source.read_text()))
    return names


@pytest.fixture(scope="module")
def routes(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The paths of the application, which is built here without a model."""
    from serving.api import create_app
    from serving.service import Service
    from serving.tasks import TaskTable

    table = TaskTable(tmp_path_factory.mktemp("routes") / "tasks-default.json")
    parts = {"settings": Settings(base="none"), "store": None, "table": table, "admission": Admission()}
    service = SimpleNamespace(replica="node-0", **parts)
    return set(create_app(cast(Service, service)).openapi()["paths"])


class TestMetrics:
    def test_include_those_that_a_service_adds(self, exposed: set[str]) -> None:
        assert {"ken_queue_rows", "ken_cache_bytes", "ken_requests_total", "ken_swap_seconds_sum"} <= exposed

    @pytest.mark.parametrize(
        "name", ["README.md", "prometheus/alerts.yml", "prometheus/alerts_test.yml", "grafana/ken-serve.json"]
    )
    def test_used_in_queries_exist(self, exposed: set[str], name: str) -> None:
        used = set(re.findall(r"\bken_\w+", (DEPLOY / name).read_text()))
        assert used
        assert used <= exposed


class TestPaths:
    def test_of_the_list_of_replicas_is_a_route(self, routes: set[str]) -> None:
        named = [*(DEPLOY / "prometheus").glob("*.yml"), DEPLOY / "README.md"]
        paths = {path for file in named for path in re.findall(r"http://[\w.-]+:8000(/[\w/]+)", file.read_text())}
        assert paths == {"/metrics/targets"}
        assert paths <= routes

    def test_of_health_checks_are_routes(self, routes: set[str], compose: dict[str, Any]) -> None:
        asked = re.findall(r"http://127\.0\.0\.1:[^/]+(/\w+)", (DEPLOY / "docker/Dockerfile").read_text())
        asked += re.findall(r"http://127\.0\.0\.1:8000(/\w+)", str(compose["services"]["server"]["healthcheck"]))
        assert asked == ["/healthz", "/readyz"]
        assert set(asked) <= routes

    @pytest.mark.parametrize("name", ["README.md", "prometheus/alerts.yml", "grafana/ken-serve.json"])
    def test_told_to_people_are_routes(self, routes: set[str], name: str) -> None:
        told = re.findall(r"(?:GET|POST|PUT|DELETE) (/[\w/{}]+)", (DEPLOY / name).read_text())
        assert set(told) <= routes


class TestThePort:
    def test_is_the_settings_default_everywhere(
        self, serve_config: dict[str, Any], head: dict[str, Any], worker: dict[str, Any], compose: dict[str, Any]
    ) -> None:
        named = {serve_config["http_options"]["port"]}
        for template in (head, worker):
            ports = {p["name"]: p["containerPort"] for p in template["spec"]["containers"][0]["ports"]}
            named.add(ports["serve"])
        (published,) = compose["services"]["server"]["ports"]
        named.add(int(published.rpartition(":")[2]))
        named |= {int(p) for p in re.findall(r"EXPOSE (\d+)", (DEPLOY / "docker/Dockerfile").read_text())}
        named |= {int(p) for p in re.findall(r"server:(\d+)", (DEPLOY / "prometheus/prometheus.yml").read_text())}
        assert named == {PORT}

    def test_of_the_metrics_is_the_same_for_replica_pod_and_prometheus(
        self, serve_config: dict[str, Any], worker: dict[str, Any]
    ) -> None:
        (application,) = serve_config["applications"]
        (container,) = worker["spec"]["containers"]
        ports = {p["name"]: p["containerPort"] for p in container["ports"]}
        annotations = worker["metadata"]["annotations"]
        assert application["args"]["metrics_port"] == ports["metrics"] == int(annotations["prometheus.io/port"])
        policies = yaml.safe_load_all((DEPLOY / "kubernetes/network.yaml").read_text())
        (rule,) = (p["spec"]["ingress"][0] for p in policies if p["metadata"]["name"] == "prometheus")
        assert ports["metrics"] in {p["port"] for p in rule["ports"]}


class TestSecrets:
    def test_are_placeholders_in_the_examples(self) -> None:
        secret = yaml.safe_load((DEPLOY / "kubernetes/secrets.example.yaml").read_text())["stringData"]
        example = dict(re.findall(r"^(\w+)=(.*)$", (DEPLOY / "compose/.env.example").read_text(), re.MULTILINE))
        given = {name: value for name, value in {**secret, **example}.items() if name in OUR_SECRETS}
        assert set(given) == set(OUR_SECRETS)
        assert {name for name, value in given.items() if PLACEHOLDER not in value} == set()

    @each_file
    def test_stand_in_no_file(self, path: Path) -> None:
        assert not leaked(path.read_text())

    @pytest.mark.parametrize(
        "line",
        [
            "KEN_REDIS_URL: redis://:hunter2@redis:6379/0",
            "admin-token: 4f6d3e",
            "KEN_ADMIN_TOKEN=4f6d3e",
            "  --requirepass hunter2",
        ],
    )
    def test_that_did_would_be_found(self, line: str) -> None:
        assert leaked(line)

    def test_real_ones_are_kept_from_git(self) -> None:
        assert ".env" in (DEPLOY / "compose/.gitignore").read_text().split()
        assert "secrets.yaml" in (DEPLOY / "kubernetes/.gitignore").read_text().split()


def leaked(text: str) -> list[str]:
    """Values of secrets that are neither placeholders nor references to another place."""
    found = re.findall(r"redis://[^:@\s]*:([^@\s]+)@", text)
    found += re.findall(rf"(?<![\w{{])(?:{'|'.join(OUR_SECRETS)})\s*[:=][ \t]*([^\s#]+)", text)
    found += re.findall(r"--requirepass[ \t]+(\S+)", text)
    return [value for value in found if not value.lstrip("\"'").startswith("$") and PLACEHOLDER not in value]


class TestTheDashboard:
    @pytest.fixture
    def dashboard(self) -> dict[str, Any]:
        return json.loads((DEPLOY / "grafana/ken-serve.json").read_text())

    def test_works_with_any_data_source(self, dashboard: dict[str, Any]) -> None:
        (variable,) = (v for v in dashboard["templating"]["list"] if v["type"] == "datasource")
        for panel in dashboard["panels"]:
            assert panel["datasource"] == {"type": "prometheus", "uid": f"${{{variable['name']}}}"}

    def test_uses_only_variables_that_it_has(self, dashboard: dict[str, Any]) -> None:
        defined = {v["name"] for v in dashboard["templating"]["list"]}
        used = set(re.findall(r"\$\{?(\w+)", json.dumps(dashboard["panels"])))
        assert used <= defined | {"__rate_interval"}

    def test_explains_every_panel(self, dashboard: dict[str, Any]) -> None:
        for panel in dashboard["panels"]:
            assert panel["title"]
            assert panel["description"]
            assert panel["targets"]

    def test_has_no_two_panels_in_one_place(self, dashboard: dict[str, Any]) -> None:
        taken = [
            (x, y)
            for panel in dashboard["panels"]
            for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
            for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
        ]
        assert len(taken) == len(set(taken))
        assert max(x for x, _ in taken) < 24
        assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_the_dashboard_shows_every_metric_of_the_page_on_generation() -> None:
    page = (ROOT / "docs/generation.md").read_text()
    named = set(re.findall(r"`(ken_\w+)`", page[page.index("## What can be seen") :]))
    assert len(named) >= 12
    shown = (DEPLOY / "grafana/ken-serve.json").read_text()
    assert [name for name in sorted(named) if not re.search(rf"\b{name}(_bucket|_sum)?\{{", shown)] == []
