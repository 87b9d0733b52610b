"""The sources form a house: no circles of imports, few files at the door, and imports that only lead downwards.

Nothing is imported here. Imports are read from the sources, those inside functions and under TYPE_CHECKING too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("ken_core", "serving")
AROUND = ("benchmarks", "deploy", "docs", "examples", "tests")

FLOORS = (
    "cli",
    "demo",
    "launch",
    "app",
    "api",
    "service",
    "replica",
    "generation",
    "engine",
    "local tiers",
    "monitoring pipelines tasks",
    "function_calls",
    "client grammar hub store",
    "placement routing workers",
    "telemetry",
    "config",
    "security",
    "admission names",
    "addresses data_dir errors incoming popularity terminal",
    "interruption",
    "ken_core",
)
"""From top to bottom, the folders and files of `serving`, and `ken_core`. Each may import from the floors below it, so
two on one floor do not import each other."""

MOST_FILES_AT_THE_DOOR = 12


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_of(path): path for package in PACKAGES for path in (ROOT / package).rglob("*.py")}


def imported(source: str) -> Iterator[str]:
    """The modules of both packages that a source imports; a package itself only where a name is taken from it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if is_ours(alias.name))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: expected the module's whole name, found a relative import"
            module = str(node.module)
            submodules = (f"{module}.{alias.name}" for alias in node.names if is_ours(module))
            yield from (submodule if submodule in SOURCES else module for submodule in submodules)


def is_ours(module: str) -> bool:
    return module.partition(".")[0] in PACKAGES


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    """What each module imports. A fixture, since every worker imports this file, and one of them runs it."""
    return {module: set(imported(path.read_text("utf-8"))) - {module} for module, path in SOURCES.items()}


def place_of(module: str) -> str:
    """The folder or file of `serving` that a module belongs to, or ``ken_core``; ``serving`` for the package itself."""
    package, *rest = module.split(".")
    return rest[0] if package == "serving" and rest else package


LEVEL = {place: level for level, floor in enumerate(reversed(FLOORS)) for place in floor.split()}


def test_imports_are_found_wherever_they_stand() -> None:
    source = """
        import serving.errors
        from serving import config
        from serving.store import Store
        from ken_core import delta, open_base
        if TYPE_CHECKING:
            from serving.engine.engine import Engine
        def late():
            from serving.cli.keys import create
            import torch
    """
    expected = "serving.errors serving.config serving.store ken_core.delta ken_core serving.engine.engine"
    lines = "\n".join(line[8:] for line in source.splitlines())
    assert sorted(imported(lines)) == sorted([*expected.split(), "serving.cli.keys"])


def test_what_is_imported_exists() -> None:
    files = [path for folder in (*PACKAGES, *AROUND) for path in (ROOT / folder).rglob("*.py")]
    found = {path: set(imported(path.read_text("utf-8"))) - set(SOURCES) for path in files}
    assert {str(path.relative_to(ROOT)): missing for path, missing in found.items() if missing} == {}


def test_no_file_imports_itself_by_way_of_others(imports: dict[str, set[str]]) -> None:
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")


def test_every_folder_and_file_has_a_floor() -> None:
    assert {place_of(module) for module in SOURCES} - {"serving"} == set(LEVEL)


def test_imports_lead_downwards(imports: dict[str, set[str]]) -> None:
    upwards = [
        f"{importer} imports {module}"
        for importer, modules in imports.items()
        for module in modules
        if place_of(importer) != place_of(module) and LEVEL[place_of(importer)] <= LEVEL[place_of(module)]
    ]
    assert sorted(upwards) == []


def test_the_package_itself_imports_nothing(imports: dict[str, set[str]]) -> None:
    assert imports["serving"] == set()


def test_few_files_lie_directly_in_serving() -> None:
    files = sorted(path.name for path in (ROOT / "serving").glob("*.py") if path.name != "__init__.py")
    assert len(files) <= MOST_FILES_AT_THE_DOOR, f"put one of these into the folder it belongs to: {files}"
