"""Calibration of language models, from the command line: what is judged, what is promised, and of which text."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from transformers import AutoModel, AutoTokenizer

from tests.cli.running import Ken, facts
from tests.tiny_checkpoints import WORDS
from tests.tiny_language_models import POSITIONS, write_language_model


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny language model, and another one with the same tokenizer in place of a fine-tune."""
    folder = tmp_path_factory.mktemp("language")
    base = write_language_model(folder / "base")
    tuned = write_language_model(folder / "tuned", initializer_range=0.21)
    return base, tuned


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    """300 chats as OpenAI's fine-tuning takes them, one of them twice."""
    path = tmp_path / "chats.jsonl"
    said = [(f"the {a} {b}", f"{b} {a}") for a in WORDS[:30] for b in WORDS[30:40]]
    rows = [[{"role": "user", "content": asked}, {"role": "assistant", "content": told}] for asked, told in said]
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in [*rows, rows[0]]))
    return path


def test_calibrate_judges_a_language_model_by_its_perplexity(
    ken: Ken, language: tuple[Path, Path], chats: Path, tmp_path: Path
) -> None:
    out, curve = tmp_path / "d.ken", tmp_path / "curve.png"
    common = ("--base", language[0], "--tuned", language[1], "--data", chats, "--out", out, "--tolerance", "0.1")
    ended = ken("calibrate", *common, "--method", "magnitude", "--curve", curve)
    assert ended.returncode == 0, ended.stderr
    told = " ".join(ended.stdout.split())
    assert "60 examples chose by distance, 240 judged by" in told
    assert "with 90 % confidence, by an approximation, its perplexity is at most 10 % above the fine-tune's" in told
    assert "tokens of 240 texts that had no part in choosing it" in told
    assert "found 1 repeated line in" in ended.stderr
    record: dict[str, object] = facts(ken("inspect", out, "--json"))["calibration"]  # type: ignore[assignment]
    assert (record["metric"], record["examples"], record["promised"]) == ("perplexity", 240, 0.1)
    assert int(str(record["tokens"])) > 240
    assert curve.stat().st_size > 10_000


def test_calibrate_for_a_size_says_how_many_tokens_change(
    ken: Ken, language: tuple[Path, Path], chats: Path, tmp_path: Path
) -> None:
    common = ("--base", language[0], "--tuned", language[1], "--data", chats, "--out", tmp_path / "d.ken")
    ended = ken("calibrate", *common, "--size", "60kB", "--metric", "agreement", "--max-length", "34")
    assert ended.returncode == 0, ended.stderr
    assert "points of agreement on all such text" in " ".join(ended.stdout.split())
    assert "had more than 34 tokens and lost the end (--max-length)" in " ".join(ended.stderr.split())


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", (), "holds no examples"),
        ('{"text": "a"}\n{"text"\n', (), "line 2: expected a JSON object"),
        ('{"text": "a king"}\n{"text": 5}\n', (), "line 2: found int as 'text', expected a string"),
        ('{"question": "a"}\n', (), "for a language model text, or prompt and completion, or messages"),
        ('{"text": "a king"}\n' * 3, (), "found one distinct example; expected two or more"),
        ('{"text": "a king"}\n{"text": "the city"}\n', (), "takes 200, even if not one answer changes"),
        ('{"prompt": "a king", "completion": "x"}\n', ("--max-length", "8", "--metric", "rouge"), "'rouge' is not one"),
    ],
)
def test_calibrate_says_what_is_wrong_with_the_text(
    ken: Ken, language: tuple[Path, Path], tmp_path: Path, text: str, options: tuple[str, ...], message: str
) -> None:
    (tmp_path / "data.jsonl").write_text(text)
    common = ("--base", language[0], "--tuned", language[1], "--data", tmp_path / "data.jsonl")
    ended = ken("calibrate", *common, "--out", tmp_path / "d.ken", *options)
    assert ended.returncode in (1, 2)
    assert message in " ".join(ended.stderr.replace("│", " ").split())
    assert [p.name for p in tmp_path.iterdir()] == ["data.jsonl"]


@pytest.mark.parametrize("options", [("--metric", "perplexity"), ("--max-length", "64")])
def test_a_classifier_is_not_judged_by_perplexity(
    ken: Ken, tiny_base: Path, tiny_tuned: dict[str, Path], tmp_path: Path, chats: Path, options: tuple[str, str]
) -> None:
    common = ("--base", tiny_base, "--tuned", tiny_tuned["mood"], "--data", chats, "--out", tmp_path / "d.ken")
    ended = ken("calibrate", *common, *options)
    assert ended.returncode == 2
    assert "is no language model, which this option is for" in " ".join(ended.stderr.replace("│", " ").split())


@pytest.fixture
def long_ones(tmp_path: Path) -> Path:
    """300 prompts with completions, some longer than the tiny model takes."""
    path = tmp_path / "long.jsonl"
    rows = [
        {"prompt": f"the {a} {b}", "completion": f"{b} {a} " * (400 if a == b == WORDS[0] else 8)}
        for a in WORDS[:30]
        for b in WORDS[:10]
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_what_was_cut_is_part_of_the_promise(
    ken: Ken, language: tuple[Path, Path], chats: Path, tmp_path: Path
) -> None:
    out = tmp_path / "d.ken"
    common = ("--base", language[0], "--tuned", language[1], "--data", chats, "--out", out, "--metric", "agreement")
    assert ken("calibrate", *common, "--size", "60kB", "--max-length", "34").returncode == 0
    told = " ".join(ken("inspect", out).stdout.split())
    assert "points of agreement on all such text, the first 34 tokens of each. Measured" in told
    reading = facts(ken("inspect", out, "--json"))["calibration"]["reading"]  # type: ignore[index]
    assert (reading["longest"], reading["divided"]) == (34, 0)
    assert 0 < reading["cut"] <= 300


def test_a_model_that_takes_no_more_tokens_is_named_as_the_limit(
    ken: Ken, language: tuple[Path, Path], long_ones: Path, tmp_path: Path
) -> None:
    common = ("--base", language[0], "--tuned", language[1], "--data", long_ones, "--out", tmp_path / "d.ken")
    ended = ken("calibrate", *common, "--size", "60kB", "--metric", "agreement", "--max-length", "4096")
    assert ended.returncode == 0, ended.stderr
    told = " ".join(ended.stderr.split())
    assert f"1 example had more than {POSITIONS} tokens, which the model takes at most, and lost the end" in told
    assert "4096" not in told


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """40 prompts with completions."""
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"the {a} is", "completion": f" {b}"} for a in WORDS[:8] for b in WORDS[8:13]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def headless(language: tuple[Path, Path], tmp_path: Path) -> Path:
    """A language model that was saved without its head."""
    folder = tmp_path / "headless"
    AutoModel.from_pretrained(language[1]).save_pretrained(folder)
    AutoTokenizer.from_pretrained(language[1]).save_pretrained(folder)
    return folder


def test_a_language_models_deltas_are_fitted_and_checked_on_what_it_learned(
    ken: Ken, language: tuple[Path, Path], pairs: Path, chats: Path, tmp_path: Path
) -> None:
    for name, data, more in (("pairs", pairs, ("--fit",)), ("chats", chats, ("--distil", "2"))):
        common = ("--base", language[0], "--tuned", language[1], "--text", data, "--out", tmp_path / f"{name}.ken")
        ended = ken("extract", *common, "--keep", "0.2", *more)
        assert ended.returncode == 0, ended.stderr
    assert "after a fit of the kept values to 40 texts" in " ".join(
        ken("inspect", tmp_path / "pairs.ken").stdout.split()
    )
    added = ken(
        "add",
        f"tuned={language[1]}",
        "--base",
        language[0],
        "--text",
        chats,
        "--keep",
        "1",
        "--fit",
        "--dry-run",
        "--json",
    )
    (one,) = json.loads(added.stdout)["tasks"]
    assert (one["error"], one["check"]["texts"], one["check"]["agreement"]) == (None, 60, 1.0)


def test_what_only_a_language_model_learns_is_refused_for_others_by_name(
    ken: Ken,
    language: tuple[Path, Path],
    tiny_base: Path,
    tiny_tuned: dict[str, Path],
    headless: Path,
    pairs: Path,
    tmp_path: Path,
) -> None:
    out = ("--out", tmp_path / "d.ken")
    of_classifier = ("--base", tiny_base, "--tuned", tiny_tuned["mood"])
    without_head = ("--base", language[0], "--tuned", headless)
    for command, expected in (
        (("calibrate", *of_classifier, "--data", pairs, *out), "A language model learns from prompt and completion"),
        (("calibrate", *without_head, "--data", pairs, *out), "saved without its head is none"),
        (
            ("extract", *of_classifier, "--text", pairs, "--distil", 2, *out),
            "line 1: found what a language model learns",
        ),
        (("extract", *without_head, "--text", pairs, "--distil", 2, *out), "saved without its head is none"),
        (("eval", language[1], "--data", pairs), "is a language model, and `ken eval` measures text classifiers"),
        (("eval", tiny_tuned["mood"], "--data", pairs), "A language model learns from prompt and completion"),
    ):
        ended = ken(*command)
        assert ended.returncode == 1
        assert expected in " ".join(ended.stderr.split())
        assert not (tmp_path / "d.ken").exists()


def test_a_size_that_is_said_to_be_the_least_is_enough(
    ken: Ken, language: tuple[Path, Path], chats: Path, tmp_path: Path
) -> None:
    common = ("--base", language[0], "--tuned", language[1], "--data", chats, "--out", tmp_path / "d.ken")
    ended = ken("calibrate", *common, "--size", "2kB", "--metric", "agreement")
    assert ended.returncode == 1
    found = re.search(r"at least ([\d,]+) bytes .*; 2,000 were asked for", " ".join(ended.stderr.split()))
    assert found is not None, ended.stderr
    enough = found[1].replace(",", "")
    ended = ken("calibrate", *common, "--size", f"{enough}B", "--metric", "agreement")
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "d.ken").stat().st_size <= int(enough)


def test_a_promise_of_nothing_is_told_beside_the_base(
    ken: Ken, language: tuple[Path, Path], chats: Path, tmp_path: Path
) -> None:
    out = tmp_path / "d.ken"
    common = ("--base", language[0], "--tuned", language[1], "--data", chats, "--out", out, "--metric", "agreement")
    small = ken("calibrate", *common, "--size", "1kB", "--method", "magnitude")
    least = re.search(r"at least ([\d,]+) bytes", " ".join(small.stderr.split()))
    assert least is not None
    ended = ken("calibrate", *common, "--size", f"{least[1].replace(',', '')}B", "--method", "magnitude")
    assert ended.returncode == 0, ended.stderr
    assert "keeps nothing of the fine-tune but its head" in " ".join(ended.stderr.split())
    told = " ".join(ended.stdout.split())
    assert re.search(r"the fine-tune's agreement is 1.0000, the base's 0\.\d{4}", told)
    assert re.search(r"Measured: agreement (0\.\d{4}) against the fine-tune's 1.0000 and the base's \1", told)
    assert "after a fit" not in told
