from __future__ import annotations

import copy
from collections import Counter

import pytest

from ken_core.checkpoint import open_tuned
from ken_core.errors import CalibrationError, DataError
from ken_core.evaluate import classify, logits
from ken_core.held_out import divide
from ken_core.judges import judges_for, lines_for
from ken_core.tokenization import Encoder

TEXTS = [f"{a} {b}" for a in ("who is", "what was", "when", "how many") for b in ("the king", "a city", "bad", "good")]


def test_no_text_is_in_both_parts_and_each_label_has_its_share():
    texts = [f"text {i // 2}" for i in range(200)]  # each twice, with the same label
    labels = [("rare", "common")[i // 2 % 10 > 0] for i in range(200)]
    first, second = divide(texts, labels, 0.2)
    assert not {texts[i] for i in first} & {texts[i] for i in second}
    assert len({texts[i] for i in (*first, *second)}) == len(first) + len(second) == 100
    assert Counter(labels[i] for i in first) == {"rare": 2, "common": 18}


def test_a_text_with_two_labels_stays_in_one_part_with_both():
    first, second = divide(["a", "b", "a", "c", "a"], ["x", "x", "y", "x", "x"], 0.5)
    assert sorted((*first, *second)) == [0, 1, 2, 3]
    assert (0 in first) == (2 in first)


def test_the_same_seed_divides_alike_and_another_seed_otherwise():
    texts = [str(i) for i in range(50)]
    assert divide(texts, None, 0.2, 3) == divide(texts, None, 0.2, 3) != divide(texts, None, 0.2, 4)


def test_without_labels_the_fine_tunes_own_answers_are_right(tuned):
    judges = judges_for(tuned, TEXTS)
    assert judges.metric == "agreement"
    assert judges.judge(tuned.model).all()
    assert judges.distance(tuned.model) == 0.0
    assert (judges.choosing, len(judges.texts), judges.judge(tuned.model).size) == (3, 3, 13)


def test_with_labels_the_labels_are_right(tuned):
    answers = classify(tuned.model, Encoder(tuned, tuned.config, {}), TEXTS)
    labels = [tuned.config.id2label[int(a)] for a in answers]
    assert judges_for(tuned, TEXTS, labels).judge(tuned.model).all()
    wrong = [next(name for name in tuned.config.id2label.values() if name != label) for label in labels]
    judges = judges_for(tuned, TEXTS, wrong)
    assert judges.metric == "accuracy"
    assert not judges.judge(tuned.model).any()


def test_the_distance_is_the_mean_divergence_from_the_fine_tunes_answers(tuned):
    judges = judges_for(tuned, TEXTS)
    other = copy.deepcopy(tuned.model)
    other.classifier.bias.data[0] += 1.0
    encoder = Encoder(tuned, tuned.config, {})
    p, q = (logits(m, encoder, judges.texts).double().softmax(1) for m in (tuned.model, other))
    assert judges.distance(other) == pytest.approx(float((p * (p / q).log()).sum(1).mean()), rel=1e-4)


def test_a_label_the_model_does_not_know_is_refused_naming_it(tuned):
    with pytest.raises(DataError, match=r"'planet'; the model knows 0 'place', 1 'person', 2 'number'"):
        judges_for(tuned, ["a", "b"], ["planet", "place"])


def test_other_kinds_than_text_classifiers_need_a_judge_of_their_own(tiny_base):
    with pytest.raises(CalibrationError, match="judge of your own"):
        judges_for(open_tuned(str(tiny_base)), ["a", "b"])


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification"])
def test_a_model_that_gives_scores_is_refused(tiny_tuned, problem):
    opened = open_tuned(str(tiny_tuned["mood"]))
    opened.config.problem_type = problem
    with pytest.raises(CalibrationError, match=rf"gives scores \({problem}\); expected one of two or more labels"):
        judges_for(opened, ["a", "b"])


def test_one_text_is_too_few(tuned):
    with pytest.raises(CalibrationError, match="one to choose by and one to judge by"):
        judges_for(tuned, ["a", "a"])


def test_a_few_texts_are_divided_so_that_one_chooses(tuned):
    judges = judges_for(tuned, ["a", "b"])
    assert (judges.texts, judges.judge(tuned.model).size) == (("a",), 1)


def test_lines_are_five_quarters_of_the_examples_that_judge():
    assert [lines_for(n) for n in (4, 460, 461)] == [5, 575, 577]
