from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from ken_core.errors import DataError
from ken_core.examples import Example, read_examples, read_texts


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
        '{"text": "a", "label": true}',
        '{"text": "a", "label": 1.0}',
        '{"text": "a", "label": null}',
        '{"text": "a", "label": 1}',
        '{"text": "a", "text_pair": 3, "label": "x"}',
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


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"label": "x"}', '{"text": 3}', '{"text": "a", "label": []}'])
def test_a_bad_line_of_text_is_refused_naming_its_file_and_number(tmp_path, line):
    with pytest.raises(DataError, match=r"train\.jsonl, line 1"):
        read_texts(written(tmp_path, line))


# integer labels and pairs


def test_integer_labels_are_integers(tmp_path):
    path = written(tmp_path, '{"text": "a", "label": 10}', '{"text": "b", "label": 0}')
    assert read_examples(path) == [Example("a", 10), Example("b", 0)]
    assert read_texts(path) == (["a", "b"], [10, 0])


def test_a_name_beside_integers_is_refused_naming_both_lines(tmp_path):
    path = written(tmp_path, '{"text": "a", "label": 1}', "", '{"text": "b", "label": "1"}')
    with pytest.raises(DataError, match=r"line 3: the label '1' beside 1 in line 1"):
        read_examples(path)


def test_two_texts_that_are_judged_together_are_one_input(tmp_path):
    lines = ['{"text": "a", "text_pair": "b", "label": "x"}', '{"text": "c", "text_pair": "d", "label": "y"}']
    assert [example.input for example in read_examples(written(tmp_path, *lines))] == [("a", "b"), ("c", "d")]
    assert read_texts(written(tmp_path, *lines))[0] == [("a", "b"), ("c", "d")]
    with pytest.raises(DataError, match="line 3: give all rows a text_pair, or none"):
        read_examples(written(tmp_path, *lines, '{"text": "e", "label": "y"}'))


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path):
    assert read_examples(written(tmp_path, b'\xef\xbb\xbf{"text": "a", "label": "x"}')) == [Example("a", "x")]


# CSV


def separated(folder: Path, text: str | bytes, name: str = "train.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("name", ["train.csv", "TRAIN.CSV"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_csv_with_a_header_is_read_quotes_and_line_breaks_included(tmp_path, name, newline, mark):
    rows = ["id,label,text", "1,x,plain", "", '2,y,"a ""quoted"" word, and\nanother line"', "3,z, kept "]
    path = separated(tmp_path, mark + newline.join(rows) + newline, name)
    expected = [("plain", "x"), ('a "quoted" word, and\nanother line', "y"), (" kept ", "z")]
    assert read_examples(path) == [Example(text, label) for text, label in expected]


def test_a_csv_is_what_the_csv_module_wrote(tmp_path):
    texts = ["plain", 'say "no"', "a, b", "one\ntwo", "\u2028 ", "=1+1", "\\n", "tab\tbed"]
    for name, dialect in (("a.csv", "excel"), ("a.tsv", "excel-tab")):
        with (tmp_path / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, dialect)
            writer.writerows([["text", "label"], *([text, f"l{i}"] for i, text in enumerate(texts))])
        assert [e.text for e in read_examples(tmp_path / name)] == texts


def test_a_column_of_integers_holds_integer_labels_and_any_other_holds_names(tmp_path):
    assert read_texts(separated(tmp_path, "text,label\na,1\nb,-2\n")) == (["a", "b"], [1, -2])
    assert read_texts(separated(tmp_path, "text,label\na,1\nb,two\n")) == (["a", "b"], ["1", "two"])
    assert read_texts(separated(tmp_path, "text,label\na,007\nb,1\n")) == (["a", "b"], ["007", "1"])
    assert read_texts(separated(tmp_path, "text,note\na,1\nb,2\n")) == (["a", "b"], None)


def test_a_field_of_a_csv_may_be_long(tmp_path):
    long = "rain " * 40_000
    assert read_texts(separated(tmp_path, f"text,label\n{long},x\n")) == ([long], ["x"])


def test_a_csv_may_hold_pairs(tmp_path):
    path = separated(tmp_path, "text,text_pair,label\na,b,x\nc,d,y\n")
    assert [example.input for example in read_examples(path)] == [("a", "b"), ("c", "d")]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "holds no examples"),
        ("text,label\n", "holds no examples"),
        ("sentence,label\na,x\n", r"line 1: expected a header .* separated by commas; found 'sentence, label'"),
        ("text;label\na;x\n", r"line 1: expected a header .* found 'text;label'"),
        ("text,text,label\na,b,x\n", "line 1: expected a header of distinct names"),
        ("text\na\n", "line 2: expected a label"),
        ("text,label\na,x\nb, x\n", "line 3: found the label ' x'; remove the spaces around it"),
        ('text,label\n"a\nb",x\nc\n', "line 4: found 1 fields, the header has 2"),
        ("text,label\na,b,x\n", "line 2: found 3 fields"),
        ("text,label\na,\n", "line 2: the label is empty"),
        ('text,label\na,x\n"b,y\nc,z\n', "line 3: unexpected end of data"),
        ('text,label\n"a"b,x\n', "line 2:"),
        (b"text,label\na,x\n\xff,y\n", "line 3: no UTF-8"),
    ],
)
def test_a_csv_of_another_form_is_refused_naming_the_line(tmp_path, text, named):
    with pytest.raises(DataError, match=named) as refusal:
        read_examples(separated(tmp_path, text))
    assert "train.csv" in str(refusal.value)
