"""Figures of a classifier, against scikit-learn's and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from ken_core.classification_report import Interval, report, wilson
from ken_core.errors import DataError

LABELS = ["a", "b", "c"]


def test_each_label_has_the_precision_recall_and_f1_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(3)
    truth, answers = random.integers(0, 3, 200), random.integers(0, 3, 200)
    found = report(truth.tolist(), answers.tolist(), [0.5] * 200, LABELS)
    expected = metrics.precision_recall_fscore_support(truth, answers, zero_division=0)
    columns = zip(*((one.precision, one.recall, one.f1, one.examples) for one in found.labels), strict=True)
    for ours, theirs in zip(columns, expected, strict=True):
        assert list(ours) == pytest.approx(theirs.tolist())
    assert found.macro_f1.value == pytest.approx(metrics.f1_score(truth, answers, average="macro"))
    assert found.accuracy.value == pytest.approx(metrics.accuracy_score(truth, answers))


def test_a_label_that_never_occurs_is_left_out_of_the_mean() -> None:
    found = report([0, 0, 1, 1], [0, 1, 1, 1], [1.0] * 4, LABELS)
    assert [one.f1 for one in found.labels] == pytest.approx([2 / 3, 0.8, 0.0])
    assert found.macro_f1.value == pytest.approx((2 / 3 + 0.8) / 2)


def test_the_calibration_error_is_the_mean_gap_of_bins_weighted_by_their_answers() -> None:
    # bins of a 15th: 0.90 and 0.92 share (13/15, 14/15], of which one is right; 0.5 is alone in its own
    found = report([0, 0, 0], [0, 1, 0], [0.90, 0.92, 0.5], LABELS)
    assert found.calibration_error.value == pytest.approx((abs(0.90 + 0.92 - 1) + abs(0.5 - 1)) / 3)


def test_a_probability_on_an_edge_belongs_to_the_bin_below() -> None:
    found = report([0, 1], [0, 0], [3 / 15, 3 / 15 + 1e-9], LABELS)
    assert found.calibration_error.value == pytest.approx(((1 - 3 / 15) + 3 / 15) / 2)


def test_the_interval_of_accuracy_is_wilsons() -> None:
    # 81 of 263: the worked example of Newcombe 1998, Statistics in Medicine 17:857-872, table I
    assert wilson(81, 263, 0.95) == Interval(81 / 263, pytest.approx(0.2553, abs=5e-5), pytest.approx(0.3662, abs=5e-5))
    assert wilson(5, 5, 0.95).high == 1.0
    assert wilson(5, 5, 0.95).low < 0.6


def test_intervals_hold_the_figures_of_all_text_about_as_often_as_they_say() -> None:
    random = np.random.default_rng(1)
    inside = np.zeros(2)
    for seed in range(60):
        sure = random.uniform(0.5, 1.0, 300)
        right = random.uniform(size=300) < sure - 0.1  # overconfident by a tenth
        truth = random.integers(0, 2, 300)
        answers = np.where(right, truth, 1 - truth)
        found = report(truth.tolist(), answers.tolist(), sure.tolist(), LABELS[:2], confidence=0.9, seed=seed)
        inside += [found.macro_f1.low <= 0.65 <= found.macro_f1.high,
                   found.calibration_error.low <= 0.1 <= found.calibration_error.high]  # fmt: skip
    assert (inside >= 60 * 0.75).all()


def test_an_interval_holds_the_figure_itself() -> None:
    random = np.random.default_rng(2)
    for many in (3, 20, 200):
        for _ in range(20):
            sure = random.uniform(0.5, 1.0, many)
            truth = random.integers(0, 2, many)
            answers = np.where(random.uniform(size=many) < sure, truth, 1 - truth)
            found = report(truth.tolist(), answers.tolist(), sure.tolist(), LABELS[:2])
            for figure in (found.accuracy, found.macro_f1, found.calibration_error):
                assert 0 <= figure.low <= figure.value <= figure.high <= 1


def test_right_answers_alone_do_not_make_a_figure_certain() -> None:
    found = report([0, 1, 2], [0, 1, 2], [0.9] * 3, LABELS)
    assert found.macro_f1 == found.accuracy
    assert found.accuracy.low < 0.5
    assert (found.calibration_error.value, found.calibration_error.low) == (pytest.approx(0.1), 0.0)
    assert found.calibration_error.high == pytest.approx(0.9 - found.accuracy.low)
    wrong = report([0], [1], [0.9], LABELS)
    assert wrong.calibration_error.low == pytest.approx(0.9 - wrong.accuracy.high)
    assert wrong.calibration_error.high == wrong.calibration_error.value == pytest.approx(0.9)


def test_the_same_seed_gives_the_same_intervals() -> None:
    given = ([0, 1, 2, 0, 1], [0, 1, 1, 0, 2], [0.9, 0.8, 0.4, 0.6, 0.5], LABELS)
    assert report(*given, seed=7) == report(*given, seed=7)
    assert report(*given, seed=7).calibration_error != report(*given, seed=8).calibration_error


def test_no_example_is_refused() -> None:
    with pytest.raises(DataError, match="there is none"):
        report([], [], [], LABELS)
