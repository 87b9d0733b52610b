"""OpenAI's protocol for text, asked by OpenAI's own client."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
from holding import Blocked
from over_http import Served
from prometheus_client.parser import text_string_to_metric_families

from ken_core import DeltaFile
from serving.api import create_app
from serving.errors import UnavailableError
from tests.tiny_language_tasks import LanguageTasks

ASK = [{"role": "user", "content": "how far is the city"}]
CHAT = {"model": "poems", "messages": ASK, "max_tokens": 12, "temperature": 0}
TEXT = {"model": "poems", "prompt": "the rain", "max_tokens": 12, "temperature": 0}


@pytest.fixture
def client(writers: Served) -> Iterator[openai.OpenAI]:
    with of(writers) as client:
        yield client


def of(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="any", max_retries=0, timeout=60)


def native(served: Served, prompt: Any, tokens: int = 12, task: str = "poems", **parameters: Any) -> str:
    """What the native protocol continues a prompt with."""
    body = {"prompt": prompt, "parameters": {"max_tokens": tokens, "temperature": 0, **parameters}}
    answer = served.post(f"/v1/tasks/{task}/generate", json=body)
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["text"]
    return text


def metric(served: Served, name: str, **labels: str) -> float:
    families = text_string_to_metric_families(served.get("/metrics").text)
    samples = (s for family in families for s in family.samples if s.name == name)
    return sum(s.value for s in samples if labels.items() <= s.labels.items())


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.01)


# Chats


def test_a_chat_is_the_templates_prompt_continued(
    client: openai.OpenAI, writers: Served, language_tasks: LanguageTasks, language_deltas: dict[str, DeltaFile]
) -> None:
    answer = client.chat.completions.create(**CHAT)
    prompt = language_tasks.tokenizer.apply_chat_template(ASK, add_generation_prompt=True)["input_ids"]
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", native(writers, list(prompt)))
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    usage = answer.usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (len(prompt), 12, len(prompt) + 12)
    assert answer.id.startswith("chatcmpl-")
    assert (answer.model, answer.object) == ("poems", "chat.completion")
    assert answer.system_fingerprint == language_deltas["poems"].digest[:12]
    assert abs(answer.created - time.time()) < 60


def test_a_stream_has_the_role_first_then_the_text_then_why_it_ended(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**CHAT).choices[0].message.content
    chunks = list(client.chat.completions.create(**CHAT, stream=True))
    first, *middle, last = [chunk.choices[0] for chunk in chunks]
    assert (first.delta.role, first.delta.content, first.finish_reason) == ("assistant", "", None)
    assert "".join(choice.delta.content or "" for choice in middle) == whole
    assert {(choice.delta.role, choice.finish_reason) for choice in middle} == {(None, None)}
    assert (last.delta.content, last.finish_reason) == (None, "length")
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)


def test_a_stream_tells_how_many_tokens_there_were_if_it_is_asked_to(client: openai.OpenAI, writers: Served) -> None:
    options = {"include_usage": True}
    *chunks, last = client.chat.completions.create(**CHAT, stream=True, stream_options=options)
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)
    assert last.choices == []
    assert last.usage == client.chat.completions.create(**CHAT).usage
    raw = writers.post("/v1/chat/completions", json={**CHAT, "stream": True, "stream_options": options}).text
    told = [json.loads(line.removeprefix("data: ")) for line in raw.splitlines() if line.startswith("data: {")]
    assert all("usage" in one for one in told)
    assert raw.endswith("data: [DONE]\n\n")


def test_a_stream_tells_how_many_tokens_there_were_so_far_if_it_is_asked_to(client: openai.OpenAI) -> None:
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(client.chat.completions.create(**CHAT, stream=True, stream_options=options))
    told = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage]
    assert len(told) == len(chunks)
    assert (told, told[-1]) == (sorted(told), 12)
    assert len(set(told)) > 3
    options = {"include_usage": False, "continuous_usage_stats": False}
    chunks = list(client.chat.completions.create(**CHAT, stream=True, stream_options=options))
    assert not any(chunk.usage for chunk in chunks)


def test_an_answer_of_several_choices_streams_each_of_them(client: openai.OpenAI) -> None:
    asked = {**CHAT, "temperature": 1, "n": 3, "seed": 5}
    whole = [choice.message.content for choice in client.chat.completions.create(**asked).choices]
    texts, roles, ends = ["", "", ""], [0, 0, 0], [0, 0, 0]
    for chunk in client.chat.completions.create(**asked, stream=True):
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        roles[choice.index] += choice.delta.role is not None
        ends[choice.index] += choice.finish_reason is not None
    assert (texts, roles, ends) == (whole, [1, 1, 1], [1, 1, 1])
    assert len(set(whole)) == 3


def test_content_may_come_in_parts(client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": "how far"}, {"type": "text", "text": "is the city"}]
    in_parts = client.chat.completions.create(**CHAT | {"messages": [{"role": "user", "content": parts}]})
    joined = client.chat.completions.create(
        **CHAT | {"messages": [{"role": "user", "content": "how far\nis the city"}]}
    )
    assert in_parts.choices[0].message == joined.choices[0].message
    assert in_parts.usage == joined.usage


def test_developers_speak_as_the_system_to_a_template_that_does_not_know_them(client: openai.OpenAI) -> None:
    by = {
        role: client.chat.completions.create(**CHAT | {"messages": [{"role": role, "content": "be brief"}, *ASK]})
        for role in ("system", "developer", "user")
    }
    assert by["developer"].choices[0].message == by["system"].choices[0].message
    assert by["developer"].choices[0].message != by["user"].choices[0].message


def test_an_answer_can_be_sent_again_as_it_came(client: openai.OpenAI) -> None:
    said = client.chat.completions.create(**CHAT).choices[0].message
    again = [*ASK, said.model_dump(), {"role": "user", "content": "why"}]
    plain = [*ASK, {"role": "assistant", "content": said.content}, {"role": "user", "content": "why"}]
    answers = [client.chat.completions.create(**CHAT | {"messages": messages}) for messages in (again, plain)]
    assert answers[0].choices == answers[1].choices


@pytest.mark.parametrize(
    "kept",
    [
        {"reasoning": None},
        {"reasoning": "the city is near"},
        {"reasoning_content": "the city is near"},
        {"thinking_blocks": None, "images": None},
        {"thinking_blocks": [], "images": []},
        {"provider_specific_fields": {"a": 1}, "annotations": []},
        {"cache_control": {"type": "ephemeral"}},
        {"content": [{"type": "text", "text": "it is", "cache_control": {"type": "ephemeral"}}]},
        {"content": [{"type": "text", "text": "it is", "cache_control": None, "annotations": []}]},
        {"content": [{"type": "text", "text": "it is", "prompt_cache_breakpoint": {}, "id": "x", "index": 0}]},
    ],
)
def test_what_servers_and_libraries_put_beside_an_answer_is_taken_back(kept: dict[str, Any], writers: Served) -> None:
    said = {"role": "assistant", "content": "it is"}
    answers = [
        writers.post("/v1/chat/completions", json={**CHAT, "messages": [*ASK, message, *ASK]})
        for message in (said, {**said, **kept})
    ]
    assert [answer.status_code for answer in answers] == [200, 200], answers[1].text
    assert answers[0].json()["choices"] == answers[1].json()["choices"]


def test_calls_of_tools_are_refused_by_a_template_that_does_not_show_them(client: openai.OpenAI) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    messages = [
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    ]
    with pytest.raises(openai.BadRequestError, match="shows no calls of tools"):
        client.chat.completions.create(**{**CHAT, "messages": messages})


def test_the_beginning_of_an_answer_can_be_given(
    client: openai.OpenAI, writers: Served, language_tasks: LanguageTasks
) -> None:
    messages = [*ASK, {"role": "assistant", "content": "it is"}]
    extra = {"continue_final_message": True, "add_generation_prompt": False}
    for given in (extra, {"continue_final_message": True}):
        answer = client.chat.completions.create(**CHAT | {"messages": messages}, extra_body=given)
        prompt = language_tasks.tokenizer.apply_chat_template(messages, continue_final_message=True)["input_ids"]
        assert answer.choices[0].message.content == native(writers, list(prompt))


# Completions


def test_every_form_of_a_prompt_is_continued(
    client: openai.OpenAI, writers: Served, language_tasks: LanguageTasks
) -> None:
    texts = ["the rain", "a very good book"]
    ids = [language_tasks.tokenizer(text)["input_ids"] for text in texts]
    expected = [native(writers, text) for text in texts]
    for prompt in (texts, ids):
        answer = client.completions.create(**TEXT | {"prompt": prompt})
        assert [choice.text for choice in answer.choices] == expected
        assert [choice.index for choice in answer.choices] == [0, 1]
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == sum(map(len, ids))
    for alone in (texts[0], ids[0]):
        answer = client.completions.create(**TEXT | {"prompt": alone})
        assert [choice.text for choice in answer.choices] == expected[:1]
        assert (answer.object, answer.id[:5]) == ("text_completion", "cmpl-")


def test_choices_of_several_prompts_are_numbered_by_prompt(client: openai.OpenAI) -> None:
    asked = {**TEXT, "temperature": 1, "seed": 3, "n": 2}
    both = client.completions.create(**asked | {"prompt": ["the rain", "a book"]}).choices
    assert [choice.index for choice in both] == [0, 1, 2, 3]
    alone = client.completions.create(**asked | {"prompt": "the rain"}).choices
    assert [choice.text for choice in both[:2]] == [choice.text for choice in alone]


def test_a_stream_of_completions_is_the_whole_text_in_parts(client: openai.OpenAI) -> None:
    asked = {**TEXT, "prompt": ["the rain", "a book"]}
    whole = client.completions.create(**asked).choices
    texts, ends = ["", ""], ["", ""]
    for chunk in client.completions.create(**asked, stream=True):
        (choice,) = chunk.choices
        texts[choice.index] += choice.text
        ends[choice.index] += choice.finish_reason or ""
    assert texts == [choice.text for choice in whole]
    assert ends == ["length", "length"]


@pytest.mark.parametrize("stream", [False, True])
def test_the_prompt_is_repeated_if_that_is_asked_for(stream: bool, client: openai.OpenAI) -> None:
    asked = {**TEXT, "prompt": ["the rain", "a book"], "n": 2}
    plain = [choice.text for choice in client.completions.create(**asked).choices]
    found = ["", "", "", ""]
    answer = client.completions.create(**asked, echo=True, stream=stream)
    for chunk in answer if stream else [answer]:
        for choice in chunk.choices:
            found[choice.index] += choice.text
    prompts = ["the rain", "the rain", "a book", "a book"]
    assert found == [before + text for before, text in zip(prompts, plain, strict=True)]


def test_without_a_limit_as_much_is_generated_as_has_room(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="poems", prompt=[5] * 250, extra_body={"ignore_eos": True})
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 6


def test_without_a_limit_a_completion_is_short_and_a_chat_goes_on(client: openai.OpenAI) -> None:
    endless = {"extra_body": {"ignore_eos": True}}
    short = client.completions.create(model="poems", prompt="the rain", **endless)
    long = client.chat.completions.create(model="poems", messages=ASK, **endless)
    assert short.usage is not None
    assert long.usage is not None
    assert short.usage.completion_tokens == 16
    assert long.usage.total_tokens == 256


# What both take


@pytest.mark.parametrize("stream", [False, True])
def test_a_text_ends_before_a_stop_even_if_that_spans_tokens(stream: bool, client: openai.OpenAI) -> None:
    whole = client.completions.create(**TEXT).choices[0].text
    stop = whole[4:8]
    answer = client.completions.create(**TEXT, stop=["never said", stop], stream=stream)
    chunks = list(answer) if stream else [answer]
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole[: whole.index(stop)]
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert client.completions.create(**TEXT, stop=stop).choices[0].text == whole[: whole.index(stop)]


def test_a_token_can_end_a_text(client: openai.OpenAI, writers: Served) -> None:
    asked = {"prompt": TEXT["prompt"], "parameters": {"max_tokens": 12, "temperature": 0, "logprobs": 0}}
    told = writers.post("/v1/tasks/poems/generate", json=asked).json()["choices"][0]["tokens"]
    ids = [token["id"] for token in told]
    answer = client.completions.create(**TEXT, extra_body={"stop_token_ids": [ids[2]]})
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == ids.index(ids[2]) + 1


def test_the_same_seed_gives_the_same_text_and_another_another(client: openai.OpenAI) -> None:
    def said(seed: int) -> str | None:
        return client.chat.completions.create(**CHAT | {"temperature": 1, "seed": seed}).choices[0].message.content

    assert said(1) == said(1) != said(2)


def test_sampling_parameters_reach_the_sampler(client: openai.OpenAI, language_tasks: LanguageTasks) -> None:
    greedy = client.completions.create(**TEXT).choices[0].text
    hot = {**TEXT, "temperature": 5, "seed": 1}
    assert client.completions.create(**hot).choices[0].text != greedy
    for narrow in ({"top_k": 1}, {"min_p": 1}):
        assert client.completions.create(**hot, extra_body=narrow).choices[0].text == greedy
    assert client.completions.create(**hot, top_p=1e-9).choices[0].text == greedy
    one = language_tasks.tokenizer("a")["input_ids"][0]
    assert client.completions.create(**TEXT, logit_bias={str(one): 100}).choices[0].text == "a" * 12
    punished = client.completions.create(**TEXT, extra_body={"repetition_penalty": 50.0}, logprobs=0).choices[0]
    assert punished.logprobs is not None
    assert punished.logprobs.tokens is not None
    known = [token for token in punished.logprobs.tokens if "\ufffd" not in token]
    assert len(set(known)) == len(known) > 3


def test_probabilities_of_a_chat_are_those_of_its_tokens(client: openai.OpenAI, writers: Served) -> None:
    answer = client.chat.completions.create(**CHAT, logprobs=True, top_logprobs=3)
    (choice,) = answer.choices
    assert choice.logprobs is not None
    tokens = choice.logprobs.content
    assert tokens is not None
    assert len(tokens) == 12
    assert b"".join(bytes(token.bytes or ()) for token in tokens).decode(errors="replace") == choice.message.content
    for token in tokens:
        best = [top.logprob for top in token.top_logprobs]
        assert all(top.bytes for top in token.top_logprobs)
        assert len(best) == 3
        assert best == sorted(best, reverse=True)
        assert token.logprob == best[0] < 0  # the likeliest token was taken
    alone = client.chat.completions.create(**CHAT, logprobs=True).choices[0].logprobs
    assert alone is not None
    assert alone.content is not None
    assert [(one.logprob, one.top_logprobs) for one in alone.content] == [(token.logprob, []) for token in tokens]
    streamed = client.chat.completions.create(**CHAT, logprobs=True, top_logprobs=3, stream=True)
    parts = [chunk.choices[0].logprobs for chunk in streamed]
    assert [token for part in parts if part and part.content for token in part.content] == tokens


def test_probabilities_of_a_completion_are_lists_and_say_where_tokens_begin(client: openai.OpenAI) -> None:
    choice = client.completions.create(**TEXT, logprobs=2).choices[0]
    told = choice.logprobs
    assert told is not None
    assert told.tokens is not None
    assert told.text_offset is not None
    assert told.top_logprobs is not None
    assert told.token_logprobs is not None
    assert {len(told.tokens), len(told.text_offset), len(told.top_logprobs), len(told.token_logprobs)} == {12}
    assert any(token.startswith("bytes:\\x") for token in told.tokens), "no token of this text is a part of a character"
    for token, at in zip(told.tokens, told.text_offset, strict=True):
        assert token.startswith("bytes:") or choice.text[at:].startswith(token)
    for token, logprob, tops in zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True):
        assert tops[token] == logprob == max(tops.values())
        assert next(iter(tops)) == token
        assert len(tops) == 2
    streamed = [chunk.choices[0].logprobs for chunk in client.completions.create(**TEXT, logprobs=2, stream=True)]
    assert [at for part in streamed if part for at in part.text_offset or ()] == told.text_offset


def test_a_long_answer_with_probabilities_is_whole(client: openai.OpenAI) -> None:
    asked = {**TEXT, "max_tokens": 200, "n": 6, "logprobs": 1, "temperature": 1}
    choices = client.completions.create(**asked, extra_body={"ignore_eos": True}).choices
    assert [len(choice.logprobs.tokens or ()) for choice in choices if choice.logprobs] == [200] * 6


def test_a_merge_of_tasks_writes_too(writers: Served) -> None:
    merged = {"merge": {"poems": 0.5, "news": 0.5}, "head": "poems"}
    answer = writers.post("/v1/completions", json={**TEXT, "model": merged})
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == answer.headers["x-ken-delta"]
    assert json.loads(answer.headers["x-ken-merge"])["method"] == "linear"


def test_an_answer_says_which_delta_made_it(writers: Served, language_deltas: dict[str, DeltaFile]) -> None:
    for stream in (False, True):
        answer = writers.post("/v1/completions", json={**TEXT, "stream": stream})
        assert answer.headers["x-ken-delta"] == language_deltas["poems"].digest
        stages = [part.partition(";")[0] for part in answer.headers["server-timing"].split(", ")]
        assert stages == ["load", "tokenize", "first"]
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-accel-buffering"] == "no"


NEUTRAL: dict[str, Any] = {
    "best_of": 1,
    "frequency_penalty": 0,
    "logit_bias": {},
    "bad_words": [],
    "detokenize": True,
    "guided_json": None,
    "include_reasoning": True,
    "include_stop_str_in_output": False,
    "metadata": {"team": "search"},
    "n": 1,
    "presence_penalty": 0,
    "prompt_logprobs": None,
    "request_id": "r",
    "return_token_ids": False,
    "structured_outputs": None,
    "prompt_cache_key": "k",
    "response_format": {"type": "text"},
    "safety_identifier": "s",
    "service_tier": "auto",
    "stop": [],
    "store": False,
    "stream_options": None,
    "top_p": 1,
    "user": "somebody",
}
IN_CHATS: dict[str, Any] = {
    "audio": None,
    "chat_template": None,
    "documents": None,
    "function_call": "none",
    "functions": [],
    "logprobs": False,
    "max_completion_tokens": 12,
    "modalities": ["text"],
    "parallel_tool_calls": True,
    "reasoning_effort": "none",
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "verbosity": "medium",
    "web_search_options": None,
}


@pytest.mark.parametrize(
    ("path", "asked", "neutral"),
    [("/v1/chat/completions", CHAT, NEUTRAL | IN_CHATS), ("/v1/completions", TEXT, NEUTRAL | {"suffix": ""})],
)
def test_values_that_ask_for_nothing_are_taken_and_nulls_too(
    path: str, asked: dict[str, Any], neutral: dict[str, Any], writers: Served
) -> None:
    def said(**more: Any) -> list[Any]:
        answer = writers.post(path, json={**asked, **more})
        assert answer.status_code == 200, answer.text
        return [{**choice, "finish_reason": None} for choice in answer.json()["choices"]]

    expected = said()
    for name, value in neutral.items():
        assert said(**{name: value}) == expected, name
    assert said(**neutral) == said(**dict.fromkeys(neutral)) == expected


# Refusals


def nested(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


_IMAGE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}
BAD_CHATS: list[tuple[dict[str, Any], str, str]] = [
    ({"messages": []}, "messages", "at least 1"),
    ({"messages": "how far"}, "messages", "list"),
    ({"messages": [{"role": "robot", "content": "a"}]}, "messages", "'system'"),
    ({"messages": [_IMAGE]}, "messages", "only text is taken"),
    ({"model": "strict", "messages": [{"role": "system", "content": "a"}]}, "messages", "no system message is taken"),
    ({"messages": [{"role": "user", "content": "rain " * 900}]}, "messages", "the model takes 256"),
    ({"max_tokens": 250}, "max_tokens", "the model takes 256"),
    ({"max_tokens": None, "max_completion_tokens": 250}, "max_completion_tokens", "the model takes 256"),
    ({"max_completion_tokens": 5}, "max_completion_tokens", "means the same"),
    ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
    ({"temperature": -1}, "temperature", "greater than or equal to 0"),
    ({"n": 10_000}, "n", "less than or equal to 64"),
    ({"n": 0}, "n", "greater than or equal to 1"),
    ({"stop": [str(i) for i in range(2000)]}, "stop", "at most 16"),
    ({"stop": "a" * 257}, "stop", "at most 256 characters"),
    ({"stop": ""}, "stop", "at least 1 character"),
    ({"logit_bias": {"5": 101}}, "logit_bias", "less than or equal to 100"),
    ({"logit_bias": {"99999": 1}}, "logit_bias", "99999"),
    ({"stop_token_ids": [99999]}, "stop_token_ids", "99999"),
    ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", "less than or equal to 20"),
    ({"top_logprobs": 2}, "top_logprobs", "logprobs"),
    ({"min_tokens": 13}, "min_tokens", "more than max_tokens"),
    ({"functions": [{"name": "weather"}]}, "functions", "not served"),
    ({"modalities": ["text", "audio"]}, "modalities", "not served"),
    ({"audio": {"voice": "ash", "format": "wav"}}, "audio", "not served"),
    ({"prediction": {"type": "content", "content": "a"}}, "prediction", "not served"),
    ({"reasoning_effort": "high"}, "reasoning_effort", "not served"),
    ({"service_tier": "priority"}, "service_tier", "not served"),
    ({"store": True}, "store", "not served"),
    ({"best_of": 2}, "best_of", "same number"),
    ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message", "one of them"),
    ({"chat_template_kwargs": {"messages": []}}, "messages", "given by itself"),
    ({"guided_grammar": "a"}, "guided_grammar", "not served"),
    ({"nonsense": 1}, "nonsense", "not permitted"),
    ({"documents": nested(300)}, "documents", "a nested value"),
    ({"messages": [*ASK, {"role": "user", "content": [{"type": "text", "text": "a", "foo": 1}]}]}, "messages", "foo"),
    ({"messages": [{"role": "user", "content": ["a"]}]}, "messages", "messages.0.content.0: "),
    ({"messages": [*ASK, {"role": "user", "audio": {"id": "a"}}]}, "messages", "messages.1.audio: found"),
    ({"logit_bias": {"99999": 1}}, "logit_bias", "99999 is no token of this task"),
    ({"model": "spam"}, "model", "generates no text"),
    ({"model": "nobody"}, "model", "no task 'nobody'"),
]
BAD_COMPLETIONS: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt": []}, "prompt", "none of them empty"),
    ({"prompt": [1, "a"]}, "prompt", "a list of token ids"),
    ({"prompt": None}, "prompt", "found null"),
    ({"prompt": [[5]] * 20_000}, "prompt", "found 20000 prompts; at most 16384"),
    ({"prompt": [[5], []]}, "prompt", "none of them empty"),
    ({"prompt": [5, 99999]}, "prompt", "99999 at 1 is no token"),
    ({"prompt": [-1]}, "prompt", "-1 at 0 is no token"),
    ({"prompt": "rain " * 900}, "prompt", "the model takes 256"),
    ({"prompt": ["a", "rain " * 900]}, "prompt", "prompt.1: found a prompt"),
    ({"prompt": ["a"] * 257}, "prompt", "at most 256 continuations"),
    ({"prompt": ["a"] * 5, "n": 64}, "prompt", "at most 256 continuations"),
    ({"prompt": ""}, "prompt", "no token"),
    ({"max_tokens": 256}, "max_tokens", "at most 25"),
    ({"logprobs": True}, "logprobs", "found a boolean"),
    ({"logprobs": 6}, "logprobs", "less than or equal to 5"),
    ({"echo": True, "logprobs": 1}, "echo", "without logprobs"),
    ({"suffix": "."}, "suffix", "not served"),
    ({"best_of": 3, "n": 2}, "best_of", "same number"),
    ({"messages": ASK}, "messages", "not permitted"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "asked", "param", "words"),
    [
        *(("/v1/chat/completions", {**CHAT, **bad}, param, words) for bad, param, words in BAD_CHATS),
        *(("/v1/completions", {**TEXT, **bad}, param, words) for bad, param, words in BAD_COMPLETIONS),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, str) else "",
)
def test_what_cannot_be_done_is_refused_by_name_before_anything_is_sent(
    path: str, asked: dict[str, Any], param: str, words: str, stream: bool, writers: Served
) -> None:
    answer = writers.post(path, json={**asked, "stream": stream})
    error = answer.json()["error"]
    assert answer.status_code == (404 if asked["model"] == "nobody" else 400)
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert words in error["message"]


@pytest.mark.parametrize("asked", [{"messages": [{"role": "user", "content": "rain " * 900}]}, {"max_tokens": 250}])
def test_clients_know_a_context_that_is_too_short_by_its_code(asked: dict[str, Any], client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**CHAT | asked)
    assert refused.value.code == "context_length_exceeded"


def test_a_language_model_does_not_embed(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="answers text-generation"):
        client.embeddings.create(model="poems", input="rain")


def test_a_text_that_takes_too_long_is_given_up(client: openai.OpenAI, writers: Served) -> None:
    with Blocked(writers.service.engine), pytest.raises(openai.APIStatusError) as refused:
        client.completions.create(**TEXT, extra_headers={"X-Request-Timeout-Ms": "100"}, stream=True)
    assert refused.value.status_code == 504
    eventually(lambda: metric(writers, "ken_running_texts") + metric(writers, "ken_waiting_texts") == 0)


# In the middle of a text


MANY = {**TEXT, "n": 16, "max_tokens": 200, "temperature": 1, "stream": True, "ignore_eos": True}
"""So many texts that they are far from complete when the first words come."""


def many(client: openai.OpenAI) -> Any:
    known = {name: value for name, value in MANY.items() if name != "ignore_eos"}
    return client.completions.create(**known, extra_body={"ignore_eos": True})


def test_words_come_while_others_are_still_to_be_generated(
    client: openai.OpenAI, writers: Served, slowly: Callable[..., None]
) -> None:
    slowly(writers.service, 0.01)
    with many(client) as stream:
        next(stream)
        assert metric(writers, "ken_running_texts") > 0
        assert metric(writers, "ken_kv_bytes") > 0
        assert sum(1 for _ in stream) > 200
    eventually(lambda: metric(writers, "ken_kv_bytes") == 0)


def test_a_failure_in_the_middle_of_a_text_is_raised_by_the_client(
    lone_writer: Served, slowly: Callable[..., None]
) -> None:
    service = lone_writer.service
    slowly(service)
    assert service.generator is not None
    with of(lone_writer) as client:
        stream = many(client)
        next(stream)
        service.generator.abort(UnavailableError("it is gone"))
        with pytest.raises(openai.APIError, match="gone") as failed:
            list(stream)
    assert failed.value.body == {"message": "it is gone", "type": "server_error", "param": None, "code": None}
    assert metric(lone_writer, "ken_requests_total", task="poems", code="503") == 1


def test_a_stream_that_failed_does_not_look_complete(lone_writer: Served, slowly: Callable[..., None]) -> None:
    service = lone_writer.service
    slowly(service)
    assert service.generator is not None
    with httpx.stream("POST", f"{lone_writer.url}/v1/completions", json=MANY, timeout=30) as response:
        lines = response.iter_lines()
        read = [next(lines)]
        service.generator.abort(UnavailableError("it is gone"))
        read += lines
    assert response.status_code == 200
    assert "data: [DONE]" not in read
    assert json.loads([line for line in read if line][-1].removeprefix("data: "))["error"]["message"] == "it is gone"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_before_the_first_word_frees_what_its_texts_took(stream: bool, writers: Served) -> None:
    gone = metric(writers, "ken_requests_total", task="poems", code="499")
    with Blocked(writers.service.engine), pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{writers.url}/v1/completions", json={**MANY, "stream": stream}, timeout=0.3)
    eventually(lambda: metric(writers, "ken_requests_total", task="poems", code="499") == gone + 1)
    eventually(lambda: metric(writers, "ken_running_texts") + metric(writers, "ken_waiting_texts") == 0)
    assert metric(writers, "ken_kv_bytes") == 0


def test_a_client_that_leaves_in_the_middle_frees_what_its_texts_took(
    client: openai.OpenAI, writers: Served, slowly: Callable[..., None]
) -> None:
    slowly(writers.service)
    gone = metric(writers, "ken_requests_total", task="poems", code="499")
    unfinished = metric(writers, "ken_texts_total", task="poems", finish="unfinished")
    stream = many(client)
    next(stream)
    stream.close()
    eventually(lambda: metric(writers, "ken_requests_total", task="poems", code="499") == gone + 1)
    eventually(lambda: metric(writers, "ken_kv_bytes") == 0)
    assert metric(writers, "ken_texts_total", task="poems", finish="unfinished") == unfinished + 16


def test_a_client_that_does_not_read_is_left_after_its_deadline(
    lone_writer: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.api.generating._LATE_SECONDS", 0.2)
    service = lone_writer.service
    assert lone_writer.post("/v1/completions", json={**TEXT, "max_tokens": 1}).status_code == 200  # on the device
    body = json.dumps({**MANY, "model": "poems"}).encode()
    sent = []

    async def receive() -> dict[str, Any]:
        if not sent:
            sent.append("body")
            return {"type": "http.request", "body": body, "more_body": False}
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        sent.append(message["type"])
        if len(sent) > 3:
            await asyncio.Event().wait()

    headers = [(b"x-request-timeout-ms", b"4000"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers, "query_string": b""}

    async def ask() -> None:
        async with asyncio.timeout(15):
            await create_app(service)(scope, receive, send)  # type: ignore[arg-type]

    asyncio.run(ask())
    assert service.admission.predictions == service.admission.requests == 0
    assert metric(lone_writer, "ken_requests_total", task="poems", code="499") == 1


# Stopping


def test_a_drain_lets_texts_be_completed(lone_writer: Served) -> None:
    with of(lone_writer) as client:
        stream = many(client)
        next(stream)
        left = asyncio.run(lone_writer.service.drain(20))
        assert left == 0
        assert sum(1 for _ in stream) > 200


def test_texts_that_a_drain_does_not_wait_for_end_with_a_word(lone_writer: Served, slowly: Callable[..., None]) -> None:
    slowly(lone_writer.service)
    with of(lone_writer) as client:
        stream = many(client)
        next(stream)
        assert asyncio.run(lone_writer.service.drain(0)) == 1
        with pytest.raises(openai.APIError, match="stopped before the text was complete"):
            list(stream)
