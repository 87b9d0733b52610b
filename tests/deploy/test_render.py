"""deploy/render.py writes what is derived: the chart's files, and from the chart the manifests of the kustomization."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.config import Settings
from serving.launch.ray_variables import for_cluster
from tests.deploy.charts import needs_helm

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "deploy/render.py"
VARIABLES = "helm/ken-serve/files/ray_variables.yaml"
SCHEMA = "helm/ken-serve/values.schema.json"


@pytest.fixture
def render(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import render

    return render


@pytest.fixture
def copied(tmp_path: Path, deploy: Path) -> Path:
    shutil.copytree(deploy, tmp_path / "deploy")
    return tmp_path / "deploy"


def test_head_and_worker_carry_exactly_the_table(head: dict[str, Any], worker: dict[str, Any]) -> None:
    for template in (head, worker):
        (container,) = template["spec"]["containers"]
        values = {e["name"]: e.get("value") for e in container["env"]}
        table = for_cluster()
        assert {name: values.get(name) for name in table} == table
        assert {name for name in values if name.startswith("RAY_")} <= set(table)


def test_the_charts_files_are_up_to_date(render: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "helm", lambda: None)
    assert render.main(["--check"]) == 0


@needs_helm
def test_the_kustomization_is_what_the_chart_renders(render: Any) -> None:
    assert render.main(["--check"]) == 0


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        (VARIABLES, '{name: RAY_USAGE_STATS_ENABLED, value: "0"}', '{name: RAY_USAGE_STATS_ENABLED, value: "1"}'),
        (VARIABLES, '- {name: RAY_SERVE_LOG_TO_STDERR, value: "1"}\n', ""),
        (SCHEMA, '"batch_rows"', '"batch_row"'),
        ("helm/ken-serve/files/alerts.yml", "for: 1m", "for: 2m"),
        ("helm/ken-serve/files/ken-serve.json", '"panels"', '"panel"'),
        pytest.param("kubernetes/rayservice.yaml", "min_replicas: 2", "min_replicas: 1", marks=needs_helm),
        pytest.param("kubernetes/network.yaml", "app: gcs-redis", "app: redis", marks=needs_helm),
    ],
    ids=["a variable", "a variable less", "a setting", "an alert", "the dashboard", "the service", "a policy"],
)
def test_a_changed_file_fails_the_check_and_is_repaired(
    render: Any, copied: Path, capsys: pytest.CaptureFixture[str], path: str, old: str, new: str
) -> None:
    right = (copied / path).read_text()
    assert old in right
    (copied / path).write_text(right.replace(old, new, 1))
    assert render.main(["--check"], copied) == 1
    assert f"out of date: {path}" in capsys.readouterr().err
    assert render.main([], copied) == 0
    assert (copied / path).read_text() == right


def test_a_check_changes_nothing(render: Any, copied: Path) -> None:
    changed = (copied / VARIABLES).read_text().replace("RAY_USAGE_STATS_ENABLED", "RAY_USAGE")
    (copied / VARIABLES).write_text(changed)
    assert render.main(["--check"], copied) == 1
    assert (copied / VARIABLES).read_text() == changed


@needs_helm
def test_a_change_of_the_chart_or_of_its_values_reaches_the_manifests(render: Any, copied: Path) -> None:
    values = copied / "kubernetes/values.yaml"
    values.write_text(values.read_text() + "requestTimeoutSeconds: 100\n")
    assert render.main(["--check"], copied) == 1
    render.main([], copied)
    assert "request_timeout_seconds: 100" in (copied / "kubernetes/rayservice.yaml").read_text()


@needs_helm
def test_manifests_come_and_go_with_the_values(render: Any, copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = copied / "kubernetes/values.yaml"
    before = values.read_text()
    values.write_text(before + "ingress: {enabled: true, hosts: [ken.example.org]}\n")
    render.main([], copied)
    listed = yaml.safe_load((copied / "kubernetes/kustomization.yaml").read_text())["resources"]
    assert "ingress.yaml" in listed
    assert {name for name in listed if not (copied / "kubernetes" / name).is_file()} == set()
    values.write_text(before)
    assert render.main(["--check"], copied) == 1
    assert "kubernetes/ingress.yaml, kubernetes/kustomization.yaml" in capsys.readouterr().err
    render.main([], copied)
    assert not (copied / "kubernetes/ingress.yaml").exists()
    assert (copied / "kubernetes/namespace.yaml").is_file()
    assert render.main(["--check"], copied) == 0


@needs_helm
def test_values_that_the_chart_refuses_are_an_error(render: Any, copied: Path) -> None:
    (copied / "kubernetes/values.yaml").write_text("replicass: 2\n")
    with pytest.raises(SystemExit, match=r"helm template failed: [^$]*replicass"):
        render.main(["--check"], copied)


def test_without_helm_the_chart_is_checked_and_the_manifests_are_said_to_be_left_out(
    render: Any, copied: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(render, "helm", lambda: None)
    (copied / "kubernetes/rayservice.yaml").write_text("changed")
    assert render.main(["--check"], copied) == 0
    assert "kubernetes/ is left out" in capsys.readouterr().err
    (copied / VARIABLES).write_text("changed")
    assert render.main(["--check"], copied) == 1


def test_every_setting_is_a_value_or_refused(render: Any, deploy: Path) -> None:
    schema = json.loads((deploy / SCHEMA).read_text())
    assert set(schema["properties"]["settings"]["properties"]) | render.REFUSED == set(Settings.model_fields)


def test_it_needs_no_ray() -> None:
    forbidden = "import runpy, sys; sys.modules['ray'] = None; sys.argv[0] = sys.argv.pop(1);"
    command = [sys.executable, "-c", f"{forbidden} runpy.run_path(sys.argv[0], run_name='__main__')"]
    assert subprocess.run([*command, SCRIPT, "--check"], check=False).returncode == 0
