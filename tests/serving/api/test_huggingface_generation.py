"""Hugging Face's protocol for text, asked by its own client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import HfHubHTTPError, TextGenerationError
from over_http import Served

from serving.errors import UnavailableError
from tests.tiny_language_tasks import LanguageTasks

Client = Callable[[str], InferenceClient]
ASK = [{"role": "user", "content": "how far is the city"}]


@pytest.fixture
def client(writers: Served, monkeypatch: pytest.MonkeyPatch) -> Client:
    """The client of a task. It goes nowhere but to the URL it is given, which its offline mode keeps it from too. A
    client whose last reference is gone ends its streams, so they are kept."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return cache(lambda task: InferenceClient(model=f"{writers.url}/models/{task}", token="any"))


def native(served: Served, prompt: Any, tokens: int, **parameters: Any) -> str:
    asked = {"prompt": prompt, "parameters": {"max_tokens": tokens, "temperature": 0, **parameters}}
    text: str = served.post("/v1/tasks/poems/generate", json=asked).json()["choices"][0]["text"]
    return text


# text_generation


def test_a_text_is_continued_as_by_the_native_protocol(client: Client, writers: Served) -> None:
    assert client("poems").text_generation("the rain", max_new_tokens=10) == native(writers, "the rain", 10)
    assert client("poems").text_generation("the rain") == native(writers, "the rain", 100)


def test_the_prompt_is_put_before_it_if_that_is_asked_for(client: Client) -> None:
    short, full = (
        client("poems").text_generation("the rain", max_new_tokens=10, return_full_text=whether)
        for whether in (False, True)
    )
    assert full == f"the rain{short}"


def test_details_are_those_of_the_tokens(client: Client, language_tasks: LanguageTasks) -> None:
    asked = {"max_new_tokens": 10, "details": True, "top_n_tokens": 2, "seed": 7}
    answer = client("poems").text_generation("the rain", **asked)
    details = answer.details
    assert details is not None
    assert (details.finish_reason, details.generated_tokens, details.seed) == ("length", 10, 7)
    assert language_tasks.tokenizer.decode([token.id for token in details.tokens]) == answer.generated_text
    assert all(token.logprob < 0 for token in details.tokens)
    assert details.top_tokens is not None
    for token, tops in zip(details.tokens, details.top_tokens, strict=True):
        plain = [dict(top) for top in tops]  # the client parses no further
        assert (plain[0]["id"], plain[0]["logprob"], len(plain)) == (token.id, token.logprob, 2)


def test_a_stream_is_the_whole_text_in_parts(client: Client) -> None:
    whole = client("poems").text_generation("the rain", max_new_tokens=10)
    assert "".join(client("poems").text_generation("the rain", max_new_tokens=10, stream=True)) == whole
    *parts, last = client("poems").text_generation("the rain", max_new_tokens=10, stream=True, details=True)
    assert [part.index for part in (*parts, last)] == list(range(1, 11))
    assert all(part.generated_text is None and part.details is None for part in parts)
    assert last.generated_text == whole
    assert last.details is not None
    assert (last.details.finish_reason, last.details.generated_tokens) == ("length", 10)


def test_a_stop_ends_a_text(client: Client) -> None:
    whole = client("poems").text_generation("the rain", max_new_tokens=10)
    stop = whole[3:6]
    answer = client("poems").text_generation("the rain", max_new_tokens=10, stop=[stop], details=True)
    assert answer.generated_text == whole[: whole.index(stop)]
    assert answer.details is not None
    assert answer.details.finish_reason == "stop_sequence"
    stream = client("poems").text_generation("the rain", max_new_tokens=10, stop=[stop], stream=True)
    assert "".join(stream) == answer.generated_text


def test_the_end_of_a_text_is_a_special_token(writers: Served, language_tasks: LanguageTasks) -> None:
    end = language_tasks.tokenizer.eos_token_id
    asked = {"max_new_tokens": 10, "details": True, "logit_bias": {str(end): 9}}
    (answer,) = writers.post("/models/poems", json={"inputs": "the rain", "parameters": asked}).json()
    *tokens, last = answer["details"]["tokens"]
    assert (last["id"], last["special"], answer["details"]["finish_reason"]) == (end, True, "eos_token")
    assert "".join(token["text"] for token in tokens if not token["special"]) == answer["generated_text"]


def test_without_a_limit_as_much_is_generated_as_has_room(client: Client, language_tasks: LanguageTasks) -> None:
    prompt = " a" * 226
    left = 256 - len(language_tasks.tokenizer(prompt)["input_ids"])
    answer = client("poems").text_generation(prompt, details=True)
    assert answer.details is not None
    assert answer.details.generated_tokens == left < 100


def test_texts_are_sampled_where_a_parameter_says_how(client: Client) -> None:
    def said(**parameters: Any) -> str:
        return client("poems").text_generation("the rain", max_new_tokens=10, **parameters)

    greedy = said()
    assert said(do_sample=False) == greedy
    for sampled in ({"do_sample": True}, {"temperature": 2.0}, {"top_p": 0.999}, {"top_k": 300}):
        assert said(**sampled, seed=1) == said(**sampled, seed=1)
        assert len({said(**sampled, seed=seed) for seed in range(4)}) > 1, sampled


def test_the_client_for_asyncio_streams_too(writers: Served, client: Client) -> None:
    async def said() -> str:
        asking = AsyncInferenceClient(model=f"{writers.url}/models/poems", token="any")
        return "".join([part async for part in await asking.text_generation("the rain", max_new_tokens=5, stream=True)])

    assert asyncio.run(said()) == native(writers, "the rain", 5)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"grammar": {"type": "json", "value": {}}}, "parameters.grammar: found"),
        ({"adapter_id": "other"}, "adapter_id"),
        ({"best_of": 2}, "best_of"),
        ({"truncate": 5}, "truncate"),
        ({"typical_p": 0.5}, "typical_p"),
        ({"watermark": True}, "watermark"),
        ({"max_new_tokens": 900}, "parameters.max_new_tokens: found 900"),
        ({"temperature": -1.0}, "parameters.temperature"),
        ({"stop": ["a"] * 17}, "parameters.stop"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(parameters: dict[str, Any], words: str, client: Client) -> None:
    with pytest.raises((TextGenerationError, HfHubHTTPError), match=words):
        client("poems").text_generation("the rain", **parameters)
    with pytest.raises((TextGenerationError, HfHubHTTPError), match=words):
        list(client("poems").text_generation("the rain", stream=True, **parameters))


def test_a_task_that_does_not_write_streams_nothing(client: Client) -> None:
    with pytest.raises((TextGenerationError, HfHubHTTPError), match="only language models"):
        list(client("spam").text_generation("the rain", stream=True))
    assert client("spam").text_classification("the rain")[0].label in ("ham", "spam")


def test_a_failure_in_the_middle_is_raised_by_the_client(lone_writer: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    client = InferenceClient(model=f"{lone_writer.url}/models/poems", token="any")
    generator = lone_writer.service.generator
    assert generator is not None
    for stream in (
        client.text_generation("the rain", max_new_tokens=200, stream=True),
        client.chat_completion(ASK, max_tokens=200, stream=True),
    ):
        next(iter(stream))
        generator.abort(UnavailableError("it is gone"))
        with pytest.raises(TextGenerationError, match="it is gone"):
            list(stream)
        generator._closed = None  # as if it had begun anew


# chat_completion


def test_a_chat_with_the_task_in_the_path_is_answered(client: Client, writers: Served) -> None:
    answer = client("poems").chat_completion(ASK, max_tokens=10, temperature=0)
    assert (answer.choices[0].message.role, answer.choices[0].finish_reason) == ("assistant", "length")
    asked = {"model": "poems", "messages": ASK, "max_tokens": 10, "temperature": 0}
    expected = writers.post("/v1/chat/completions", json=asked).json()
    assert answer.choices[0].message.content == expected["choices"][0]["message"]["content"]
    chunks = client("poems").chat_completion(ASK, max_tokens=10, temperature=0, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer.choices[0].message.content


def test_a_chat_with_the_task_as_its_model_is_answered(client: Client, writers: Served) -> None:
    for where in (writers.url, f"{writers.url}/v1"):
        anywhere = InferenceClient(base_url=where, api_key="any")
        answer = anywhere.chat.completions.create(ASK, model="poems", max_tokens=5)
        assert (answer.model, answer.usage.completion_tokens) == ("poems", 5)


def test_a_chat_of_a_task_that_does_not_write_is_refused(client: Client) -> None:
    with pytest.raises(HfHubHTTPError, match="generates no text"):
        client("spam").chat_completion(ASK)
