"""The measures behind the pictures, against numbers worked out by hand or by a slow but simple computation."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ken_core.bits import pack_mask
from ken_core.viz.measure import block_shape, neighbour_counts, plane, pool, pool_neighbours, surroundings
from ken_core.viz.overlap import Overlap, overlap
from ken_core.viz.tally import Tally, percent, tally, total

planes = hnp.arrays(np.bool_, st.tuples(st.integers(1, 24), st.integers(1, 24)))
blocks = st.tuples(st.integers(1, 9), st.integers(1, 9))


def plain_means(values: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    height, width = block
    rows, columns = values.shape
    return np.array(
        [
            [values[y : y + height, x : x + width].mean() for x in range(0, columns, width)]
            for y in range(0, rows, height)
        ]
    )


def counted_one_by_one(kept: np.ndarray) -> np.ndarray:
    rows, columns = kept.shape
    counts = np.zeros(kept.shape, int)
    for y in range(rows):
        for x in range(columns):
            for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                counts[y, x] += 0 <= v < rows and 0 <= u < columns and bool(kept[v, u])
    return counts


@given(kept=planes, block=blocks)
def test_pooling_is_the_plain_mean_of_every_block_ragged_edges_included(kept, block):
    pooled = pool(kept, block)
    assert pooled.dtype == np.float32
    assert np.allclose(pooled, plain_means(kept, block))


@given(kept=planes, block=blocks)
def test_pooled_neighbours_are_the_plain_mean_of_the_counts_of_every_block(kept, block):
    assert np.allclose(pool_neighbours(kept, block), plain_means(counted_one_by_one(kept), block))


def test_a_ragged_block_is_the_mean_of_the_elements_it_has():
    kept = np.array([[1, 1, 0], [1, 0, 1], [0, 1, 1]], np.bool_)
    assert pool(kept, (2, 2)).tolist() == [[0.75, 0.5], [0.5, 1.0]]


def test_one_kept_element_of_a_huge_matrix_is_in_exactly_one_block():
    kept = np.zeros((25_088, 2_048), np.bool_)
    kept[12_345, 777] = True
    block = block_shape(*kept.shape, (512, 512))
    pooled = pool(kept, block)
    assert pooled.shape == (512, 512)
    assert np.argwhere(pooled).tolist() == [[12_345 // block[0], 777 // block[1]]]
    assert pooled.max() == pytest.approx(1 / math.prod(block))


@given(rows=st.integers(1, 5000), columns=st.integers(1, 5000), most=st.integers(1, 600))
def test_blocks_are_the_smallest_that_keep_a_picture_within_its_size(rows, columns, most):
    height, width = block_shape(rows, columns, (most, most))
    assert max(math.ceil(rows / height), math.ceil(columns / width)) <= most
    assert height == 1 or math.ceil(rows / (height - 1)) > most
    assert width == 1 or math.ceil(columns / (width - 1)) > most


@given(kept=planes)
def test_neighbours_are_those_above_below_left_and_right(kept):
    assert np.array_equal(neighbour_counts(kept), counted_one_by_one(kept))


@given(kept=planes, data=st.data())
def test_neighbours_of_a_band_of_rows_are_those_of_the_whole_matrix(kept, data):
    top = data.draw(st.integers(0, kept.shape[0] - 1))
    bottom = data.draw(st.integers(top + 1, kept.shape[0]))
    assert np.array_equal(neighbour_counts(kept, top, bottom), neighbour_counts(kept)[top:bottom])


def test_a_full_matrix_has_two_neighbours_at_a_corner_three_at_an_edge_four_inside():
    assert neighbour_counts(np.ones((3, 3), np.bool_)).tolist() == [[2, 3, 2], [3, 4, 3], [2, 3, 2]]


def test_pooling_holds_little_besides_the_mask():
    kept = np.random.default_rng(1).random((4096, 4096)) < 0.1
    tracemalloc.start()
    pool(kept, (8, 8))
    pool_neighbours(kept, (8, 8))
    surroundings(kept)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < kept.nbytes * 1.5  # as float32 alone it would be four times the mask


@given(kept=planes)
def test_surroundings_are_the_mean_count_of_the_kept_elements(kept):
    found = surroundings(kept)
    if not kept.any():
        assert math.isnan(found.mean)
        assert math.isnan(found.by_chance)
    else:
        assert found.mean == pytest.approx(counted_one_by_one(kept)[kept].mean())


def test_what_chance_gives_is_the_mean_over_all_placements():
    # two kept among 2 x 2: of the 6 placements 4 are side by side (1 neighbour each) and 2 are diagonal (none)
    two = np.array([[1, 1], [0, 0]], np.bool_)
    assert surroundings(two).by_chance == pytest.approx(4 / 6)
    assert surroundings(np.ones((3, 3), np.bool_)).by_chance == pytest.approx(24 / 9)


def test_a_tensor_of_one_axis_is_one_row_and_of_three_its_matrices_stacked():
    mask = np.arange(24) % 5 == 0
    assert plane(mask, (24,)).shape == (1, 24)
    assert plane(mask, (2, 3, 4)).shape == (6, 4)
    assert plane(mask[:1], ()).shape == (1, 1)
    assert np.array_equal(plane(mask, (2, 3, 4))[4], mask.reshape(2, 3, 4)[1, 1])


def test_overlap_is_that_of_the_sets_of_positions():
    first, second = np.zeros(20, np.bool_), np.zeros(20, np.bool_)
    first[[1, 2, 3, 4, 19]] = True
    second[[3, 4, 5, 19]] = True
    found = overlap(pack_mask(first), pack_mask(second), 20)
    assert (found.first, found.second, found.both) == (5, 4, 3)
    assert found.jaccard == pytest.approx(3 / 6)
    assert found.both_by_chance == pytest.approx(5 * 4 / 20)
    assert found.jaccard_by_chance == pytest.approx(1 / 8)


@given(masks=st.integers(1, 90).flatmap(lambda n: st.tuples(*[hnp.arrays(np.bool_, n)] * 2)))
def test_the_jaccard_index_is_the_share_of_the_union(masks):
    first, second = masks
    found = overlap(pack_mask(first), pack_mask(second), first.size)
    union = np.count_nonzero(first | second)
    if union:
        assert found.jaccard == pytest.approx(np.count_nonzero(first & second) / union)
    else:
        assert math.isnan(found.jaccard)


def test_a_tensor_a_delta_does_not_touch_is_an_empty_mask():
    mask = np.ones(9, np.bool_)
    assert overlap(None, pack_mask(mask), 9) == Overlap(0, 9, 0, 0.0)
    assert overlap(None, None, 9) == Overlap()


def test_random_masks_overlap_as_much_as_chance_says():
    rng = np.random.default_rng(3)
    whole = Overlap()
    for elements, share in ((200_000, 0.3), (200_000, 0.02)):  # a preference for one tensor is not agreement
        first, second = (pack_mask(rng.random(elements) < share) for _ in range(2))
        whole += overlap(first, second, elements)
    assert whole.jaccard == pytest.approx(whole.jaccard_by_chance, rel=0.02)
    density = whole.first / 400_000
    assert whole.jaccard_by_chance > 1.5 * density / (2 - density)  # what one density for all tensors would give


def test_tallies_add_up_by_any_group():
    tallies = {"a.0": Tally(1, 10), "a.1": Tally(0, 10), "b.0": Tally(5, 5)}
    assert tally(tallies, lambda name: name[0]) == {"a": Tally(1, 20), "b": Tally(5, 5)}
    assert tally(tallies, lambda name: name[2]) == {"0": Tally(6, 15), "1": Tally(0, 10)}
    assert total(tallies.values()).fraction == pytest.approx(6 / 25)
    assert Tally().fraction == 0.0


@pytest.mark.parametrize(
    ("fraction", "text"),
    [(0.0, "0%"), (1e-9, "<0.1%"), (0.004, "0.4%"), (0.12, "12.0%"), (0.99999, ">99.9%"), (1.0, "100%")],
)
def test_a_percentage_is_0_or_100_only_where_that_is_exact(fraction, text):
    assert percent(fraction) == text
