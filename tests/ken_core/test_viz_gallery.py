"""A gallery of real deltas: its numbers, its files, and a page that is safe to open."""

from __future__ import annotations

import base64
import io
import re
import shutil
import sys
from dataclasses import replace
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ken_core import MergeRecipe, Part, combine, deltafile
from ken_core.checkpoint import Checkpoint, open_base, open_tuned
from ken_core.deltafile import DeltaFile
from ken_core.entries import LowRank
from ken_core.errors import BaseMismatchError, DeltaFormatError, KenError
from ken_core.extraction import extract
from ken_core.fingerprint import fingerprint
from ken_core.selection import Budget, Selection
from ken_core.viz import MissingMatplotlibError, NoSuchTensorError, Report, gallery, visualize
from ken_core.viz import survey as survey_module
from ken_core.viz.names import place
from ken_core.viz.survey import survey

PAPER = Selection("ken", Budget("row", 0.25))
HOSTILE = "\"'><script>alert(1)<!-- $\\frac{$ &amp; {0} _^"


def write(base: Checkpoint, tuned: Path, path: Path, selection: Selection | None = None) -> DeltaFile:
    path.parent.mkdir(parents=True, exist_ok=True)
    return deltafile.write(extract(base, open_tuned(str(tuned)), selection), base, path)


@pytest.fixture(scope="module")
def files(base, tiny_tuned, tmp_path_factory) -> list[DeltaFile]:
    """Three deltas of one base: two tasks in one method, and one of them in another."""
    folder = tmp_path_factory.mktemp("deltas")
    return [
        write(base, tiny_tuned["topics"], folder / "topics.ken"),
        write(base, tiny_tuned["mood"], folder / "mood.ken"),
        write(base, tiny_tuned["mood"], folder / "paper" / "mood.ken", PAPER),
    ]


@pytest.fixture(scope="module")
def masks(base, files) -> list[dict[str, np.ndarray]]:
    """Masks of every tensor of the base, for each of `files`."""
    digest = fingerprint(base.backbone_tensors).digest
    found = []
    for file in files:
        sparse = deltafile.read(file, base, digest).sparse
        found.append(
            {
                name: np.array(sparse[name].mask) if name in sparse else np.zeros(tensor.numel(), np.bool_)
                for name, tensor in base.backbone_tensors.items()
            }
        )
    return found


@pytest.fixture(scope="module")
def report(base, files, tmp_path_factory) -> Report:
    """Of each delta one kind of matrix across layers and one matrix for itself; more of them are drawn alike."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gallery, "_MOST_KINDS", 1)
        patch.setattr(gallery, "_MOST_MATRICES", len(files))
        return visualize(base, files, tmp_path_factory.mktemp("gallery") / "out")


class Page(HTMLParser):
    """What a browser would find in a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self._style = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data

    def values(self, tag: str, name: str) -> list[str]:
        return [v for t, n, v in self.attributes if (t, n) == (tag, name)]


def page_of(report: Report) -> Page:
    return Page((report.folder / "index.html").read_text(encoding="utf-8"))


def test_every_layer_and_kind_has_the_fraction_its_masks_have(base, report, masks):
    for subject, kept in zip(report.subjects, masks, strict=True):
        for kind, tally in subject.by_kind.items():
            own = np.concatenate([mask for name, mask in kept.items() if place(name).kind == kind])
            assert (tally.kept, tally.elements) == (np.count_nonzero(own), own.size)
        for layer, tally in subject.by_layer.items():
            own = np.concatenate([mask for name, mask in kept.items() if place(name).layer == layer])
            assert (tally.kept, tally.elements) == (np.count_nonzero(own), own.size)


@pytest.mark.usefixtures("blank_pictures")
def test_a_tensor_of_which_nothing_is_kept_counts_with_all_its_elements(base, tiny_tuned, tmp_path):
    file = write(base, tiny_tuned["mood"], tmp_path / "few.ken", Selection(budget=Budget(fraction=0.0001)))
    report = visualize(base, [file], tmp_path / "out")
    (subject,) = report.subjects
    assert len(file.manifest.sparse) < len(base.backbone_tensors)
    assert set(subject.tallies) == set(base.backbone_tensors)
    assert subject.overall.elements == sum(t.numel() for t in base.backbone_tensors.values())
    assert subject.overall.kept == file.manifest.stored


@pytest.fixture
def _one_kind(monkeypatch) -> None:
    """One kind of matrix across layers in place of six."""
    monkeypatch.setattr(gallery, "_MOST_KINDS", 1)


@pytest.mark.usefixtures("_one_kind")
def test_a_delta_that_keeps_nothing_at_all_is_drawn(base, tiny_tuned, tmp_path):
    file = write(base, tiny_tuned["mood"], tmp_path / "none.ken", Selection(budget=Budget(fraction=0.0)))
    report = visualize(base, [file, file], tmp_path / "out", tensors=["*.0.*query.weight"])
    assert report.subjects[0].overall.kept == 0
    assert np.isnan(report.pairs[0].overall.jaccard)
    assert {picture.view for picture in report.pictures} == {"fractions", "overlap", "layers", "matrix"}
    assert (tmp_path / "out" / "index.html").is_file()


@pytest.mark.usefixtures("blank_pictures")
def test_the_page_says_what_a_merge_was_made_of(base, tuned, tmp_path):
    own = extract(base, tuned)
    parts = [Part(own, 0.7, "a" * 64), Part(own, -0.2, "b" * 64)]
    file = deltafile.write(combine(base, parts, MergeRecipe()), base, tmp_path / "merged.ken")
    visualize(base, [file], tmp_path / "out")
    page = (tmp_path / "out" / "index.html").read_text()
    assert "linear: 0.7 of aaaaaaaaaaaa…, -0.2 of bbbbbbbbbbbb…" in page


@pytest.mark.usefixtures("blank_pictures")
def test_a_resized_embedding_counts_as_kept_in_full_and_has_no_positions(base, tiny_base, save_noisy, tmp_path):
    from transformers import AutoModelForSequenceClassification

    tuned = save_noisy(AutoModelForSequenceClassification, tiny_base, resize=base.config.vocab_size + 3)
    file = write(base, tuned, tmp_path / "resized.ken")
    report = visualize(base, [file, file], tmp_path / "out", tensors=["embeddings.*"])
    name = "embeddings.word_embeddings.weight"
    assert report.subjects[0].whole == (name,)
    assert report.subjects[0].tallies[name].fraction == 1.0
    assert name not in report.subjects[0].surroundings
    assert report.pairs[0].overall.first == file.manifest.stored
    assert name in page_of(report).text


def test_overlaps_are_those_of_the_masks_overall_and_by_layer(report, masks):
    assert [(p.first, p.second) for p in report.pairs] == list(combinations([s.label for s in report.subjects], 2))
    for pair, (ours, theirs) in zip(report.pairs, combinations(masks, 2), strict=True):
        for layer, found in [(..., pair.overall), *pair.layers.items()]:
            names = [name for name in ours if layer is ... or place(name).layer == layer]
            first, second = (np.concatenate([m[name] for name in names]) for m in (ours, theirs))
            assert found.jaccard == pytest.approx((first & second).sum() / (first | second).sum())
            chance = sum(ours[n].sum() * theirs[n].sum() / ours[n].size for n in names)
            assert found.both_by_chance == pytest.approx(chance)


@pytest.mark.usefixtures("blank_pictures")
def test_a_delta_overlaps_itself_completely(base, files, tmp_path):
    (pair,) = visualize(base, [files[0], files[0]], tmp_path / "out").pairs
    assert pair.first != pair.second
    assert pair.overall.jaccard == 1.0
    assert pair.overall.jaccard_by_chance < 0.5


@pytest.mark.usefixtures("blank_pictures")
def test_there_is_a_picture_of_every_view(base, files, report, tmp_path):
    assert {picture.view for picture in report.pictures} == {"fractions", "overlap", "layers", "matrix"}
    views = [picture.view for picture in visualize(base, files, tmp_path / "out").pictures]
    assert views.count("fractions") == 3
    assert views.count("overlap") == 2
    assert views.count("layers") == 3 * 6  # query, key, value, attention's output, feed-forward in and out
    assert views.count("matrix") == 3 * 4  # twelve in all


def test_every_picture_is_a_png_of_a_sensible_size(report):
    assert {p.name for p in report.folder.iterdir()} == {"index.html", *(p.file for p in report.pictures)}
    for picture in report.pictures:
        with Image.open(report.folder / picture.file) as image:
            image.load()
            assert image.format == "PNG"
            assert 300 <= picture.width <= 1700
            assert image.width == 2 * picture.width  # twice as dense as it is shown
            assert 200 <= image.height <= 4000


def test_two_deltas_of_one_file_name_are_told_apart(report):
    labels = [subject.label for subject in report.subjects]
    assert len(set(labels)) == 3
    assert labels[2] == "paper/mood"
    assert len({picture.file.lower() for picture in report.pictures}) == len(report.pictures)


@pytest.mark.usefixtures("_one_kind")
def test_the_same_deltas_give_the_same_files(base, files, tmp_path):
    first, second = (visualize(base, files[:1], tmp_path / name, tensors=["*.0.*query.weight"]) for name in "ab")
    assert [p.file for p in first.pictures] == [p.file for p in second.pictures]
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


@pytest.mark.usefixtures("blank_pictures")
def test_a_single_delta_has_no_overlap(base, files, tmp_path):
    report = visualize(base, files[:1], tmp_path / "out")
    assert report.pairs == ()
    assert "overlap" not in {picture.view for picture in report.pictures}
    assert "Overlap" not in page_of(report).text


@pytest.mark.usefixtures("blank_pictures")
def test_patterns_choose_the_matrices_that_are_drawn_for_themselves(base, files, tmp_path):
    report = visualize(base, files[:1], tmp_path / "out", tensors=["*.1.*.query.*", "embeddings.LayerNorm.weight"])
    assert [picture.title for picture in report.pictures if picture.view == "matrix"] == [
        "topics: encoder.layer.1.attention.self.query.weight",
        "topics: embeddings.LayerNorm.weight",
        "topics: encoder.layer.1.attention.self.query.bias",
    ]
    assert list(report.subjects[0].surroundings) == [p.title[8:] for p in report.pictures if p.view == "matrix"]


def test_a_pattern_that_matches_nothing_leaves_nothing(base, files, tmp_path, left_in_tmp_path):
    with pytest.raises(NoSuchTensorError, match="nope"):
        visualize(base, files[:1], tmp_path / "out", tensors=["nope.*"])
    assert left_in_tmp_path() == []


def test_the_page_holds_every_picture_and_loads_nothing(report):
    text = (report.folder / "index.html").read_text(encoding="utf-8")
    page = page_of(report)
    assert not re.search(r"https?:|url\(|@import|javascript:|srcset", text, re.IGNORECASE)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form", "video", "audio"} & set(page.tags)
    assert all(value.startswith("#") for _, name, value in page.attributes if name == "href")
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    sources = [value for _, name, value in page.attributes if name == "src"]
    assert len(sources) == len(report.pictures)
    held = {base64.b64decode(source.removeprefix("data:image/png;base64,"), validate=True) for source in sources}
    assert held == {(report.folder / picture.file).read_bytes() for picture in report.pictures}
    for data in held:
        Image.open(io.BytesIO(data)).verify()


def test_the_page_forbids_itself_scripts_and_the_network(report):
    (policy,) = [v for t, n, v in page_of(report).attributes if (t, n) == ("meta", "content") and "default-src" in v]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_every_picture_on_the_page_says_what_it_shows_and_how_to_read_it(report):
    page = page_of(report)
    assert all(len(alt) > 30 for alt in page.values("img", "alt"))
    assert page.tags.count("figcaption") == page.tags.count("figure") == page.tags.count("img") == len(report.pictures)
    for picture in report.pictures:
        assert picture.caption in page.text
        assert picture.file in page.text


def test_links_of_the_page_lead_to_its_headings(report):
    page = page_of(report)
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids)) >= 5
    assert {link.removeprefix("#") for link in page.values("a", "href")} == set(ids)


def test_the_page_has_the_numbers_as_tables(report):
    text = page_of(report).text
    for pair in report.pairs:
        assert f"{pair.overall.jaccard:.4f}" in text
        assert f"{pair.overall.jaccard_by_chance:.4f}" in text
    assert page_of(report).tags.count("table") == 3
    assert "attention.output.LayerNorm.bias" in text


def test_the_page_has_colours_for_light_and_dark_screens(report):
    text = (report.folder / "index.html").read_text(encoding="utf-8")
    assert "@media (prefers-color-scheme: dark)" in text
    assert text.count("--ink:") == text.count("--ground:") == 2


@pytest.mark.usefixtures("blank_pictures")
def test_names_from_files_are_text_on_the_page_and_nothing_else(tiny_base, make_fine_tune, tmp_path):
    folder = tmp_path / f"base {HOSTILE}".replace("/", "")
    shutil.copytree(tiny_base, folder)
    base = open_base(str(folder))
    tuned = make_fine_tune(tiny_base, [f"<img src=x onerror=alert(2)>{HOSTILE}", "</td><b>"], seed=9)
    names = [f"{HOSTILE}.ken", "</title><style>.ken".replace("/", "\\"), "ok.ken"]
    files = [write(base, tuned, tmp_path / "deltas" / name) for name in names]
    report = visualize(base, files, tmp_path / "out", tensors=["*.1.*query.weight"])
    page, harmless = (
        page_of(report),
        page_of(visualize(base, files[2:] * 3, tmp_path / "plain", tensors=["*.1.*query.weight"])),
    )
    assert page.tags == harmless.tags
    assert [(t, n) for t, n, _ in page.attributes] == [(t, n) for t, n, _ in harmless.attributes]
    assert page.text.count(HOSTILE) > harmless.text.count(HOSTILE) > 0
    assert "<img src=x onerror" in page.text
    assert any(HOSTILE in alt for alt in page.values("img", "alt"))


def test_a_delta_of_another_base_is_refused_before_anything_is_drawn(
    base, files, tiny_base, tiny_tuned, make_fine_tune, tmp_path, left_in_tmp_path
):
    from transformers import AutoModel

    other = tmp_path / "other"
    model = AutoModel.from_pretrained(tiny_base)
    model.pooler.dense.bias.data += 1
    model.save_pretrained(other)
    steps = []
    with pytest.raises(BaseMismatchError, match="fingerprint"):
        visualize(open_base(str(other)), [files[0]], tmp_path / "out", progress=lambda *step: steps.append(step))
    assert steps == []
    assert left_in_tmp_path() == ["other"]


@pytest.mark.usefixtures("blank_pictures")
def test_a_damaged_delta_after_a_sound_one_leaves_nothing_half_written(base, files, tmp_path, left_in_tmp_path):
    damaged = tmp_path / "damaged.ken"
    data = bytearray(files[1].path.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    drawn = []
    with pytest.raises(DeltaFormatError, match="sha256"):
        visualize(
            base,
            [files[0], deltafile.open_file(damaged)],
            tmp_path / "new" / "out",
            progress=lambda done, pictures, last: drawn.append(last),
        )
    assert drawn  # of the first
    assert left_in_tmp_path() == ["damaged.ken", "new"]
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.usefixtures("blank_pictures")
def test_ctrl_c_leaves_nothing(base, files, tmp_path, left_in_tmp_path):
    def interrupt(done: int, pictures: int, last: str) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        visualize(base, files[:1], tmp_path / "out", progress=interrupt)
    assert left_in_tmp_path() == []


def test_a_folder_that_is_not_empty_is_left_alone(base, files, tmp_path, left_in_tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="exists already"):
        visualize(base, files[:1], tmp_path)
    assert left_in_tmp_path() == ["mine.txt"]


@pytest.mark.usefixtures("blank_pictures")
def test_an_empty_folder_is_filled(base, files, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    visualize(base, files[:1], out, tensors=["*.0.*query.weight"])
    assert (out / "index.html").is_file()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.usefixtures("blank_pictures")
def test_progress_counts_the_pictures(base, files, tmp_path):
    steps = []
    report = visualize(base, files[:2], tmp_path / "out", progress=lambda *step: steps.append(step))
    assert [done for done, _, _ in steps] == list(range(1, len(report.pictures) + 1))
    assert {expected for _, expected, _ in steps} == {len(report.pictures)}


def test_without_matplotlib_the_error_says_what_to_install(base, files, tmp_path, monkeypatch, left_in_tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingMatplotlibError, match=re.escape("pip install 'ken-serve[viz]'")) as raised:
        visualize(base, files, tmp_path / "out")
    assert isinstance(raised.value, KenError)
    assert left_in_tmp_path() == []


def test_importing_the_package_does_not_import_matplotlib():
    import subprocess

    code = "import sys, ken_core.viz; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_drawing_leaves_pyplot_alone(report):
    assert "matplotlib.pyplot" not in sys.modules


# Low-rank shifts, which keep nothing and leave nothing out

QUERY = "encoder.layer.{}.attention.self.query.weight"


@pytest.fixture(scope="module")
def adapted(base, files, tmp_path_factory) -> DeltaFile:
    """A delta that shifts one kind of matrix in both layers, by factors of rank 2."""
    make = torch.Generator().manual_seed(7)
    a, b = torch.randn(2, 32, generator=make), torch.randn(32, 2, generator=make)
    shifts = {QUERY.format(layer): LowRank(a, (layer + 1) * b, 0.5) for layer in (0, 1)}
    plain = deltafile.read(files[1], base, fingerprint(base.backbone_tensors).digest)
    delta = replace(plain, sparse={}, lowrank=shifts, adapter="lora")
    return deltafile.write(delta, base, tmp_path_factory.mktemp("adapted") / "lora.ken")


def test_of_a_low_rank_shift_the_size_at_each_element_is_measured(base, adapted, monkeypatch):
    monkeypatch.setattr(survey_module, "LAYER_MOST", 8)
    shapes = {name: tuple(tensor.shape) for name, tensor in base.backbone_tensors.items()}
    delta = deltafile.load(adapted.path, base)
    name = QUERY.format(0)
    found = survey(delta, shapes, [name], [name])
    sizes = (delta.lowrank[name].scale * delta.lowrank[name].b @ delta.lowrank[name].a).abs().numpy()
    assert found.single_shifts[name].sizes == pytest.approx(sizes, rel=1e-5)
    assert not found.single_shifts[name].pooled
    blocks = sizes.reshape(8, 4, 8, 4).mean(axis=(1, 3))
    assert found.layered_shifts[name].sizes == pytest.approx(blocks, rel=1e-5)
    assert found.ranks == {QUERY.format(0): 2, QUERY.format(1): 2}


@pytest.mark.usefixtures("_one_kind")
def test_a_low_rank_shift_is_drawn_and_said_to_change_every_element(base, adapted, tmp_path):
    report = visualize(base, [adapted], tmp_path / "out", tensors=["*.query.weight"])
    shown = {picture.file: picture for picture in report.pictures if "query" in picture.title}
    assert [picture.view for picture in shown.values()].count("matrix") == 2
    text = page_of(report).text
    for layer in (0, 1):
        assert f"{QUERY.format(layer)} (low rank 2)" in text
    for picture in shown.values():
        assert "every element changes" in picture.caption
        image = Image.open(report.folder / picture.file)
        assert len(image.getcolors(1 << 20)) > 10


@pytest.mark.usefixtures("blank_pictures")
def test_across_layers_the_largest_shift_is_named(base, adapted, tmp_path, monkeypatch):
    report = visualize(base, [adapted], tmp_path / "out")
    (picture,) = (p for p in report.pictures if p.view == "layers" and "query" in p.title)
    assert "largest in layer 1" in picture.alt
