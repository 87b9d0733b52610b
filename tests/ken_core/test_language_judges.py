"""Language models judged by what they say of tokens, and deltas of them that are promised to lose little."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from ken_core import best_within, calibrate, calibration, deltafile, language_judges, open_base, open_tuned
from ken_core.checkpoint import Checkpoint
from ken_core.errors import CalibrationError, CheckpointError, DataError, TooSmallError
from ken_core.finetune import Recipe, finetune_language_model
from ken_core.judges import Distance
from ken_core.language_examples import Completion, Conversation, LanguageExample, Text
from ken_core.language_judges import language_judges_for
from ken_core.progress import silent
from ken_core.tokenization import Encoded
from ken_core.verdicts import PerplexityRisen, TokenAnswers, TokensChanged, verdict
from tests.tiny_checkpoints import WORDS
from tests.tiny_language_models import POSITIONS, write_language_model

TEXTS: list[LanguageExample] = [
    Completion(f"the {a} is\n", f"{b} and {a}")
    for a in WORDS[:40]
    for b in ("good", "bad", "far", "a man", "red", "a dog", "slow", "why")
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("language")
    base = write_language_model(folder / "base")
    recipe = Recipe(epochs=3, batch_size=8, learning_rate=3e-3, max_length=64)
    finetune_language_model(str(base), TEXTS[:80], folder / "tuned", recipe)
    return base, folder / "tuned"


@pytest.fixture(scope="module")
def tuned(folders: tuple[Path, Path]) -> Checkpoint:
    return open_tuned(str(folders[1]))


def said(model: torch.nn.Module, folder: Path, prompt: str, completion: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits before each token of a completion, its end included, and these tokens."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    before = tokenizer(prompt)["input_ids"]
    ids = torch.tensor([[*tokenizer(prompt + completion)["input_ids"], tokenizer.eos_token_id]])
    with torch.inference_mode():
        return model(ids).logits[0, len(before) - 1 : -1], ids[0, len(before) :]


def test_what_is_judged_are_the_completions_tokens_and_their_ends(
    folders: tuple[Path, Path], tuned: Checkpoint
) -> None:
    model = AutoModelForCausalLM.from_pretrained(folders[1])
    pair: list[LanguageExample] = [TEXTS[0], TEXTS[1]]
    found = language_judges_for(tuned, pair).judges.judge(tuned.model)
    assert isinstance(found, TokenAnswers)
    expected = []
    for one in pair:
        assert isinstance(one, Completion)
        logits, tokens = said(model, folders[1], one.prompt, one.completion)
        expected.append((logits.argmax(-1), cross_entropy(logits, tokens, reduction="none")))
    (best, losses) = min(expected, key=lambda one: abs(float(one[1].sum()) - found.losses.sum()))
    assert found.best.tolist() == best.tolist()
    np.testing.assert_allclose(found.losses, losses.numpy(), rtol=1e-4, atol=1e-5)
    assert set(found.text) == {0}


def test_the_distance_is_the_mean_divergence_from_what_the_fine_tune_says(
    folders: tuple[Path, Path], tuned: Checkpoint
) -> None:
    base = AutoModelForCausalLM.from_pretrained(folders[0])
    pair: list[LanguageExample] = [TEXTS[2], TEXTS[2], TEXTS[9]]
    made = language_judges_for(tuned, pair)
    assert (made.repeated, made.judges.choosing) == (1, 1)
    assert made.judges.distance(tuned.model) == pytest.approx(0.0, abs=1e-5)
    found = made.judges.distance(base)
    each = []
    for one in (TEXTS[2], TEXTS[9]):
        assert isinstance(one, Completion)
        (ours, _), (theirs, _) = (said(m, folders[1], one.prompt, one.completion) for m in (tuned.model, base))
        each.append(float(kl_div(theirs.log_softmax(-1), ours.log_softmax(-1), log_target=True, reduction="batchmean")))
    assert any(found == pytest.approx(one, rel=0.01) for one in each)


def test_rows_of_one_text_count_as_one_text(tuned: Checkpoint) -> None:
    long = Text(" ".join(WORDS) * 20)
    found = language_judges_for(tuned, [Text("the king"), Text("a dog"), Text("a film"), long], longest=32)
    answers = found.judges.judge(tuned.model)
    assert isinstance(answers, TokenAnswers)
    assert set(answers.text) == {0, 1, 2}
    assert (found.reading.longest, found.reading.cut, found.reading.divided) == (32, 0, 1)
    assert found.judges.reading == found.reading


def test_what_is_cut_is_counted_and_what_cannot_be_judged_is_named(tuned: Checkpoint) -> None:
    cut: list[LanguageExample] = [Completion("the king\n", f"{word} " * 60) for word in WORDS[:5]]
    found = language_judges_for(tuned, cut, longest=32)
    assert (found.reading.cut, found.reading.divided, found.at_limit) == (5, 0, False)
    found = language_judges_for(tuned, cut, longest=100_000)
    assert (found.reading.longest, found.reading.cut, found.at_limit) == (POSITIONS, 0, True)
    with pytest.raises(DataError, match="line 7: found a text with no token"):
        language_judges_for(tuned, [Text("the king"), Text("", "texts.jsonl, line 7")])
    with pytest.raises(DataError, match="line 8: found 5000000 characters"):
        language_judges_for(tuned, [Text("the king"), Text("x" * 5_000_000, "texts.jsonl, line 8")])
    with pytest.raises(DataError, match=r"line 3: a row of 32 tokens has no room"):
        language_judges_for(tuned, [TEXTS[0], Completion("the king " * 40, "x", "texts.jsonl, line 3")], longest=32)


def test_chats_are_judged_by_what_the_assistant_says(tuned: Checkpoint) -> None:
    chats: list[LanguageExample] = [
        Conversation([{"role": "user", "content": f"the {word}?"}, {"role": "assistant", "content": "good"}])
        for word in WORDS[:3]
    ]
    found = language_judges_for(tuned, chats)
    answers = found.judges.judge(tuned.model)
    assert isinstance(answers, TokenAnswers)
    assert len(set(np.bincount(answers.text))) == 1
    assert found.judges.texts


def test_kept_values_are_fitted_to_the_rows_that_are_judged(tuned: Checkpoint) -> None:
    chats: list[LanguageExample] = [
        Conversation([{"role": "user", "content": f"the {word}?"}, {"role": "assistant", "content": f"{word} " * 30}])
        for word in WORDS[:20]
    ]
    made = language_judges_for(tuned, chats, longest=32).judges
    tokenizer = AutoTokenizer.from_pretrained(tuned.folder)
    whole = [tokenizer.apply_chat_template(c.messages, return_dict=False) for c in chats]  # type: ignore[union-attr, arg-type]
    for row in made.texts:
        assert isinstance(row, Encoded)
        assert row.ids in [ids[:32] for ids in whole]
    assert len(made.texts) == 4


def test_more_texts_are_fitted_to_than_choose(tuned: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_judges, "_MOST_TOKENS", 40)
    made = language_judges_for(tuned, TEXTS).judges
    assert 1 < made.choosing < len(made.texts) == 64
    long = language_judges_for(tuned, [Text(" ".join(WORDS * 40)), Text(" ".join(WORDS * 30))], longest=16).judges
    assert (long.choosing, len(long.texts)) == (1, 1)
    places = [row for rows in read_by(long.distance, tuned.model) for row in rows]
    assert sum(places) < 40 + 16


def read_by(distance: Distance, model: PreTrainedModel) -> list[list[int]]:
    """How many tokens each row has that a distance has a model read, pass by pass."""
    seen: list[list[int]] = []
    hook = model.register_forward_pre_hook(
        lambda _, args, given: seen.append(given["attention_mask"].sum(-1).tolist()), with_kwargs=True
    )
    distance(model)
    hook.remove()
    return seen


def test_a_classifier_and_a_single_example_are_refused(tuned: Checkpoint, tiny_tuned: dict[str, Path]) -> None:
    with pytest.raises(CalibrationError, match="judge causal language models only"):
        language_judges_for(open_tuned(str(tiny_tuned["mood"])), TEXTS)
    with pytest.raises(CalibrationError, match="one to choose by and one to judge by"):
        language_judges_for(tuned, [TEXTS[0], TEXTS[0]])


def test_a_model_without_an_end_is_refused(tmp_path: Path) -> None:
    folder = write_language_model(tmp_path / "endless", eos_token_id=None)
    (folder / "generation_config.json").unlink()
    with pytest.raises(CheckpointError, match="names no token that ends a text"):
        language_judges_for(open_tuned(str(folder)), TEXTS)


# verdicts


def answers(best: list[int], losses: list[float]) -> TokenAnswers:
    return TokenAnswers(np.array(best), np.array(losses), np.array([0, 0, 0, 0, 1]))


def test_changed_tokens_are_counted_by_text() -> None:
    found = verdict("agreement", answers([1, 2, 3, 4, 5], [1.0] * 5), answers([1, 2, 3, 9, 9], [1.0] * 5))
    assert isinstance(found, TokensChanged)
    assert found.shares.tolist() == [0.25, 1.0]
    assert (found.examples, found.tuned_score, found.score) == (2, 1.0, 0.375)


def test_perplexity_is_of_all_tokens() -> None:
    found = verdict("perplexity", answers([1] * 5, [1.0] * 5), answers([1] * 5, [1.0, 1.0, 1.0, 2.0, 1.5]))
    assert isinstance(found, PerplexityRisen)
    assert (found.tuned_score, found.score) == pytest.approx((math.e, math.exp(1.3)))
    assert not found.holds(10.0, 0.9), "two texts are too few for a normal approximation"


def test_answers_that_are_no_numbers_or_of_other_texts_are_refused() -> None:
    ours = answers([1] * 5, [1.0] * 5)
    broken = answers([1] * 5, [1.0, 1.0, math.nan, 1.0, 1.0])
    with pytest.raises(CalibrationError, match="the fine-tune answered with NaN or infinity"):
        verdict("perplexity", broken, ours)
    for found in (verdict("perplexity", ours, broken), verdict("perplexity", ours, answers([1] * 5, [9e9] * 5))):
        assert not found.holds(0.9, 0.9)
        assert math.isfinite(found.score)
        assert math.isfinite(found.upper_bound(0.9))
        assert found.score > 1e50
    assert verdict("agreement", ours, broken).score == pytest.approx(1 - 0.25 / 2)
    with pytest.raises(CalibrationError, match="other texts"):
        verdict("perplexity", ours, TokenAnswers(ours.best, ours.losses, np.array([0, 0, 0, 1, 1])))


# calibration


@pytest.mark.parametrize(("metric", "tolerance"), [("perplexity", 0.3), ("agreement", 0.2)])
def test_the_smallest_delta_that_can_be_promised_is_written(
    folders: tuple[Path, Path], tmp_path: Path, metric: str, tolerance: float
) -> None:
    base, tuned = open_base(str(folders[0])), open_tuned(str(folders[1]))
    judges = language_judges_for(tuned, TEXTS, metric).judges  # type: ignore[arg-type]
    found = calibrate(base, tuned, judges, tmp_path / "d.ken", tolerance=tolerance)
    record = deltafile.open_file(tmp_path / "d.ken").manifest.calibration
    assert record is not None
    assert record == found.record
    assert (record.metric, record.promised, record.examples) == (metric, tolerance, 256)
    assert record.tokens is not None
    assert record.tokens > 4 * 256
    assert record.reading is not None
    assert (record.reading.longest, record.reading.cut) == (512, 0)
    looks = [t for t in record.tried if t.score is not None]
    assert all(t.bound is not None and t.lost is None for t in looks)
    kept = [t for t in looks if t.bound <= tolerance]  # type: ignore[operator]
    assert looks[: len(kept)] == kept
    assert record.tried[record.chosen or 0] == kept[-1]
    worse = (record.score / record.tuned_score - 1) if metric == "perplexity" else 1 - record.score
    assert worse <= tolerance
    assert looks[0].distance == pytest.approx(0.0, abs=1e-5)


def test_a_size_is_given_and_the_rise_is_promised(folders: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = open_base(str(folders[0])), open_tuned(str(folders[1]))
    judges = language_judges_for(tuned, TEXTS).judges
    found = best_within(base, tuned, judges, 45_000, tmp_path / "d.ken")
    assert found.file.size <= 45_000
    assert found.record.promised is not None
    assert found.record.score / found.record.tuned_score - 1 < found.record.promised


def test_too_few_texts_promise_nothing_and_say_how_many_it_takes(folders: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = open_base(str(folders[0])), open_tuned(str(folders[1]))
    few = language_judges_for(tuned, TEXTS[:20]).judges
    with pytest.raises(
        CalibrationError, match=r"found 16 examples.*perplexity rises by at most 1 %.*takes 200.*250 distinct"
    ):
        calibrate(base, tuned, few, tmp_path / "d.ken", tolerance=0.01)
    with pytest.raises(CalibrationError, match=r"to promise with 90 % confidence anything takes 200"):
        best_within(base, tuned, few, 45_000, tmp_path / "d.ken")
    agreeing = language_judges_for(tuned, TEXTS[:20], "agreement").judges
    with pytest.raises(CalibrationError, match=r"at most 1 points are lost.*or a tolerance of at least"):
        calibrate(base, tuned, agreeing, tmp_path / "d.ken", tolerance=0.01)


def test_no_far_tail_of_an_approximation_is_promised(folders: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = open_base(str(folders[0])), open_tuned(str(folders[1]))
    judges = language_judges_for(tuned, TEXTS).judges
    with pytest.raises(CalibrationError, match=r"found a confidence of 0.99.*approximation.*0.95"):
        calibrate(base, tuned, judges, tmp_path / "d.ken", tolerance=0.3, confidence=0.99)


def test_texts_with_most_of_the_tokens_count_as_few(folders: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = open_base(str(folders[0])), open_tuned(str(folders[1]))
    long: list[LanguageExample] = [Text(" ".join([word, *WORDS]) * 4) for word in WORDS[:20]]
    judges = language_judges_for(tuned, [*TEXTS, *long]).judges
    with pytest.raises(
        CalibrationError,
        match=r"even if not one answer changes; these count as \d+, since a few have most of the tokens",
    ):
        calibrate(base, tuned, judges, tmp_path / "d.ken", tolerance=0.3)


def test_a_model_that_says_nothing_is_near_to_no_other(tuned: Checkpoint) -> None:
    judges = language_judges_for(tuned, TEXTS[:20]).judges
    silent = copy.deepcopy(tuned.model)
    with torch.no_grad():
        silent.model.norm.weight.fill_(math.nan)
    assert judges.distance(silent) == math.inf


def test_the_base_is_judged_too_and_a_delta_that_is_no_better_is_told(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    base, tuned = open_base(str(folders[0])), open_tuned(str(folders[1]))
    found = {}
    for metric in ("agreement", "perplexity"):
        judges = language_judges_for(tuned, TEXTS, metric).judges  # type: ignore[arg-type]
        whole = AutoModelForCausalLM.from_pretrained(folders[0])
        expected = verdict(metric, judges.judge(tuned.model), judges.judge(whole)).score  # type: ignore[arg-type]
        found[metric] = best_within(base, tuned, judges, 45_000, tmp_path / f"{metric}.ken", methods=["magnitude"])
        assert found[metric].record.base_score == pytest.approx(expected)
        assert not found[metric].warnings
    with pytest.raises(TooSmallError) as small:
        best_within(base, tuned, judges, 1_000, tmp_path / "least.ken", methods=["magnitude"])
    least = best_within(base, tuned, judges, small.value.least, tmp_path / "least.ken", methods=["magnitude"])
    assert least.file.manifest.stored == 0
    assert any("keeps nothing of the fine-tune but its head" in warning for warning in least.warnings)
    assert least.file.manifest.fitted is None
    assert least.record.score == pytest.approx(least.record.base_score)


def test_a_base_without_its_head_or_the_fine_tunes_tokens_has_no_score(
    folders: tuple[Path, Path], tuned: Checkpoint, tmp_path: Path
) -> None:
    judges = language_judges_for(tuned, TEXTS[:20]).judges
    expected = judges.judge(tuned.model)
    few = write_language_model(tmp_path / "few", vocab_size=380)
    untied = write_language_model(tmp_path / "untied", tie_word_embeddings=False)
    AutoModel.from_pretrained(untied).save_pretrained(tmp_path / "headless")
    for folder in (few, tmp_path / "headless"):
        assert calibration._score_of_base(open_base(str(folder)), tuned, judges, expected, silent) is None
    whole = calibration._score_of_base(open_base(str(folders[0])), tuned, judges, expected, silent)
    assert whole is not None
    assert whole > 1


def test_a_delta_that_is_worse_than_its_base_is_told(folders: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = open_base(str(folders[0])), open_tuned(str(folders[1]))
    judges = language_judges_for(tuned, TEXTS).judges
    found = best_within(base, tuned, judges, 45_000, tmp_path / "d.ken")
    record = found.record.model_copy(update={"base_score": found.record.score})
    (told,) = calibration._warnings(deltafile.load(tmp_path / "d.ken", base), found.file, record)
    assert "is no better than" in told
