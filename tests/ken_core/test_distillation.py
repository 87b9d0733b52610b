"""Distillation: what training does to a delta, on which tasks, and what it refuses."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import (
    BertForMaskedLM,
    BertForNextSentencePrediction,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    PreTrainedModel,
)

from ken_core.checkpoint import Checkpoint, open_base, open_tuned
from ken_core.delta import Delta, merge
from ken_core.deltafile import load, write
from ken_core.distillation import distil
from ken_core.divergence import divergence
from ken_core.errors import CheckpointError, DataError, SelectionError, TrainingError
from ken_core.examples import Example
from ken_core.extraction import Extraction, extract
from ken_core.file_size import write_within
from ken_core.finetune import Recipe, finetune
from ken_core.progress import Stage
from ken_core.selection import Budget, Selection
from ken_core.student import Student
from ken_core.teacher import Teacher
from ken_core.tokenization import Encoder, collate
from tests.tiny_checkpoints import TEXTS, WORDS, Tiny, write_tuned

SVD = Selection("svd", Budget(nbytes=6000))
FEW = Selection("magnitude", Budget(fraction=0.05))


def texts(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS[:80], k=draw.randint(3, 12))) for _ in range(count)]


def apart(base: Checkpoint, tuned: Checkpoint, delta: Delta, given: list[str]) -> float:
    """The divergence of a delta's answers from the fine-tune's, by the merged model itself."""
    encoder = Encoder.of(base, delta)
    batch = collate(encoder(given), encoder.pad_id, torch.device("cpu"))
    merged = {tuned.prefix + n: t for n, t in merge(base, delta).items()}
    with torch.no_grad():
        full = tuned.model(**batch)
        pruned = torch.func.functional_call(tuned.model, merged, kwargs=batch)
        return float(divergence(delta.kind, tuned.config, full, pruned, batch["attention_mask"].bool()))


@pytest.mark.parametrize("codec", ["zstd", "int4"])
@pytest.mark.parametrize("selection", [SVD, FEW], ids=["svd", "magnitude"])
def test_training_brings_answers_to_other_texts_nearer_to_the_fine_tunes(base, tuned, tmp_path, selection, codec):
    delta = extract(base, tuned, selection, codec=codec)
    found = distil(base, tuned, delta, texts(120), 40, codec=codec, learning_rate=0.03)
    before, after = (
        apart(base, tuned, load(write(d, base, tmp_path / f"{i}.ken", codec).path, base), texts(100, seed=1))
        for i, d in enumerate((delta, found))
    )
    assert after < 0.8 * before
    assert found.distilled is not None
    assert (found.distilled.steps, found.distilled.texts, found.distilled.held_out) == (40, 108, 12)
    assert found.distilled.after < found.distilled.before


def test_positions_and_ranks_and_the_head_stay(base, tuned):
    for selection in (SVD, FEW):
        delta = extract(base, tuned, selection, codec="int4")
        found = distil(base, tuned, delta, texts(60), 5, codec="int4")
        assert found.distilled is not None
        assert {n: e.rank for n, e in found.lowrank.items()} == {n: e.rank for n, e in delta.lowrank.items()}
        assert all((found.sparse[n].positions == e.positions).all() for n, e in delta.sparse.items())
        assert all(torch.equal(found.head[n], t) for n, t in delta.head.items())


@pytest.mark.parametrize(
    ("selection", "codec"),
    [(SVD, "zstd"), (SVD, "int8"), (SVD, "int4"), (FEW, "zstd"), (FEW, "int4"), (FEW, "sign")],
)
def test_training_sees_the_weights_that_the_file_gives_back(base, tuned, tmp_path, selection, codec):
    delta = extract(base, tuned, selection, codec=codec)
    student = Student(base, tuned, delta, codec)
    optimiser = torch.optim.Adam(student.parameters(), 0.05)
    encoder = Encoder.of(base, delta)
    batch = collate(encoder(list(TEXTS)), encoder.pad_id, torch.device("cpu"))
    for _ in range(3):
        student(batch)["logits"].square().sum().backward()
        optimiser.step()
    stored = load(write(student.delta(), base, tmp_path / "d.ken", codec).path, base)
    merged = {tuned.prefix + n: t for n, t in merge(base, stored).items()}
    with torch.no_grad():
        served = torch.func.functional_call(tuned.model, merged, kwargs=batch).logits
        assert torch.allclose(student(batch)["logits"], served, atol=1e-4)


def test_the_same_arguments_give_the_same_file_and_another_seed_another(base, tuned, tmp_path):
    delta = extract(base, tuned, SVD, codec="int4")
    made = [distil(base, tuned, delta, texts(60), 4, codec="int4", seed=seed) for seed in (0, 0, 1)]
    first, again, other = (write(d, base, tmp_path / f"{i}.ken", "int4").digest for i, d in enumerate(made))
    assert first == again != other


def test_the_file_says_how_its_values_were_trained(base, tuned, tmp_path):
    delta = extract(base, tuned, FEW)
    assert delta.distilled is None
    found = distil(base, tuned, delta, list(TEXTS), 6, codec="zstd")
    assert found.distilled is not None
    assert found.distilled.held_out == 0
    file = write(found, base, tmp_path / "d.ken")
    assert file.manifest.distilled == load(file.path, base).distilled == found.distilled


def test_training_that_does_not_help_leaves_the_delta_as_it_was(base, tuned):
    delta = extract(base, tuned, Selection("magnitude", Budget(fraction=0.5)))
    found = distil(base, tuned, delta, texts(60), 1, codec="zstd", learning_rate=50.0)
    assert found.distilled is None
    assert found.sparse == delta.sparse
    assert "did not help" in found.warnings[-1]


def test_every_step_is_told(base, tuned):
    told: list[Stage] = []
    distil(base, tuned, extract(base, tuned, SVD), texts(60), 3, codec="zstd", progress=told.append)
    steps = [stage for stage in told if stage.what == "distilling"]
    assert [(stage.done, stage.total) for stage in steps] == [(0, 3), (1, 3), (2, 3)]
    assert steps[1].name.startswith("divergence 0.")


@pytest.mark.parametrize(
    ("architecture", "given"),
    [
        (BertForSequenceClassification, texts(20)),
        (BertForTokenClassification, texts(20)),
        (BertForMaskedLM, [f"{text} [MASK]" for text in texts(20)]),
        (BertForQuestionAnswering, [("who is it", text) for text in texts(20)]),
        (BertModel, texts(20)),
    ],
)
def test_every_kind_of_task_is_distilled(tiny: Tiny, tmp_path, architecture: type[PreTrainedModel], given):
    folder = write_tuned(tiny.base_folder, tmp_path / "tuned", ["a", "b"], 7, architecture=architecture)
    tuned = open_tuned(str(folder))
    found = distil(tiny.base, tuned, extract(tiny.base, tuned, FEW), given, 8, codec="zstd", learning_rate=0.03)
    assert found.distilled is not None
    assert found.distilled.after < found.distilled.before


@pytest.mark.parametrize(
    ("labels", "problem"), [(["score"], None), (["a", "b"], "multi_label_classification"), (["a", "b"], "regression")]
)
def test_scores_and_several_labels_are_distilled(tiny: Tiny, tmp_path, labels, problem):
    tuned = open_tuned(str(write_tuned(tiny.base_folder, tmp_path / "tuned", labels, 8, problem)))
    found = distil(tiny.base, tuned, extract(tiny.base, tuned, FEW), texts(20), 8, codec="zstd", learning_rate=0.03)
    assert found.distilled is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_trained_in_float32_and_stored_in_its_own_dtype(tiny: Tiny, tmp_path, dtype):
    for source, name in ((tiny.base_folder, "base"), (tiny.tuned("halves", ["a", "b"], 9), "tuned")):
        model_class = BertModel if name == "base" else BertForSequenceClassification
        model_class.from_pretrained(source).to(dtype).save_pretrained(tmp_path / name)
        for file in source.glob("*token*"):
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
    base, tuned = open_base(str(tmp_path / "base")), open_tuned(str(tmp_path / "tuned"))
    for selection in (SVD, FEW):
        delta = extract(base, tuned, selection, codec="int4")
        found = distil(base, tuned, delta, texts(30), 10, codec="int4", learning_rate=0.03)
        assert found.distilled is not None
        assert {entry.dtype for entry in found.sparse.values()} == {dtype}
        load(write(found, base, tmp_path / "d.ken", "int4").path, base)


def test_weights_that_the_fine_tune_lacks_are_the_bases_own(tiny: Tiny, tmp_path):
    """A Trainer may leave out what was frozen; transformers then fills it with random numbers."""
    from safetensors.torch import load_file, save_file

    folder = write_tuned(tiny.base_folder, tmp_path / "tuned", ["a", "b"], 10)
    frozen = "bert.embeddings.word_embeddings.weight"
    held = {name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if name != frozen}
    save_file(held, folder / "model.safetensors", {"format": "pt"})
    tuned = open_tuned(str(folder))
    assert tuned.lacking
    encoder = Encoder(tiny.base, tuned.config, {})
    batch = collate(encoder(list(TEXTS)), encoder.pad_id, torch.device("cpu"))
    served = merge(tiny.base, extract(tiny.base, tuned, Selection("magnitude", Budget(fraction=1.0))))
    expected = torch.func.functional_call(tuned.model, {f"bert.{n}": t for n, t in served.items()}, kwargs=batch)
    assert torch.allclose(Teacher(tiny.base, tuned)(batch)["logits"], expected["logits"], atol=1e-5)


def test_ctrl_c_leaves_no_file_and_the_fine_tune_as_it_was(base, tuned, tmp_path, left_in_tmp_path):
    before = {name: tensor.clone() for name, tensor in tuned.model.state_dict().items()}

    def stop(stage: Stage) -> None:
        if (stage.what, stage.done) == ("distilling", 2):
            raise KeyboardInterrupt

    def refine(delta: Delta) -> Delta:
        return distil(base, tuned, delta, texts(60), 5, codec="int4", progress=stop)

    with pytest.raises(KeyboardInterrupt):
        write_within(Extraction(base, tuned), base, 80_000, tmp_path / "d.ken", refine=refine)
    assert left_in_tmp_path() == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in tuned.model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in tuned.model.parameters())


@pytest.mark.parametrize("size", [40_000, 44_000])
def test_a_distilled_file_keeps_its_size(base, tuned, tmp_path, size):
    def refine(delta: Delta) -> Delta:
        return distil(base, tuned, delta, texts(60), 10, codec="int4", learning_rate=0.01)

    delta, file = write_within(Extraction(base, tuned), base, size, tmp_path / "d.ken", refine=refine)
    assert delta.distilled is not None
    assert 0.9 * size < file.path.stat().st_size <= size


def test_what_compresses_worse_once_refined_is_made_smaller(base, tuned, tmp_path):
    ranks: list[int] = []

    def refine(delta: Delta) -> Delta:
        ranks.append(sum(entry.rank for entry in delta.lowrank.values()))
        return replace(delta, head={**delta.head, "more": torch.randn(ranks[-1])})

    _, file = write_within(Extraction(base, tuned), base, 45_000, tmp_path / "d.ken", refine=refine)
    assert file.size <= 45_000
    assert ranks == sorted(set(ranks), reverse=True)
    assert len(ranks) > 1


def test_what_never_fits_once_refined_is_refused(base, tuned, tmp_path, left_in_tmp_path):
    def refine(delta: Delta) -> Delta:
        return replace(delta, head={**delta.head, "more": torch.randn(30_000)})

    with pytest.raises(SelectionError, match=r"once refined.* and 80,000 were asked for; give a larger size"):
        write_within(Extraction(base, tuned), base, 80_000, tmp_path / "d.ken", refine=refine)
    assert left_in_tmp_path() == []


def test_a_number_that_is_no_longer_finite_is_an_error(base, tuned):
    delta = extract(base, tuned, FEW)
    with pytest.raises(TrainingError, match=r"diverged.*lower learning rate"):
        distil(base, tuned, delta, texts(60), 3, codec="zstd", learning_rate=float("inf"))


def test_bad_input_is_refused_by_name(base, tuned, tiny: Tiny, tmp_path):
    delta = extract(base, tuned, FEW)
    with pytest.raises(DataError, match="there is none"):
        distil(base, tuned, delta, [], 3, codec="zstd")
    with pytest.raises(DataError, match=r"found 0 steps.*at least 1"):
        distil(base, tuned, delta, texts(9), 0, codec="zstd")
    nothing = replace(delta, sparse={})
    with pytest.raises(CheckpointError, match="keeps nothing of the fine-tune's backbone"):
        distil(base, tuned, nothing, texts(9), 1, codec="zstd")
    other = write_tuned(tiny.base_folder, tmp_path / "next", ["a", "b"], 11, architecture=BertForNextSentencePrediction)
    follows = open_tuned(str(other))
    with pytest.raises(CheckpointError, match="'BertForNextSentencePrediction' cannot be compared"):
        distil(tiny.base, follows, extract(tiny.base, follows, FEW), texts(9), 1, codec="zstd")


def test_texts_that_the_fine_tune_does_not_take_are_refused(tiny: Tiny):
    tuned = open_tuned(str(tiny.beyond_its_words()))
    with pytest.raises(TrainingError, match=r"cannot answer these texts.*tokenizer belongs to it"):
        distil(tiny.base, tuned, extract(tiny.base, tuned, FEW), texts(9), 1, codec="zstd")


@pytest.fixture(scope="module")
def topics(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Checkpoint, list[str]]:
    """A real base, a fine-tune of it on sentences about four topics, and such sentences."""
    words = {
        "food": ("bread", "soup", "an apple", "the cheese"),
        "water": ("the river", "a lake", "the sea", "a canal"),
        "music": ("the violin", "a song", "the choir", "an opera"),
        "travel": ("the train", "a ticket", "the airport", "a hotel"),
    }
    frames = ("where is {}?", "she spoke of {} all day", "nobody expected {}", "{} was better last year", "we like {}")
    made = [
        Example(frame.format(word), topic)
        for (topic, of_topic), frame in itertools.product(words.items(), frames)
        for word in of_topic
    ]
    random.Random(0).shuffle(made)
    folder = tmp_path_factory.mktemp("topics") / "tuned"
    finetune(str(minilm), made[:64], folder, Recipe(epochs=4, learning_rate=3e-4))
    return open_base(str(minilm)), open_tuned(str(folder)), [example.text for example in made]


def test_a_real_fine_tune_is_answered_better_on_texts_that_were_not_trained_on(topics, tmp_path: Path) -> None:
    base, tuned, given = topics
    delta = extract(base, tuned, Selection("svd", Budget(nbytes=20_000)), codec="int4")
    found = distil(base, tuned, delta, given[:64], 10, codec="int4", learning_rate=0.03)
    before, after = (
        apart(base, tuned, load(write(d, base, tmp_path / f"{i}.ken", "int4").path, base), given[64:])
        for i, d in enumerate((delta, found))
    )
    assert after < 0.5 * before
