from __future__ import annotations

import json
from pathlib import Path

import pytest

from ken_core.examples import DataError, Example, read_examples, read_texts


def written(folder: Path, *lines: str | bytes) -> Path:
    path = folder / "train.jsonl"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))
    return path


def test_examples_are_read_in_order_and_blank_lines_skipped(tmp_path):
    path = written(
        tmp_path, '{"text": "a", "label": "x"}', "", "  ", '{"label": "y", "text": "\u00e9\\n", "id": 3}', ""
    )
    assert read_examples(path) == [Example("a", "x"), Example("\u00e9\n", "y")]


@pytest.mark.parametrize("separator", ["\u2028", "\u0085", "\x7f"])
def test_only_newlines_end_a_line(tmp_path, separator):
    text = f"one{separator}two"
    path = written(tmp_path, json.dumps({"text": text, "label": "x"}, ensure_ascii=False))
    assert separator.encode() in path.read_bytes()
    assert read_examples(path) == [Example(text, "x")]


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "text",
        "[]",
        '["text", "label"]',
        '"text"',
        "3",
        "null",
        "{}",
        '{"text": "a"}',
        '{"label": "x"}',
        '{"text": 3, "label": "x"}',
        '{"text": "a", "label": 1}',
        '{"text": null, "label": "x"}',
        b'{"text": "\xff", "label": "x"}',
    ],
)
def test_a_bad_line_is_refused_naming_its_file_and_number(tmp_path, line):
    path = written(tmp_path, '{"text": "a", "label": "x"}', "", line)
    with pytest.raises(DataError, match=r"train\.jsonl, line 3"):
        read_examples(path)


@pytest.mark.parametrize("content", ["", "\n\n  \n"])
def test_a_file_without_examples_is_refused(tmp_path, content):
    with pytest.raises(DataError, match="holds no examples"):
        read_examples(written(tmp_path, content))


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    for path in (tmp_path / "nothing.jsonl", tmp_path):
        with pytest.raises(DataError, match="cannot be read"):
            read_examples(path)


def test_the_real_data_sets_are_read(shared):
    for name, labels in (("trec", 6), ("rotten_tomatoes", 2)):
        examples = read_examples(shared / "data" / name / "test.jsonl")
        assert len(examples) >= 500
        assert len({e.label for e in examples}) == labels


def test_texts_are_read_with_labels_where_all_lines_have_one(tmp_path):
    path = written(tmp_path, '{"text": "a", "label": "x"}', '{"text": "b", "label": "y"}')
    assert read_texts(path) == (["a", "b"], ["x", "y"])
    assert read_texts(written(tmp_path, '{"text": "a"}', '{"text": "b"}')) == (["a", "b"], None)


def test_labels_on_some_lines_only_are_refused(tmp_path):
    with pytest.raises(DataError, match="1 of 2 lines have a label"):
        read_texts(written(tmp_path, '{"text": "a", "label": "x"}', '{"text": "b"}'))


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"label": "x"}', '{"text": 3}', '{"text": "a", "label": 1}'])
def test_a_bad_line_of_text_is_refused_naming_its_file_and_number(tmp_path, line):
    with pytest.raises(DataError, match=r"train\.jsonl, line 1"):
        read_texts(written(tmp_path, line))
