from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from ken_core import deltafile
from ken_core.calibration import CalibrationError, calibrate, confidence, judge_for
from ken_core.checkpoint import open_base, open_tuned
from ken_core.errors import DataError
from ken_core.evaluate import classify
from ken_core.fingerprint import fingerprint
from ken_core.heads import graft
from ken_core.resident import ResidentModel
from ken_core.tensor_filter import PRESETS
from ken_core.tokenization import Encoder

TEXTS = [
    f"{a} {b} {c} {d}"
    for a in ("who is", "what was", "when", "how many")
    for b in ("the king", "a city", "war of the river")
    for c in ("good", "bad", "boring film", "price")
    for d in ("in the city", "of a war")
]


@pytest.fixture(scope="module")
def agreement(tuned):
    return judge_for(tuned, TEXTS, None)


@pytest.fixture(scope="module")
def calibrated(base, tuned, agreement, tmp_path_factory):
    _, judge = agreement
    return calibrate(
        base, tuned, judge, tmp_path_factory.mktemp("calibrated") / "d.ken", metric="agreement", tolerance=0.05
    )


def test_the_smallest_delta_tried_that_holds_the_tolerance_is_written(calibrated):
    record = calibrated.record
    held = [t for t in record.tried if t.score >= record.tuned_score - record.tolerance]
    best = min(held, key=lambda t: t.bytes)
    manifest = calibrated.file.manifest
    assert (manifest.method, manifest.codec, manifest.budget.fraction) == (best.method, best.codec, best.fraction)
    assert record.score == best.score >= 0.95
    assert len(held) < len(record.tried)


def test_the_fraction_is_found_by_bisection_and_not_by_trying_them_all(calibrated):
    record = calibrated.record
    assert {t.codec for t in record.tried} == {"zstd", "int8", "int4", "sign"}
    assert {t.method for t in record.tried} == {"magnitude", "ken-shift", "ken"}
    assert len(record.tried) < 60
    lossless = sorted(t.fraction for t in record.tried if (t.method, t.codec) == ("magnitude", "zstd"))
    holding = min(t.fraction for t in record.tried if t.codec == "zstd" and t.score >= 0.95 and t.method == "magnitude")
    below = [f for f in lossless if f < holding]
    assert below
    assert holding / max(below) <= 1.1


@pytest.mark.parametrize("seed", range(4))
def test_the_winner_is_within_a_tenth_of_a_fraction_that_fails_in_its_own_codec(base, tuned, tmp_path, seed):
    """A judge with thresholds: lossy codecs must keep more than the lossless one, and still win on bytes."""
    wanted = {n: t.clone() for n, t in tuned.backbone_tensors.items()}
    ours = base.backbone_tensors
    spread = sum(float((wanted[n] - ours[n]).square().sum()) for n in wanted)

    def judge(model):
        found = dict(model.base_model.named_parameters())
        lost = sum(float((found[n] - t).square().sum()) for n, t in wanted.items()) / spread
        return np.array([lost < 0.3 + 0.05 * seed])

    found = calibrate(base, tuned, judge, tmp_path / "d", tolerance=0.5, methods=["magnitude"])
    manifest = found.file.manifest
    same = [t for t in found.record.tried if t.codec == manifest.codec]
    failed = [t.fraction for t in same if t.score == 0 and t.fraction < manifest.budget.fraction]
    assert manifest.codec != "zstd"
    assert manifest.budget.fraction / max(failed) <= 1.1


def test_the_written_delta_answers_as_its_record_says(base, tuned, calibrated):
    resident = ResidentModel(open_base(str(base.folder)))
    delta = deltafile.read(calibrated.file, base, resident.fingerprint.digest)
    attached = resident.attach(delta)
    resident.activate(attached)
    encoder = Encoder(tuned, tuned.config, {})
    model = graft(resident.backbone, delta.architecture, delta.config, attached.head)
    same = classify(model, encoder, TEXTS) == classify(tuned.model, encoder, TEXTS)
    assert same.mean() == calibrated.record.score


def test_what_was_tried_is_in_the_files_manifest(calibrated):
    assert deltafile.open_file(calibrated.file.path).manifest.calibration == calibrated.record


def test_nothing_but_the_delta_is_left_in_its_folder(calibrated):
    assert [p.name for p in calibrated.file.path.parent.iterdir()] == ["d.ken"]


def test_the_same_inputs_give_the_same_digest(base, tuned, agreement, tmp_path):
    _, judge = agreement
    digests = {
        calibrate(
            base, tuned, judge, tmp_path / n, metric="agreement", methods=["magnitude"], codecs=["zstd"]
        ).file.digest
        for n in "ab"
    }
    assert len(digests) == 1


def test_a_tolerance_of_nothing_is_met_by_all_that_changed(base, tuned, tmp_path):
    """A judge that only the fine-tune itself satisfies."""
    wanted = {n: t.clone() for n, t in tuned.backbone_tensors.items()}

    def judge(model):
        backbone = dict(model.base_model.named_parameters())
        return np.array([torch.equal(backbone[n], t) for n, t in wanted.items()])

    found = calibrate(base, tuned, judge, tmp_path / "d", tolerance=0.0, codecs=["zstd"])
    assert found.record.score == found.record.tuned_score == 1.0
    assert found.file.manifest.stored == found.file.manifest.candidates


def test_lossy_codecs_alone_may_fail_and_the_error_says_what_to_do(base, tuned, tmp_path):
    wanted = tuned.backbone_tensors["embeddings.word_embeddings.weight"].clone()

    def judge(model):
        return np.array([torch.equal(model.base_model.embeddings.word_embeddings.weight, wanted)])

    with pytest.raises(CalibrationError, match="try a lossless codec"):
        calibrate(base, tuned, judge, tmp_path / "d", tolerance=0.1, codecs=["sign"])
    assert list(tmp_path.iterdir()) == []


def test_labels_make_it_accuracy(base, tuned, tmp_path):
    encoder = Encoder(tuned, tuned.config, {})
    answers = classify(tuned.model, encoder, TEXTS)
    labels = [tuned.config.id2label[int(a)] for a in answers]
    labels[0] = next(name for name in tuned.config.id2label.values() if name != labels[0])
    metric, judge = judge_for(tuned, TEXTS, labels)
    assert metric == "accuracy"
    right = judge(tuned.model)
    assert right.mean() == pytest.approx(1 - 1 / len(TEXTS))
    found = calibrate(base, tuned, judge, tmp_path / "d", metric=metric, tolerance=0.1, methods=["magnitude"])
    assert found.record.tuned_score == pytest.approx(1 - 1 / len(TEXTS))


def test_a_label_the_model_does_not_know_is_refused_naming_it(tuned):
    with pytest.raises(DataError, match=r"'planet'; the model knows 0 'place', 1 'person', 2 'number'"):
        judge_for(tuned, ["a"], ["planet"])


def test_a_filter_is_obeyed(base, tuned, agreement, tmp_path):
    outside = dataclasses.replace(PRESETS["attention"], outside="keep")
    found = calibrate(
        base, tuned, agreement[1], tmp_path / "d", metric="agreement", tolerance=0.2, tensors=outside,
        methods=["magnitude"], codecs=["zstd"],
    )  # fmt: skip
    delta = deltafile.read(found.file, base, fingerprint(base.backbone_tensors).digest)
    assert delta.selection.tensors == outside
    assert all(s.mask.all() for n, s in delta.sparse.items() if not outside.covers(n))


def test_other_kinds_than_text_classifiers_need_a_judge_of_their_own(base, tiny_base):
    with pytest.raises(CalibrationError, match="judge of your own"):
        judge_for(open_tuned(str(tiny_base)), ["a"], None)


@pytest.mark.parametrize("options", [{"methods": []}, {"methods": ["ken-grid"]}, {"codecs": []}])
def test_nothing_to_try_is_refused(base, tuned, agreement, tmp_path: Path, options):
    with pytest.raises(CalibrationError, match="at least one method"):
        calibrate(base, tuned, agreement[1], tmp_path / "d", **options)


def pairs(lost: int, won: int, both: int) -> tuple[np.ndarray, np.ndarray]:
    tuned = np.array([True] * lost + [False] * won + [True] * both)
    pruned = np.array([False] * lost + [True] * won + [True] * both)
    return tuned, pruned


def test_confidence_is_even_where_just_the_tolerance_was_lost_and_grows_with_examples():
    assert confidence(*pairs(300, 200, 19_500), 0.005) == pytest.approx(0.5, abs=0.02)
    assert confidence(*pairs(0, 0, 10_000), 0.005) > 0.999
    few, more = confidence(*pairs(0, 0, 100), 0.005), confidence(*pairs(0, 0, 1000), 0.005)
    assert few < more
    assert 0.5 < few < 0.9


def test_confidence_follows_the_normal_approximation_on_many_examples():
    tuned, pruned = pairs(60, 40, 9900)
    share, deviation = 0.002, np.sqrt((0.006 + 0.004 - 0.002**2) / 10_000)
    from statistics import NormalDist

    expected = NormalDist(share, deviation).cdf(0.004)
    assert confidence(tuned, pruned, 0.004) == pytest.approx(expected, abs=0.01)


def test_more_losses_mean_less_confidence():
    found = [confidence(*pairs(lost, 3, 500), 0.01) for lost in (0, 3, 6, 12, 24)]
    assert found == sorted(found, reverse=True)
    assert found[0] - found[-1] > 0.9
