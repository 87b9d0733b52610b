"""What the documentation shows is run, and what it names exists."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
import typer
import yaml
from torch import nn
from transformers import AutoModel, AutoModelForSequenceClassification, BertConfig, LlamaConfig

from ken_core.file_size import USUAL_PART
from ken_core.kernels import packed_nbytes
from ken_core.kernels.correction import shift_nbytes
from ken_core.manifest import FORMAT_VERSION, READABLE_VERSIONS
from serving.config import MIB, Settings
from serving.launch.ray_variables import for_cluster
from tests.deploy.charts import CHART, needs_helm, rendered
from tests.ken_core.adapters import make_adapter

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *(page.name for page in sorted(ROOT.glob("*.md"))),
    "deploy/README.md",
    *(page.relative_to(ROOT).as_posix() for page in sorted((ROOT / "docs").rglob("*.md"))),
]
_BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks_of(page: str) -> list[str]:
    return _BLOCK.findall((ROOT / page).read_text())


def test_the_library_page_runs_block_after_block(
    minilm: Path,
    make_fine_tune: Callable[..., Path],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
) -> None:
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"])
    adapter = tmp_path_factory.mktemp("adapter")
    make_adapter(minilm, AutoModelForSequenceClassification, lora, adapter)
    names: dict[str, Any] = {
        "base_folder": str(minilm),
        "adapter_folder": str(adapter),
        "tuned_folder": str(make_fine_tune(minilm, ["place", "person"], scale=0.0005)),
        "work": tmp_path,
    }
    blocks = blocks_of("docs/library.md")
    assert len(blocks) == 12
    for block in blocks:
        assert len([line for line in block.splitlines() if line.strip()]) < 20
        exec(compile(block, "docs/library.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "2,271,322 of 22,713,216 parameters" in printed
    assert "12 matrices shifted by factors of rank {8}" in printed
    assert "merged by ties from ['" in printed
    assert names["found"].record.score == 1.0
    written = ("task", "paper", "from-memory", "adapter", "small", "smaller", "svd", "fitted", "distilled", "both")
    assert {p.name for p in tmp_path.iterdir()} == {*(f"{name}.ken" for name in written), "pruned"}
    assert names["small"].size < names["file"].size


def test_the_example_runs(
    minilm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example = str(ROOT / "examples" / "prune_and_swap.py")
    monkeypatch.setattr(sys, "argv", [example, str(tmp_path)])
    runpy.run_path(example, run_name="__main__")
    printed = capsys.readouterr().out
    assert "news answers" in printed
    assert "genres answers" in printed
    assert "tensors that differ from the base afterwards: 0" in printed


def slug(title: str) -> str:
    """The anchor that a heading gets."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return {slug(title) for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


@pytest.mark.parametrize("page", PAGES)
def test_links_within_the_repository_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)", (ROOT / page).read_text())
    for path, anchor in links:
        target = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_headline_figures_are_those_of_the_pages_that_they_link_to(page: str) -> None:
    screen = (ROOT / page).read_text().partition("\n## ")[0]
    rows = re.findall(r"^\|(.*)\| \[[^]]*\]\(([^)#]+)#[^)]+\) \|$", screen, re.MULTILINE)
    assert len(rows) == 4
    for shown, link in rows:
        told = ((ROOT / page).parent / link).read_text()
        figures = re.findall(r"\d[\d.,]*\d|\d", shown)
        assert figures
        assert [figure for figure in figures if not re.search(rf"(?<![\d.,]){re.escape(figure)}(?!\d)", told)] == []


def shown_commands(page: str) -> list[list[str]]:
    """The words of every command line of `ken` that a page shows, in a block or in a line."""
    text = (ROOT / page).read_text().replace("\\\n", " ")
    blocks = re.findall(r"^ *```\w*\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    lines = [part for block in blocks for line in block.splitlines() for part in line.removeprefix("$ ").split(" && ")]
    inline = re.findall(r"`(ken [a-z][^`]*)`", re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE))
    return [shlex.split(line, comments=True) for line in [*lines, *inline] if re.match(r" *ken [a-z]", line)]


@pytest.mark.parametrize("page", PAGES)
def test_commands_that_a_page_shows_exist_with_their_options(page: str) -> None:
    from serving.cli import app

    def unknown(words: list[str]) -> list[str]:
        command, rest = typer.main.get_command(app), words[1:]
        while hasattr(command, "commands") and rest:
            name, *rest = rest
            if name not in command.commands:
                return [name]
            command = command.commands[name]
        options = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        return [word for word in rest if re.match(r"--[a-z]", word) and word.partition("=")[0] not in options]

    wrong = {" ".join(words): unknown(words) for words in shown_commands(page) if unknown(words)}
    assert wrong == {}


def test_the_page_of_the_light_install_sorts_every_command_that_is_not_about_tasks_alone() -> None:
    from serving.cli import app
    from serving.cli.panels import TASKS

    section = (ROOT / "docs/client.md").read_text().partition("## A light install\n")[2].partition("\n## ")[0]
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    sorted_here = {name for name, command in commands.items() if command.rich_help_panel != TASKS}
    assert len(sorted_here) > 15
    assert {name for name in sorted_here if not re.search(rf"`(?:ken )?{name}`", section)} == set()


def test_the_map_of_the_house_has_every_folder_and_every_protocol() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    folders = {path.parent.name for path in (ROOT / "serving").glob("*/__init__.py")}
    assert folders - set(re.findall(r"^\| `(\w+)/` \|", text, re.MULTILINE)) == set()
    (row,) = re.findall(r"^\| `api/` \|.*", text, re.MULTILINE)
    protocols = {path.stem for path in (ROOT / "serving/api").glob("*.py") if "= Protocol(" in path.read_text()}
    protocols = {name.removesuffix("_generation") for name in protocols}
    assert len(protocols) > 4
    assert [name for name in protocols if f"`{name}`" not in row] == []


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", ".github/PULL_REQUEST_TEMPLATE.md"])
def test_make_targets_that_a_page_names_exist(page: str) -> None:
    named = set(re.findall(r"(?:`|^)make ([a-z][a-z0-9-]*)", (ROOT / page).read_text(), re.MULTILINE))
    assert named
    assert named - make_targets() == set()


@pytest.mark.parametrize("workflow", sorted(path.name for path in (ROOT / ".github/workflows").glob("*.yml")))
def test_a_workflow_does_its_work_by_make_targets(workflow: str) -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows" / workflow).read_text())["jobs"]
    runs = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    called = [run.split()[1] for run in runs if run.startswith("make ")]
    assert called
    assert set(called) - make_targets() == set()


def test_files_that_contributors_and_reporters_are_sent_to_exist() -> None:
    for page in ("CONTRIBUTING.md", "SECURITY.md"):
        named = re.findall(
            r"`((?:ken_core|serving|tests|benchmarks|deploy|docs)/[\w./*-]*)`", (ROOT / page).read_text()
        )
        assert named
        assert [path for path in named if not list(ROOT.glob(path.rstrip("/")))] == []


class TestTheOperatingPage:
    """Its names are the server's, and its figures those of the code and of the recorded runs."""

    TEXT = (ROOT / "docs/operating.md").read_text()

    def rows(self, head: str) -> list[list[str]]:
        """The cells of the table whose head begins with a text."""
        _, _, after = self.TEXT.partition(f"\n| {head}")
        lines = after.partition("\n\n")[0].splitlines()[2:]
        return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]

    def test_names_settings_and_their_defaults(self) -> None:
        named = set(re.findall(r"\bKEN_[A-Z_]*[A-Z]\b", self.TEXT))
        fields = {f"KEN_{name.upper()}": field.default for name, field in Settings.model_fields.items()}
        assert named - {*fields, "KEN_API_KEY"} == set()
        told = [[cell.strip("`") for cell in row[:3]] for row in self.rows("value | setting")]
        assert len(told) == 4
        for value, variable, default in told:
            assert variable == f"KEN_{value.removeprefix('settings.').upper()}"
            assert default == f"{fields[variable] // MIB:,} MiB"
            assert default == f"{chart_value(value) // MIB:,} MiB"

    def test_names_values_of_the_chart_and_their_defaults(self) -> None:
        dotted = set(re.findall(r"`([a-zA-Z]+(?:\.[a-zA-Z_]+)+)`", self.TEXT))
        alone = set(re.findall(r"`([a-z]+[A-Z]\w*)`", self.TEXT))
        files = {name for name in dotted if name.endswith((".json", ".yml", ".yaml", ".rdb"))}
        values = (dotted | alone) - files - {"maxReplicas", "minReplicas", "preStop", "serveConfigV2"}
        assert len(values) > 30
        for name in values:
            chart_value(name)
        inline = re.findall(r"`([a-zA-Z]+\.[a-zA-Z_.]+)` \((\d+)[;)]", self.TEXT)
        assert len(inline) > 5
        assert inline == [(name, str(chart_value(name))) for name, _ in inline]

    def names_of_objects(self, column: int) -> dict[str, str]:
        return {row[0]: row[column].strip("`") for row in self.rows("object")}

    @needs_helm
    def test_names_the_objects_of_a_release(self) -> None:
        assert self.names_of_objects(1) == deployed_names(rendered({}, "ken-serve"))

    def test_names_the_objects_of_the_kustomization(self) -> None:
        assert self.names_of_objects(2) == deployed_names(kustomization())

    def test_uses_the_names_of_the_release_in_its_commands(self) -> None:
        used = re.findall(r"kubectl -n ken-serve (?:exec|get rayservice) ([\w-]+)", self.TEXT)
        assert len(used) == 2
        assert set(used) <= set(self.names_of_objects(1).values())

    def test_names_variables_of_ray(self) -> None:
        named = set(re.findall(r"\bRAY_[A-Z_]+", self.TEXT))
        source = "".join(path.read_text() for path in (Path(ray.__file__).parent / "serve/_private").glob("*.py"))
        assert named
        assert {name for name in named if f'"{name}"' not in source} == set()
        told = dict(re.findall(r"`(RAY_[A-Z_]+)` \((\d+)", self.TEXT))
        assert told
        assert told == {name: for_cluster()[name] for name in told}

    def test_names_metrics(self) -> None:
        from serving.telemetry.metrics import Metrics

        exposed = set(re.findall(r"^# TYPE (\w+)", Metrics("r").exposition().decode(), re.MULTILINE))
        for source in (ROOT / "serving").rglob("*.py"):
            exposed |= set(re.findall(r'metrics\.gauge(?:_by)?\(\s*"(ken_\w+)"', source.read_text()))
        named = set(re.findall(r"\bken_(?!core)\w+", self.TEXT))
        assert named
        assert {re.sub(r"_bucket$", "", name) for name in named} <= exposed

    def test_sorts_all_alerts_by_severity_and_names_no_other(self) -> None:
        (group,) = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())["groups"]
        severities = {rule["alert"]: rule["labels"]["severity"] for rule in group["rules"]}
        told = {alert: row[0].partition(":")[0] for row in self.rows("severity") for alert in row[1].split(", ")}
        assert {alert.strip("`"): severity for alert, severity in told.items()} == severities
        assert set(re.findall(r"\bKen[A-Z]\w+", self.TEXT)) == set(severities)

    @pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
    def test_asks_prometheus_what_it_understands(self, tmp_path: Path) -> None:
        queries = re.findall(r"```promql\n(.+?)```", self.TEXT, re.DOTALL)
        assert len(queries) == 4
        recorded = [{"record": f"q:{i}", "expr": query} for i, query in enumerate(queries)]
        file = tmp_path / "queries.yml"
        file.write_text(yaml.safe_dump({"groups": [{"name": "page", "rules": recorded}]}))
        done = subprocess.run(["promtool", "check", "rules", str(file)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def test_names_commands(self) -> None:
        from serving.cli import app

        commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
        assert set(re.findall(r"`ken ([a-z][a-z-]*)", self.TEXT)) <= set(commands)

    def test_names_the_formats_of_delta_files(self) -> None:
        readable = f"{min(READABLE_VERSIONS)} to {max(READABLE_VERSIONS)}"
        assert f"writes delta files of format {FORMAT_VERSION} and reads {readable}." in self.TEXT

    def test_says_what_a_replica_answered_in_the_recorded_run(self) -> None:
        recorded = json.loads((ROOT / "benchmarks/results/serving.json").read_text())["rows"]
        values = {row["name"]: row["value"] for row in recorded}
        names = {
            "1 task, 1 client": "1 task, 1 client",
            "1 task, 64 clients": "1 task, 64 clients",
            "64 LoRA tasks, 64 clients": "64 low-rank tasks, Zipf, 64 clients",
        } | {f"64 tasks, 10 % kept, {n} clients": f"64 tasks, Zipf, {n} clients" for n in (8, 64, 256)}
        told = {row[0]: row[1:] for row in self.rows("tasks, clients")}
        for name, run in names.items():
            measured = [values[f"ken: {run}: {what}"] for what in ("requests/s", "p50", "p99")]
            shown = [float(cell.replace(",", "")) for cell in told.pop(name)]
            assert shown == pytest.approx(measured, abs=0.501), name
        assert told == {}

    def test_computes_memory_as_the_server_reserves_it(self) -> None:
        small = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
        large = LlamaConfig(
            vocab_size=128_256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_key_value_heads=8
        )
        columns = ((small, torch.float32), (BertConfig(), torch.float32), (large, torch.bfloat16))
        told = {row[0]: row[1:] for row in self.rows("| MiniLM-L6")}
        for i, (config, dtype) in enumerate(columns):
            for form, nbytes in bytes_of_forms(config, dtype).items():
                size, _, tasks = told[form][i].partition(" MB")
                assert float(size.replace(",", "")) == pytest.approx(nbytes / 1e6, rel=0.02), form
                if tasks:
                    assert float(tasks.strip(", ")) == pytest.approx((1 << 30) / nbytes, rel=0.02), form


def chart_value(name: str) -> Any:
    """A default of the chart by its dotted name; of a setting that the chart leaves alone, the server's default."""
    found = yaml.safe_load((CHART / "values.yaml").read_text())
    taken = json.loads((CHART / "values.schema.json").read_text())["properties"]["settings"]["properties"]
    found["settings"] = {setting: Settings.model_fields[setting].default for setting in taken} | found["settings"]
    for key in name.split("."):
        assert key in found, f"the chart has no value {name}"
        found = found[key]
    return found


def kustomization() -> list[Any]:
    """The objects of the kustomization."""
    folder = ROOT / "deploy/kubernetes"
    resources = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    return [found for name in resources for found in yaml.safe_load_all((folder / name).read_text())]


def deployed_names(objects: list[Any]) -> dict[str, str]:
    """The names of objects by what the operating page calls them; KubeRay and Kubernetes derive some of them."""
    (service,) = (found["metadata"]["name"] for found in objects if found["kind"] == "RayService")
    (base,) = (found["metadata"]["name"] for found in objects if found["kind"] == "PersistentVolumeClaim")
    names = {"RayService": service, "Service for clients": f"{service}-serve-svc", "claim of the base": base}
    services = {found["metadata"]["name"] for found in objects if found["kind"] == "Service"}
    for found in (found for found in objects if found["kind"] == "StatefulSet"):
        name = found["metadata"]["name"]
        assert name in services
        (claim,) = found["spec"]["volumeClaimTemplates"]
        what = "the Redis for Ray's head" if name.endswith("gcs-redis") else "the store"
        names |= {
            f"Service and StatefulSet of {what}": name,
            f"pod of {what}": f"{name}-0",
            f"claim of {what}": f"{claim['metadata']['name']}-{name}-0",
        }
    return names


def bytes_of_forms(config: Any, dtype: torch.dtype) -> dict[str, float]:
    """Bytes on the device of a base, and of a task in each of the forms that the operating page compares."""
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    parameters = list(model.parameters())
    base = sum(p.numel() for p in parameters) * dtype.itemsize
    own = sum(shift_nbytes(p.shape, conv1d=False) if p.dim() == 2 else 4 * p.numel() for p in parameters)

    def sparse(share: float) -> float:
        cpu = torch.device("cpu")
        return own + sum(packed_nbytes(p.numel(), round(share * p.numel()), dtype, cpu) for p in parameters)

    linear = [module.weight.shape for module in model.modules() if isinstance(module, nn.Linear)]
    return {
        "base": base,
        **{f"sparse, {percent} %": sparse(percent / 100) for percent in (5, 10, 25)},
        "`svd` in a 45th, factors alone": 2 * base / USUAL_PART,
        "LoRA, rank 16 on every `Linear`": 16 * dtype.itemsize * sum(sum(shape) for shape in linear),
    }
