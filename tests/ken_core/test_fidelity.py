"""A delta's answers beside its fine-tune's: what counts as the same answer, for every kind of task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
)

from ken_core import Budget, CheckpointError, DataError, Selection, deltafile, extract, open_tuned
from ken_core.fidelity import Checker
from ken_core.same_answers import gives_scores, same_answers, same_order
from tests.tiny_checkpoints import TEXTS, write_tuned

KINDS: dict[str, tuple[type[Any], list[str], str | None, str]] = {
    "classes": (BertForSequenceClassification, ["a", "b", "c"], None, "texts"),
    "several": (BertForSequenceClassification, ["a", "b", "c"], "multi_label_classification", "texts"),
    "score": (BertForSequenceClassification, ["a"], None, "pairs of texts"),
    "tokens": (BertForTokenClassification, ["a", "b", "c"], None, "tokens"),
    "places": (BertForQuestionAnswering, ["a", "b"], None, "texts"),
    "vectors": (BertModel, ["a", "b"], None, "tokens"),
}


@pytest.fixture(scope="module")
def checker(tiny: Any) -> Checker:
    return Checker(tiny.base)


@pytest.fixture(scope="module", params=sorted(KINDS))
def fine_tune(request: pytest.FixtureRequest, tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    architecture, labels, problem, unit = KINDS[request.param]
    folder = tmp_path_factory.mktemp("tuned") / request.param
    return unit, write_tuned(tiny.base_folder, folder, labels, 3, problem, architecture)


def written(tiny: Any, tuned: Any, path: Path, fraction: float) -> Any:
    selection = Selection("random", Budget(fraction=fraction))
    return deltafile.write(extract(tiny.base, tuned, selection), tiny.base, path)


def test_a_delta_of_all_that_changed_answers_alike_and_a_small_one_does_not(
    checker: Checker, tiny: Any, fine_tune: tuple[str, Path], tmp_path: Path
) -> None:
    unit, folder = fine_tune
    tuned = open_tuned(str(folder))
    whole, small = (written(tiny, tuned, tmp_path / f"{part}.ken", part) for part in (1.0, 0.02))
    for texts in (TEXTS, None):
        same, other = checker(tuned, whole, texts), checker(tuned, small, texts)
        assert same.unit == other.unit == unit
        assert same.agreement == pytest.approx(1.0)
        assert same.divergence < 1e-5 < other.divergence
        assert (same.texts, same.random) == ((len(TEXTS), False) if texts else (128, True))
    assert other.agreement < 1.0


def test_embeddings_are_compared_as_they_are_served(checker: Checker, tiny: Any, tmp_path: Path) -> None:
    tuned = open_tuned(str(tiny.embedding("pooled", seed=8, pooling="mean_tokens")))
    whole, small = (written(tiny, tuned, tmp_path / f"{part}.ken", part) for part in (1.0, 0.02))
    same, other = checker(tuned, whole, TEXTS), checker(tuned, small, TEXTS)
    assert (same.unit, same.answers, same.agreement) == ("texts", len(TEXTS), 1.0)
    assert same.divergence < 1e-5 < other.divergence


def test_accuracies_are_the_shares_of_labels_that_are_found(checker: Checker, tiny: Any, tmp_path: Path) -> None:
    tuned = open_tuned(str(tiny.tuned("judged", ["no", "yes"], seed=5)))
    found = checker(tuned, written(tiny, tuned, tmp_path / "d.ken", 1.0), TEXTS, ["yes"] * len(TEXTS))
    answers = [int(tuned.model(**one).logits.argmax()) for one in _batches(tiny)]
    assert found.accuracy == found.tuned_accuracy == pytest.approx(sum(answers) / len(answers))


def _batches(tiny: Any) -> list[dict[str, torch.Tensor]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny.base_folder)
    return [dict(tokenizer(text, return_tensors="pt")) for text in TEXTS]


def test_what_cannot_be_compared_is_refused_by_name(checker: Checker, tiny: Any, tmp_path: Path) -> None:
    folder = write_tuned(tiny.base_folder, tmp_path / "choice", ["a"], 3, None, BertForMultipleChoice)
    tuned = open_tuned(str(folder))
    with pytest.raises(CheckpointError, match="cannot be compared"):
        checker(tuned, written(tiny, tuned, tmp_path / "d.ken", 1.0), TEXTS)


def test_labels_of_a_task_that_gives_no_one_label_are_refused(checker: Checker, tiny: Any, tmp_path: Path) -> None:
    tuned = open_tuned(str(tiny.tuned("many", ["a", "b"], 6, "multi_label_classification")))
    file = written(tiny, tuned, tmp_path / "d.ken", 1.0)
    with pytest.raises(DataError, match="does not give each text one label"):
        checker(tuned, file, TEXTS, ["a"] * len(TEXTS))
    with pytest.raises(DataError, match="there is none"):
        checker(tuned, file, [])


CLASSES = BertConfig(num_labels=2)
SEVERAL = BertConfig(num_labels=2, problem_type="multi_label_classification")
MASK = torch.tensor([[True, True, False]])


def logits(*rows: list[float]) -> dict[str, torch.Tensor]:
    return {"logits": torch.tensor(rows)}


def test_the_best_label_is_the_answer_or_all_labels_that_hold() -> None:
    ours, theirs = logits([2.0, 1.0], [-1.0, 1.0]), logits([9.0, 8.0], [1.0, 2.0])
    assert same_answers("text-classification", CLASSES, ours, theirs, MASK).tolist() == [True, True]
    assert same_answers("text-classification", SEVERAL, ours, theirs, MASK).tolist() == [True, False]


def test_padding_has_no_answer() -> None:
    ours = {"logits": torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]])}
    theirs = {"logits": torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]])}
    assert same_answers("token-classification", CLASSES, ours, theirs, MASK).tolist() == [True, False]
    first = {"start_logits": torch.tensor([[1.0, 0.0, 9.0]]), "end_logits": torch.tensor([[0.0, 1.0, 9.0]])}
    second = {"start_logits": torch.tensor([[1.0, 0.0, 0.0]]), "end_logits": torch.tensor([[0.0, 1.0, 0.0]])}
    assert same_answers("question-answering", CLASSES, first, second, MASK).tolist() == [True]
    second["end_logits"] = torch.tensor([[1.0, 0.0, 0.0]])
    assert same_answers("question-answering", CLASSES, first, second, MASK).tolist() == [False]


def test_scores_agree_if_they_put_texts_in_the_same_order() -> None:
    assert gives_scores("text-classification", BertConfig(num_labels=1))
    assert not gives_scores("text-classification", CLASSES)
    ours, theirs = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[0.1], [0.3], [0.2]])
    assert same_order(ours, theirs).tolist() == [True, True, False]
    assert same_order(torch.ones(3, 1), theirs).tolist() == []


def test_how_much_one_answer_would_agree_with_is_told(checker: Checker, tiny: Any, tmp_path: Path) -> None:
    folder = write_tuned(tiny.base_folder, tmp_path / "tuned", ["a", "b", "c"], 3)
    state = load_file(folder / "model.safetensors")
    bias = torch.tensor([0.0, 1e3, 0.0])
    save_file({**state, "classifier.bias": bias}, folder / "model.safetensors", {"format": "pt"})
    tuned = open_tuned(str(folder))
    found = checker(tuned, written(tiny, tuned, tmp_path / "small.ken", 0.02))
    assert (found.commonest, found.agreement) == (1.0, 1.0)
