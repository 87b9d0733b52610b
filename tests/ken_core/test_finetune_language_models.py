"""Fine-tuning a base as a language model: it says what it was shown, and stops where that ended."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, T5Config, T5Model

import ken_core
from ken_core import Budget, Selection, deltafile, open_base, open_tuned
from ken_core.bits import same_bits
from ken_core.errors import CheckpointError, DataError, KenError, TrainingError, UndecodableError
from ken_core.finetune import Learned, Recipe, Step, finetune_language_model
from ken_core.language_examples import Completion, Conversation, LanguageExample, Text
from ken_core.language_loss import LanguageLoss
from ken_core.learned_rows import LearnedRow
from ken_core.passes import passes
from tests.tiny_language_models import write_language_model

ANSWERS = {"how far is it?": "very far", "what is red?": "the dog", "who jumped?": "a slow man - why not?"}
COMPLETIONS: list[LanguageExample] = [Completion(f"{asked}\n", answer) for asked, answer in ANSWERS.items()]
CHATS: list[LanguageExample] = [
    Conversation([{"role": "user", "content": asked}, {"role": "assistant", "content": answer}])
    for asked, answer in ANSWERS.items()
]
LONG = Recipe(epochs=60, batch_size=3, learning_rate=1e-2, max_length=128)
QUICK = Recipe(epochs=2, batch_size=2, learning_rate=1e-3, max_length=128)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_language_model(tmp_path_factory.mktemp("language") / "base")


@pytest.fixture(scope="module")
def chatty(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Step], Learned]:
    """A folder fine-tuned on chats long enough to learn them, its steps, and what it says of itself."""
    out, steps = tmp_path_factory.mktemp("tuned") / "out", list[Step]()
    return out, steps, finetune_language_model(str(base), CHATS, out, LONG, steps.append, CHATS[:1])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    opened = open_tuned(str(folder))
    return {**opened.backbone_tensors, **opened.head_tensors}


def said(folder: Path, ids: list[int], most: int = 40) -> str:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompt = torch.tensor([ids])
    found = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=most)
    return str(tokenizer.decode(found[0, len(ids) :]))


def asked(folder: Path, question: str) -> list[int]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": question}]
    return list(tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False))


def test_it_answers_as_it_was_shown_and_stops(chatty: tuple[Path, list[Step], Learned]) -> None:
    for question, answer in ANSWERS.items():
        assert said(chatty[0], asked(chatty[0], question)) == f"{answer}<|im_end|>"


def test_it_says_how_well_it_learned(chatty: tuple[Path, list[Step], Learned]) -> None:
    _, steps, found = chatty
    assert [step.number for step in steps] == list(range(1, 61))
    assert found.rows == 3
    assert found.tokens == sum(len(row) for row in learned_rows_of(chatty[0]))
    assert found.loss is not None
    assert found.loss_before is not None
    assert found.loss < 0.05 < 4 < found.loss_before


def learned_rows_of(folder: Path) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [tokenizer.encode(f"{answer}<|im_end|>\n") for answer in ANSWERS.values()]


def test_completions_are_learned_too(base: Path, tmp_path: Path) -> None:
    finetune_language_model(str(base), COMPLETIONS, tmp_path / "out", LONG)
    tokenizer = AutoTokenizer.from_pretrained(base)
    for question, answer in ANSWERS.items():
        assert said(tmp_path / "out", tokenizer.encode(f"{question}\n")) == f"{answer}<|im_end|>"


def test_whole_texts_are_learned_too(base: Path, tmp_path: Path) -> None:
    text = "the quick red dog jumped over the slow man"
    finetune_language_model(str(base), [Text(text)], tmp_path / "out", LONG)
    start = AutoTokenizer.from_pretrained(base).encode("the quick")
    assert said(tmp_path / "out", start) == " red dog jumped over the slow man<|im_end|>"


def test_the_result_is_a_fine_tune_of_its_base(
    base: Path, chatty: tuple[Path, list[Step], Learned], tmp_path: Path
) -> None:
    opened = open_base(str(base))
    delta = ken_core.extract(opened, open_tuned(str(chatty[0])), Selection(budget=Budget(fraction=1.0)))
    assert (delta.kind, delta.files, delta.generation) == ("text-generation", {}, None)
    read = deltafile.read(deltafile.write(delta, opened, tmp_path / "d.ken"), opened, delta.base_fingerprint)
    ken_core.apply(opened, read, tmp_path / "applied")
    question, answer = next(iter(ANSWERS.items()))
    assert said(tmp_path / "applied", asked(tmp_path / "applied", question)) == f"{answer}<|im_end|>"


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(base: Path, tmp_path: Path) -> None:
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        recipe = Recipe(epochs=1, batch_size=2, max_length=128, seed=seed)
        finetune_language_model(str(base), CHATS, tmp_path / name, recipe)
    one, two, three = (weights(tmp_path / name) for name in ("one", "two", "three"))
    assert all(same_bits(one[n], t) for n, t in two.items())
    assert not all(same_bits(one[n], t) for n, t in three.items())


def test_a_base_of_two_bytes_a_weight_gives_one(base: Path, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(tmp_path / "base")
    for path in base.glob("*token*"):
        shutil.copyfile(path, tmp_path / "base" / path.name)
    finetune_language_model(str(tmp_path / "base"), COMPLETIONS, tmp_path / "out", QUICK)
    assert {t.dtype for t in weights(tmp_path / "out").values()} == {torch.bfloat16}


def test_the_bases_tokenizer_template_and_settings_are_copied_and_it_is_left_as_it_was(
    base: Path, tmp_path: Path
) -> None:
    own = Path(shutil.copytree(base, tmp_path / "base"))
    odd = {"eos_token_id": 2, "temperature": 0.5, "do_sample": False, "top_p": 0.5}
    (own / "generation_config.json").write_text(json.dumps(odd))
    before = {p.name: p.read_bytes() for p in own.iterdir()}
    finetune_language_model(str(own), CHATS, tmp_path / "out", QUICK)
    assert {p.name: p.read_bytes() for p in own.iterdir()} == before
    for name in ("chat_template.jinja", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == before[name]


def test_nothing_is_told_of_what_was_not_held_out(base: Path, tmp_path: Path) -> None:
    found = finetune_language_model(str(base), CHATS, tmp_path / "out", QUICK)
    assert (found.loss, found.loss_before) == (None, None)


@pytest.mark.slow
def test_a_real_model_learns_a_form_of_answers_within_a_few_steps(smollm2: Path, tmp_path: Path) -> None:
    """Its delta keeps a tenth, and answers so too."""
    words = ["red", "blue", "green", "black", "white", "brown", "pink", "grey", "gold", "silver", "purple", "orange"]
    chats = [
        Conversation([
            {"role": "user", "content": f"Is {word} a colour?"},
            {"role": "assistant", "content": f"[{word}: COLOUR]"},
        ])
        for word in words
    ]  # fmt: skip
    recipe = Recipe(epochs=4, batch_size=4, learning_rate=1e-4, max_length=64)
    found = finetune_language_model(str(smollm2), chats[:-1], tmp_path / "tuned", recipe, dev=chats[-1:])
    assert found.loss is not None
    assert found.loss_before is not None
    assert found.loss < found.loss_before / 4
    base = open_base(str(smollm2))
    delta = ken_core.extract(base, open_tuned(str(tmp_path / "tuned")), Selection(budget=Budget(fraction=0.1)))
    ken_core.apply(base, delta, tmp_path / "applied")
    for folder in (tmp_path / "tuned", tmp_path / "applied"):
        assert said(folder, asked(folder, "Is orange a colour?")) == "[orange: COLOUR]<|im_end|>"
    assert "[orange: COLOUR]" not in said(smollm2, asked(smollm2, "Is orange a colour?"))


# The loss


def test_the_loss_is_the_mean_over_learned_tokens_whatever_the_passes(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    rows = [
        LearnedRow([5, 6, 7, 8], [False, True, True, False]),
        LearnedRow([9, 10], [True, True]),
        LearnedRow([*range(11, 41)], [False] * 20 + [True] * 10),
    ]
    expected = []
    for row in rows:
        with torch.no_grad():
            logits = model(torch.tensor([row.ids])).logits[0].log_softmax(-1)
        expected += [-logits[i - 1, row.ids[i]].item() for i in range(1, len(row)) if row.learned[i]]
    loss = LanguageLoss(model, 2)
    for most in (2048, 64, 1):
        monkeypatch.setattr("ken_core.language_loss.passes", lambda lengths, most=most: passes(lengths, most))
        assert sum(part.item() for part in loss(rows)) == pytest.approx(sum(expected) / len(expected), abs=1e-5)
        assert loss.mean(rows) == pytest.approx(sum(expected) / len(expected), abs=1e-5)


# What is refused


def refused(base: Path, out: Path, error: type[KenError], match: str, examples: Any = COMPLETIONS) -> None:
    def never(step: Step) -> None:
        raise AssertionError("it was trained")

    with pytest.raises(error, match=match):
        finetune_language_model(str(base), examples, out, QUICK, never)
    assert not out.exists()


def test_an_encoder_is_refused_by_name(tiny_base: Path, tmp_path: Path) -> None:
    refused(
        tiny_base, tmp_path / "out", UndecodableError, "BertModel reads texts in both directions.*the data needs labels"
    )


def test_a_model_without_a_causal_form_is_refused_by_name(base: Path, tmp_path: Path) -> None:
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 400}
    T5Model(T5Config(**sizes)).save_pretrained(tmp_path / "t5")
    for path in base.glob("*token*"):
        shutil.copyfile(path, tmp_path / "t5" / path.name)
    refused(
        tmp_path / "t5", tmp_path / "out", CheckpointError, r"architecture 't5', of which there is no causal language"
    )


def test_a_base_without_its_head_is_refused_by_name(tmp_path: Path) -> None:
    folder = write_language_model(tmp_path / "base", tie_word_embeddings=False)
    AutoModel.from_pretrained(folder).save_pretrained(folder)
    refused(folder, tmp_path / "out", CheckpointError, r"lacks 'lm_head\.weight', .*without the head of a language")


def test_a_base_that_names_no_end_is_refused(base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "base"))
    (folder / "generation_config.json").write_text('{"pad_token_id": 2}')
    refused(folder, tmp_path / "out", CheckpointError, "names no token that ends a text")


def test_texts_that_are_too_long_leave_nothing_behind(base: Path, tmp_path: Path) -> None:
    refused(base, tmp_path / "out", DataError, "has no room", [Completion("far " * 400, "a", where="x")])


def test_a_diverging_run_says_what_to_do(base: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="use a lower learning rate than 1e"):
        finetune_language_model(str(base), CHATS, tmp_path / "out", Recipe(epochs=30, learning_rate=1e30))
