"""The image's Dockerfile is complete and grants no more rights than needed. Runs without Docker."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from serving.config import Settings
from serving.launch.haproxy_start import ENTRY
from serving.launch.ray_variables import for_cluster

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def instructions(deploy: Path) -> list[tuple[str, str]]:
    """The instructions of the Dockerfile, with continued lines joined."""
    lines = [x for x in (deploy / "docker/Dockerfile").read_text().splitlines() if not x.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(word, " ".join(rest.split())) for word, _, rest in (x.partition(" ") for x in joined.splitlines() if x)]


def all_of(instructions: list[tuple[str, str]], word: str) -> list[str]:
    return [rest for found, rest in instructions if found == word]


def test_each_variant_has_a_stage(instructions: list[tuple[str, str]]) -> None:
    stages = [rest.split(" AS ") for rest in all_of(instructions, "FROM")]
    names = {name for _, name in stages}
    assert {"base-cpu", "base-cuda"} <= names
    assert stages[-1][0] == "base-${TORCH}"
    assert {image for image, _ in stages} - names - {"base-${TORCH}"} == {"python:3.11-slim"}


def test_the_package_is_installed_as_constrained(instructions: list[tuple[str, str]]) -> None:
    installs = [run for run in all_of(instructions, "RUN") if "pip install" in run]
    assert installs
    assert all(re.search(r"-c \S*constraints\.txt", run) for run in installs)
    assert installs[-1].endswith("pip install -c constraints.txt '.[haproxy]'")


def test_what_a_cluster_starts_as_haproxy_is_there(instructions: list[tuple[str, str]]) -> None:
    named = for_cluster()["RAY_SERVE_HAPROXY_BINARY_PATH"]
    (link,) = (run for run in all_of(instructions, "RUN") if run.startswith("ln -s"))
    code, target = re.fullmatch(r"""ln -s "\$\(python -c '(.+)'\)" (\S+)""", link).groups()
    printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert (Path(printed.strip()), target) == (ENTRY, named)


def test_it_runs_as_a_user_that_kubernetes_can_see_is_not_root(instructions: list[tuple[str, str]]) -> None:
    assert all_of(instructions, "USER") == ["10001:10001"]
    assert any("useradd --uid 10001" in run for run in all_of(instructions, "RUN"))


def test_it_serves_unless_told_otherwise(instructions: list[tuple[str, str]]) -> None:
    (entry,), (command,) = all_of(instructions, "ENTRYPOINT"), all_of(instructions, "CMD")
    assert json.loads(entry) == ["tini", "--", "ken"]
    assert json.loads(command) == ["serve"]


def test_it_is_reachable_and_keeps_its_data_where_volumes_go(instructions: list[tuple[str, str]]) -> None:
    given = dict(pair.split("=") for rest in all_of(instructions, "ENV") for pair in rest.split())
    assert given["HOME"] == "/home/ken"
    assert not Settings(base="x", host=given["KEN_HOST"]).on_loopback
    for name in ("NUMBA_CACHE_DIR", "TRITON_CACHE_DIR"):
        assert Path(given[name]).is_relative_to(given["KEN_DATA_DIR"])


def test_its_health_check_is_python_that_compiles(instructions: list[tuple[str, str]]) -> None:
    (check,) = all_of(instructions, "HEALTHCHECK")
    program, option, code = json.loads(check.partition("CMD ")[2])
    assert (program, option) == ("python", "-c")
    compile(code, "HEALTHCHECK", "exec")


def test_the_context_holds_what_the_build_needs_and_no_more(deploy: Path) -> None:
    lines = (deploy / "docker/Dockerfile.dockerignore").read_text().split("\n")
    kept = {line[1:] for line in lines if line.startswith("!")}
    assert "*" in lines
    assert kept == {"LICENSE", "deploy/package.md", "constraints.txt", "ken_core", "pyproject.toml", "serving"}
    assert {name for name in kept if not (ROOT / name).exists()} <= {"constraints.txt"}
