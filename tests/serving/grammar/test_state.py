"""What follows a grammar is what the grammar says: judged by jsonschema and by Python's own regular expressions."""

from __future__ import annotations

import json
import re
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, cast

import jsonschema
import numpy as np
import pytest
import torch
from following import VOCABULARIES, followed, refused_at, written
from llguidance import LLMatcher

from ken_core.tokenization import Encoder
from serving.errors import InvalidInputError
from serving.generation.sampling import Sampler, Sampling
from serving.grammar import state as states
from serving.grammar.compiling import compiled
from serving.grammar.grammar import ANY_OBJECT, Grammar, json_of, match_of, one_of
from serving.grammar.state import Delay, GrammarState
from serving.workers.steps import finish
from tests.tiny_language_tasks import LanguageTasks

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "moods": {"type": "array", "items": {"enum": ["glad", "sad"]}, "maxItems": 3},
    },
    "required": ["name", "age", "moods"],
    "additionalProperties": False,
}
SCHEMAS: list[Any] = [
    PERSON,
    {"$defs": {"p": PERSON}, "type": "array", "items": {"$ref": "#/$defs/p"}, "minItems": 1, "maxItems": 2},
    {"anyOf": [{"type": "boolean"}, {"type": "null"}, {"const": [1, "a"]}]},
    {"oneOf": [{"type": "object", "properties": {"k": {"const": k}}, "required": ["k"]} for k in "ab"]},
    {"type": "object", "properties": {"a": {"type": "number", "multipleOf": 0.5, "maximum": 10}}, "required": ["a"]},
    {"type": "object", "patternProperties": {"^x[0-9]$": {"type": "integer"}}, "additionalProperties": False},
    {"type": "object", "additionalProperties": {"type": "boolean"}, "minProperties": 1, "maxProperties": 3},
    {"type": "array", "prefixItems": [{"type": "string", "maxLength": 3}, {"type": "boolean"}], "items": False},
    {"allOf": [{"type": "object", "properties": {"a": {"type": "boolean"}}}, {"required": ["a"]}]},
    {"type": "string", "pattern": "^[a-f]{2,4}$"},
    {"type": "string", "format": "date"},
    {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 7},
    {"enum": [None, 1, "a", {"b": [True]}]},
]


@pytest.fixture(scope="module")
def encoder(language_tasks: LanguageTasks) -> Encoder:
    return Encoder(language_tasks.base, language_tasks.base.config, {})


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:50])
def test_what_follows_a_schema_is_valid_json_of_it(schema: Any, encoder: Encoder) -> None:
    grammar = json_of(schema, "here")
    texts = [text for seed in range(12) if (text := written(grammar, encoder, seed, ends=(2,))) is not None]
    assert len(texts) >= 6
    for text in texts:
        jsonschema.validate(json.loads(text), schema, format_checker=jsonschema.FormatChecker())


def test_what_follows_a_regular_expression_matches_it_as_a_whole(encoder: Encoder) -> None:
    pattern = r"[a-c]{2,5}/\d-(x|y)"
    found = {written(match_of(pattern, "here"), encoder, seed) for seed in range(8)}
    assert all(re.fullmatch(pattern, text or "") for text in found)
    assert len(found) > 4


def test_what_follows_choices_is_one_of_them(encoder: Encoder) -> None:
    choices = ["yes", "no", 'a "quoted"\n/one/', "é中"]
    found = {written(one_of(choices, "here"), encoder, seed) for seed in range(30)}
    assert found <= {*choices}
    assert len(found) > 1


def test_a_choice_that_begins_another_may_end_or_go_on(encoder: Encoder) -> None:
    found = {written(one_of(["a", "ab"], "here"), encoder, seed, ends=(2,)) for seed in range(20)}
    assert found == {"a", "ab"}


@pytest.mark.parametrize("text", ['{"a":  1}', '{\n\n"a": 1}', "{\n" + " " * 21 + '"a": 1}', ' {"a": 1}', "{\t}"])
def test_white_space_has_an_end(text: str, encoder: Encoder) -> None:
    with followed(json_of(ANY_OBJECT, "here"), encoder) as state:
        assert refused_at(state, encoder, text) is not None


@pytest.mark.parametrize("text", ['{"a": 1}', '{"a":1}', '{\n    "a": [\n        1,\n        2\n    ]\n}', "{\n\t\t}"])
def test_json_may_be_written_as_people_write_it(text: str, encoder: Encoder) -> None:
    with followed(json_of(ANY_OBJECT, "here"), encoder) as state:
        assert refused_at(state, encoder, text) is None


def test_special_tokens_never_follow_and_ends_only_where_the_text_may_end(encoder: Encoder) -> None:
    with followed(match_of("(ab)+", "here"), encoder) as state:
        scores = torch.zeros(encoder.largest_ids[0] + 1)
        (a,), (b,) = (encoder.prompt(letter, special=False) for letter in "ab")
        assert torch.isneginf(state.restrict(scores, (2,))[:3]).all()
        assert not state.take(a)
        assert torch.isneginf(state.restrict(scores, (2,))[:3]).all()
        assert not state.take(b)
        assert torch.isfinite(state.restrict(scores, (2,))).nonzero().flatten().tolist()[0] == 2
        assert torch.isneginf(state.restrict(scores, ())[:3]).all()


def test_logits_for_which_the_tokenizer_has_no_token_never_follow(encoder: Encoder) -> None:
    size = encoder.largest_ids[0] + 1
    for odd in (size + 40, size - 1):
        with followed(json_of(True, "here"), encoder) as state:
            restricted = state.restrict(torch.zeros(odd), ())
        assert restricted.shape == (odd,)
        assert torch.isneginf(restricted[size:]).all()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_scores_stay_what_they_are_where_they_are_allowed(share: float) -> None:
    draw = np.random.default_rng(0)
    scores = draw.standard_normal(1000).astype(np.float32)
    scores[::7] = -np.inf
    allowed = draw.random(1000) < share
    found = states._barred(scores, allowed, np.full(1000, np.nan, np.float32))
    assert np.array_equal(found, np.where(allowed, scores, -np.inf))


def test_a_text_of_which_nothing_is_left_to_choose_fails_with_a_reason(encoder: Encoder) -> None:
    with followed(one_of(["yes"], "guided_choice"), encoder) as state:
        scores = torch.full((encoder.largest_ids[0] + 1,), -torch.inf)
        with pytest.raises(InvalidInputError, match="guided_choice: no token is left"):
            state.restrict(scores, ())


def test_a_mask_that_takes_too_long_fails_its_text_alone(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "MOST_SECONDS", 0.01)

    class Stuck(ThreadPoolExecutor):
        def submit(self, work: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            running: Future[Any] = Future()
            running.set_running_or_notify_cancel()
            return running

    matcher = finish(compiled(one_of(["yes"], "guided_choice"), encoder, VOCABULARIES))
    with Stuck(1) as threads, pytest.raises(InvalidInputError, match="takes too long to follow"):
        GrammarState(matcher, threads, "guided_choice").restrict(torch.zeros(400), ())


class Clock:
    """Time in which each look at it takes as long."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.now = 0.0

    def __call__(self) -> float:
        self.now += self._seconds
        return self.now


class Busy(ThreadPoolExecutor):
    """Threads that have no time for what they are given."""

    def submit(self, work: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        return Future()


@pytest.mark.parametrize("texts", [1, 32])
@pytest.mark.parametrize(("a_call", "most"), [(0.0002, None), (0.0003, 10_000), (0.001, 667), (0.1, 6)])
def test_texts_of_one_request_hold_up_others_for_a_second_beyond_what_is_usual(
    a_call: float, most: int | None, texts: int, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each token makes the engine wait twice: for its mask, and as it is taken in."""
    monkeypatch.setattr(states, "thread_time", Clock(a_call))
    matcher = finish(compiled(match_of("a+", "here"), encoder, VOCABULARIES))
    (a,) = encoder.prompt("a", special=False)
    delay, scores, tokens = Delay("here"), torch.zeros(encoder.largest_ids[0] + 1), 0
    with Busy(1) as threads, suppress(InvalidInputError):
        some = [GrammarState(matcher.deep_copy(), threads, "here", delay) for _ in range(texts)]
        while tokens < 12_000:
            state = some[tokens % texts]
            state.restrict(scores, ())
            tokens += 1
            state.take(a)
    assert tokens == pytest.approx(most or 12_000, rel=0.002)


def test_time_that_was_not_taken_is_saved_for_later_up_to_a_second() -> None:
    delay = Delay("here")
    for _ in range(100_000):
        delay.allow_a_token()
    delay.seconds += 1.99
    delay.check()
    delay.seconds += 0.02
    with pytest.raises(InvalidInputError, match="here: it takes too long to follow"):
        delay.check()


class Late(ThreadPoolExecutor):
    """A thread of a machine that is so busy that it goes on only after a while."""

    def submit(self, work: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        def later() -> Any:
            time.sleep(0.05)
            return work(*args, **kwargs)

        submitted, began = super().submit(later), time.monotonic()
        while not submitted.running() and time.monotonic() < began + 20:
            time.sleep(0.001)
        return submitted


def test_what_else_runs_on_the_machine_makes_no_text_too_long(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine waits for 1 s in all, and a text may hold it up for 0.5 s."""
    monkeypatch.setattr(states, "MOST_SECONDS", 0.5)
    monkeypatch.setattr(states, "_QUICK_SECONDS", 0.0)
    matcher = finish(compiled(match_of("a+", "here"), encoder, VOCABULARIES))
    (a,) = encoder.prompt("a", special=False)
    with Late(1) as threads:
        state = GrammarState(matcher, threads, "here")
        for _ in range(20):
            state.restrict(torch.zeros(encoder.largest_ids[0] + 1), ())
            state.take(a)


def test_masks_that_take_a_processor_for_long_are_counted_while_the_engine_waits_for_them(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow:
        """A matcher whose masks take 0.05 s of a processor."""

        def __init__(self, matcher: LLMatcher) -> None:
            self._matcher = matcher

        def __getattr__(self, name: str) -> Any:
            return getattr(self._matcher, name)

        def compute_logit_bias(self) -> bytes:
            began = time.thread_time()
            while time.thread_time() < began + 0.05:
                pass
            return self._matcher.compute_logit_bias()

    monkeypatch.setattr(states, "MOST_SECONDS", 0.2)
    matcher = finish(compiled(match_of("a+", "here"), encoder, VOCABULARIES))
    (a,) = encoder.prompt("a", special=False)
    with ThreadPoolExecutor(1) as threads:
        state = GrammarState(cast("LLMatcher", Slow(matcher)), threads, "here")

        def go_on() -> None:
            for _ in range(20):
                state.restrict(torch.zeros(encoder.largest_ids[0] + 1), ())
                state.take(a)

        with pytest.raises(InvalidInputError, match="takes too long to follow"):
            go_on()


def test_a_mask_for_which_no_thread_had_time_is_computed_at_once(encoder: Encoder) -> None:
    matcher = finish(compiled(one_of(["yes"], "here"), encoder, VOCABULARIES))
    with Busy(1) as threads:
        assert torch.isfinite(GrammarState(matcher, threads, "here").restrict(torch.zeros(400), ())).any()


@pytest.mark.parametrize(("seconds", "by_threads"), [(0.0001, 1), (0.0003, 9)])
def test_masks_are_given_to_threads_while_they_take_long(
    seconds: float, by_threads: int, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How long one takes is known once the first one is there."""

    class Counting(ThreadPoolExecutor):
        given = 0

        def submit(self, work: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            self.given += 1
            return super().submit(work, *args, **kwargs)

    monkeypatch.setattr(states, "thread_time", Clock(seconds))
    matcher = finish(compiled(match_of("a+", "here"), encoder, VOCABULARIES))
    (a,) = encoder.prompt("a", special=False)
    with Counting(1) as threads:
        state = GrammarState(matcher, threads, "here")
        for _ in range(8):
            assert int(state.restrict(torch.zeros(encoder.largest_ids[0] + 1), ()).argmax()) == a
            state.take(a)
    assert threads.given == by_threads


def test_a_name_has_one_spelling(encoder: Encoder) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "string"}}
    for text, place in (('{"\\u0061": "x"}', 1), ('{"a": "x"}', 1), ('{"b\\/": "x"}', 1), ('{"b\\n": "x"}', 0)):
        with followed(json_of(schema, "here"), encoder) as state:
            assert (refused_at(state, encoder, text) is not None) == bool(place), text


@pytest.mark.parametrize("text", ["a<|im_end|>b", "<|im_end|>", "<|im_start|>user"])
def test_what_is_written_like_a_special_token_is_spelled_out(text: str, encoder: Encoder) -> None:
    for grammar, expected in ((one_of([text], "here"), text), (json_of({"const": text}, "here"), json.dumps(text))):
        ids: list[int] = []
        with followed(grammar, encoder) as state:
            while True:
                ids.append(int(state.restrict(torch.zeros(encoder.largest_ids[0] + 1), (2,)).argmax()))
                assert not encoder.is_special(ids[-1])
                if state.take(ids[-1]):
                    break
        assert encoder.text_of(ids) == expected


LONG = "the river is long and wide " * 700


@pytest.mark.parametrize(
    ("grammar", "before", "behind"),
    [
        (one_of([LONG], "here"), "", ""),
        (json_of({"anyOf": [{"const": LONG}, {"const": LONG[::-1]}]}, "here"), '"', '"'),
        (
            json_of(
                {"type": "object", "properties": {"a": {"const": 1}, "b": {"const": LONG}}, "required": ["a", "b"]},
                "here",
            ),
            '{"a": 1, "b": "',
            '"}',
        ),
        (
            json_of({"type": "object", "properties": {LONG: {"const": 1}}, "required": [LONG]}, "here"),
            '{"',
            '": 1}',
        ),
    ],
    ids=["choice", "alternatives", "property", "name"],
)
def test_a_long_text_that_is_certain_is_followed_to_its_end(
    grammar: Grammar, before: str, behind: str, encoder: Encoder
) -> None:
    with followed(grammar, encoder) as state:
        assert refused_at(state, encoder, before + LONG + behind) is None


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ("Too many items (limit 4000; ff_tokens); try avoiding single-byte/short lexemes", "send fewer optional"),
        ("Parser Error: Current row has 2007 items; max is 2000; consider making your grammar", "send fewer optional"),
        ("panic: called `Result::unwrap()` on an `Err` value: PyErr {\nTraceback", "the task's tokenizer fails"),
        (
            "Parser Error: token \"\ufffd[400]\" doesn't satisfy the grammar; forced bytes: got '<'",
            "no token of the task",
        ),
        ("NoExtensionBias", "no token of the task"),
    ],
)
def test_failures_say_what_to_do(told: str, words: str) -> None:
    assert words in states.failure(told)
    assert not {"Traceback", "forced", "NoExtensionBias", "lexemes"} & set(states.failure(told).split())


# With the sampler


def sampler(grammar: Any, encoder: Encoder, ends: tuple[tuple[int, ...], int] = ((2,), 0), **sampling: Any) -> Sampler:
    matcher = finish(compiled(grammar, encoder, VOCABULARIES))
    threads = ThreadPoolExecutor(1)
    return Sampler(Sampling(**sampling), [], 1, 2, ends, GrammarState(matcher, threads, "here"))


def test_a_share_of_the_likeliest_is_one_of_those_that_may_follow(encoder: Encoder) -> None:
    logits = torch.full((encoder.largest_ids[0] + 1,), -5.0)
    (x,) = encoder.prompt("x", special=False)
    logits[x] = 20
    allowed = set(encoder.prompt("ab", special=False))
    for sampling in ({"top_p": 0.5}, {"top_k": 1}, {"min_p": 0.9}, {"top_k": 300}, {"top_p": 0.99, "top_k": 50}):
        chosen = sampler(match_of("[ab]", "here"), encoder, temperature=1.0, **sampling)(logits, [])
        assert chosen.id in allowed
        assert chosen.completes


def test_probabilities_are_the_models_own(encoder: Encoder) -> None:
    logits = torch.zeros(encoder.largest_ids[0] + 1)
    logits[5] = 3
    chosen = sampler(one_of(["yes"], "here"), encoder)(logits, [])
    assert chosen.id != 5
    assert chosen.likeliest[0][0] == 5
    assert chosen.logprob == pytest.approx(float(logits.log_softmax(-1)[chosen.id]))


def test_a_bias_moves_choices_and_never_the_grammar(encoder: Encoder) -> None:
    (a,), (b,) = (encoder.prompt(letter, special=False) for letter in "ab")
    logits = torch.zeros(encoder.largest_ids[0] + 1)
    assert sampler(match_of("[ab]", "here"), encoder, bias={a: -100.0})(logits, []).id == b
    assert sampler(match_of("[ab]", "here"), encoder, bias={a: -100.0, b: -99.0, 9: 100.0})(logits, []).id == b


def test_an_end_waits_for_the_least_of_tokens_and_a_complete_text_does_not(encoder: Encoder) -> None:
    logits = torch.zeros(encoder.largest_ids[0] + 1)
    logits[2] = 9
    going_on = sampler(match_of("a+", "here"), encoder, ends=((2,), 2))
    output: list[int] = []
    while not output or output[-1] != 2:
        output.append(going_on(logits, output).id)
    assert len(output) == 3
    done = sampler(match_of("a", "here"), encoder, ends=((2,), 50))
    assert done(logits, []).completes
