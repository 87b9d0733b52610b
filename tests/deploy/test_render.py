"""Head and worker carry the Ray variables of `serving.launch.ray_variables`, and deploy/render.py puts them there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from serving.launch.ray_variables import for_cluster

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "deploy/render.py"


@pytest.fixture
def render(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import render

    return render


@pytest.fixture
def manifest(tmp_path: Path, deploy: Path) -> Path:
    path = tmp_path / "rayservice.yaml"
    path.write_text((deploy / "kubernetes/rayservice.yaml").read_text())
    return path


def test_head_and_worker_carry_exactly_the_table(head: dict[str, Any], worker: dict[str, Any]) -> None:
    for template in (head, worker):
        (container,) = template["spec"]["containers"]
        values = {e["name"]: e.get("value") for e in container["env"]}
        table = for_cluster()
        assert {name: values.get(name) for name in table} == table
        assert {name for name in values if name.startswith("RAY_")} <= set(table)


def test_the_manifest_is_up_to_date(render: Any) -> None:
    assert render.main(["--check"]) == 0


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('{name: RAY_USAGE_STATS_ENABLED, value: "0"}', '{name: RAY_USAGE_STATS_ENABLED, value: "1"}'),
        ('- {name: RAY_SERVE_LOG_TO_STDERR, value: "1"}', "# gone"),
    ],
    ids=["another value", "a variable less"],
)
def test_a_changed_manifest_fails_the_check_and_is_repaired(
    render: Any, manifest: Path, capsys: pytest.CaptureFixture[str], old: str, new: str
) -> None:
    right = manifest.read_text()
    manifest.write_text(right.replace(old, new, 1))
    assert render.main(["--check"], manifest) == 1
    assert "run: python deploy/render.py" in capsys.readouterr().err
    assert render.main([], manifest) == 0
    assert manifest.read_text() == right


def test_a_check_changes_nothing(render: Any, manifest: Path) -> None:
    changed = manifest.read_text().replace("RAY_USAGE_STATS_ENABLED", "RAY_USAGE")
    manifest.write_text(changed)
    render.main(["--check"], manifest)
    assert manifest.read_text() == changed


def test_lost_markers_are_an_error(render: Any, manifest: Path) -> None:
    with pytest.raises(ValueError, match="found 1 pairs"):
        render.render(manifest.read_text().replace("# end ray_variables", "", 1), {})


def test_it_needs_no_ray() -> None:
    forbidden = "import runpy, sys; sys.modules['ray'] = None; sys.argv[0] = sys.argv.pop(1);"
    command = [sys.executable, "-c", f"{forbidden} runpy.run_path(sys.argv[0], run_name='__main__')"]
    assert subprocess.run([*command, SCRIPT, "--check"], check=False).returncode == 0
