from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ken_core.density import density
from ken_core.errors import CheckpointError, SelectionError
from ken_core.progress import Stage
from ken_core.selection import ALLOWED_SCOPES, Budget, Selection, select

EXACT = [method for method in ALLOWED_SCOPES if method != "ken-grid"]
"""Methods that keep exactly their budget; `ken-grid` has tests of its own."""
PAIRS_OF_METHOD_AND_SCOPE = [(method, scope) for method in EXACT for scope in ALLOWED_SCOPES[method]]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]

fractions = st.one_of(st.sampled_from([0.0, 1.0, 0.5, 1e-9, 1 - 1e-9]), st.floats(0, 1))
shapes = st.one_of(
    st.tuples(st.integers(1, 40)),
    st.tuples(st.integers(1, 8), st.integers(1, 30)),
    st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5)),
)


@st.composite
def tensor_pairs(draw, dtypes=tuple(DTYPES)):
    """One to four named (base, tuned) pairs; shifts are spread out, all equal, or zero for most elements."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    pairs = {}
    for index in range(draw(st.integers(1, 4))):
        shape, dtype = draw(shapes), draw(st.sampled_from(dtypes))
        base = torch.from_numpy(rng.integers(-4, 5, shape) / 4.0)
        match draw(st.sampled_from(["spread", "equal", "mostly zero"])):
            case "spread":
                shift = torch.from_numpy(rng.standard_normal(shape))
            case "equal":
                shift = torch.full(shape, 0.5, dtype=torch.float64)
            case _:
                shift = torch.from_numpy(rng.choice([0.0, 0.0, 0.0, 1.0, -2.0], shape))
        pairs[f"layer.{index}.weight"] = (base.to(dtype), (base + shift).to(dtype))
    return pairs


def run(pairs, selection: Selection):
    return dict(select(list(pairs), pairs.__getitem__, selection))


def rows_of(mask: np.ndarray, shape: torch.Size) -> np.ndarray:
    return mask.reshape(shape[0], -1) if len(shape) > 1 else mask.reshape(1, -1)


def pair_of_shift(shift: torch.Tensor):
    return torch.zeros_like(shift), shift


# budgets


@pytest.mark.parametrize(("method", "scope"), PAIRS_OF_METHOD_AND_SCOPE)
@settings(max_examples=40)
@given(pairs=tensor_pairs(), fraction=fractions)
def test_a_fraction_is_kept_to_the_element(method, scope, pairs, fraction):
    masks = run(pairs, Selection(method, Budget(scope, fraction)))
    assert set(masks) == set(pairs)
    if scope == "global":
        total = sum(base.numel() for base, _ in pairs.values())
        assert sum(int(m.sum()) for m in masks.values()) == min(total, int(fraction * total + 0.5))
    else:
        for name, (base, _) in pairs.items():
            rows = rows_of(masks[name], base.shape)
            assert (rows.sum(axis=1) == int(fraction * rows.shape[1] + 0.5)).all()


@pytest.mark.parametrize("method", EXACT)
@settings(max_examples=40)
@given(pairs=tensor_pairs(), k=st.integers(0, 45))
def test_k_elements_of_each_row_are_kept_or_all_where_a_row_has_fewer(method, pairs, k):
    masks = run(pairs, Selection(method, Budget("row", k=k)))
    for name, (base, _) in pairs.items():
        rows = rows_of(masks[name], base.shape)
        assert (rows.sum(axis=1) == min(k, rows.shape[1])).all()


@pytest.mark.parametrize(("method", "scope"), PAIRS_OF_METHOD_AND_SCOPE)
def test_fraction_zero_keeps_nothing_and_fraction_one_everything(method, scope):
    pairs = {"a": pair_of_shift(torch.randn(5, 7)), "b": pair_of_shift(torch.zeros(9))}
    for fraction, kept in ((0.0, False), (1.0, True)):
        masks = run(pairs, Selection(method, Budget(scope, fraction)))
        assert all((m == kept).all() for m in masks.values())
        assert {n: m.size for n, m in masks.items()} == {"a": 35, "b": 9}


def test_no_tensors_give_no_masks():
    for method, scope in PAIRS_OF_METHOD_AND_SCOPE:
        assert run({}, Selection(method, Budget(scope, 0.5))) == {}


@pytest.mark.parametrize("method", ["ken", "ken-shift", "magnitude"])
@given(rows=st.integers(1, 4), n=st.integers(1, 20), k=st.integers(0, 20))
def test_ties_within_a_row_fall_to_the_earlier_position(method, rows, n, k):
    pairs = {"w": (torch.zeros(rows, n), torch.full((rows, n), 0.5))}
    mask = run(pairs, Selection(method, Budget("row", k=k)))["w"].reshape(rows, n)
    assert (mask == (np.arange(n) < k)).all()


@given(sizes=st.lists(st.integers(1, 12), min_size=1, max_size=4), fraction=fractions)
def test_ties_over_all_tensors_fall_to_the_earlier_position_of_the_earlier_name(sizes, fraction):
    names = [f"layer.{i}" for i in range(len(sizes))]
    pairs = {n: pair_of_shift(torch.full((size,), -0.25)) for n, size in zip(names, sizes, strict=True)}
    masks = run(dict(reversed(pairs.items())), Selection("magnitude", Budget("global", fraction)))
    joined = np.concatenate([masks[n] for n in names])
    assert (joined == (np.arange(joined.size) < int(fraction * joined.size + 0.5))).all()


# what is kept


@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=st.integers(0, 2**32 - 1), fraction=fractions)
def test_global_magnitude_keeps_what_a_stable_sort_of_all_shifts_keeps(dtype, seed, fraction):
    rng = np.random.default_rng(seed)
    pairs = {}
    for name, size in (("a", 40), ("b", 25), ("c", 60)):
        base = torch.from_numpy(rng.standard_normal(size)).to(dtype)
        moved = base + torch.from_numpy(rng.standard_normal(size) * rng.choice([0.0, 1e-6, 1.0], size)).to(dtype)
        pairs[name] = (base, moved)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    shifts = torch.cat([(t.to(wide) - b.to(wide)).abs() for b, t in pairs.values()]).numpy()
    kept = np.argsort(-shifts, kind="stable")[: int(fraction * shifts.size + 0.5)]
    masks = run(pairs, Selection("magnitude", Budget("global", fraction)))
    assert np.array_equal(np.flatnonzero(np.concatenate(list(masks.values()))), np.sort(kept))


@given(seed=st.integers(0, 2**32 - 1), k=st.integers(0, 12))
def test_magnitude_by_row_keeps_the_largest_shifts_of_each_row(seed, k):
    shift = torch.from_numpy(np.random.default_rng(seed).standard_normal((3, 12)).astype(np.float32))
    mask = run({"w": pair_of_shift(shift)}, Selection("magnitude", Budget("row", k=k)))["w"].reshape(3, 12)
    for row, kept in zip(shift.abs().numpy(), mask, strict=True):
        assert set(np.flatnonzero(kept)) == set(np.argsort(-row, kind="stable")[:k])


def test_float64_shifts_closer_than_a_float32_can_tell_are_still_told_apart():
    shift = torch.tensor([1.0, 1.0 + 1e-12, 1e-60, 2e-60], dtype=torch.float64)
    mask = run({"w": pair_of_shift(shift)}, Selection("magnitude", Budget("row", k=1)))["w"]
    assert mask.tolist() == [False, True, False, False]
    small = run({"w": pair_of_shift(shift[2:])}, Selection("magnitude", Budget("global", 0.5)))["w"]
    assert small.tolist() == [False, True]


def _separated_ranks(values: np.ndarray, k: int) -> np.ndarray:
    """Indices from most to least dense; discards rows whose k-th and next densities the fast mode may swap."""
    exact = density(values[None], exact=True)[0]
    for ordered in (np.sort(exact), np.sort(exact)[::-1]):
        assume(abs(ordered[k - 1] - ordered[k]) > 3e-3 * exact.max())
    return np.argsort(-exact)


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(4, 25), data=st.data())
def test_ken_keeps_the_densest_fine_tuned_values_of_a_row(seed, n, data):
    rng = np.random.default_rng(seed)
    k = data.draw(st.integers(1, n - 1))
    values = rng.standard_normal(n).astype(np.float32)
    ranks = _separated_ranks(values, k)
    base = torch.from_numpy(rng.standard_normal((1, n)).astype(np.float32))
    mask = run({"w": (base, torch.from_numpy(values[None]))}, Selection("ken", Budget("row", k=k)))["w"]
    assert set(np.flatnonzero(mask)) == set(ranks[:k])


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(4, 25), data=st.data())
def test_ken_shift_keeps_the_least_likely_shifts_of_a_row(seed, n, data):
    rng = np.random.default_rng(seed)
    k = data.draw(st.integers(1, n - 1))
    base = torch.from_numpy(rng.standard_normal((1, n)).astype(np.float32))
    tuned = base + torch.from_numpy(rng.standard_normal((1, n)).astype(np.float32))
    ranks = _separated_ranks((tuned.double() - base.double()).numpy()[0], k)
    mask = run({"w": (base, tuned)}, Selection("ken-shift", Budget("row", k=k)))["w"]
    assert set(np.flatnonzero(mask)) == set(ranks[::-1][:k])


@given(pairs=tensor_pairs(), fraction=fractions, seed=st.integers(0, 9))
def test_random_by_row_keeps_the_same_of_a_tensor_whatever_the_other_tensors_are(pairs, fraction, seed):
    selection = Selection("random", Budget("row", fraction), seed)
    together = run(pairs, selection)
    for name, pair in pairs.items():
        assert np.array_equal(run({name: pair}, selection)[name], together[name])


@pytest.mark.parametrize("scope", ["global", "row"])
def test_random_depends_on_its_seed_and_on_nothing_in_the_weights(scope):
    one = {"w": pair_of_shift(torch.randn(8, 64))}
    other = {"w": pair_of_shift(torch.zeros(8, 64))}
    masks = [run(p, Selection("random", Budget(scope, 0.5), s))["w"] for p, s in ((one, 1), (other, 1), (one, 2))]
    assert np.array_equal(masks[0], masks[1])
    assert not np.array_equal(masks[0], masks[2])


def test_random_keeps_other_positions_in_another_tensor_of_the_same_shape():
    pairs = {"a": pair_of_shift(torch.zeros(200)), "b": pair_of_shift(torch.zeros(200))}
    masks = run(pairs, Selection("random", Budget("row", 0.5)))
    assert not np.array_equal(masks["a"], masks["b"])


# determinism


@pytest.mark.parametrize(("method", "scope"), PAIRS_OF_METHOD_AND_SCOPE)
@settings(max_examples=25)
@given(pairs=tensor_pairs(), fraction=fractions, data=st.data())
def test_the_order_of_tensors_changes_no_mask(method, scope, pairs, fraction, data):
    selection = Selection(method, Budget(scope, fraction))
    expected = run(pairs, selection)
    shuffled = {name: pairs[name] for name in data.draw(st.permutations(list(pairs)))}
    found = run(shuffled, selection)
    assert all(np.array_equal(found[n], expected[n]) for n in pairs)


@pytest.mark.parametrize(("method", "scope"), PAIRS_OF_METHOD_AND_SCOPE)
def test_the_number_of_threads_changes_no_mask(method, scope):
    generator = torch.Generator().manual_seed(8)
    base = torch.randn(64, 1000, generator=generator)
    pairs = {"w": (base, base + 0.01 * torch.randn(64, 1000, generator=generator))}
    selection = Selection(method, Budget(scope, 0.3))
    before = torch.get_num_threads()
    try:
        masks = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            masks.append(run(pairs, selection)["w"])
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(*masks)


def test_progress_names_every_tensor_in_every_stage():
    pairs = {n: pair_of_shift(torch.randn(4, 4)) for n in "cab"}
    for method, scope in PAIRS_OF_METHOD_AND_SCOPE:
        told: list[Stage] = []
        dict(select(list(pairs), pairs.__getitem__, Selection(method, Budget(scope, 0.5)), told.append))
        assert [s.name for s in told if s.what == "selecting"] == ["a", "b", "c"]
        assert [(s.done, s.total) for s in told] == [(i, 3) for i in range(3)] * (len(told) // 3)
        assert len({s.what for s in told}) == len(told) // 3 > (scope == "global")


@pytest.mark.parametrize("few", [0, 1, 7, 60])
@settings(max_examples=30)
@given(pairs=tensor_pairs(), fraction=fractions)
def test_counting_candidates_digit_by_digit_finds_the_threshold_that_sorting_finds(few, pairs, fraction):
    selection = Selection("magnitude", Budget("global", fraction))
    sorted_at_once = run(pairs, selection)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ken_core.selection._FEW_KEYS", few)
        counted = run(pairs, selection)
    assert all(np.array_equal(counted[n], sorted_at_once[n]) for n in pairs)


@pytest.mark.parametrize(("method", "scope"), PAIRS_OF_METHOD_AND_SCOPE)
@settings(max_examples=20)
@given(pairs=tensor_pairs(), fraction=fractions, elements=st.integers(1, 40))
def test_the_size_of_a_block_changes_no_mask(method, scope, pairs, fraction, elements):
    selection = Selection(method, Budget(scope, fraction), seed=1)
    whole = run(pairs, selection)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ken_core.blocks.BLOCK_ELEMENTS", elements)
        in_blocks = run(pairs, selection)
    assert all(np.array_equal(in_blocks[n], whole[n]) for n in pairs)


# refusals


@pytest.mark.parametrize("method", ["ken", "ken-shift"])
def test_densities_are_not_compared_between_rows(method):
    with pytest.raises(SelectionError, match="row"):
        Selection(method, Budget("global", 0.1))


def test_an_unknown_method_is_refused_and_the_known_ones_are_named():
    with pytest.raises(SelectionError, match=r"'gradient'.*ken.*magnitude.*random"):
        Selection("gradient")


def test_an_unknown_scope_is_refused():
    with pytest.raises(SelectionError, match="column"):
        Selection("magnitude", Budget("column", 0.1))


@pytest.mark.parametrize("fraction", [-0.01, 1.01, float("nan"), float("inf"), -float("inf")])
def test_a_fraction_outside_zero_to_one_is_refused(fraction):
    with pytest.raises(SelectionError, match="between 0 and 1"):
        Budget("row", fraction)


def test_a_negative_k_is_refused():
    with pytest.raises(SelectionError, match="-1"):
        Budget("row", k=-1)


def test_a_budget_is_either_a_fraction_or_k():
    for fraction, k in ((None, None), (0.5, 3)):
        with pytest.raises(SelectionError, match="exactly one"):
            Budget("row", fraction, k)


def test_k_with_a_global_scope_is_refused():
    with pytest.raises(SelectionError, match="row"):
        Budget("global", k=3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("role", ["base", "fine-tuned"])
@pytest.mark.parametrize(("method", "scope"), PAIRS_OF_METHOD_AND_SCOPE)
def test_nan_and_infinity_are_refused_naming_the_tensor_and_whose_it_is(method, scope, role, bad):
    base, moved = torch.randn(3, 4), torch.randn(3, 4)
    (base if role == "base" else moved)[1, 2] = bad
    pairs = {"fine": pair_of_shift(torch.randn(5)), "encoder.query": (base, moved)}
    with pytest.raises(CheckpointError, match=rf"{role} tensor 'encoder\.query'"):
        run(pairs, Selection(method, Budget(scope, 0.5)))
