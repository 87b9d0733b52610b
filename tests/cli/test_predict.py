"""`ken predict` and `ken eval`: the same answers and figures from a file, a folder, a store and a server."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.running import ADMIN, Ken, facts
from tests.serving.listening import CUT, Say, Scripted

WORDS = ["who", "what", "when", "the", "a", "of", "in", "city", "king", "war", "price", "film", "good", "bad", "boring"]
TEXTS = [" ".join(WORDS[(i + j * (1 + i % 3)) % len(WORDS)] for j in range(1 + i % 9)) for i in range(40)]


@pytest.fixture(scope="module")
def delta(ken: Ken, url: str, tiny_base: Path, tiny_tuned: dict[str, Path], tmp_path_factory: Any) -> Path:
    """The delta of all that changed in mood, which is published as the task mood."""
    folder = tmp_path_factory.mktemp("added")
    texts = folder / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KEN_API_KEY", ADMIN)
        command = ("add", "mood", tiny_tuned["mood"], "--base", tiny_base, "--keep", "1", "--out", folder / "kept")
        ended = ken(*command, "--text", texts, "--url", url, "--wait", "60")
    assert ended.returncode == 0, ended.stderr
    assert "100.0%" in ended.stdout
    return folder / "kept/mood.ken"


@pytest.fixture(autouse=True)
def _with_the_admins_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEN_API_KEY", ADMIN)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts with labels, after a blank line."""
    file = tmp_path_factory.mktemp("data") / "dev.jsonl"
    rows = [json.dumps({"text": text, "label": ["bad", "good"][i % 2]}) for i, text in enumerate(TEXTS)]
    file.write_text("\n" + "\n".join(rows) + "\n")
    return file


@pytest.fixture(scope="module")
def ways(url: str, delta: Path, tiny_base: Path, tiny_tuned: dict[str, Path]) -> dict[str, tuple[object, ...]]:
    """Arguments that name the same task."""
    return {
        "server": ("mood", "--url", url),
        "file": (delta, "--base", tiny_base),
        "folder": (tiny_tuned["mood"],),
        "store": ("mood@live", "--base", tiny_base),
    }


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_figures_are_the_same_by_whatever_way(ken: Ken, ways: dict[str, tuple[object, ...]], data: Path) -> None:
    found = {way: facts(ken("eval", *target, "--data", data, "--json")) for way, target in ways.items()}
    served = found["server"]
    assert served["examples"] == 40
    assert [one["label"] for one in served["labels"]] == ["bad", "good"]  # type: ignore[attr-defined]
    for way, figures in found.items():
        assert figures["labels"] == served["labels"], way
        for name in ("accuracy", "macro_f1", "calibration_error"):
            assert figures[name] == pytest.approx(served[name], abs=1e-5), (way, name)
    assert found["file"]["digest"] == served["digest"] == found["store"]["digest"]


def test_integer_labels_are_numbers_of_the_tasks_labels(
    ken: Ken, ways: dict[str, tuple[object, ...]], data: Path, tmp_path: Path
) -> None:
    numbered = tmp_path / "numbered.csv"
    numbered.write_text("text,label\n" + "".join(f"{text},{i % 2}\n" for i, text in enumerate(TEXTS)))
    named, found = (facts(ken("eval", *ways["file"], "--data", file, "--json")) for file in (data, numbered))
    assert named["accuracy"] == found["accuracy"]
    ended = ken("eval", *ways["server"], "--data", numbered)
    assert ended.returncode == 1
    assert "a server does not tell the numbers of labels" in ended.stderr


def test_eval_shows_figures_with_intervals_and_a_row_for_each_label(
    ken: Ken, ways: dict[str, tuple[object, ...]], data: Path
) -> None:
    ended = ken("eval", *ways["file"], "--data", data, "--confidence", "0.9")
    assert ended.returncode == 0, ended.stderr
    for part in ("on 40 examples", "accuracy", "macro F1", "calibration error", "90 % interval", "precision", "good"):
        assert part in ended.stdout
    assert "of fewer than 100 examples" in ended.stderr


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([{"text": "good", "label": "great"}], "line 1 has the label 'great'; the task knows bad, good"),
        ([{"text": "good"}], "expected a label"),
    ],
)
def test_eval_refuses_labels_that_the_task_does_not_have(
    ken: Ken, ways: dict[str, tuple[object, ...]], rows: list[dict[str, str]], text: str, tmp_path: Path
) -> None:
    file = tmp_path / "dev.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ended = ken("eval", *ways["folder"], "--data", file)
    assert ended.returncode == 1
    assert text in ended.stderr


def test_eval_refuses_a_task_that_gives_no_one_label(
    ken: Ken, tiny_base: Path, make_fine_tune: Any, data: Path
) -> None:
    ended = ken("eval", make_fine_tune(tiny_base, ["relevant"], name="single"), "--data", data)
    assert ended.returncode == 1
    assert "gives a text no one label" in ended.stderr


def test_answers_are_the_same_by_whatever_way(
    ken: Ken, ways: dict[str, tuple[object, ...]], data: Path, tmp_path: Path
) -> None:
    for way, target in ways.items():
        ended = ken("predict", *target, "--data", data, "--out", tmp_path / way, "--batch", "7")
        assert ended.returncode == 0, ended.stderr
    served = rows_of(tmp_path / "server")
    assert [row["line"] for row in served] == list(range(2, 42))
    for way in ways:
        for ours, theirs in zip(rows_of(tmp_path / way), served, strict=True):
            assert ours["digest"] == theirs["digest"] or way == "folder"
            assert ours["line"] == theirs["line"]
            assert [one["label"] for one in ours["output"]] == [one["label"] for one in theirs["output"]]
            scores = [[one["score"] for one in row["output"]] for row in (ours, theirs)]
            assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_parameters_and_kind_are_those_of_the_server(
    ken: Ken, ways: dict[str, tuple[object, ...]], data: Path, tmp_path: Path
) -> None:
    for way in ("server", "file"):
        asked = ("--parameters", '{"top_k": 1}', "--kind", "text-classification")
        assert ken("predict", *ways[way], "--data", data, "--out", tmp_path / way, *asked).returncode == 0
        assert all(len(row["output"]) == 1 for row in rows_of(tmp_path / way))
        ended = ken("predict", *ways[way], "--data", data, "--out", tmp_path / "x", "--parameters", '{"top": 1}')
        assert ended.returncode == 1
        assert "all of the first 16 inputs failed" in ended.stderr
        assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("way", ["server", "file"])
def test_an_input_that_cannot_be_answered_gets_a_line_with_the_error(
    ken: Ken, ways: dict[str, tuple[object, ...]], way: str, tmp_path: Path
) -> None:
    given, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    given.write_text('{"text": "good"}\n{"text": 7}\n{"inputs": {"text": "a", "text_pair": "film"}}\n')
    ended = ken("predict", *ways[way], "--data", given, "--out", out)
    assert ended.returncode == 1
    assert "1 input of 3 could not be answered" in ended.stderr
    assert ["error" in row for row in rows_of(out)] == [False, True, False]
    assert "valid string" in rows_of(out)[1]["error"]


@pytest.fixture
def cut_off(ken: Ken, ways: dict[str, tuple[object, ...]], data: Path, tmp_path: Path) -> tuple[Path, bytes]:
    """The output of a run that was killed while it wrote, and what it should become."""
    out = tmp_path / "out.jsonl"
    assert ken("predict", *ways["file"], "--data", data, "--out", out).returncode == 0
    whole = out.read_bytes()
    out.write_bytes(whole[: len(whole) // 2])
    assert not out.read_bytes().endswith(b"\n")
    return out, whole


def test_a_run_that_was_cut_off_goes_on_where_its_output_ends(
    ken: Ken, ways: dict[str, tuple[object, ...]], data: Path, cut_off: tuple[Path, bytes]
) -> None:
    out, whole = cut_off
    kept = out.read_bytes().rpartition(b"\n")[0]
    ended = ken("predict", *ways["file"], "--data", data, "--out", out, "--resume")
    assert ended.returncode == 0, ended.stderr
    assert out.read_bytes().startswith(kept)
    for ours, theirs in zip(rows_of(out), map(json.loads, whole.splitlines()), strict=True):
        assert ours["line"] == theirs["line"]
        assert ours["output"][0]["label"] == theirs["output"][0]["label"]
    assert ken("predict", *ways["file"], "--data", data, "--out", out, "--resume").returncode == 0


def test_an_output_of_something_else_is_not_resumed(
    ken: Ken,
    ways: dict[str, tuple[object, ...]],
    tiny_tuned: dict[str, Path],
    data: Path,
    cut_off: tuple[Path, bytes],
    tmp_path: Path,
) -> None:
    out, _ = cut_off
    before = out.read_bytes()
    other = tmp_path / "other.jsonl"
    other.write_text(data.read_text().replace("king", "queen"))
    for arguments, text in (
        ((*ways["file"], "--data", other), "other inputs"),
        ((tiny_tuned["topics"], "--data", data), "another version"),
        ((*ways["file"], "--data", data, "--parameters", '{"top_k": 1}'), "other parameters"),
        ((*ways["file"], "--data", data, "--kind", "zero-shot-classification"), "another kind"),
    ):
        ended = ken("predict", *arguments, "--out", out, "--resume")
        assert (ended.returncode, text in ended.stderr) == (1, True), ended.stderr
    assert out.read_bytes() == before
    assert (
        ken("predict", *ways["file"], "--data", data, "--out", out).returncode == 2
    )  # neither --resume nor --overwrite


def test_an_output_that_was_changed_is_not_resumed(
    ken: Ken, ways: dict[str, tuple[object, ...]], data: Path, cut_off: tuple[Path, bytes]
) -> None:
    out, _ = cut_off
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[1:]))
    ended = ken("predict", *ways["file"], "--data", data, "--out", out, "--resume")
    assert ended.returncode == 1
    assert "line 1: expected the answer to line 2 of the input" in ended.stderr


def test_a_run_that_was_cut_off_before_its_first_answer_begins_anew(
    ken: Ken, ways: dict[str, tuple[object, ...]], data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    out.touch()
    assert ken("predict", *ways["file"], "--data", data, "--out", out).returncode == 2
    assert ken("predict", *ways["file"], "--data", data, "--out", out, "--resume").returncode == 0
    assert len(rows_of(out)) == 40


def test_a_second_run_on_one_output_is_refused(
    ken: Ken, ways: dict[str, tuple[object, ...]], data: Path, cut_off: tuple[Path, bytes]
) -> None:
    out, _ = cut_off
    before = out.read_bytes()
    with out.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        ended = ken("predict", *ways["file"], "--data", data, "--out", out, "--resume")
    assert ended.returncode == 1
    assert "another ken predict is writing" in ended.stderr
    assert out.read_bytes() == before


def test_the_inputs_are_never_the_output(ken: Ken, ways: dict[str, tuple[object, ...]], tmp_path: Path) -> None:
    given = tmp_path / "in.jsonl"
    given.write_text('{"text": "good"}\n')
    for option in ("--overwrite", "--resume"):
        assert ken("predict", *ways["file"], "--data", given, "--out", given, option).returncode == 2
    assert given.read_text() == '{"text": "good"}\n'


def test_names_of_labels_neither_colour_nor_move_what_is_printed(
    ken: Ken, tiny_base: Path, make_fine_tune: Any, tmp_path: Path
) -> None:
    folder = make_fine_tune(tiny_base, ["\x1b[31mred", "[bold]good"], name="coloured")
    data = tmp_path / "dev.jsonl"
    data.write_text(json.dumps({"text": "a film", "label": "[bold]good"}) + "\n")
    ended = ken("eval", folder, "--data", data)
    assert ended.returncode == 0, ended.stderr
    assert "\x1b" not in ended.stdout
    assert "[bold]good" in ended.stdout
    data.write_text(json.dumps({"text": "a film", "label": "x"}) + "\n")
    assert "\x1b" not in ken("eval", folder, "--data", data).stderr


DIGEST = "ab" * 32


def scripted_task() -> Say:
    """What a server says of the task t."""
    detail = {
        "name": "t",
        "revision": 1,
        "aliases": {"live": DIGEST},
        "versions": [DIGEST],
        "replica": "r",
        "tiers": {},
    }
    return Say(body=json.dumps({**detail, "hits": {}, "hit_rate": None, "route": None, "shadow": None}).encode())


def scripted_answer(inputs: int) -> Say:
    outputs = [[{"label": "good", "score": 1.0}]] * inputs
    answer = {"task": "t", "digest": DIGEST, "kind": "text-classification", "outputs": outputs, "truncated": []}
    return Say(body=json.dumps(answer).encode())


def test_a_line_that_is_too_large_for_the_server_stops_no_other(ken: Ken, tmp_path: Path) -> None:
    """A server that refuses a body before all of it has come closes the connection."""
    given, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    given.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("good", "a" * (2 << 20), "bad")))
    cut = [CUT, CUT, scripted_task()] * 2  # each time tried twice, and the server is still there
    says = [scripted_task(), *cut, scripted_answer(1), *cut, scripted_answer(1)]
    with Scripted(*says) as server:
        ended = ken("predict", "t", "--data", given, "--out", out, "--url", server.url)
    assert ended.returncode == 1
    assert ["error" in row for row in rows_of(out)] == [False, True, False]
    assert "too large" in rows_of(out)[1]["error"]


def test_a_server_that_is_lost_leaves_an_output_to_resume(
    ken: Ken, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serving.cli import answering

    monkeypatch.setattr(answering, "_ATTEMPTS", 1)
    says = [scripted_task(), scripted_answer(4), CUT]
    out = tmp_path / "out.jsonl"
    with Scripted(*says) as server:
        ended = ken(
            "predict", "t", "--data", data, "--out", out, "--url", server.url, "--batch", "4", "--in-flight", "1"
        )
    assert ended.returncode == 1
    assert "4 of 40 lines are written; the same command with --resume goes on" in ended.stderr
    assert [row["digest"] for row in rows_of(out)] == [DIGEST] * 4
    assert {heard.headers.get("X-Ken-Delta") for heard in server.heard[1:]} == {DIGEST}


def test_a_pipe_works_as_well(
    ken: Ken, ways: dict[str, tuple[object, ...]], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = ken("predict", *ways["file"], "--data", data, "--out", "-")
    assert ended.returncode == 0, ended.stderr
    assert len(ended.stdout.splitlines()) == 40
    assert ken("predict", *ways["file"], "--data", data, "--out", "-", "--resume").returncode == 2


def test_a_name_that_is_a_folder_here_is_that_folder_unless_a_server_is_named(
    ken: Ken, url: str, tiny_tuned: dict[str, Path], data: Path, monkeypatch: pytest.MonkeyPatch, delta: Path
) -> None:
    monkeypatch.chdir(tiny_tuned["mood"].parent)
    ended = ken("eval", "mood", "--data", data, "--json")
    assert "mood is taken for the folder here, and not for a task" in ended.stderr
    assert facts(ended)["digest"] != facts(ken("inspect", delta, "--json"))["digest"]
    served = facts(ken("eval", "mood", "--data", data, "--json", "--url", url))
    assert served["digest"] == facts(ken("inspect", delta, "--json"))["digest"]
    monkeypatch.setenv("KEN_URL", url)
    assert facts(ken("eval", "mood", "--data", data, "--json")) == facts(ended)
    assert facts(ken("eval", "mood@live", "--data", data, "--json"))["digest"] == served["digest"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("no/../such.ken",), "found no file, folder or task"),
        (("mood",), "give the base of its delta"),
        (("./mood", "--url", "http://127.0.0.1:1"), "give a task's name with --url"),
    ],
)
def test_a_target_that_means_nothing_is_wrong_usage(
    ken: Ken, delta: Path, data: Path, arguments: tuple[str, ...], text: str
) -> None:
    ended = ken("eval", *arguments, "--data", data)
    assert ended.returncode == 2
    assert text in " ".join(ended.stderr.replace("│", " ").split())
