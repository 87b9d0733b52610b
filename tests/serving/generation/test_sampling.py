"""Tokens are chosen as Transformers' `generate` chooses them, and OpenAI's penalties do what they say."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ken_core.generation_settings import GenerationSettings
from serving.errors import InternalError
from serving.generation.query import SamplingParameters
from serving.generation.sampling import Sampler, Sampling, _candidates

LOGITS = torch.tensor([2.0, 1.5, 1.5, 1.0, 0.0, -1.0, -3.0, 0.5])
PLAIN = GenerationSettings()


def decided(task: GenerationSettings = PLAIN, sampled: bool = True, **asked: Any) -> Sampling:
    return Sampling.of(SamplingParameters.model_validate(asked), task, sampled)


def drawn(sampling: Sampling, times: int = 4000, seed: int = 1) -> Counter[int]:
    sampler = Sampler(sampling, [], seed)
    return Counter(sampler(LOGITS, []).id for _ in range(times))


def likelihood(counts: list[int], shares: torch.Tensor) -> float:
    """The probability of counts that fit no better, by Pearson's chi-squared test."""
    expected = (shares / shares.sum()).double() * sum(counts)
    statistic = ((torch.tensor(counts) - expected) ** 2 / expected).sum()
    freedom = torch.tensor((len(counts) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, statistic / 2))


@pytest.mark.parametrize(
    ("asked", "warpers"),
    [
        ({}, []),
        ({"temperature": 0.5}, [TemperatureLogitsWarper(0.5)]),
        ({"temperature": 1.7, "top_k": 3}, [TemperatureLogitsWarper(1.7), TopKLogitsWarper(3)]),
        ({"top_p": 0.7}, [TopPLogitsWarper(0.7)]),
        ({"min_p": 0.3}, [MinPLogitsWarper(0.3)]),
        (
            {"temperature": 0.8, "top_k": 6, "top_p": 0.9, "min_p": 0.1},
            [TemperatureLogitsWarper(0.8), TopKLogitsWarper(6), TopPLogitsWarper(0.9), MinPLogitsWarper(0.1)],
        ),
    ],
)
def test_tokens_are_distributed_as_transformers_distributes_them(asked: dict[str, Any], warpers: list[Any]) -> None:
    expected = LogitsProcessorList(warpers)(torch.tensor([[0]]), LOGITS[None])[0].softmax(dim=-1)
    found = drawn(decided(**asked))
    possible = [i for i, share in enumerate(expected.tolist()) if share > 0]
    assert set(found) <= set(possible)
    assert likelihood([found[i] for i in possible], expected[possible]) > 1e-4


@pytest.mark.parametrize("vocabulary", [20, 1024, 5000])
@pytest.mark.parametrize("spread", [0.3, 3.0])
@pytest.mark.parametrize(
    "asked", [{"top_k": 7}, {"top_p": 0.4}, {"top_p": 0.97}, {"min_p": 0.2}, {"top_k": 15, "top_p": 0.8, "min_p": 0.05}]
)
def test_the_tokens_that_may_be_drawn_are_those_that_transformers_leaves(
    vocabulary: int, spread: float, asked: dict[str, Any]
) -> None:
    logits = torch.randn(vocabulary, generator=torch.Generator().manual_seed(vocabulary)) * spread
    made = {"top_k": TopKLogitsWarper, "top_p": TopPLogitsWarper, "min_p": MinPLogitsWarper}
    warpers = [TemperatureLogitsWarper(0.7), *(made[name](value) for name, value in asked.items())]
    left = LogitsProcessorList(warpers)(torch.tensor([[0]]), logits[None])[0]
    ids, scores = _candidates(logits, decided(temperature=0.7, **asked))
    expected = torch.nonzero(torch.isfinite(left))[:, 0]
    assert sorted(ids.tolist()) == expected.tolist()
    torch.testing.assert_close(scores, left[ids])


@pytest.mark.parametrize("asked", [{"top_p": 1e-300}, {"top_p": 1e-9}, {"min_p": 1.0}, {"top_k": 1}])
def test_the_likeliest_token_is_always_left(asked: dict[str, Any]) -> None:
    assert Sampler(decided(**asked), [])(LOGITS, []).id == 0


def test_the_test_of_distributions_can_fail() -> None:
    found = drawn(decided(temperature=0.8))
    assert likelihood([found[i] for i in range(len(LOGITS))], LOGITS.softmax(dim=-1)) < 1e-6


def test_a_seed_gives_the_same_tokens_and_another_seed_others() -> None:
    def tokens(seed: int | None) -> list[int]:
        sampler = Sampler(decided(), [], seed)
        return [sampler(LOGITS, []).id for _ in range(40)]

    assert tokens(7) == tokens(7)
    assert len({tuple(tokens(seed)) for seed in (7, 8, -1, None, None)}) == 5


def test_without_temperature_the_likeliest_token_is_taken_and_ties_go_to_the_first() -> None:
    assert Sampler(decided(temperature=0), [])(LOGITS, []).id == 0
    assert Sampler(decided(temperature=0, logit_bias={0: -0.5}), [])(LOGITS, []).id == 0
    assert Sampler(decided(temperature=0, logit_bias={"0": -0.6}), [])(LOGITS, []).id == 1
    assert Sampler(decided(temperature=0, logit_bias={6: 100}), [])(LOGITS, []).id == 6


def test_a_temperature_that_would_make_logits_overflow_takes_the_likeliest_token_too() -> None:
    assert decided(temperature=1e-40) == decided(temperature=0)
    assert Sampler(decided(temperature=1e-6, seed=1), [])(LOGITS, []).id in (0, 1)


def test_penalties() -> None:
    """Presence once, frequency for each time, repetition for what the prompt has as well."""
    sampler = Sampler(decided(temperature=0, presence_penalty=0.2, frequency_penalty=0.2), [3])
    assert [sampler(LOGITS, []).id for _ in range(8)] == [0, 0, 1, 2, 0, 0, 1, 2]
    assert Sampler(decided(temperature=0, repetition_penalty=2.0), [0, 1])(LOGITS, []).id == 2
    assert Sampler(decided(temperature=0, repetition_penalty=2.0), [0])(LOGITS, [1, 2]).id == 0


def test_nothing_ends_a_text_too_soon() -> None:
    sampler = Sampler(decided(temperature=0), [], ends=((0, 1), 2))
    assert [sampler(LOGITS, [9] * n).id for n in range(3)] == [2, 2, 0]


def test_probabilities_are_those_of_the_logits_themselves() -> None:
    chosen = Sampler(decided(temperature=0, logit_bias={4: 9}), [], logprobs=2)(LOGITS, [])
    shares = LOGITS.log_softmax(dim=-1).tolist()
    assert (chosen.id, chosen.logprob) == (4, pytest.approx(shares[4]))
    assert [token for token, _ in chosen.likeliest] in ([0, 1], [0, 2]), "two are alike"
    assert [logprob for _, logprob in chosen.likeliest] == pytest.approx(shares[:2])


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_a_model_whose_numbers_overflow_has_no_answer(odd: float) -> None:
    with pytest.raises(InternalError, match="not a number"):
        Sampler(decided(), [])(torch.tensor([0.0, odd]), [])


def test_the_request_decides_then_the_task_then_the_protocol() -> None:
    own = GenerationSettings(samples=True, temperature=0.6, top_k=20, top_p=0.9, repetition_penalty=1.1)
    assert decided(own) == Sampling(0.6, 20, 0.9, None, 1.1)
    assert decided(own, temperature=0.1, top_k=0, top_p=1, repetition_penalty=1) == Sampling(0.1)
    assert decided(PLAIN, sampled=False) == Sampling(0.0)
    assert decided(PLAIN, sampled=True) == Sampling(1.0)
    assert decided(own, sampled=False).temperature == 0.6
