"""Text that must be JSON of a schema, asked for by OpenAI's own client and under vLLM's names."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from typing import Any, Literal

import jsonschema
import openai
import pytest
from over_http import Served
from pydantic import BaseModel

from serving.grammar import grammar as grammars
from tests.tiny_language_tasks import LanguageTasks

ASK = [{"role": "user", "content": "how far is the city"}]
CHAT: dict[str, Any] = {"model": "poems", "messages": ASK, "max_tokens": 200, "temperature": 0}
SCHEMA = {
    "type": "object",
    "properties": {"near": {"type": "boolean"}, "by": {"enum": ["car", "train"]}, "hours": {"enum": [1, 2, 3]}},
    "required": ["near", "by", "hours"],
    "additionalProperties": False,
}
AS_SCHEMA: Any = {"type": "json_schema", "json_schema": {"name": "trip", "schema": SCHEMA, "strict": True}}


@pytest.fixture
def client(writers: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{writers.url}/v1", api_key="any", max_retries=0, timeout=60) as client:
        yield client


def valid(text: str | None, schema: Any = SCHEMA) -> bool:
    jsonschema.validate(json.loads(text or ""), schema)
    return True


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1, "seed": 3}, {"temperature": 1.5, "top_p": 0.5, "seed": 1}])
def test_a_chat_answers_with_json_of_a_schema(sampling: dict[str, Any], client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**CHAT | sampling, response_format=AS_SCHEMA)
    (choice,) = answer.choices
    assert valid(choice.message.content)
    assert choice.finish_reason == "stop"
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens < 200


def test_a_stream_has_the_same_text(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**CHAT, response_format=AS_SCHEMA)
    chunks = list(
        client.chat.completions.create(
            **CHAT, response_format=AS_SCHEMA, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage == whole.usage


def test_the_clients_own_models_are_read(client: openai.OpenAI) -> None:
    class Leg(BaseModel):
        by: Literal["car", "train"]

    class Trip(BaseModel):
        near: bool
        leg: Leg

    trip = client.chat.completions.parse(**CHAT, response_format=Trip).choices[0].message.parsed
    assert isinstance(trip, Trip)


def test_choices_follow_the_schema_each_by_itself(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        **CHAT | {"temperature": 1, "seed": 7, "n": 6}, response_format=AS_SCHEMA, logprobs=True, top_logprobs=2
    )
    texts = [choice.message.content for choice in answer.choices]
    assert all(valid(text) for text in texts)
    assert len(set(texts)) > 1
    for choice in answer.choices:
        assert choice.logprobs is not None
        assert "".join(token.token for token in choice.logprobs.content or ()) == choice.message.content


def test_a_text_that_is_cut_off_says_so(client: openai.OpenAI) -> None:
    cut = client.chat.completions.create(**CHAT | {"max_tokens": 5}, response_format=AS_SCHEMA).choices[0]
    whole = client.chat.completions.create(**CHAT, response_format=AS_SCHEMA).choices[0]
    assert cut.finish_reason == "length"
    assert cut.message.content
    assert (whole.message.content or "").startswith(cut.message.content)


def test_a_text_that_is_complete_with_its_last_token_is_complete(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**CHAT, response_format=AS_SCHEMA)
    assert whole.usage is not None
    exactly = client.chat.completions.create(
        **CHAT | {"max_tokens": whole.usage.completion_tokens}, response_format=AS_SCHEMA
    )
    assert exactly.choices[0] == whole.choices[0]


def test_a_stop_cuts_even_a_text_that_must_be_json(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**CHAT, response_format=AS_SCHEMA, stop='"by"').choices[0]
    assert answer.finish_reason == "stop"
    assert (answer.message.content or "").rstrip().endswith(",")


def test_any_object_is_an_object(client: openai.OpenAI, language_tasks: LanguageTasks) -> None:
    closing = {str(token): 12 for token in language_tasks.tokenizer.encode('"}]')}  # a random model seldom does
    found = [
        client.chat.completions.create(
            **CHAT | {"temperature": 1, "seed": seed}, response_format={"type": "json_object"}, logit_bias=closing
        ).choices[0]
        for seed in range(4)
    ]
    ended = [choice.message.content for choice in found if choice.finish_reason == "stop"]
    assert ended
    assert all(isinstance(json.loads(text or ""), dict) for text in ended)


GUIDED: list[tuple[dict[str, Any], str]] = [
    ({"structured_outputs": {"json": SCHEMA}}, "json"),
    ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, "json"),
    ({"guided_json": SCHEMA}, "json"),
    ({"response_format": {"type": "json_object", "schema": SCHEMA}}, "json"),
    ({"response_format": {"type": "json_object", "value": SCHEMA}}, "json"),
    ({"structured_outputs": {"regex": r"\d{2}-[ab]"}}, r"\d{2}-[ab]"),
    ({"guided_regex": r"\d{2}-[ab]"}, r"\d{2}-[ab]"),
    ({"structured_outputs": {"choice": ["near", "far"]}}, "near|far"),
    ({"guided_choice": ["near", "far"]}, "near|far"),
]


@pytest.mark.parametrize(("asked", "form"), GUIDED, ids=lambda value: str(value)[:50])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_other_names_for_what_a_text_must_be_are_taken(
    path: str, asked: dict[str, Any], form: str, writers: Served
) -> None:
    prompt = {"messages": ASK} if "chat" in path else {"prompt": "rain"}
    answer = writers.post(path, json={"model": "poems", "max_tokens": 100, "temperature": 1, **prompt, **asked})
    assert answer.status_code == 200, answer.text
    (choice,) = answer.json()["choices"]
    text = choice["message"]["content"] if "chat" in path else choice["text"]
    assert choice["finish_reason"] == "stop"
    assert valid(text) if form == "json" else re.fullmatch(form, text)


def test_prompts_of_one_request_follow_it_each_by_itself(writers: Served) -> None:
    body = {"model": "poems", "prompt": ["a", "b", "c"], "n": 2, "temperature": 1, "guided_regex": "[ab]{3}"}
    texts = [choice["text"] for choice in writers.post("/v1/completions", json=body).json()["choices"]]
    assert len(texts) == 6
    assert all(re.fullmatch("[ab]{3}", text) for text in texts)


def test_ends_and_least_tokens_beside_it(writers: Served) -> None:
    body = {"model": "poems", "messages": ASK, "temperature": 0, "max_tokens": 12}

    def answer(**more: Any) -> dict[str, Any]:
        choice: dict[str, Any] = writers.post("/v1/chat/completions", json=body | more).json()["choices"][0]
        return {"text": choice["message"]["content"], "finish": choice["finish_reason"]}

    assert answer(guided_choice=["a"], min_tokens=10) == {"text": "a", "finish": "stop"}
    assert answer(guided_choice=["a"], ignore_eos=True) == {"text": "a", "finish": "stop"}
    assert answer(guided_regex="a+", ignore_eos=True)["finish"] == "length"
    assert answer(guided_regex="a+", stop_token_ids=[2], logit_bias={"2": 100}) == {"text": "a", "finish": "stop"}
    late = answer(guided_regex="a+", logit_bias={"2": 100}, min_tokens=5)
    assert late["finish"] == "stop"
    assert len(late["text"]) >= 5


def test_schemas_are_looked_into_beside_the_event_loop(writers: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    checked = grammars.check_schema

    def check(schema: Any, at: str) -> None:
        looked.append(threading.current_thread().name)
        checked(schema, at)

    monkeypatch.setattr(grammars, "check_schema", check)
    for asked in ({"response_format": AS_SCHEMA}, {"guided_json": json.dumps(SCHEMA)}):
        assert writers.post("/v1/chat/completions", json=CHAT | asked).status_code == 200
    assert len(looked) == 2
    assert all(name.startswith("ken-worker") for name in looked)


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"response_format": {"type": "xml"}}, "response_format.type", "'json_schema'"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "expected it"),
    ({"response_format": {"type": "text", "schema": {}}}, "response_format.schema", "leave one out"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
        "response_format.json_schema.schema",
        "",
    ),
    ({"response_format": {**AS_SCHEMA, "more": 1}}, "response_format.more", "not permitted"),
    ({"response_format": AS_SCHEMA, "guided_choice": ["a"]}, "guided_choice", "beside response_format"),
    ({"structured_outputs": {"json": "{"}}, "structured_outputs.json", "no JSON"),
    ({"structured_outputs": {"json": "[]"}}, "structured_outputs.json", "an object"),
    ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex", "cannot be enforced"),
    ({"structured_outputs": {"grammar": "start: 'a'"}}, "structured_outputs.grammar", "not permitted"),
    ({"guided_choice": []}, "guided_choice", "expected 1 to 1000"),
    ({"guided_regex": "(a{1000}){1000}"}, "guided_regex", ""),
    *(
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}},
            "response_format.json_schema.schema",
            words,
        )
        for schema, words in (
            ({"type": "object", "not": {}}, "found not, which is not enforced"),
            ({"type": "array", "uniqueItems": True}, "uniqueItems"),
            ({"$ref": "https://example.com/schema.json"}, "another document"),
            ({"anyOf": [{"const": i} for i in range(1000)]}, "1000 alternatives in anyOf; at most 256"),
            ({"type": "string", "pattern": "^(a{1000}){1000}$"}, "too many expressions"),
            ({"const": "x" * 140_000}, "at most 131072"),
        )
    ),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("bad", "param", "words"), BAD, ids=lambda value: str(value)[:60])
def test_what_cannot_be_followed_is_refused_by_name_before_anything_is_sent(
    bad: dict[str, Any], param: str, words: str, stream: bool, writers: Served
) -> None:
    answer = writers.post("/v1/chat/completions", json={**CHAT, **bad, "stream": stream})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert words in error["message"]
