"""What the page on HTTP shows is run, and what it names is there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from over_http import Served, served
from typer.main import get_command

from ken_core import DeltaFile
from serving.api import create_app
from serving.cli import app as commands
from serving.config import Settings, load_settings
from serving.pipelines import PIPELINES
from serving.pipelines.base import Parameters
from serving.security.keys import new_key
from serving.service import Service
from serving.store import Store
from tests.tiny_checkpoints import Tiny

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "api.md").read_text()
OF_COMMANDS = {"KEN_API_KEY", "KEN_CONFIG", "KEN_DATA_DIR", "KEN_SECRETS_DIR", "KEN_URL"}
LABELS = ["ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"]
SAID = ("alias", "detail", "error", "kind", "name", "status", "task", "title", "type")
"""Fields whose values are compared, and not their sorts alone."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def shown(block: str) -> Iterator[tuple[str, str]]:
    """Each command of a console, and what it printed."""
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        command, _, printed = part.partition("\n")
        yield command, printed.strip()


@pytest.fixture(scope="module")
def live(
    tiny: Tiny, of_every_kind: dict[str, DeltaFile], embedded_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """A server with the tasks of the page."""
    store = Store(embedded_url, "api-page")
    store.tasks.publish("trec", tiny.delta(tiny.tuned("page-trec", LABELS, 90)))
    store.tasks.publish("faq-search", of_every_kind["search"])
    store.tasks.publish("passages", of_every_kind["ranks"])
    chosen = {"base": str(tiny.base_folder), "data_dir": tmp_path_factory.mktemp("page"), "namespace": "api-page"}
    service = Service(load_settings(**chosen, threads=1), embedded_url)
    service.start()
    with served(service) as answering:
        yield answering
    service.stop()


class Reader:
    """Somebody who types what the page shows, in a shell and in Python."""

    def __init__(self, live: Served, folder: Path) -> None:
        self._live = live
        self._folder = folder
        self._env = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        self._names: dict[str, Any] = {}

    def shell(self, script: str) -> str:
        if "$KEN_API_KEY" in script and "KEN_API_KEY" not in self._env:
            key, self._env["KEN_API_KEY"] = new_key("ops", ["admin"])
            store = self._live.service.store
            assert not store.replicas.wait(store.keys.put(key.id, key.record()), 10).pending
        ended = subprocess.run(
            ["bash", "-euc", self._here(script)], cwd=self._folder, env=self._env, capture_output=True, text=True
        )
        assert ended.returncode == 0, f"{script}\n{ended.stderr}"
        return ended.stdout.strip()

    def python(self, block: str) -> None:
        exec(compile(self._here(block), "docs/api.md", "exec"), self._names)

    def _here(self, text: str) -> str:
        return text.replace("localhost:8000", urlsplit(self._live.url).netloc)


def form_of(value: Any, name: str = "") -> Any:
    """What must be the same whatever the weights: names, kinds of values, and what is said in words."""
    match value:
        case dict():
            return {"a digest" if len(key) > 40 or "…" in key else key: form_of(value[key], key) for key in value}
        case list():
            return [form_of(value[0])] if value else []
        case str() | int() if name in SAID:
            return value
        case bool() | None | str():
            return type(value).__name__
        case _:
            return "number"


def alike(printed: str, page: str) -> bool:
    if not page.startswith(("{", "[")):
        names = [{line.partition(":")[0].lower() for line in text.splitlines()} for text in (printed, page)]
        return names[0] == names[1]
    return bool(form_of(json.loads(printed)) == form_of(json.loads(page)))


@pytest.mark.skipif(shutil.which("curl") is None, reason="the page is written for curl")
def test_everything_that_the_page_shows_is_so(
    live: Served,
    tiny: Tiny,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("tritonclient.http")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    shutil.copy(tiny.delta(tiny.tuned("page-better", LABELS, 91)).path, tmp_path / "better.ken")
    reader = Reader(live, tmp_path)
    for language, block in re.findall(r"^```(console|bash|python)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE):
        match language:
            case "python":
                reader.python(block)
            case "bash":
                reader.shell(block)
            case _:
                for command, page in shown(block):
                    printed = reader.shell(command)
                    assert alike(printed, page), f"{command}\nprinted {printed}\n   page {page}"
    dimensions, _tokens, label, *_ = capsys.readouterr().out.split()
    assert dimensions == "3"
    assert label in LABELS


def test_every_kind_is_described_with_its_parameters() -> None:
    common = Parameters.model_fields.keys()
    rows = (line.strip("|").split("|") for line in PAGE.splitlines() if line.startswith("| `"))
    assert {row[0].strip(" `") for row in rows if len(row) == 4} == PIPELINES.keys()
    items = re.findall(r"^- `([a-z-]+)`: (.+(?:\n  .+)*)", PAGE, re.MULTILINE)
    told = {kind: set(re.findall(r"`(\w+)`", parameters)) for kind, parameters in items}
    assert told == {kind: made.parameters.model_fields.keys() - common for kind, made in PIPELINES.items()}


def test_every_route_the_page_names_is_there(live: Served) -> None:
    paths = create_app(live.service).openapi()["paths"]
    named = re.findall(r"`(GET|POST|PUT|DELETE) (/[^`?]*)`", PAGE)
    assert len(named) > 15
    assert [(method, path) for method, path in named if method.lower() not in paths.get(path, {})] == []
    alone = set(re.findall(r"`(/[a-z0-9/{}]+)`", PAGE)) - {
        "/infer",
        "/ready",
        "/openapi.json",
        "/",
        "/docs",
        "/docs/assets",
        "/console/",
    }
    begins = {path.partition("/versions/{version}")[0] for path in paths} | set(paths) | {"/models/{task}"}
    assert alone - begins - {"/versions/{version}"} == set()


def test_every_header_the_page_names_is_read_or_sent(live: Served) -> None:
    document = json.dumps(create_app(live.service).openapi())
    named = set(re.findall(r"X-[A-Z][A-Za-z-]+|Retry-After|Server-Timing|Authorization", PAGE))
    assert len(named) > 7
    assert [name for name in named if f'"{name}"' not in document and name != "Authorization"] == []


def test_every_metric_the_page_names_is_measured(live: Served) -> None:
    scraped = live.service.metrics.exposition().decode()
    named = set(re.findall(r"`?(ken_[a-z]+(?:_[a-z]+)+)", PAGE))
    assert {"ken_version_requests_total", "ken_version_seconds"} <= named
    assert [name for name in named if not re.search(rf"^# TYPE {name} ", scraped, re.MULTILINE)] == []


@pytest.mark.parametrize("page", ["docs/api.md", "README.md"])
def test_every_setting_a_page_names_is_one(page: str) -> None:
    named = set(re.findall(r"KEN_[A-Z_]+[A-Z]", (ROOT / page).read_text()))
    assert len(named) > 6
    assert named - {f"KEN_{name.upper()}" for name in Settings.model_fields} - OF_COMMANDS == set()


@pytest.mark.parametrize("page", ["docs/api.md", "README.md"])
def test_every_command_a_page_names_is_there(page: str) -> None:
    command = get_command(commands)
    text = (ROOT / page).read_text()
    named = set(re.findall(r"(?:^|`)ken ([a-z-]+)", text, re.MULTILINE))
    assert len(named) > 2
    assert named - command.commands.keys() == set()
