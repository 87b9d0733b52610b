from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ken_core.bits import same_bits
from ken_core.checkpoint import open_base, open_tuned
from ken_core.errors import CheckpointError, DataError, KenError
from ken_core.evaluate import accuracy
from ken_core.examples import Example
from ken_core.extraction import extract
from ken_core.finetune import Recipe, Step, finetune

EXAMPLES = [
    Example(text, label)
    for text, label in [
        ("who is the king", "person"),
        ("who was the actor", "person"),
        ("who is a good actor", "person"),
        ("who was a bad king", "person"),
        ("where is the city", "place"),
        ("where was the war", "place"),
        ("where is a river", "place"),
        ("where was the film", "place"),
        ("how many kings", "number"),
        ("how many is the price", "number"),
        ("how many actors of the film", "number"),
        ("how many rivers in the city", "number"),
    ]
]
QUICK = Recipe(epochs=1, batch_size=5, learning_rate=1e-3)


@pytest.fixture(scope="module")
def trained(tiny_base, tmp_path_factory) -> tuple[Path, list[Step]]:
    """A folder fine-tuned long enough to learn, and the steps it took."""
    out, steps = tmp_path_factory.mktemp("finetune") / "out", []
    recipe = Recipe(epochs=30, batch_size=5, learning_rate=5e-3)
    finetune(str(tiny_base), EXAMPLES, out, recipe, steps.append)
    return out, steps


def weights(folder: Path) -> dict[str, torch.Tensor]:
    opened = open_tuned(str(folder))
    return {**opened.backbone_tensors, **opened.head_tensors}


def test_the_folder_opens_in_transformers_with_its_labels(trained):
    model = AutoModelForSequenceClassification.from_pretrained(trained[0])
    assert model.config.id2label == {0: "number", 1: "person", 2: "place"}
    assert model.config.label2id == {"number": 0, "person": 1, "place": 2}
    assert AutoTokenizer.from_pretrained(trained[0])("where is")["input_ids"]


def test_it_learns_what_it_was_shown(trained):
    model = AutoModelForSequenceClassification.from_pretrained(trained[0]).eval()
    tokenizer = AutoTokenizer.from_pretrained(trained[0])
    inputs = tokenizer([e.text for e in EXAMPLES], padding=True, return_tensors="pt")
    with torch.no_grad():
        found = [model.config.id2label[i] for i in model(**inputs).logits.argmax(-1).tolist()]
    assert found == [e.label for e in EXAMPLES]


def test_every_step_is_reported_and_the_loss_falls(trained):
    steps = trained[1]
    assert [s.number for s in steps] == list(range(1, 91))
    assert {s.total for s in steps} == {90}
    assert sum(s.loss for s in steps[-3:]) < sum(s.loss for s in steps[:3]) / 2


def test_the_result_is_a_fine_tune_of_its_base(trained, tiny_base):
    delta = extract(open_base(str(tiny_base)), open_tuned(str(trained[0])))
    assert delta.kind == "text-classification"
    assert delta.files == {}
    assert delta.stored > 0


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tiny_base, tmp_path):
    runs = {}
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        finetune(str(tiny_base), EXAMPLES, tmp_path / name, Recipe(epochs=1, batch_size=5, seed=seed))
        runs[name] = weights(tmp_path / name)
    assert all(same_bits(runs["one"][n], t) for n, t in runs["two"].items())
    assert not same_bits(runs["one"]["classifier.weight"], runs["three"]["classifier.weight"])


def test_the_accuracy_on_a_dev_part_is_that_of_the_folder_and_training_is_as_without_one(tiny_base, tmp_path):
    recipe = Recipe(epochs=10, batch_size=5, learning_rate=5e-3)
    dev = [*EXAMPLES[:6], Example("who is where", "number"), Example("how bad is the war", "person")]
    found = finetune(str(tiny_base), EXAMPLES, tmp_path / "one", recipe, dev=dev)
    opened = open_tuned(str(tmp_path / "one"))
    assert found == accuracy(opened.model, opened, dev)
    assert 0 < found < 1
    assert finetune(str(tiny_base), EXAMPLES, tmp_path / "two", recipe) is None
    others = weights(tmp_path / "two")
    assert all(same_bits(tensor, others[name]) for name, tensor in weights(tmp_path / "one").items())


def test_a_dev_part_with_a_strange_label_is_refused_before_the_work(tiny_base, tmp_path, left_in_tmp_path):
    def never(step: Step) -> None:
        raise AssertionError("it was trained")

    with pytest.raises(DataError, match="'planet'; the model knows"):
        finetune(str(tiny_base), EXAMPLES, tmp_path / "out", QUICK, never, [Example("what is it", "planet")])
    assert left_in_tmp_path() == []


def test_the_base_is_left_as_it_was(tiny_base, tmp_path):
    before = {p.name: p.read_bytes() for p in tiny_base.iterdir()}
    finetune(str(tiny_base), EXAMPLES, tmp_path / "out", QUICK)
    assert {p.name: p.read_bytes() for p in tiny_base.iterdir()} == before


def test_an_empty_folder_is_filled_and_nothing_else_is_written(tiny_base, tmp_path, left_in_tmp_path):
    (tmp_path / "out").mkdir()
    finetune(str(tiny_base), EXAMPLES, tmp_path / "out", QUICK)
    assert left_in_tmp_path() == ["out"]
    assert open_tuned(str(tmp_path / "out")).model.num_labels == 3


def test_texts_longer_than_the_model_are_cut(tiny_base, tmp_path):
    long = [*EXAMPLES, Example("where is the city " * 50, "place")]
    finetune(str(tiny_base), long, tmp_path / "out", Recipe(epochs=1, max_length=32))
    assert (tmp_path / "out" / "model.safetensors").is_file()


# refusals


@pytest.mark.parametrize("examples", [[], EXAMPLES[:1], EXAMPLES[:4]], ids=["none", "one example", "one label"])
def test_fewer_than_two_labels_are_refused(tiny_base, tmp_path, left_in_tmp_path, examples):
    with pytest.raises(DataError, match="at least two labels"):
        finetune(str(tiny_base), examples, tmp_path / "out", QUICK)
    assert left_in_tmp_path() == []


def test_a_folder_with_anything_in_it_and_a_file_are_refused(tiny_base, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("precious")
    for out in (tmp_path / "full", tmp_path / "full" / "precious"):
        with pytest.raises(FileExistsError, match=out.name):
            finetune(str(tiny_base), EXAMPLES, out, QUICK)
    assert (tmp_path / "full" / "precious").read_text() == "precious"


def test_a_base_that_is_none_is_refused(tmp_path, left_in_tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        finetune(str(tmp_path / "nothing"), EXAMPLES, tmp_path / "out", QUICK)
    assert left_in_tmp_path() == []


def test_a_data_error_is_a_ken_error():
    assert issubclass(DataError, KenError)


# examples
