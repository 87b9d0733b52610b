from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ken_core import calibration, deltafile
from ken_core.calibration import best_within, calibrate
from ken_core.checkpoint import open_base, open_tuned
from ken_core.errors import CalibrationError, TooSmallError
from ken_core.fingerprint import fingerprint
from ken_core.heads import graft
from ken_core.judges import Judges, judges_for
from ken_core.manifest import Calibration
from ken_core.promise import Paired, holds, upper_bound
from ken_core.resident import ResidentModel
from ken_core.tensor_filter import PRESETS
from ken_core.viz.draw_calibration import draw_calibration

TEXTS = [
    f"{a} {b} {c} {d}"
    for a in ("who is", "what was", "when", "how many")
    for b in ("the king", "a city", "war of the river")
    for c in ("good", "bad", "boring film", "price")
    for d in ("in the city", "of a war")
]


@pytest.fixture(scope="module", autouse=True)
def _parts_of_a_tiny_base() -> Iterator[None]:
    """A file's description alone is a tenth of the tiny base, so larger parts of it are tried."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(calibration, "PARTS", (2, 3, 4, 6))
        yield


@pytest.fixture(scope="module")
def agreement(tuned) -> Judges:
    return judges_for(tuned, TEXTS)


@pytest.fixture(scope="module")
def calibrated(base, tuned, agreement, tmp_path_factory):
    return calibrate(base, tuned, agreement, tmp_path_factory.mktemp("calibrated") / "d.ken", tolerance=0.1)


@pytest.fixture(scope="module")
def sized(base, tuned, agreement, calibrated, tmp_path_factory):
    size = calibrated.record.tried[0].bytes // 3
    return size, best_within(base, tuned, agreement, size, tmp_path_factory.mktemp("sized") / "d.ken")


def judged(record: Calibration):
    return [t for t in record.tried if t.score is not None]


def judge_of(base, tuned, limit: float) -> Judges:
    """All answers are right while at most `limit` of what fine-tuning added, in squares, is lost; else none is."""
    wanted = {n: t.clone() for n, t in tuned.backbone_tensors.items()}
    ours = base.backbone_tensors
    spread = sum(float((wanted[n] - ours[n]).square().sum()) for n in wanted)

    def lost(model) -> float:
        found = dict(model.base_model.named_parameters())
        return sum(float((found[n] - t).square().sum()) for n, t in wanted.items()) / spread

    return Judges(lambda model: np.full(300, lost(model) <= limit), lost, choosing=1)


def test_the_smallest_delta_that_was_promised_before_one_failed_is_written(calibrated):
    record = calibrated.record
    looks = judged(record)
    made = [holds(Paired(t.lost, t.won, record.examples), 0.1, 0.9) for t in looks]
    assert made == [True] * made.count(True) + [False] * (made.count(False) > 0)
    chosen = record.tried[record.chosen]
    assert chosen == looks[made.count(True) - 1]
    assert [t.bytes for t in looks] == sorted((t.bytes for t in looks), reverse=True)
    manifest = calibrated.file.manifest
    assert (manifest.method, manifest.codec) == (chosen.method, chosen.codec)
    assert (record.promised, record.tolerance, record.confidence) == (0.1, 0.1, 0.9)
    assert len(looks) > 2


def test_of_each_size_the_nearest_delta_is_judged(calibrated):
    tried = calibrated.record.tried
    assert (tried[0].method, tried[0].codec, tried[0].fraction, tried[0].distance) == ("magnitude", "zstd", 1.0, 0.0)
    pairs = list(zip(tried[1::2], tried[2::2], strict=True))
    assert pairs
    for by_svd, by_magnitude in pairs:
        assert (by_svd.method, by_svd.fitted) == ("svd", False)
        assert (by_magnitude.method, by_magnitude.fitted) == ("magnitude", True)
        nearest = min((by_svd, by_magnitude), key=lambda t: t.distance)
        assert [t.score is not None for t in (by_svd, by_magnitude)] == [t is nearest for t in (by_svd, by_magnitude)]


def test_the_bounds_in_the_record_are_those_of_its_counts(calibrated):
    record = calibrated.record
    for trial in judged(record):
        assert trial.bound == upper_bound(Paired(trial.lost, trial.won, record.examples), 0.9)
        assert trial.score == pytest.approx(record.tuned_score - (trial.lost - trial.won) / record.examples)


def test_the_two_parts_share_no_text_and_are_a_fifth_and_the_rest(calibrated):
    assert (calibrated.record.choosing, calibrated.record.examples) == (19, 77)


def test_the_written_delta_answers_as_its_record_says(base, tuned, agreement, calibrated):
    resident = ResidentModel(open_base(str(base.folder)))
    delta = deltafile.read(calibrated.file, base, resident.fingerprint.digest)
    attached = resident.attach(delta)
    resident.activate(attached)
    model = graft(resident.backbone, delta.architecture, delta.config, attached.head)
    assert agreement.judge(model).mean() == calibrated.record.score


def test_what_was_tried_is_in_the_files_manifest(calibrated):
    assert deltafile.open_file(calibrated.file.path).manifest.calibration == calibrated.record


def test_nothing_but_the_delta_is_left_in_its_folder(calibrated, sized):
    for found in (calibrated, sized[1]):
        assert [p.name for p in found.file.path.parent.iterdir()] == ["d.ken"]


def test_the_same_inputs_give_the_same_digest(base, tuned, agreement, calibrated, tmp_path):
    again = calibrate(base, tuned, agreement, tmp_path / "d.ken", tolerance=0.1)
    assert again.file.digest == calibrated.file.digest


def test_a_size_is_kept_with_its_record_and_the_bound_is_promised(sized):
    size, found = sized
    record = found.record
    (look,) = judged(record)
    assert 0.85 * size < found.file.size <= size
    assert (record.tolerance, record.promised, record.needed) == (None, look.bound, None)
    assert record.tried[record.chosen] == look
    assert len(record.tried) == 2


def test_a_size_below_what_every_delta_needs_is_refused(base, tuned, agreement, tmp_path):
    with pytest.raises(TooSmallError, match="give a larger size"):
        best_within(base, tuned, agreement, 3000, tmp_path / "d")
    assert list(tmp_path.iterdir()) == []


def test_where_only_all_that_changed_holds_it_is_written_and_the_next_smaller_named(base, tuned, tmp_path):
    found = calibrate(base, tuned, judge_of(base, tuned, 0.0), tmp_path / "d", tolerance=0.01)
    assert found.file.manifest.codec == "zstd"
    assert found.file.manifest.stored == found.file.manifest.candidates
    assert found.record.chosen == 0
    assert found.failed is not None
    assert (found.failed.score, found.failed.lost) == (0.0, 300)
    assert found.record.needed is None


def test_the_examples_needed_for_the_next_smaller_delta_are_told(base, tuned, tmp_path):
    def one_wrong(model):
        return judge(model) | (np.arange(300) > 0)

    judges = judge_of(base, tuned, 0.0)
    judge = judges.judge
    found = calibrate(base, tuned, dataclasses.replace(judges, judge=one_wrong), tmp_path / "d", tolerance=0.01)
    assert found.failed is not None
    assert found.failed.lost == 1
    assert found.record.needed is not None
    assert 500 < found.record.needed < 1500


def test_too_few_examples_are_refused_before_anything_is_tried_and_the_least_is_told(base, tuned, agreement, tmp_path):
    with pytest.raises(CalibrationError, match=r"found 77 examples .* takes 460, .*575 distinct lines"):
        calibrate(base, tuned, agreement, tmp_path / "d", tolerance=0.005)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("tolerance", [0.0, 1.0, -0.1])
def test_no_tolerance_at_all_is_refused_since_examples_cannot_promise_it(base, tuned, agreement, tmp_path, tolerance):
    with pytest.raises(CalibrationError, match="more than 0 and less than 1"):
        calibrate(base, tuned, agreement, tmp_path / "d", tolerance=tolerance)


def test_nothing_is_written_where_even_all_that_was_selected_loses_too_much(base, tuned, tmp_path):
    judges = judge_of(base, tuned, 0.0)
    with pytest.raises(CalibrationError, match=r"loses 300 and wins 0 of 300 answers\. Select from all tensors"):
        calibrate(base, tuned, judges, tmp_path / "d", tolerance=0.1, tensors=PRESETS["attention"])
    assert list(tmp_path.iterdir()) == []


def test_a_filter_is_obeyed(base, tuned, agreement, tmp_path):
    outside = dataclasses.replace(PRESETS["attention"], outside="keep")
    found = calibrate(base, tuned, agreement, tmp_path / "d", tolerance=0.2, tensors=outside, methods=["magnitude"])
    delta = deltafile.read(found.file, base, fingerprint(base.backbone_tensors).digest)
    assert delta.selection.tensors == outside
    assert all(s.mask.all() for n, s in delta.sparse.items() if not outside.covers(n))


def test_methods_and_codecs_are_those_asked_for(base, tuned, agreement, tmp_path):
    found = calibrate(
        base, tuned, agreement, tmp_path / "d", tolerance=0.2, methods=["svd", "ken-shift"], codecs=["int8", "sign"]
    )
    tried = {(t.method, t.codec) for t in found.record.tried[1:]}
    assert tried == {("svd", "int8"), ("ken-shift", "int8"), ("ken-shift", "sign")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": []}, "at least one method"),
        ({"codecs": []}, "at least one method and a codec"),
        ({"methods": ["svd"], "codecs": ["sign"]}, "a codec that can store it"),
        ({"methods": ["ken-grid"]}, "keeps no given size"),
        ({"confidence": 1.0}, "found a confidence of 1"),
        ({"confidence": 0.4}, "at least 0.5"),
    ],
)
def test_what_cannot_be_tried_is_refused(base, tuned, agreement, tmp_path: Path, options, message):
    with pytest.raises(CalibrationError, match=message):
        calibrate(base, tuned, agreement, tmp_path / "d", **options)


@pytest.mark.parametrize("answer", [np.ones(300), np.ones((300, 1), bool), np.ones(0, bool)])
def test_a_judge_that_returns_no_bools_is_refused(base, tuned, tmp_path, answer):
    judges = Judges(lambda model: answer, lambda model: 0.0, choosing=1)
    with pytest.raises(CalibrationError, match="expected one bool for each example"):
        calibrate(base, tuned, judges, tmp_path / "d")


def test_a_judge_that_answers_other_examples_for_each_model_is_refused(base, tuned, tmp_path):
    sizes = iter([300, 299])
    judges = Judges(lambda model: np.ones(next(sizes), bool), lambda model: 0.0, choosing=1)
    with pytest.raises(CalibrationError, match="expected 300 bools, as for the fine-tune"):
        calibrate(base, tuned, judges, tmp_path / "d", tolerance=0.1)


def test_a_curve_is_drawn_of_each_kind_of_record(calibrated, sized, tmp_path):
    earlier = Calibration.model_validate(EARLIER)
    for name, record in (("tolerance", calibrated.record), ("size", sized[1].record), ("earlier", earlier)):
        draw_calibration(record, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000


EARLIER = {
    "metric": "accuracy",
    "examples": 500,
    "tolerance": 0.005,
    "tuned_score": 0.96,
    "score": 0.956,
    "confidence": 0.53,
    "tried": [
        {"method": "magnitude", "scope": "global", "fraction": 0.1, "codec": "int4", "bytes": 2000, "score": 0.956},
        {"method": "ken", "scope": "row", "fraction": 0.2, "codec": "zstd", "bytes": 9000, "score": 0.91},
    ],
}


def test_a_record_of_an_earlier_release_is_read_and_promises_nothing():
    record = Calibration.model_validate(EARLIER)
    assert (record.confidence, record.promised, record.chosen) == (None, None, None)
    assert record.tried[0].score == 0.956
    assert Calibration.model_validate(record.model_dump()) == record


def test_a_record_that_chose_what_it_did_not_try_is_refused(calibrated):
    with pytest.raises(ValueError, match="is said to be chosen"):
        Calibration.model_validate({**calibrated.record.model_dump(), "chosen": 99})


def test_calibration_changes_no_weight_of_either_checkpoint(base, tuned, calibrated):
    assert tuned.identity == open_tuned(str(tuned.folder)).identity
    assert base.identity == open_base(str(base.folder)).identity
    assert fingerprint(base.backbone_tensors) == base.identity
