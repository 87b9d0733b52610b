"""The closing lines of the demonstrations are commands that `ken` takes."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import typer

from ken_core.examples import Example, read_examples
from serving.cli import app
from serving.demo import generation, run
from serving.demo import stage as stages
from serving.demo.stage import Stage, Step, show_next
from serving.demo.texts import write_examples

STAGE = Stage(None, None, Path("/a folder/data"), None, 8, False, "demo")


def test_the_tasks_are_served_again_from_the_store_that_was_made() -> None:
    step = STAGE.serve_again("/a base")
    assert step.arguments == [
        "serve", "--base", "/a base", "--namespace", "demo", "--data-dir", "/a folder/data",
    ]  # fmt: skip
    own = Stage(None, "redis://user:secret@host", Path("data"), None, 8, False, "demo")
    assert "secret" not in " ".join(own.serve_again("base").arguments)


@pytest.mark.parametrize(
    "steps",
    [
        run.next_steps(STAGE, "/a base", ["/a folder/news.ken", "genres.ken"], "held out.jsonl"),
        generation.next_steps(STAGE, "/a base", "poems", "What's new?"),
    ],
    ids=["classifiers", "language models"],
)
def test_every_step_is_a_command_in_words_that_a_shell_takes(
    steps: list[Step], capsys: pytest.CaptureFixture[str]
) -> None:
    show_next(steps)
    printed = [line.strip() for line in capsys.readouterr().err.splitlines() if line.startswith("  ")]
    assert printed[::2] == [f"# {step.what}" for step in steps]
    for line, step in zip(printed[1::2], steps, strict=True):
        words = shlex.split(line)[1:]
        assert words == step.arguments
        assert_taken(words)


def assert_taken(words: list[str]) -> None:
    """`ken` knows the command and its options."""
    command = typer.main.get_command(app)
    name, *arguments = words
    found = command.get_command(typer.Context(command), name)
    assert found is not None, name
    found.make_context(name, arguments)


@pytest.mark.parametrize("called", ["pytest", "__main__.py"])
def test_ken_is_called_by_its_name_unless_it_was_called_by_its_path(
    called: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.argv", [called])
    assert stages._ken() == "ken"
    own = tmp_path / "ken"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    monkeypatch.setattr("sys.argv", [str(own)])
    assert stages._ken() == str(own), "the shell finds another ken, or none"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert stages._ken() == "ken"


def test_examples_are_read_as_they_were_written(tmp_path: Path) -> None:
    examples = [Example("The rain, in «Spain»\nfalls", "weather"), Example('"x"', "other")]
    assert read_examples(write_examples(examples, tmp_path / "examples.jsonl")) == examples
