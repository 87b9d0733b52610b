"""The built wheel: what is in it, and that it works where nothing but the wheel is found.

It is built offline from a copy of the sources and installed into a folder of its own. Its dependencies are those of the
environment that runs the tests.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("ken_core", "serving")
NOT_SOURCES = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist")

IMPORT_ALL = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
for name, module in sys.modules.items():
    if name.partition(".")[0] in ("ken_core", "serving"):
        print(name, module.__file__)
"""
IS_HAPROXY_STARTABLE = "from serving.launch.haproxy_start import check_startable; check_startable(1)"

pytest.importorskip("setuptools", reason="a wheel is built with setuptools")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, since building writes into the folder it builds from."""
    copy = tmp_path_factory.mktemp("sources") / "ken-serve"
    shutil.copytree(ROOT, copy, ignore=NOT_SOURCES)
    return copy


@pytest.fixture(scope="module")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(sources))
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the wheel is installed into."""
    folder = tmp_path_factory.mktemp("site")
    pip("install", "--no-deps", "--target", str(folder), str(wheel))
    return folder


def pip(command: str, *arguments: str) -> None:
    options = ["--no-index", "--disable-pip-version-check", "--quiet"]
    subprocess.run([sys.executable, "-m", "pip", command, *options, *arguments], check=True)


def run_from(site: Path, folder: Path, *arguments: str) -> str:
    """What a Python that finds our packages in `site` alone prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KEN_")}
    environment |= {"PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-P", *arguments]
    run = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


def files_of_packages(sources: Path) -> set[str]:
    files = (path for package in PACKAGES for path in (sources / package).rglob("*") if path.is_file())
    return {path.relative_to(sources).as_posix() for path in files}


def modules_in(sources: Path) -> list[str]:
    """Without the one that runs the command line when it is imported."""
    paths = (Path(file).with_suffix("") for file in files_of_packages(sources) if file.endswith(".py"))
    parts = (path.parts[:-1] if path.name == "__init__" else path.parts for path in paths if path.name != "__main__")
    return sorted(".".join(part) for part in parts)


def test_every_file_of_both_packages_is_in_it_and_nothing_else(wheel: Path, sources: Path) -> None:
    packed = {name for name in ZipFile(wheel).namelist() if not name.partition("/")[0].endswith(".dist-info")}
    assert packed == files_of_packages(sources)
    assert {"ken_core/py.typed", "serving/py.typed", "serving/launch/haproxy.sh"} <= packed
    assert any(name.endswith(".lua") for name in packed)


def test_every_module_is_imported_from_it(site: Path, sources: Path, tmp_path: Path) -> None:
    modules = modules_in(sources)
    printed = run_from(site, tmp_path, "-c", IMPORT_ALL, *modules)
    found = {name: Path(file) for name, _, file in (line.partition(" ") for line in printed.splitlines())}
    assert set(modules) <= set(found)
    assert [name for name, file in found.items() if not file.is_relative_to(site)] == []


def test_its_command_runs_and_finds_its_scripts_for_the_store(site: Path, tmp_path: Path) -> None:
    command = str(site / "bin" / "ken")
    token = run_from(site, tmp_path, command, "keys", "create", "ci", "--data-dir", str(tmp_path / "data"))
    assert token.startswith("ken_")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="HAProxy is started on Linux only")
def test_what_ray_starts_as_haproxy_is_executable(site: Path, tmp_path: Path) -> None:
    run_from(site, tmp_path, "-c", IS_HAPROXY_STARTABLE)
