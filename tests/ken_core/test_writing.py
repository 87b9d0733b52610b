"""A file or folder that cannot be written raises a KenError, and nothing half-written is left."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
from transformers import BertForSequenceClassification

from ken_core.calibration import calibrate
from ken_core.checkpoint import open_base, open_tuned, wrap
from ken_core.delta import Delta, apply
from ken_core.deltafile import write
from ken_core.errors import CheckpointError, DeltaFormatError, KenError, OutputError, OutputExistsError, TrainingError
from ken_core.examples import Example
from ken_core.extraction import extract
from ken_core.finetune import Recipe, finetune
from ken_core.judges import Judges
from ken_core.writing import new_file

EXAMPLES = [Example("who is the king", "person"), Example("where is the city", "place")]
QUICK = Recipe(epochs=1, batch_size=2)


@pytest.fixture(scope="module")
def delta(base, tuned) -> Delta:
    return extract(base, tuned)


@contextmanager
def files_no_larger_than(count: int) -> Iterator[None]:
    """A full disk, as a writer sees it: an error in the middle of its file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def place_in(kind: str, folder: Path) -> Path:
    """A path that cannot be written to."""
    (folder / "file").write_text("kept")
    places = {"no folder": folder / "none" / "out", "a file's": folder / "file" / "out", "long": folder / ("x" * 300)}
    return places[kind]


@pytest.mark.parametrize("kind", ["no folder", "a file's", "long"])
def test_a_delta_that_has_no_place_is_an_output_error(base, delta, tmp_path, kind):
    out = place_in(kind, tmp_path)
    with pytest.raises(OutputError, match="cannot be written"):
        write(delta, base, out)


def test_a_folder_in_a_deltas_place_is_kept(base, delta, tmp_path):
    (tmp_path / "d.ken").mkdir()
    with pytest.raises(OutputError, match=r"d\.ken cannot be written"):
        write(delta, base, tmp_path / "d.ken")
    assert [p.name for p in tmp_path.iterdir()] == ["d.ken"]


def test_a_full_disk_leaves_no_part_of_a_delta_and_the_one_before(base, delta, tmp_path):
    (tmp_path / "d.ken").write_text("the one before")
    with files_no_larger_than(2000), pytest.raises(OutputError, match=r"d\.ken cannot be written"):
        write(delta, base, tmp_path / "d.ken")
    assert [p.name for p in tmp_path.iterdir()] == ["d.ken"]
    assert (tmp_path / "d.ken").read_text() == "the one before"


Folder = Callable[[Path, Path], object]
FOLDERS: dict[str, Folder] = {
    "apply": lambda base, out: apply(open_base(str(base)), extract(open_base(str(base)), open_tuned(str(base))), out),
    "finetune": lambda base, out: finetune(str(base), EXAMPLES, out, QUICK),
}


@pytest.mark.parametrize("command", FOLDERS)
def test_a_full_disk_leaves_no_part_of_a_folder(tiny_base, tmp_path, command):
    with files_no_larger_than(20_000), pytest.raises(OutputError, match="out cannot be written"):
        FOLDERS[command](tiny_base, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", FOLDERS)
@pytest.mark.parametrize("kind", ["a file's", "long"])
def test_a_folder_that_has_no_place_is_an_output_error(tiny_base, tmp_path, command, kind):
    out = place_in(kind, tmp_path)
    with pytest.raises(OutputError, match="cannot be written"):
        FOLDERS[command](tiny_base, out)
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("command", FOLDERS)
def test_what_is_there_already_is_kept(tiny_base, tmp_path, command):
    (tmp_path / "precious").write_text("precious")
    with pytest.raises(OutputExistsError, match="exists already") as refusal:
        FOLDERS[command](tiny_base, tmp_path)
    assert isinstance(refusal.value, KenError)
    assert isinstance(refusal.value, FileExistsError)


def test_a_calibration_that_has_no_place_is_an_output_error(tiny_base, tiny_tuned, tmp_path):
    with pytest.raises(OutputError, match="cannot be written"):
        calibrate(
            open_base(str(tiny_base)),
            open_tuned(str(tiny_tuned["mood"])),
            Judges(lambda model: np.ones(500, np.bool_), lambda model: 0.0, choosing=1),
            tmp_path / "none" / "d.ken",
        )


def test_what_no_manifest_can_say_is_refused(base, tiny_tuned, tmp_path):
    model = BertForSequenceClassification.from_pretrained(tiny_tuned["mood"])
    model.config.a_note = object()
    with pytest.raises(DeltaFormatError, match="no JSON"):
        write(extract(base, wrap(model)), base, tmp_path / "d.ken")
    assert list(tmp_path.iterdir()) == []


# modes


@pytest.fixture
def umask(request) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002], indirect=True)
def test_files_may_be_read_by_whom_a_new_file_here_may_be_read(base, delta, tiny_base, tmp_path, umask):
    file = write(delta, base, tmp_path / "d.ken").path
    apply(base, delta, tmp_path / "applied")
    finetune(str(tiny_base), [Example("king", "yes"), Example("city", "no")], tmp_path / "tuned", QUICK)
    written = [file, *(f for name in ("applied", "tuned") for f in (tmp_path / name).iterdir())]
    assert {f.name: f.stat().st_mode & 0o777 for f in written} == {f.name: 0o666 & ~umask for f in written}


@contextmanager
def no_new_files() -> Iterator[None]:
    """A disk out of inodes, as a writer sees it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_file_that_was_written_needs_no_second_one_to_appear(tmp_path):
    blocked = ExitStack()
    with blocked, new_file(tmp_path / "out") as partial:
        partial.write_text("all the work")
        blocked.enter_context(no_new_files())
    assert (tmp_path / "out").read_text() == "all the work"


# training


def test_integer_labels_train_a_classifier_that_numbers_them_by_value(tiny_base, tmp_path):
    examples = [Example("who is the king", 10), Example("where is the city", 2)]
    finetune(str(tiny_base), examples, tmp_path / "out", QUICK)
    assert open_tuned(str(tmp_path / "out")).config.id2label == {0: "2", 1: "10"}


def test_pairs_are_trained_on_as_pairs(tiny_base, tmp_path):
    pairs = [Example("king", "yes", "actor"), Example("king", "no", "city")]
    heads = []
    for name, examples in (("pairs", pairs), ("firsts", [Example(e.text, e.label) for e in pairs])):
        finetune(str(tiny_base), examples, tmp_path / name, QUICK)
        heads.append(open_tuned(str(tmp_path / name)).head_tensors["classifier.weight"])
    assert not np.array_equal(*heads)


@pytest.mark.parametrize(
    ("recipe", "text", "named"),
    [
        (Recipe(epochs=2, max_length=600), "city " * 300, "--max-length"),
        (Recipe(epochs=50, batch_size=2, learning_rate=1e30), "city", "training diverged.*lower learning rate"),
    ],
)
def test_training_that_comes_to_nothing_is_told_and_leaves_nothing(tiny_base, tmp_path, recipe, text, named):
    with pytest.raises(TrainingError, match=named):
        finetune(str(tiny_base), [*EXAMPLES, Example(text, "place")], tmp_path / "out", recipe)
    assert list(tmp_path.iterdir()) == []


def test_a_base_with_a_wrapper_around_it_is_not_trained_from_random_weights(tiny_base, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    wrapped = {f"_orig_mod.{n}": t for n, t in load_file(folder / "model.safetensors").items()}
    save_file(wrapped, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="wrapper"):
        finetune(str(folder), EXAMPLES, tmp_path / "out", QUICK)
