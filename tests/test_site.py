"""The documentation site: every page is in its menu, and what is generated from the code is whole.

`make docs` builds it strictly; here its sources are written, and nothing is built.
"""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from pydantic import BaseModel

import ken_core
import serving.client
from docs.generators.links import for_site
from docs.generators.pages import files_of_site, in_repository, write
from serving import errors
from serving.cli import app
from serving.config import Settings
from serving.telemetry.metrics import Metrics

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    write(folder)
    return folder


def configuration() -> Any:
    """mkdocs.yml, without the Python object that it names."""
    return yaml.safe_load(re.sub(r"!!python/\S+", "", (ROOT / "mkdocs.yml").read_text()))


def first_cells(page: Path) -> list[str]:
    return re.findall(r"^\| `([^`]+)` \|", page.read_text(), re.MULTILINE)


def test_every_page_is_in_the_menu_once() -> None:
    def pages(entry: Any) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        return [page for inner in (entry.values() if isinstance(entry, dict) else entry) for page in pages(inner)]

    assert sorted(pages(configuration()["nav"])) == sorted(p for p in files_of_site().values() if p.endswith(".md"))


def test_every_setting_is_on_its_page(sources: Path) -> None:
    assert first_cells(sources / "reference/settings.md") == [f"KEN_{name.upper()}" for name in Settings.model_fields]


def test_every_metric_is_on_its_page(sources: Path) -> None:
    exposed = set(re.findall(r"^# TYPE (\w+)", Metrics("r").exposition().decode(), re.MULTILINE))
    for source in (ROOT / "serving/replica").glob("*.py"):
        exposed |= set(re.findall(r'metrics\.gauge(?:_by)?\(\s*"(ken_\w+)"', source.read_text()))
    assert set(first_cells(sources / "reference/metrics.md")) == exposed | {"vllm:lora_requests_info"}


def test_every_command_and_option_is_on_its_page(sources: Path) -> None:
    text = (sources / "reference/commands.md").read_text()

    def check(command: Any, name: str) -> None:
        for inner_name, inner in getattr(command, "commands", {}).items():
            check(inner, f"{name} {inner_name}")
        if not hasattr(command, "commands"):
            _, heading, section = text.partition(f"## {name}\n")
            assert heading, name
            section = section.partition("\n## ")[0]
            missing = [
                option for p in command.params for option in p.opts if option[0] == "-" and option not in section
            ]
            assert missing == [], name
            assert f"Example:\n\n```\n{name}" in section, name

    check(typer.main.get_command(app), "ken")


def test_every_status_of_an_error_is_on_its_page(sources: Path) -> None:
    statuses = set(re.findall(r"^    status = (\d+)", Path(errors.__file__).read_text(), re.MULTILINE))
    text = (sources / "reference/errors.md").read_text()
    assert set(re.findall(r"^\| (\d+) \|", text, re.MULTILINE)) == statuses


def test_every_public_name_of_the_library_is_on_its_page(sources: Path) -> None:
    named = re.findall(r"^::: ken_core\.(\S+)$", (sources / "reference/python-core.md").read_text(), re.MULTILINE)
    assert set(named) == set(ken_core.__all__)


def test_every_public_name_of_the_client_is_on_its_page(sources: Path) -> None:
    headings = re.findall(r"^## (\S+)$", (sources / "reference/python-client.md").read_text(), re.MULTILINE)
    assert set(headings) == set(serving.client.__all__)


@pytest.mark.parametrize("client", [serving.client.Client, serving.client.AsyncClient])
def test_every_method_of_a_client_is_on_its_page_with_what_it_takes_and_returns(sources: Path, client: type) -> None:
    text = (sources / "reference/python-client.md").read_text()
    public = [name for name in dir(client) if name[0] != "_"]
    assert {"predict", "predict_many", "stream", "publish"} <= set(public)
    assert [name for name in public if f"### {client.__name__}.{name}\n" not in text] == []
    predict = text.partition(f"### {client.__name__}.predict\n")[2].partition("\n### ")[0]
    assert "    inputs: Input | Sequence[Input],\n" in predict
    assert ") -> Prediction\n" in predict
    assert "- `kind`: the kind of question to ask" in predict


def test_every_field_of_an_answer_is_on_the_page_of_the_client(sources: Path) -> None:
    text = (sources / "reference/python-client.md").read_text()
    answers = [getattr(serving.client, name) for name in serving.client.__all__]
    answers = [one for one in answers if isinstance(one, type) and issubclass(one, BaseModel)]
    assert serving.client.Prediction in answers
    for answer in answers:
        section = text.partition(f"## {answer.__name__}\n")[2].partition("\n## ")[0]
        assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == list(answer.model_fields), answer


def test_every_page_of_the_menu_says_something(sources: Path) -> None:
    assert [page.name for page in sources.rglob("*.md") if len(page.read_text()) < 500] == []


@pytest.mark.parametrize("page", ["settings", "metrics", "commands", "errors"])
def test_everything_in_a_table_has_a_meaning(sources: Path, page: str) -> None:
    text = (sources / f"reference/{page}.md").read_text()
    rows = re.findall(r"^\| (?!---).*\|$", text, re.MULTILINE)
    assert len(rows) > 10
    assert [row for row in rows if row.endswith("|  |")] == []


def test_no_mark_is_left_in_a_page(sources: Path) -> None:
    assert [page for page in sources.rglob("*.md") if "<!-- generated" in page.read_text()] == []


def test_links_lead_to_pages_of_the_site_or_to_the_repository() -> None:
    files = {"docs/a.md": "a.md", "docs/howto/b.md": "howto/b.md", "SECURITY.md": "project/security.md"}
    text = "[a](../a.md#part) [s](../../SECURITY.md) [code](../../serving/app.py) [w](https://x.org/a.md) [here](#b)\n"
    code = "```\n[a](../a.md)\n```\n"
    assert for_site(text + code, "docs/howto/b.md", files, lambda path: f"R/{path}") == (
        "[a](../a.md#part) [s](../project/security.md) [code](R/serving/app.py) [w](https://x.org/a.md) [here](#b)\n"
        + code
    )


def test_a_link_to_nothing_ends_the_build() -> None:
    with pytest.raises(FileNotFoundError, match=r"links to serving/nothing\.py"):
        in_repository("serving/nothing.py")


def test_the_address_of_the_repository_is_the_same_everywhere() -> None:
    for project in ("pyproject.toml", "deploy/client/pyproject.toml"):
        urls = tomllib.loads((ROOT / project).read_text())["project"]["urls"]
        assert (urls["Homepage"], urls["Documentation"]) == (configuration()["repo_url"], configuration()["site_url"])


def test_a_readers_browser_asks_no_other_host() -> None:
    assert configuration()["theme"]["font"] is False
    assert not {"extra_css", "extra_javascript", "extra"} & configuration().keys()


def templates() -> list[str]:
    """The texts in the sources, with … for what is filled in."""
    files = [path for package in ("ken_core", "serving") for path in (ROOT / package).rglob("*.py")]
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_text("utf-8")))]
    plain = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    filled = [
        "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)  # type: ignore[misc]
        for node in nodes
        if isinstance(node, ast.JoinedStr)
    ]
    return plain + filled


def in_order(parts: list[str], text: str) -> bool:
    at = 0
    for part in parts:
        found = text.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return True


def test_every_message_on_the_page_of_troubles_is_one_of_the_sources() -> None:
    text = (ROOT / "docs/howto/troubleshooting.md").read_text()
    messages = [message for message in first_cells(ROOT / "docs/howto/troubleshooting.md") if " " in message]
    assert len(messages) >= 20
    assert len(messages) == len(re.findall(r"^\| `", text, re.MULTILINE))
    known = templates()

    def is_there(message: str) -> bool:
        fixed = [part.strip() for part in message.split("…")]
        return any(in_order(fixed, template) for template in known)

    assert [message for message in messages if not is_there(message)] == []
