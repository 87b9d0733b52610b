"""The method `svd`, from a fine-tune to a file and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ken_core.checkpoint import Checkpoint
from ken_core.delta import merge
from ken_core.deltafile import load, open_file, write
from ken_core.entries import LowRank
from ken_core.errors import SelectionError
from ken_core.extraction import Extraction, extract
from ken_core.file_size import write_within
from ken_core.selection import Budget, Selection
from ken_core.tensor_filter import TensorFilter

WORDS = "embeddings.word_embeddings.weight"


def svd(**budget: float) -> Selection:
    return Selection("svd", Budget(**budget))


@pytest.fixture(scope="module")
def extraction(base: Checkpoint, tuned: Checkpoint) -> Extraction:
    return Extraction(base, tuned)


def left_over(base: Checkpoint, tuned: Checkpoint, merged: dict[str, torch.Tensor]) -> float:
    """The share of what fine-tuning added to matrices that is not kept."""
    lost = total = 0.0
    for name, theirs in tuned.backbone_tensors.items():
        if theirs.ndim == 2:
            total += float(((theirs - base.backbone_tensors[name]) ** 2).sum())
            lost += float(((theirs - merged[name]) ** 2).sum())
    return lost / total


def test_with_all_the_energy_the_fine_tune_is_kept_to_the_rounding_of_its_factors(base, tuned, extraction):
    merged = merge(base, extraction.delta(svd(energy=1.0)))
    assert left_over(base, tuned, merged) < 1e-5
    for name, theirs in tuned.backbone_tensors.items():
        assert torch.allclose(merged[name], theirs, atol=2e-3), name


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_the_energy_asked_for_is_kept(base, tuned, extraction, share):
    lost = left_over(base, tuned, merge(base, extraction.delta(svd(energy=share))))
    assert 0.2 * (1 - share) < lost <= 1 - share + 1e-4


def test_vectors_are_kept_whole_and_exactly(base, tuned, extraction):
    merged = merge(base, extraction.delta(svd(nbytes=0)))
    for name, theirs in tuned.backbone_tensors.items():
        expected = theirs if theirs.ndim == 1 else base.backbone_tensors[name]
        assert torch.equal(merged[name], expected), name


def test_a_smaller_budget_keeps_less(base, tuned, extraction):
    lost = [left_over(base, tuned, merge(base, extraction.delta(svd(nbytes=n)))) for n in (0, 2000, 8000, 100_000)]
    assert lost == sorted(lost, reverse=True)
    assert lost[0] == 1.0
    assert len(set(lost)) == 4


def test_an_embedding_keeps_whole_rows_where_few_tokens_were_tuned(base, tuned, monkeypatch):
    theirs = base.backbone_tensors[WORDS].clone()
    theirs[[7, 31]] += torch.randn(2, theirs.shape[1], generator=torch.Generator().manual_seed(1))
    monkeypatch.setitem(tuned.backbone_tensors, WORDS, theirs)
    delta = Extraction(base, tuned).delta(Selection("svd", Budget(energy=0.999), tensors=TensorFilter((WORDS,))))
    assert WORDS not in delta.lowrank
    assert delta.sparse[WORDS].values.size == 2 * theirs.shape[1]
    assert torch.equal(merge(base, delta)[WORDS], theirs)


@pytest.mark.parametrize("codec", ["raw", "zstd", "int8", "int4"])
def test_a_file_gives_back_what_was_written(base, extraction, tmp_path, codec):
    delta = extraction.delta(svd(energy=0.95), codec)
    file = write(delta, base, tmp_path / "d.ken", codec)
    found = load(file.path, base)
    assert found.selection == delta.selection
    assert found.lowrank.keys() == delta.lowrank.keys()
    for name, entry in delta.lowrank.items():
        other = found.lowrank[name]
        steps = {"int8": 127, "int4": 7}.get(codec)
        for ours, theirs in ((entry.a.T, other.a.T), (entry.b, other.b)):
            if steps is None:
                assert torch.equal(ours, theirs)
            else:
                assert ((ours - theirs).abs() <= ours.abs().amax(dim=0) / steps * 0.501 + 1e-9).all()
    assert file.manifest.lowrank[next(iter(found.lowrank))].codec == codec


def test_a_delta_is_served_as_its_merged_model(base, tuned, extraction, tmp_path, batch, answers):
    from ken_core.delta import apply

    delta = load(write(extraction.delta(svd(energy=0.95), "int4"), base, tmp_path / "d.ken", "int4").path, base)
    apply(base, delta, tmp_path / "applied")
    before, after = answers(tuned, batch), answers(tmp_path / "applied", batch)
    assert torch.allclose(before.softmax(-1), after.softmax(-1), atol=0.1)


@pytest.mark.parametrize("size", [60_000, 80_000, 120_000])
def test_a_file_of_a_given_size_is_at_most_that_and_nearly_that(base, extraction, tmp_path, size):
    delta, file = write_within(extraction, base, size, tmp_path / "d.ken")
    assert file.size == file.path.stat().st_size <= size
    more = extraction.delta(svd(nbytes=2 * (delta.selection.budget.nbytes or 1)), "int4")
    assert file.size > 0.9 * size or len(more.lowrank) == len(delta.lowrank)


def test_a_size_that_the_head_alone_exceeds_is_refused_with_what_is_possible(base, extraction, tmp_path):
    with pytest.raises(SelectionError, match=r"has at least [\d,]+ bytes .*; 1,000 were asked for"):
        write_within(extraction, base, 1000, tmp_path / "d.ken")
    assert list(tmp_path.iterdir()) == []


def test_the_same_fine_tune_gives_the_same_file(base, tuned, tmp_path):
    files = [write_within(Extraction(base, tuned), base, 80_000, tmp_path / f"{i}.ken")[1].digest for i in range(2)]
    assert len(set(files)) == 1


def test_an_adapters_factors_are_never_rounded(base, tuned, tmp_path):
    import dataclasses

    name = "encoder.layer.0.attention.self.query.weight"
    make = torch.Generator().manual_seed(0)
    factors = LowRank(torch.randn(2, 32, generator=make), torch.randn(32, 2, generator=make), 0.5)
    delta = dataclasses.replace(extract(base, tuned), lowrank={name: factors}, adapter="lora")
    delta = dataclasses.replace(delta, sparse={n: s for n, s in delta.sparse.items() if n != name})
    found = load(write(delta, base, tmp_path / "d.ken", "int4").path, base)
    assert torch.equal(found.lowrank[name].a, factors.a)


@pytest.mark.parametrize(
    ("method", "budget", "message"),
    [
        ("svd", {"fraction": 0.1}, "a share of the energy, or bytes"),
        ("magnitude", {"energy": 0.9}, "method 'svd' alone"),
        ("magnitude", {"nbytes": 1000}, "method 'svd' alone"),
        ("svd", {"energy": 1.5}, "at most 1"),
        ("svd", {"energy": 0.0}, "above 0"),
        ("svd", {"nbytes": -1}, "0 or more"),
        ("svd", {"energy": 0.9, "nbytes": 5}, "exactly one"),
        ("svd", {"energy": 0.9, "scope": "row"}, "global"),
    ],
)
def test_budgets_that_do_not_go_with_a_method_are_refused(method, budget, message):
    with pytest.raises(SelectionError, match=message):
        Selection(method, Budget(**budget))


def test_factors_that_claim_another_dtype_than_quantised_ones_have_are_refused(base, extraction, tmp_path):
    file = write(extraction.delta(svd(energy=0.9), "int4"), base, tmp_path / "d.ken", "int4")
    data = bytearray(file.path.read_bytes())
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    plain = json.loads(header["__metadata__"]["ken"])
    next(iter(plain["lowrank"].values()))["dtype"] = "float16"
    header["__metadata__"]["ken"] = json.dumps(plain)
    text = json.dumps(header).encode()
    Path(tmp_path / "forged.ken").write_bytes(len(text).to_bytes(8, "little") + text + bytes(data[8 + length :]))
    from ken_core.errors import DeltaFormatError

    with pytest.raises(DeltaFormatError, match="are float32 once decoded"):
        open_file(tmp_path / "forged.ken")
