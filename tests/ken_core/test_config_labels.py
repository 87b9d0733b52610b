from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import BertForSequenceClassification

from ken_core.checkpoint import open_tuned, wrap
from ken_core.errors import CheckpointError, DataError
from ken_core.extraction import extract
from ken_core.labels import check_labels, names_of, numbers_of

NAMES = {0: "place", 1: "person", 2: "number"}


@pytest.mark.parametrize(
    ("told", "named"),
    [
        ({"id2label": {"1": "a", "2": "b", "3": "c"}}, "numbers its labels 1, 2, 3; number them 0, 1,"),
        ({"id2label": {"0": "a", "2": "b", "3": "c"}}, "numbers its labels 0, 2, 3"),
        ({"id2label": {"a": "0", "b": "1", "c": "2"}}, "numbers its labels a, b, c"),
        ({"id2label": {"0": "a", "00": "b", "1": "c"}}, "numbers its labels"),
        ({"id2label": ["a", "b", "c"]}, "expected names by number"),
        ({"id2label": {"0": "a", "1": "b", "2": "a"}}, "two labels are called 'a'"),
        ({"id2label": {"0": "a", "1": 1, "2": "c"}}, 'label 1 is 1; write its name as a string, "1"'),
        ({"id2label": {"0": "a", "1": None, "2": "c"}}, "label 1 is None"),
        ({"id2label": {"0": "a", "1": "\ud800", "2": "c"}}, "no valid Unicode"),
        ({"label2id": {"place": 2, "person": 1, "number": 0}}, "'place' is label 0 in id2label and 2 in label2id"),
        ({"num_labels": 5}, "num_labels is 5, id2label names 3"),
    ],
)
def test_labels_without_one_meaning_are_refused_with_what_to_do(tiny_tuned, tmp_path, told, named):
    folder = Path(shutil.copytree(tiny_tuned["topics"], tmp_path / "copy"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | told))
    with pytest.raises(CheckpointError, match=named) as refusal:
        open_tuned(str(folder))
    assert str(folder) in str(refusal.value)


def test_a_model_in_memory_is_held_to_the_same(base, tiny_tuned):
    model = BertForSequenceClassification.from_pretrained(tiny_tuned["topics"])
    model.config.id2label = {1: "a", 2: "b", 3: "c"}
    with pytest.raises(CheckpointError, match="numbers its labels 1, 2, 3"):
        extract(base, wrap(model))


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"id2label": None},
        {"id2label": {"0": "a"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}},
        {"id2label": {"1": "b", "0": "a"}, "label2id": {"a": "0", "b": "1"}, "num_labels": 2},
        {"id2label": {0: "a", 1: "b"}},
    ],
)
def test_labels_with_one_meaning_pass(config):
    check_labels(config, "config.json")


# labels in data files


def test_a_new_classifier_numbers_integers_by_value_and_names_by_alphabet():
    assert names_of([10, 2, -1, 2, 0]) == ["-1", "0", "2", "10"]
    assert names_of(["b", "a", "10", "2", "b"]) == ["10", "2", "a", "b"]


def test_an_integer_is_the_models_own_number_of_a_label():
    assert numbers_of([2, 0, 1], NAMES) == [2, 0, 1]
    assert numbers_of(["number", "place"], NAMES) == [2, 0]


def test_an_integer_is_a_name_where_the_model_has_all_of_them_as_names():
    assert numbers_of([1, 2, 3], {0: "1", 1: "2", 2: "3"}) == [0, 1, 2]
    assert numbers_of(["2", "3"], {0: "1", 1: "2", 2: "3"}) == [1, 2]


@pytest.mark.parametrize("label", [3, -1, "Place", "0"])
def test_a_label_the_model_does_not_have_is_refused_with_those_it_has(label):
    with pytest.raises(DataError, match=rf"the label {label!r}; the model knows 0 'place', 1 'person', 2 'number'"):
        numbers_of([label], NAMES)
