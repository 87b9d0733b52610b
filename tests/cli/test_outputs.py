"""Outputs that exist already: no command replaces one unasked, and each says so before its work."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.running import Ken, facts

FILES = ["extract", "import-peft", "merge", "calibrate", "curve"]
FOLDERS = ["finetune", "apply", "viz"]


def command(name: str, base: Path, out: Path) -> list[object]:
    """A command that writes to `out`; its inputs do not exist, so it fails with 1 as soon as it reads one."""
    nothing, written = out.parent / "nothing", ("--base", base, "--out", out)
    curve = ("--base", base, "--out", out.parent / "other.ken", "--curve", out)
    return {
        "extract": ["extract", "--tuned", nothing, *written],
        "import-peft": ["import-peft", nothing, *written],
        "merge": ["merge", f"{nothing}=1", *written],
        "calibrate": ["calibrate", "--tuned", nothing, "--data", nothing, *written],
        "curve": ["calibrate", "--tuned", nothing, "--data", nothing, *curve],
        "finetune": ["finetune", "--data", nothing, *written],
        "apply": ["apply", "--delta", nothing, *written],
        "viz": ["viz", nothing, *written],
    }[name]


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_exists_is_replaced_only_by_overwrite(name: str, ken: Ken, tiny_base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_text("precious")
    refused = ken(*command(name, tiny_base, out))
    assert refused.returncode == 2
    assert "exists already; give another file, or --overwrite to replace it" in " ".join(
        refused.stderr.replace("│", " ").split()
    )
    assert ken(*command(name, tiny_base, out), "--overwrite").returncode == 1  # it went on, to the missing inputs
    assert out.read_text() == "precious"


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_holds_something_is_refused_before_anything_is_read(
    name: str, ken: Ken, tiny_base: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    assert ken(*command(name, tiny_base, tmp_path / "out")).returncode == 1  # an empty folder may be filled
    (tmp_path / "out" / "mine").write_text("precious")
    refused = ken(*command(name, tiny_base, tmp_path / "out"))
    assert refused.returncode == 2
    assert "exists already; give a new or empty folder" in " ".join(refused.stderr.replace("│", " ").split())


def test_overwriting_replaces_the_delta(ken: Ken, tiny_base: Path, tiny_tuned: dict[str, Path], tmp_path: Path) -> None:
    written = ("extract", "--base", tiny_base, "--tuned", tiny_tuned["mood"], "--out", tmp_path / "d.ken", "--json")
    first = facts(ken(*written))
    assert ken(*written, "--keep", "0.5").returncode == 2
    assert facts(ken("inspect", tmp_path / "d.ken", "--json"))["digest"] == first["digest"]
    second = facts(ken(*written, "--keep", "0.5", "--overwrite"))
    assert facts(ken("inspect", tmp_path / "d.ken", "--json"))["digest"] == second["digest"] != first["digest"]
