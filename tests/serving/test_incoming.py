"""Null is as if a field was left out, in every form a client can send; unknown fields are refused all the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from over_http import Served
from pydantic import Field

from serving.api import (
    chat_messages,
    cohere,
    huggingface,
    huggingface_generation,
    keys,
    kserve,
    kserve_tensors,
    many_tasks,
    merging,
    native,
    native_generation,
    openai,
    openai_generation,
    response_format,
    session,
    tasks,
    tei,
    tool_choice,
)
from serving.errors import InvalidInputError
from serving.incoming import Free, Incoming
from serving.pipelines import (
    PIPELINES,
    base,
    question_answering,
    rerank,
)
from serving.pipelines.base import check
from serving.service import Service

DIGEST = "0" * 64
TENSOR = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["rain"]}
NAMED = {"type": "function", "function": {"name": "weather"}}
LEAST: dict[type[Incoming], dict[str, Any]] = {
    chat_messages.FunctionCall: {"name": "weather"},
    chat_messages.Message: {"role": "user"},
    chat_messages.TextPart: {"text": "rain"},
    chat_messages.ToolCall: {"function": {"name": "weather"}},
    cohere.CohereRerankRequest: {"model": "ranks", "query": "rain", "documents": ["sun"]},
    base.TextPair: {"text": "rain", "text_pair": "sun"},
    huggingface.SimilarityInput: {"source_sentence": "rain", "sentences": ["sun"]},
    huggingface.InferenceRequest: {"inputs": "rain"},
    huggingface_generation.TextGenerationRequest: {"inputs": "rain"},
    keys.KeyRequest: {"name": "ci", "scopes": ["predict"]},
    kserve.InferRequest: {"inputs": [TENSOR]},
    kserve_tensors.RequestInput: TENSOR,
    kserve_tensors.RequestOutput: {"name": "label"},
    merging.MergedModel: {"merge": {"spam": 1.0}},
    many_tasks.ManyTasksRequest: {"tasks": "spam", "inputs": "rain"},
    native.PredictRequest: {"inputs": "rain"},
    native_generation.ChatPrompt: {"messages": [{"role": "user", "content": "rain"}]},
    native_generation.GenerateRequest: {"prompt": "rain"},
    openai.EmbeddingsOfTokensRequest: {"model": "search", "input": [2, 3]},
    openai.EmbeddingsRequest: {"model": "search", "input": "rain"},
    openai_generation.ChatRequest: {"model": "news", "messages": [{"role": "user", "content": "rain"}]},
    openai_generation.CompletionRequest: {"model": "news", "prompt": "rain"},
    question_answering.Question: {"question": "why?", "context": "rain"},
    rerank.RerankInput: {"query": "rain", "texts": ["sun"]},
    response_format.NamedSchema: {"schema": {}},
    response_format.ResponseFormat: {"type": "text"},
    session.SessionRequest: {"key": "ken_1"},
    tasks.RollbackRequest: {},
    tasks.PublishRequest: {"digest": DIGEST},
    tasks.RouteInfo: {},
    tasks.PromoteRequest: {"digest": DIGEST},
    tei.EmbedRequest: {"inputs": "rain"},
    tei.EmbedTokensRequest: {"inputs": [2, 3]},
    tei.ClassifyRequest: {"inputs": "rain"},
    tei.RerankRequest: {"query": "rain", "texts": ["sun"]},
    tool_choice.AllowedTools: {"tools": [NAMED]},
    tool_choice.AllowedToolsChoice: {"type": "allowed_tools", "allowed_tools": {"tools": [NAMED]}},
    tool_choice.FunctionName: {"name": "weather"},
    tool_choice.FunctionTold: {"name": "weather"},
    tool_choice.NamedTool: NAMED,
    tool_choice.Tool: NAMED,
    PIPELINES["zero-shot-classification"].parameters: {"candidate_labels": ["sport"]},
}
"""What each form cannot do without."""


def forms(of: type[Incoming] = Incoming) -> Iterator[type[Incoming]]:
    for form in of.__subclasses__():
        if form.__module__.startswith("serving."):
            if form.model_fields and not getattr(form, "__abstractmethods__", None):
                yield form
            yield from forms(form)


FORMS = list(dict.fromkeys(forms()))
each_form = pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.__module__}.{form.__name__}")


def test_forms_of_every_protocol_and_kind_are_among_them() -> None:
    assert {pipeline.parameters for pipeline in PIPELINES.values()} <= set(FORMS)
    assert set(LEAST) <= set(FORMS)


def test_no_body_is_read_into_anything_else(peers: Served) -> None:
    """Forms that null was not thought of for."""
    for methods in peers.get("/openapi.json").json()["paths"].values():
        for told in methods.values():
            content = told.get("requestBody", {}).get("content", {}).get("application/json")
            if content is not None:
                properties, needed = content["schema"]["properties"], content["schema"].get("required", ())
                assert all(allows_null(properties[name]) for name in properties.keys() - set(needed)), told


def allows_null(schema: dict[str, Any]) -> bool:
    return schema.get("type") == "null" or {"type": "null"} in schema.get("anyOf", ())


@each_form
def test_null_is_as_if_a_field_was_left_out(form: type[Incoming]) -> None:
    least = LEAST.get(form, {})
    expected = check(form, least)
    optional = {name: None for name, field in form.model_fields.items() if not field.is_required()}
    for name in optional:
        assert check(form, {**least, name: None} | {k: v for k, v in least.items() if k != name}) == (
            check(form, {k: v for k, v in least.items() if k != name})
        ), name
    found = check(form, {**optional, **least})
    assert found == expected
    assert found.model_dump(exclude_unset=True) == expected.model_dump(exclude_unset=True)


@each_form
def test_null_in_place_of_what_is_needed_is_refused_and_named(form: type[Incoming]) -> None:
    for name, field in form.model_fields.items():
        if field.is_required():
            with pytest.raises(InvalidInputError, match=name):
                check(form, {**LEAST[form], name: None})


@each_form
def test_an_unknown_field_is_refused_though_it_is_null(form: type[Incoming]) -> None:
    with pytest.raises(InvalidInputError, match="nonsense"):
        check(form, {**LEAST.get(form, {}), "nonsense": None})


@each_form
def test_the_schema_says_where_null_may_be(form: type[Incoming]) -> None:
    schema = form.model_json_schema()
    needed = schema.get("required", ())
    for name, told in schema.get("properties", {}).items():
        resolved = schema["$defs"][told["$ref"].rpartition("/")[2]] if "$ref" in told else told
        assert allows_null(resolved) == (name not in needed), name


def test_a_refusal_says_that_null_was_found() -> None:
    with pytest.raises(InvalidInputError, match=r"model: .*string, found null"):
        check(openai.EmbeddingsRequest, {"model": None, "input": "rain"})


class Told(Incoming):
    """As `Incoming` describes its fields."""

    named: str
    weights: dict[str, int] = Field({"live": 1}, description="shares")
    anything: Any = None
    free: Free = Field({})
    choice: int | str = 3


def test_descriptions_and_defaults_stay_beside_the_forms() -> None:
    told = Told.model_json_schema()["properties"]
    assert told["named"] == {"title": "Named", "type": "string"}
    assert told["weights"]["description"] == "shares"
    assert told["weights"]["default"] == {"live": 1}
    assert told["weights"]["anyOf"][1:] == [{"type": "null"}]
    assert told["choice"]["anyOf"] == [{"type": "integer"}, {"type": "string"}, {"type": "null"}]
    assert "anyOf" not in told["anything"]
    given = Told.model_json_schema(mode="serialization")["properties"]
    assert not any(allows_null(schema) for schema in given.values())


def test_what_somebody_else_knows_is_left_out_where_it_is_null() -> None:
    assert Told(named="a", free={"a": None, "b": 0, "c": {"d": None}}).free == {"b": 0, "c": {"d": None}}


# Over HTTP


@pytest.mark.parametrize(
    ("path", "body", "nulls"),
    [
        # as LiteLLM sends it
        (
            "/v1/embeddings",
            {"model": "search", "input": ["rain"]},
            {"encoding_format": None, "dimensions": None, "user": None},
        ),
        ("/v1/tasks/emotion/predict", {"inputs": "rain"}, {"parameters": None, "kind": None}),
        ("/v1/tasks/emotion/predict", {"inputs": "rain"}, {"parameters": {"top_k": None, "truncation": None}}),
        ("/models/emotion", {"inputs": "rain"}, {"parameters": None, "options": None, "normalize": None}),
        ("/models/emotion", {"inputs": "rain"}, {"parameters": {"candidate_labels": None, "top_k": None}}),
        ("/models/search/embed", {"inputs": "rain"}, {"normalize": None, "truncate": None, "prompt_name": None}),
        ("/models/emotion/predict", {"inputs": "rain"}, {"raw_scores": None, "truncation_direction": None}),
        ("/models/ranks/rerank", {"query": "rain", "texts": ["sun"]}, {"raw_scores": None, "return_text": None}),
        (
            "/v2/rerank",
            {"model": "ranks", "query": "rain", "documents": ["sun"]},
            {"top_n": None, "rank_fields": None, "max_tokens_per_doc": None, "return_documents": None},
        ),
        ("/v2/models/emotion/infer", {"inputs": [TENSOR]}, {"id": None, "parameters": None, "outputs": None}),
        (
            "/v2/models/emotion/infer",
            {"inputs": [TENSOR], "outputs": [{"name": "label"}]},
            {
                "parameters": {"top_k": None, "kind": None, "binary_data_output": None},
                "inputs": [{**TENSOR, "parameters": {"binary_data_size": None, "shared_memory_region": None}}],
                "outputs": [{"name": "label", "parameters": {"binary_data": None, "classification": None}}],
            },
        ),
    ],
)
def test_every_protocol_answers_as_if_it_was_left_out(
    path: str, body: dict[str, Any], nulls: dict[str, Any], peers: Served
) -> None:
    named = {"X-Request-Id": "the-same"}
    expected = peers.post(path, json=body, headers=named)
    found = peers.post(path, json={**body, **nulls}, headers=named)
    assert expected.status_code == 200, expected.text
    assert found.status_code == 200, found.text
    assert found.json() == expected.json()


def test_changes_take_null_for_what_is_not_said(service: Service, talk: Callable[..., Any], deltas: Any) -> None:
    async def conversation(client: httpx.AsyncClient) -> None:
        key = await client.post("/v1/keys", json={"name": "ci", "scopes": ["admin"], "tasks": None, "expires_in": None})
        assert (key.status_code, key.json()["tasks"], key.json()["expires"]) == (201, ["*"], None)
        client.headers["X-Api-Key"] = key.json()["token"]
        assert not service.store.replicas.wait(key.json()["revision"], 10).pending
        task = "/v1/tasks/spam"
        digest = deltas.spam.digest
        again = {"digest": digest, "alias": None, "wait": None, "signatures": None}
        assert (await client.post(f"{task}/versions", json=again)).status_code == 200
        moved = {"digest": digest, "alias": "canary", "wait": None}
        assert (await client.post(f"{task}/promote", json=moved)).status_code == 200
        for route in ({"weights": None, "shadow": "canary"}, {"weights": {"live": 9, "canary": 1}, "shadow": None}):
            changed = await client.put(f"{task}/route", json=route)
            assert changed.status_code == 200
            assert not service.store.replicas.wait(changed.json()["revision"], 10).pending
        assert (await client.get(f"{task}/route")).json() == {"weights": {"live": 9, "canary": 1}, "shadow": None}
        nothing = await client.post(f"{task}/rollback", json={"alias": None, "wait": None})
        assert nothing.status_code == 409

    talk(service, conversation)
