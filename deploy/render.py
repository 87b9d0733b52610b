"""Writes what is derived under deploy/: files of the Helm chart, and from the chart the manifests of the kustomization.

python deploy/render.py            writes all of it
python deploy/render.py --check    exits 1 if a file is out of date

The chart's files come from elsewhere in the repository: Ray's variables, the names of settings, alerts and dashboard.
The manifests need `helm`, beside this Python or on the PATH; without it they are left out, which is said.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from serving.config import Settings  # noqa: E402
from serving.launch.ray_variables import for_cluster  # noqa: E402

DEPLOY = ROOT / "deploy"
CHART = Path("helm/ken-serve")
MANIFESTS = Path("kubernetes")
REFUSED = {
    *("redis_url", "admin_token"),  # secrets
    *("base", "data_dir", "device", "host", "metrics_host", "metrics_port", "port", "threads"),  # the chart's
    "request_timeout_seconds",  # the chart's, under another name
    *("replicas", "drain_seconds", "tls_cert", "tls_key"),  # only `ken serve` reads them
}
"""Settings that the chart's value `settings` must not have."""
_WRITTEN = "# Written by deploy/render.py"
_RESOURCES = re.compile(r"^resources:\n(?:  - .*\n)*", re.MULTILINE)
_SOURCE = re.compile(r"^# Source: ken-serve/templates/(\S+)\n", re.MULTILINE)
_HELMS_LABEL = re.compile(r"^ *(?:helm\.sh/chart|app\.kubernetes\.io/(?:managed-by|instance)): .*\n", re.MULTILINE)


def helm() -> str | None:
    """The path of helm: the one beside this Python, which `make` puts there, or else one on the PATH."""
    return shutil.which("helm", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))


def variables() -> str:
    """Ray's variables as a YAML list of a container's `env`."""
    return "".join(f"- {{name: {name}, value: {json.dumps(value)}}}\n" for name, value in for_cluster().items())


def schema(current: str) -> str:
    """The schema of the chart's values, with the settings that the server has now."""
    parsed = json.loads(current)
    properties = Settings.model_json_schema()["properties"]
    known = {name: _plain(rule) for name, rule in properties.items() if name not in REFUSED}
    parsed["properties"]["settings"]["properties"] = known
    return json.dumps(parsed, indent=2, ensure_ascii=False) + "\n"


def _plain(rule: dict[str, Any]) -> dict[str, Any]:
    """Without titles, which only repeat the name, and formats of pydantic's own."""
    return {key: value for key, value in rule.items() if key not in ("title", "format")}


def chart_files(deploy: Path) -> Iterator[tuple[Path, str]]:
    """The derived files of the chart: the path below `deploy`, and the content."""
    yield CHART / "files/ray_variables.yaml", variables()
    yield CHART / "files/alerts.yml", (deploy / "prometheus/alerts.yml").read_text()
    yield CHART / "files/ken-serve.json", (deploy / "grafana/ken-serve.json").read_text()
    yield CHART / "values.schema.json", schema((deploy / CHART / "values.schema.json").read_text())


def manifests(deploy: Path, program: str) -> Iterator[tuple[Path, str | None]]:
    """The manifests of the kustomization, one for each template, and the list of them: the path below `deploy`, and the
    content; None for a manifest that the chart no longer has."""
    values = deploy / MANIFESTS / "values.yaml"
    command = [program, "template", "ken", str(deploy / CHART), "--values", str(values)]
    rendered = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if rendered.returncode:
        raise SystemExit(f"helm template failed: {rendered.stderr.strip()}")
    by_template: dict[str, list[str]] = {}
    for document in rendered.stdout.split("---\n")[1:]:
        (template,) = _SOURCE.findall(document)
        by_template.setdefault(template, []).append(_HELMS_LABEL.sub("", _SOURCE.sub("", document)).strip() + "\n")
    for template, documents in sorted(by_template.items()):
        header = f"{_WRITTEN} from {CHART}/templates/{template}. Change that, or values.yaml.\n"
        yield MANIFESTS / template, header + "---\n".join(documents)
    for path in sorted((deploy / MANIFESTS).glob("*.yaml")):
        if path.name not in by_template and path.read_text().startswith(_WRITTEN):
            yield MANIFESTS / path.name, None
    listed = "".join(f"  - {name}\n" for name in ("namespace.yaml", *sorted(by_template)))
    kustomization = MANIFESTS / "kustomization.yaml"
    yield kustomization, _RESOURCES.sub(f"resources:\n{listed}", (deploy / kustomization).read_text())


def outdated(deploy: Path, write: bool) -> list[Path]:
    """The derived files whose content is not what it should be; with `write`, it then is."""
    found = _differing(deploy, chart_files(deploy), write)
    program = helm()
    if program is None:
        print(f"found no helm beside Python or on the PATH: {MANIFESTS}/ is left out", file=sys.stderr)
        return found
    return found + _differing(deploy, manifests(deploy, program), write)


def _differing(deploy: Path, files: Iterable[tuple[Path, str | None]], write: bool) -> list[Path]:
    found = []
    for path, content in files:
        target = deploy / path
        if (target.read_text() if target.is_file() else None) == content:
            continue
        found.append(path)
        if write and content is None:
            target.unlink()
        elif write and content is not None:
            target.write_text(content)
    return found


def main(arguments: list[str] | None = None, deploy: Path = DEPLOY) -> int:
    """The exit code: 1 if `--check` finds a file out of date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a file is out of date")
    check = parser.parse_args(arguments).check
    found = outdated(deploy, write=not check)
    if found and check:
        print(f"out of date: {', '.join(map(str, found))}; run: python deploy/render.py", file=sys.stderr)
    return int(bool(found and check))


if __name__ == "__main__":
    sys.exit(main())
