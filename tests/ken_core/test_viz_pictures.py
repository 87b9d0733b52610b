"""Drawn matrices, pixel by pixel: nothing that is kept is lost on the way to the picture."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from ken_core.viz.canvas import plain
from ken_core.viz.draw_fractions import draw_fractions
from ken_core.viz.draw_overlap import draw_layer_overlaps, draw_overlap_matrix
from ken_core.viz.draw_views import draw_layers, draw_matrix
from ken_core.viz.measure import block_shape, pool, pool_neighbours
from ken_core.viz.names import short_names
from ken_core.viz.overlap import Overlap
from ken_core.viz.palette import png
from ken_core.viz.report import Pair
from ken_core.viz.survey import View
from ken_core.viz.tally import Tally

HOSTILE = "_$\\frac{$ <b>&amp; {0}\n\x1b[31m ^_"


def view_of(kept: np.ndarray, most: int = 512) -> View:
    block = block_shape(*kept.shape, (most, most))
    counts = Tally(int(kept.sum()), kept.size)
    return View("x", *kept.shape, block, pool(kept, block), pool_neighbours(kept, block), counts)


def pixels(drawing) -> np.ndarray:
    with Image.open(io.BytesIO(drawing.png)) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB")).astype(int)


def with_element(shape: tuple[int, int], *places: tuple[int, int]) -> np.ndarray:
    kept = np.zeros(shape, np.bool_)
    for place in places:
        kept[place] = True
    return kept


def points(picture: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Which points of the first matrix in a picture have a colour, not the grey of nothing: bool, (rows, columns).

    The matrix is the first solid block of what is not white, without its frame of two pixels.
    """
    ink = (picture < 240).any(axis=2)
    across = first_run(ink.mean(axis=0) > 0.5 * ink.mean(axis=0).max())
    down = first_run(ink[:, across].mean(axis=1) > 0.9)
    panel = picture[down, across][2:-2, 2:-2]
    assert panel.shape[0] % rows == panel.shape[1] % columns == 0, "a point is a whole number of pixels"
    coloured = np.abs(panel - 0xE9).max(axis=2) > 20
    each = coloured.reshape(rows, panel.shape[0] // rows, columns, panel.shape[1] // columns)
    assert np.array_equal(each.all(axis=(1, 3)), each.any(axis=(1, 3))), "a point has one colour"
    return each.any(axis=(1, 3))


def first_run(true: np.ndarray) -> slice:
    """The first run of more than 50 true values; a frame is narrower."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], true.astype(int), [0]])))
    return next(slice(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a > 50)


@pytest.mark.parametrize("shape", [(4000, 3000), (1536, 384), (384, 1536), (700, 3), (384, 384), (5, 7), (1, 90)])
def test_every_block_of_a_matrix_is_seen_where_it_is(shape):
    kept = np.random.default_rng(7).random(shape) < (0.02 if max(shape) > 1000 else 0.3)
    view = view_of(kept)
    assert 0.02 < (view.kept > 0).mean() < 0.9
    assert np.array_equal(points(pixels(draw_matrix("t", "n", view)), *view.kept.shape), view.kept > 0)


def test_single_kept_elements_of_a_huge_matrix_are_seen():
    places = [(0, 0), (12_345, 777), (25_087, 2_047)]
    view = view_of(with_element((25_088, 2_048), *places))
    seen = points(pixels(draw_matrix("t", "n", view)), *view.kept.shape)
    assert np.argwhere(seen).tolist() == [[row // view.block[0], column // view.block[1]] for row, column in places]


def test_a_single_kept_element_is_seen_in_the_last_of_many_layers():
    shape = (1200, 900)
    empty, one = (view_of(with_element(shape, *places), 160) for places in ([], [(1199, 899)]))
    views = [(0, view_of(with_element(shape, (0, 0)), 160)), *((layer, empty) for layer in range(1, 14))]
    without = pixels(draw_layers("t", "n", views))
    picture = pixels(draw_layers("t", "n", [*views[:-1], (13, one)]))
    assert (np.abs(picture - without).max(axis=2) > 20).sum() >= 8  # a block of both views, two pixels each way


def test_layers_of_different_shapes_stand_side_by_side():
    views = [(i, view_of(with_element((40 * (i + 1), 90), (3, 4)), 160)) for i in range(3)]
    assert min(pixels(draw_layers("t", "n", views)).shape[:2]) > 300


def test_pictures_fit_a_screen():
    for shape in ((2, 384), (1, 384), (1, 1), (250_880, 64), (64, 250_880), (512, 512)):
        height, width, _ = pixels(draw_matrix("t", "n", view_of(with_element(shape, (0, 0))))).shape
        assert 300 <= width <= 3200, shape  # two pixels of the file for each of the screen
        assert 300 <= height <= 2800, shape


def test_more_kept_is_a_different_colour():
    kept = np.random.default_rng(2).random((1024, 1024)) < 0.1
    half = kept.copy()
    half[:, 512:] |= np.random.default_rng(3).random((1024, 512)) < 0.3
    picture = pixels(draw_matrix("t", "n", view_of(half, 128)))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 60


def test_a_layer_without_such_a_tensor_is_a_dash_and_nothing_kept_is_grey():
    tallies = {"h.0.a": Tally(5, 10), "h.1.a": Tally(0, 10), "h.1.b": Tally(1, 10), "embed": Tally(10, 10)}
    picture = pixels(draw_fractions("t", "n", tallies, short_names(tallies), 1.0))
    grey = (picture == 0xE9).all(axis=2).sum()
    nothing = {**tallies, "h.1.b": Tally(0, 10)}
    more = (pixels(draw_fractions("t", "n", nothing, short_names(nothing), 1.0)) == 0xE9).all(axis=2).sum()
    assert more > grey + 2000


@pytest.mark.parametrize("labels", [["a", "b"], ["a", "b", "c"], [f"task {i}" for i in range(20)]])
def test_overlaps_of_few_and_of_many_deltas_are_drawn(labels):
    one = Overlap(10, 12, 4, 2.0)
    pairs = [
        Pair(first, second, one, {None: one, 0: one, 1: Overlap()})
        for i, first in enumerate(labels)
        for second in labels[i + 1 :]
    ]
    for picture in (pixels(draw_layer_overlaps("t", "n", pairs)), pixels(draw_overlap_matrix("t", "", labels, pairs))):
        height, width, _ = picture.shape
        assert 500 <= width <= 3200
        assert 300 <= height <= 2000


@pytest.mark.filterwarnings("error")
def test_names_are_drawn_as_they_are_and_never_read_as_formulas():
    kept = view_of(with_element((4, 4), (1, 1)))
    overlap = Overlap(3, 3, 1, 0.5)
    tallies = {f"h.0.{HOSTILE}": Tally(1, 2), HOSTILE: Tally(1, 2)}
    pair = Pair(HOSTILE, "b", overlap, {0: overlap})
    drawings = [
        draw_matrix(HOSTILE, HOSTILE, kept),
        draw_layers(HOSTILE, HOSTILE, [(0, kept)]),
        draw_fractions(HOSTILE, HOSTILE, tallies, {kind: kind for kind in (f"h.{HOSTILE}", HOSTILE)}, 1.0),
        draw_layer_overlaps(HOSTILE, HOSTILE, [pair]),
        draw_overlap_matrix(HOSTILE, HOSTILE, [HOSTILE, "b"], [pair]),
    ]
    assert all(pixels(drawing).size for drawing in drawings)


def test_a_name_that_starts_with_an_underscore_is_in_the_legend():
    one = Overlap(3, 3, 1, 0.5)
    shown, bare = (
        pixels(draw_layer_overlaps("t", "n", [Pair(name, "b", one, {0: one})])).shape[1] for name in ("_" * 40, "_")
    )
    assert shown > bare + 200


def test_a_text_in_a_script_the_font_lacks_does_not_warn(recwarn):
    draw_matrix("日本語 العربية", "n", view_of(with_element((4, 4), (1, 1))))
    assert not [w for w in recwarn if "Glyph" in str(w.message)]


def test_long_text_is_cut_in_its_middle_and_stays_on_one_line():
    assert plain("short") == "short"
    cut = plain("a" * 300 + "\n" + "b" * 300)
    assert len(cut) < 100
    assert (cut[0], cut[-1]) == ("a", "b")
    assert plain("a\nb\x1b") == "a�b�"


def test_the_same_matrix_gives_the_same_file():
    view = view_of(np.random.default_rng(5).random((300, 300)) < 0.2)
    assert draw_matrix("t", "n", view).png == draw_matrix("t", "n", view).png


def test_a_palette_keeps_a_colour_that_a_single_pixel_has():
    gradient = np.zeros((256, 256, 3), np.uint8)
    gradient[..., 0], gradient[..., 1] = np.arange(256)[:, None], np.arange(256)[None, :]
    gradient[:200] = 40
    gradient[7, 9] = (20, 30, 250)
    with Image.open(io.BytesIO(png(Image.fromarray(gradient)))) as small:
        assert small.mode == "P"
        few = np.asarray(small.convert("RGB")).astype(int)
    assert few[100, 100].tolist() == [40, 40, 40]
    assert np.abs(few[7, 9] - (20, 30, 250)).max() < 30
    assert np.abs(few - gradient).max() < 40


def test_a_picture_of_few_colours_is_kept_exactly():
    exact = np.random.default_rng(6).integers(0, 2, (50, 60, 3), np.uint8) * 200
    with Image.open(io.BytesIO(png(Image.fromarray(exact)))) as small:
        assert np.array_equal(np.asarray(small.convert("RGB")), exact)
