"""Both distributions as `make dist` builds them: what is in them, and that they work where nothing else is found.

They are built offline from a copy of the sources. The wheel is installed into a folder of its own, and its dependencies
are those of the environment that runs the tests.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from zipfile import ZipFile

import pytest

from ken_core import __version__

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


CLIENT = "deploy/client"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, since building writes into the folder it builds from."""
    copy = tmp_path_factory.mktemp("sources") / "ken-serve"
    copy.mkdir()
    for name in (*PACKAGES, CLIENT):
        shutil.copytree(ROOT / name, copy / name, ignore=NOT_SOURCES, symlinks=True)
    for name in ("pyproject.toml", "LICENSE", "deploy/package.md"):
        shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def dist(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with an archive of the sources and a wheel of each distribution."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder)]
    for project in (sources, sources / CLIENT):
        built = subprocess.run([*build, str(project)], capture_output=True, text=True, check=False)
        assert built.returncode == 0, built.stdout + built.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (built,) = dist.glob("ken_serve-*.whl")
    return built


@pytest.fixture(scope="module")
def client_wheel(dist: Path) -> Path:
    (built,) = dist.glob("ken_serve_client-*.whl")
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


def files_in(wheel: Path) -> set[str]:
    return {name for name in ZipFile(wheel).namelist() if not name.partition("/")[0].endswith(".dist-info")}


def metadata_of(wheel: Path) -> Message:
    with ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_bytes(archive.read(name))


def modules_in(sources: Path) -> list[str]:
    """Without the one that runs the command line when it is imported."""
    paths = (Path(file).with_suffix("") for file in files_of_packages(sources) if file.endswith(".py"))
    parts = (path.parts[:-1] if path.name == "__init__" else path.parts for path in paths if path.name != "__main__")
    return sorted(".".join(part) for part in parts)


def test_every_file_of_both_packages_is_in_it_and_nothing_else(wheel: Path, sources: Path) -> None:
    packed = files_in(wheel)
    assert packed == files_of_packages(sources)
    assert {"ken_core/py.typed", "serving/py.typed", "serving/launch/haproxy.sh"} <= packed
    assert any(name.endswith(".lua") for name in packed)


def test_the_clients_wheel_has_the_same_files_and_the_same_version(wheel: Path, client_wheel: Path) -> None:
    assert files_in(client_wheel) == files_in(wheel)
    ours, clients = metadata_of(wheel), metadata_of(client_wheel)
    assert (ours["Name"], clients["Name"]) == ("ken-serve", "ken-serve-client")
    assert ours["Version"] == clients["Version"] == __version__


def test_the_client_asks_for_nothing_that_ken_serve_does_not_ask_for(wheel: Path, client_wheel: Path) -> None:
    ours, clients = (set(metadata_of(built).get_all("Requires-Dist")) for built in (wheel, client_wheel))
    assert clients < ours
    assert not [text for text in clients if text.startswith(("torch", "transformers", "ray", "numba"))]


def test_an_index_takes_what_both_say_of_themselves(dist: Path) -> None:
    archives = sorted(map(str, dist.iterdir()))
    assert len(archives) == 4
    checked = subprocess.run(
        [sys.executable, "-m", "twine", "--no-color", "check", "--strict", *archives],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout
    assert checked.stdout.count("PASSED") == 4


def test_links_of_their_descriptions_work_on_an_index(wheel: Path, client_wheel: Path) -> None:
    for built in (wheel, client_wheel):
        targets = re.findall(r"\]\(([^)]*)\)", str(metadata_of(built).get_payload()))
        assert targets
        assert [target for target in targets if not target.startswith("https://")] == []


@pytest.mark.slow
def test_pipx_runs_the_clients_wheel_in_an_environment_of_its_own(client_wheel: Path, tmp_path: Path) -> None:
    """Its dependencies come from the package index."""
    places = {"PIPX_HOME": "home", "PIPX_BIN_DIR": "bin", "PIPX_SHARED_LIBS": "shared"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("KEN_", "PYTHON"))}
    environment |= {name: str(tmp_path / folder) for name, folder in places.items()}

    def ken(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pipx", "run", "--spec", str(client_wheel), "ken", *arguments]
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)

    shown = ken("--version")
    assert shown.stdout.startswith(f"ken-serve-client {__version__}, Python "), shown.stderr
    ended = ken("extract", "--base", "b", "--tuned", "t", "--out", "d.ken")
    assert ended.returncode == 1
    assert "`ken extract` needs torch, which ken-serve-client does not bring; pip install ken-serve" in ended.stderr


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
