"""The configuration of Prometheus is valid, and alerts fire when they should."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).resolve().parents[2] / "deploy/prometheus"
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


def promtool(*arguments: str, cwd: Path = FOLDER) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *arguments], cwd=cwd, capture_output=True, text=True, check=False)


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
    return group["rules"]


@needs_promtool
@pytest.mark.parametrize(
    "arguments",
    [("check", "config", "prometheus.yml"), ("check", "rules", "alerts.yml"), ("test", "rules", "alerts_test.yml")],
    ids=" ".join,
)
def test_promtool_is_content(arguments: tuple[str, ...]) -> None:
    done = promtool(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("== 0", "== 2"),
        ("[2m]", "[1s]"),
        ("> 0.01", "> 0.9"),
        ("1.5 *", "3 *"),
        ("> 5", "> 500"),
        ("or absent", "and absent"),
        ("max_over_time(ken_poisoned[5m])", "ken_store_up"),
    ],
)
def test_the_alerts_own_tests_notice_a_changed_rule(tmp_path: Path, old: str, new: str) -> None:
    text = (FOLDER / "alerts.yml").read_text()
    assert old in text
    (tmp_path / "alerts.yml").write_text(text.replace(old, new))
    shutil.copy(FOLDER / "alerts_test.yml", tmp_path)
    assert promtool("test", "rules", "alerts_test.yml", cwd=tmp_path).returncode == 1


@needs_promtool
def test_every_query_of_the_dashboard_and_the_manual_parses(tmp_path: Path, deploy: Path) -> None:
    dashboard = json.loads((deploy / "grafana/ken-serve.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    manual = re.findall(r"```promql\n(.+?)```", (deploy / "README.md").read_text(), re.DOTALL)
    assert len(manual) == 3
    queries += manual
    plain = [query.replace("$__rate_interval", "5m") for query in queries]
    recorded = [{"record": f"q:{i}", "expr": query} for i, query in enumerate(plain)]
    (tmp_path / "queries.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": recorded}]}))
    done = promtool("check", "rules", "queries.yml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("rule", rules(), ids=lambda r: r["alert"])
def test_every_alert_waits_and_says_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["for"]
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert set(rule["annotations"]) == {"summary", "action"}


def test_every_alert_is_seen_to_go_off() -> None:
    tested = (FOLDER / "alerts_test.yml").read_text()
    assert [r["alert"] for r in rules() if r["alert"] not in tested] == []


def test_the_rules_are_loaded_and_the_job_is_the_one_they_watch() -> None:
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    assert config["rule_files"] == ["alerts.yml"]
    (job,) = (s["job_name"] for s in config["scrape_configs"])
    assert f'up{{job="{job}"}}' in (FOLDER / "alerts.yml").read_text()
