"""Merges of deltas, against the same arithmetic on whole state dicts, written here in torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from transformers import BertForSequenceClassification

from ken_core.arithmetic import combine
from ken_core.bits import as_bits, same_bits
from ken_core.blocks import BLOCK_ELEMENTS
from ken_core.checkpoint import Checkpoint, open_base, open_tuned
from ken_core.codings import CODECS
from ken_core.delta import Delta, apply, merge
from ken_core.deltafile import load, write
from ken_core.entries import LowRank
from ken_core.extraction import extract
from ken_core.merge_parts import Part
from ken_core.merge_recipe import MergeRecipe
from ken_core.selection import Budget, Selection
from tests.ken_core.conftest import Save

Tensors = Mapping[str, torch.Tensor]
QUERY = "encoder.layer.0.attention.self.query.weight"
KEY = "encoder.layer.0.attention.self.key.weight"
UP = "encoder.layer.1.intermediate.dense.weight"
WEIGHTS = (0.7, -0.4, 1.3)


def low_rank(rows: int, columns: int, rank: int, seed: int, scale: float = 0.5) -> LowRank:
    make = torch.Generator().manual_seed(seed)
    a, b = (0.1 * torch.randn(shape, generator=make) for shape in ((rank, columns), (rows, rank)))
    return LowRank(a, b, scale)


def with_factors(delta: Delta, shifts: Mapping[str, LowRank], without: Sequence[str] = ()) -> Delta:
    """A delta in which some matrices are shifted by factors instead, and some not at all."""
    rest = {name: entry for name, entry in delta.sparse.items() if name not in {*shifts, *without}}
    return dataclasses.replace(delta, sparse=rest, lowrank=shifts)


def parts_of(deltas: Sequence[Delta], weights: Sequence[float] = WEIGHTS) -> list[Part]:
    return [Part(d, w, f"{i:064x}") for i, (d, w) in enumerate(zip(deltas, weights, strict=False))]


@pytest.fixture(scope="module")
def tunes(tiny_tuned: dict[str, Path]) -> list[Checkpoint]:
    return [open_tuned(str(folder)) for folder in tiny_tuned.values()]


@pytest.fixture(scope="module")
def tenths(base: Checkpoint, tunes: list[Checkpoint]) -> list[Delta]:
    """Three deltas that keep a tenth each."""
    return [extract(base, tuned) for tuned in tunes]


@pytest.fixture(scope="module")
def wholes(base: Checkpoint, tunes: list[Checkpoint]) -> list[Delta]:
    """Three deltas that keep everything."""
    return [extract(base, tuned, Selection(budget=Budget(fraction=1.0))) for tuned in tunes]


@pytest.fixture(scope="module")
def mixed(tenths: list[Delta]) -> list[Delta]:
    """Deltas of which two shift a matrix by factors that the third changes in single elements."""
    first = with_factors(tenths[0], {QUERY: low_rank(32, 32, 2, 1), UP: low_rank(64, 32, 3, 2)})
    second = with_factors(tenths[1], {QUERY: low_rank(32, 32, 4, 3, scale=-1.5)}, without=(UP,))
    return [first, second, tenths[2]]


@pytest.fixture(scope="module")
def halves(save_random: Save, save_noisy: Save, tiny_base: Path) -> tuple[Checkpoint, list[Delta]]:
    """A base in bfloat16, and deltas of it."""
    from transformers import AutoConfig, BertModel

    folder = save_random(BertModel, AutoConfig.from_pretrained(tiny_base), dtype=torch.bfloat16)
    base = open_base(str(folder))
    tuned = [open_tuned(str(save_noisy(BertForSequenceClassification, folder, seed=seed))) for seed in (1, 2, 3)]
    return base, [extract(base, one, Selection(budget=Budget(fraction=0.4))) for one in tuned]


@pytest.fixture(params=["tenths", "wholes", "mixed", "halves"])
def case(request: pytest.FixtureRequest, base: Checkpoint) -> tuple[Checkpoint, list[Delta]]:
    found = request.getfixturevalue(request.param)
    return found if request.param == "halves" else (base, found)


def shifts_of(base: Checkpoint, deltas: Sequence[Delta]) -> list[dict[str, torch.Tensor]]:
    ours = base.backbone_tensors
    return [{n: t.double() - ours[n].double() for n, t in merge(base, delta).items()} for delta in deltas]


def added(base: Checkpoint, sums: Tensors) -> dict[str, torch.Tensor]:
    """The state dict of a merge: one rounding from float64."""
    return {n: (t.double() + sums[n]).to(t.dtype) for n, t in base.backbone_tensors.items()}


def trimmed(shifts: Tensors, density: float) -> dict[str, torch.Tensor]:
    """A task vector with its largest elements alone, over all tensors (TIES, section 4); of equal ones the first."""
    sizes = torch.cat([t.abs().reshape(-1) for t in shifts.values()])
    keep = torch.zeros_like(sizes)
    keep[sizes.argsort(descending=True, stable=True)[: round(density * sizes.numel())]] = 1.0
    parts = keep.split([t.numel() for t in shifts.values()])
    return {n: t * part.reshape(t.shape) for (n, t), part in zip(shifts.items(), parts, strict=True)}


def elected(shifts: Sequence[Tensors], weights: Sequence[float], normalize: bool) -> dict[str, torch.Tensor]:
    """The mean, or sum, of the shifts that have the elected sign."""
    sums = {}
    for name in shifts[0]:
        pulls = torch.stack([w * shift[name] for w, shift in zip(weights, shifts, strict=True)])
        agree = (pulls.sign() == pulls.sum(0).sign()) & (pulls != 0)
        sizes = torch.tensor(weights, dtype=torch.float64).abs().reshape(-1, *([1] * (pulls.ndim - 1))) * agree
        divisor = sizes.sum(0).clamp(min=1e-300) if normalize else 1.0
        sums[name] = (pulls * agree).sum(0) / divisor
    return sums


def assert_same(base: Checkpoint, found: Delta, expected: Tensors, *, factors: bool = False) -> None:
    """Compare weights with an expected state dict, to the last bit but one; with the sums of factors in float32."""
    for name, tensor in merge(base, found).items():
        step = torch.finfo(tensor.dtype).eps
        torch.testing.assert_close(
            tensor, expected[name], rtol=step, atol=1e-7 if factors or tensor.dtype == torch.float32 else 1e-3, msg=name
        )


@pytest.mark.parametrize("normalize", [False, True])
def test_linear_is_the_sum_of_weighted_shifts(case, normalize):
    base, deltas = case
    found = combine(base, parts_of(deltas), MergeRecipe(normalize=normalize))
    divisor = sum(map(abs, WEIGHTS)) if normalize else 1.0
    shifts = shifts_of(base, deltas)
    sums = {n: sum(w / divisor * s[n] for w, s in zip(WEIGHTS, shifts, strict=True)) for n in base.backbone_tensors}
    assert_same(base, found, added(base, sums))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("density", [1.0, 0.3, 0.05])
def test_ties_trims_elects_and_merges_what_agrees(case, density, normalize):
    base, deltas = case
    found = combine(base, parts_of(deltas), MergeRecipe("ties", density, normalize))
    shifts = [trimmed(shift, density) for shift in shifts_of(base, deltas)]
    assert_same(base, found, added(base, elected(shifts, WEIGHTS, normalize)))


def test_deltas_that_were_trimmed_by_extraction_merge_as_whole_ones_at_their_density(base, tenths, wholes):
    for density in (0.1, 0.02):
        found, expected = (
            merge(base, combine(base, parts_of(deltas), MergeRecipe("ties", density))) for deltas in (tenths, wholes)
        )
        assert all(same_bits(tensor, expected[name]) for name, tensor in found.items())


@pytest.mark.parametrize("normalize", [False, True])
def test_dare_ties_elects_among_what_was_not_dropped(base, wholes, normalize):
    parts, density = parts_of(wholes), 0.5
    alone = [combine(base, [dataclasses.replace(p, weight=1.0)], MergeRecipe("dare-linear", density)) for p in parts]
    found = combine(base, parts, MergeRecipe("dare-ties", density, normalize))
    assert_same(base, found, added(base, elected(shifts_of(base, alone), WEIGHTS, normalize)), factors=True)


def test_dare_linear_is_the_sum_of_what_was_not_dropped(base, mixed):
    parts = parts_of(mixed)
    alone = [combine(base, [dataclasses.replace(p, weight=1.0)], MergeRecipe("dare-linear", 0.5)) for p in parts]
    found = combine(base, parts, MergeRecipe("dare-linear", 0.5))
    shifts = shifts_of(base, alone)
    sums = {n: sum(w * s[n] for w, s in zip(WEIGHTS, shifts, strict=True)) for n in base.backbone_tensors}
    assert_same(base, found, added(base, sums), factors=True)


def test_dare_keeps_a_share_of_each_shift_and_divides_it_by_the_density(base, wholes):
    density = 0.25
    found = combine(base, parts_of(wholes[:1], [1.0]), MergeRecipe("dare-linear", density))
    (before,), (after,) = shifts_of(base, wholes[:1]), shifts_of(base, [found])
    name = "embeddings.word_embeddings.weight"
    kept = after[name] != 0
    assert abs(float(kept.double().mean()) - density) < 0.02
    torch.testing.assert_close(after[name][kept], before[name][kept] / density, rtol=1e-4, atol=1e-6)


def test_the_mean_of_many_dares_is_the_linear_merge(base, wholes):
    parts = parts_of(wholes)
    made = [combine(base, parts, MergeRecipe("dare-linear", 0.5, seed=seed)) for seed in range(60)]
    mean = torch.stack([shift[QUERY] for shift in shifts_of(base, made)]).mean(0)
    (linear,) = shifts_of(base, [combine(base, parts, MergeRecipe())])
    error = (mean - linear[QUERY]).abs().mean() / linear[QUERY].abs().mean()
    assert error < 3 / 60**0.5


def test_dare_is_the_same_for_the_same_seed_whatever_the_order_and_the_threads(base, wholes):
    parts, recipe = parts_of(wholes[:2], [0.5, 0.5]), MergeRecipe("dare-linear", 0.3, seed=7)
    first = combine(base, parts, recipe)
    torch.set_num_threads(3)
    assert all(same_bits(a, merge(base, combine(base, parts, recipe))[n]) for n, a in merge(base, first).items())
    turned = combine(base, parts[::-1], recipe)
    assert all(same_bits(a, merge(base, turned)[n]) for n, a in merge(base, first).items())
    other = combine(base, parts, dataclasses.replace(recipe, seed=8))
    assert not torch.equal(merge(base, first)[QUERY], merge(base, other)[QUERY])


@pytest.mark.parametrize("recipe", [MergeRecipe(), MergeRecipe(normalize=True), MergeRecipe("ties")])
def test_one_part_of_weight_1_is_that_part_bit_for_bit(case, recipe):
    base, deltas = case
    for delta in deltas:
        found = combine(base, parts_of([delta], [1.0]), recipe)
        for name, tensor in merge(base, delta).items():
            assert same_bits(merge(base, found)[name], tensor), name


def test_a_value_that_one_part_alone_changes_keeps_its_bits(base, tenths):
    """Also where base and shift are so different in size that their sum is not the value again."""
    huge = dataclasses.replace(tenths[0].sparse[QUERY], values=as_bits(torch.tensor([1e-30])))
    positions = huge.positions * 0
    positions[0] = 1
    first = dataclasses.replace(tenths[0], sparse={QUERY: dataclasses.replace(huge, positions=positions, selected=1)})
    rest = {n: e for n, e in tenths[1].sparse.items() if n != QUERY}
    second = dataclasses.replace(tenths[1], sparse=rest)
    found = merge(base, combine(base, parts_of([first, second], [1.0, 1.0]), MergeRecipe()))
    assert float(found[QUERY].reshape(-1)[0]) == pytest.approx(1e-30, rel=1e-6)
    for name in rest:
        assert same_bits(found[name], merge(base, second)[name])


def test_a_negative_weight_takes_the_shift_away(base, wholes):
    found = merge(base, combine(base, parts_of(wholes[:1], [-1.0]), MergeRecipe()))
    tuned = merge(base, wholes[0])
    for name, ours in base.backbone_tensors.items():
        torch.testing.assert_close(found[name], 2 * ours - tuned[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["ties", "dare-ties"])
def test_normalised_signs_do_not_turn_a_negative_weight_around(base, wholes, method):
    found = merge(base, combine(base, parts_of(wholes[:1], [-0.5]), MergeRecipe(method)))
    for name, ours in base.backbone_tensors.items():
        torch.testing.assert_close(found[name] - ours, ours - merge(base, wholes[0])[name], rtol=1e-4, atol=1e-6)


def test_an_exact_tie_elects_no_sign(base, tenths):
    opposite = combine(base, parts_of(tenths[:1], [-1.0]), MergeRecipe())
    mirrored = parts_of([tenths[0], tenths[0]], [0.5, -0.5])
    assert opposite.stored
    assert not combine(base, mirrored, MergeRecipe("ties")).sparse


def test_shifts_that_are_all_of_low_rank_stay_factors(base, mixed):
    found = combine(base, parts_of(mixed[:2]), MergeRecipe())
    assert found.lowrank[QUERY].rank == 2 + 4
    assert same_bits(found.lowrank[UP].b, mixed[0].lowrank[UP].b)  # alone: the weight goes into the scale
    assert found.lowrank[UP].scale == 0.7 * 0.5
    assert not found.lowrank.keys() & found.sparse.keys()


def test_a_matrix_with_factors_and_single_elements_is_stored_by_elements(base, mixed):
    found = combine(base, parts_of(mixed), MergeRecipe())
    assert QUERY in found.sparse
    assert QUERY not in found.lowrank


def test_factors_that_are_no_smaller_than_their_matrix_become_elements(base, tenths):
    deltas = [with_factors(tenths[i], {QUERY: low_rank(32, 32, 9, i)}) for i in (0, 1)]
    found = combine(base, parts_of(deltas), MergeRecipe())
    assert QUERY in found.sparse
    sums = sum(w * d.lowrank[QUERY].scale * d.lowrank[QUERY].b @ d.lowrank[QUERY].a for w, d in zip(WEIGHTS, deltas))  # noqa: B905
    torch.testing.assert_close(merge(base, found)[QUERY], base.backbone_tensors[QUERY] + sums)


def test_half_precision_factors_keep_their_dtype_where_weights_are_equal(base, tenths):
    def narrow(seed: int, dtype: torch.dtype) -> Delta:
        entry = low_rank(32, 32, 2, seed)
        return with_factors(tenths[0], {QUERY: LowRank(entry.a.to(dtype), entry.b.to(dtype), 1.0)})

    deltas = [narrow(1, torch.float16), narrow(2, torch.float16)]
    assert combine(base, parts_of(deltas, [0.5, 0.5]), MergeRecipe()).lowrank[QUERY].a.dtype == torch.float16
    assert combine(base, parts_of(deltas, [0.7, 0.3]), MergeRecipe()).lowrank[QUERY].a.dtype == torch.float32
    other = [narrow(1, torch.float16), narrow(2, torch.bfloat16)]
    assert combine(base, parts_of(other, [0.5, 0.5]), MergeRecipe()).lowrank[QUERY].a.dtype == torch.float32


def test_tensors_of_several_blocks_are_merged_as_one(tmp_path, tiny_base, make_fine_tune):
    from transformers import AutoConfig, AutoTokenizer, BertModel

    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(tiny_base)
    config.vocab_size = BLOCK_ELEMENTS // 32 * 2 + 77
    BertModel(config).save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(tmp_path / "base")
    base = open_base(str(tmp_path / "base"))
    tuned = [open_tuned(str(make_fine_tune(tmp_path / "base", ["a", "b"], seed=seed))) for seed in (1, 2)]
    deltas = [extract(base, one, Selection(budget=Budget(fraction=0.3))) for one in tuned]
    found = combine(base, parts_of(deltas), MergeRecipe())
    shifts = shifts_of(base, deltas)
    sums = {n: sum(w * s[n] for w, s in zip(WEIGHTS, shifts, strict=False)) for n in base.backbone_tensors}
    assert_same(base, found, added(base, sums))
    trimmed_too = combine(base, parts_of(deltas), MergeRecipe("ties", 0.1))
    expected = elected([trimmed(shift, 0.1) for shift in shifts], WEIGHTS[:2], normalize=True)
    assert_same(base, trimmed_too, added(base, expected))


@pytest.mark.parametrize("head", [0, 1])
def test_the_result_has_the_head_of_one_part(base, tenths, head):
    found, chosen = combine(base, parts_of(tenths), MergeRecipe(), head), tenths[head]
    assert found.config == chosen.config
    assert found.head.keys() == chosen.head.keys()
    assert all(same_bits(found.head[n], t) for n, t in chosen.head.items())


def test_a_head_can_be_put_on_the_shifts_of_others(base, tenths):
    found = combine(base, parts_of(tenths[:2], [0.0, 1.0]), MergeRecipe(), head=0)
    assert found.config["id2label"] == tenths[0].config["id2label"]
    assert all(same_bits(merge(base, tenths[1])[n], t) for n, t in merge(base, found).items())


@pytest.mark.parametrize("codec", CODECS)
def test_a_merge_is_a_delta_like_any_other(base, mixed, tmp_path, codec):
    recipe = MergeRecipe("dare-ties", 0.5, seed=3)
    for found in (combine(base, parts_of(mixed), recipe, 1), combine(base, parts_of(mixed[:2]), MergeRecipe())):
        file = write(found, base, tmp_path / "d.ken", codec)
        read = load(file.path, base)
        assert read.merged == found.merged == file.manifest.merged
        assert read.sparse.keys() == found.sparse.keys()
        assert read.lowrank.keys() == found.lowrank.keys()
        if codec in ("raw", "zstd"):
            assert all(same_bits(t, merge(base, read)[n]) for n, t in merge(base, found).items())


def test_the_file_names_its_parents_and_the_recipe(base, tenths, tmp_path):
    found = combine(base, parts_of(tenths), MergeRecipe("ties", 0.2), head=2)
    record = write(found, base, tmp_path / "d.ken").manifest.merged
    assert [(p.digest, p.weight) for p in record.parents] == [(f"{i:064x}", w) for i, w in enumerate(WEIGHTS)]
    assert (record.method, record.density, record.normalize, record.head) == ("ties", 0.2, True, 2)


def test_merged_decompositions_can_be_stored_in_4_bits(base, tunes, tmp_path):
    deltas = [extract(base, tuned, Selection("svd", Budget(energy=0.3)), codec="int4") for tuned in tunes]
    found = combine(base, parts_of(deltas, [1.0, 0.5, 0.5]), MergeRecipe())
    assert found.lowrank
    file = write(found, base, tmp_path / "d.ken", "int4")
    assert {e.codec for e in file.manifest.lowrank.values()} == {"int4"}
    again = load(file.path, base)
    assert again.lowrank.keys() == found.lowrank.keys()
    twice = combine(base, parts_of([again, again], [0.7, -0.3]), MergeRecipe())
    assert {entry.bits for entry in twice.lowrank.values()} == {4}
    kept = load(write(twice, base, tmp_path / "twice.ken", "int4").path, base)
    for name, entry in twice.lowrank.items():  # another rounding takes nothing away
        torch.testing.assert_close(kept.lowrank[name].a, entry.a)
        torch.testing.assert_close(kept.lowrank[name].b * kept.lowrank[name].scale, entry.b * entry.scale)


def test_a_served_merge_answers_as_the_folder_that_apply_writes(
    tiny_base, base, mixed, batch, answers, served, tmp_path
):
    for number, deltas in enumerate((mixed, mixed[:2])):
        found = combine(base, parts_of(deltas), MergeRecipe())
        apply(base, found, tmp_path / str(number))
        torch.testing.assert_close(served(tiny_base, found, batch), answers(tmp_path / str(number), batch))


def test_progress_names_every_tensor(base, tenths):
    told = []
    combine(base, parts_of(tenths), MergeRecipe("ties", 0.05), progress=told.append)
    assert {stage.name for stage in told if stage.what == "merging"} == {n for d in tenths for n in d.sparse}
    assert any(stage.what.startswith("threshold") for stage in told)
