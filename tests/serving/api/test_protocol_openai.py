"""OpenAI's protocol, asked by OpenAI's own client."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import openai
import pytest
from holding import Blocked
from over_http import Served

from serving.api.failures import failure_of
from serving.api.openai import EmbeddingsRequest, shape
from serving.errors import (
    ForbiddenError,
    InternalError,
    InvalidInputError,
    ServingError,
    TooLargeError,
    UnauthorizedError,
    UnsupportedKindError,
)
from tests.tiny_checkpoints import TEXTS


@pytest.fixture
def client(peers: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{peers.url}/v1", api_key="any", max_retries=0) as client:
        yield client


def vectors(answer: openai.types.CreateEmbeddingResponse) -> list[list[float]]:
    return [one.embedding for one in answer.data]


def is_openai_error(error: dict[str, Any], **expected: str | None) -> bool:
    assert set(error) == {"error"}
    assert set(error["error"]) == {"message", "type", "param", "code"}
    assert {name: error["error"][name] for name in expected} == expected
    return True


# Embeddings


@pytest.mark.parametrize("encoding", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}])
def test_embeddings_are_those_of_the_native_protocol(
    encoding: dict[str, Any], client: openai.OpenAI, peers: Served
) -> None:
    answer = client.embeddings.create(model="search", input=list(TEXTS), **encoding)
    assert [one.index for one in answer.data] == list(range(len(TEXTS)))
    got = [np.frombuffer(base64.b64decode(v), "<f4") if isinstance(v, str) else v for v in vectors(answer)]
    assert np.array(got) == pytest.approx(np.array(peers.native("search", list(TEXTS))), abs=1e-5)


def test_one_text_gets_one_embedding(client: openai.OpenAI, peers: Served) -> None:
    answer = client.embeddings.create(model="search", input=TEXTS[0])
    assert vectors(answer) == [pytest.approx(peers.native("search", TEXTS[0])[0], abs=1e-5)]


def test_a_task_that_gives_token_vectors_by_itself_embeds_when_asked(client: openai.OpenAI, peers: Served) -> None:
    answer = client.embeddings.create(model="vectors", input=TEXTS[0])
    native = peers.native("vectors", TEXTS[0], kind="sentence-embeddings")
    assert vectors(answer) == [pytest.approx(native[0], abs=1e-5)]


def test_dimensions_cut_embeddings(client: openai.OpenAI, peers: Served) -> None:
    answer = client.embeddings.create(model="search", input="rain", dimensions=4)
    assert vectors(answer) == [pytest.approx(peers.native("search", "rain", {"dimensions": 4})[0], abs=1e-5)]


def test_tokens_are_counted_and_the_model_is_named_as_asked(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="search@live", input=["rain", "rain city"])
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (3 + 4, 3 + 4)
    assert answer.model == "search@live"


def test_the_answer_names_delta_stages_and_request(client: openai.OpenAI, peers: Served) -> None:
    raw = client.embeddings.with_raw_response.create(
        model="search", input="rain", extra_headers={"X-Request-Id": "mine-7"}
    )
    assert raw.headers["x-ken-delta"] == peers.service.table.resolve("search")
    assert "model;dur=" in raw.headers["server-timing"]
    assert raw.headers["x-request-id"] == "mine-7"


def test_the_end_user_is_the_key_that_splits_traffic() -> None:
    assert EmbeddingsRequest(model="search", input="rain", user="u-7").task_query().key == "u-7"


# Models


def test_tasks_are_models(client: openai.OpenAI, peers: Served) -> None:
    known = [task["name"] for task in peers.get("/v1/tasks").json()]
    assert [model.id for model in client.models.list()] == known
    assert "spam" in known


@pytest.mark.parametrize("name", ["spam", "spam@canary"])
def test_a_task_or_alias_is_a_model(name: str, client: openai.OpenAI) -> None:
    model = client.models.retrieve(name)
    assert (model.id, model.object, model.owned_by) == (name, "model", "ken-serve")


@pytest.mark.parametrize("name", ["spamm", "spam@next"])
def test_what_is_no_task_or_alias_is_no_model(name: str, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        client.models.retrieve(name)
    assert refused.value.code == "model_not_found"


# Refusals


@pytest.mark.parametrize(
    ("asked", "param", "word"),
    [
        ({"input": [1, 2, 3]}, "input", "token ids"),
        ({"input": [[1, 2], [3]]}, "input", "token ids"),
        ({"input": []}, "input", "at least 1"),
        ({"input": 5}, "input", "a text or a list of texts"),
        ({"input": ["rain", None]}, "input", "string"),
        ({"input": "rain", "encoding_format": "int8"}, "encoding_format", "base64"),
        ({"input": "rain", "dimensions": 0}, "dimensions", "1"),
        ({"input": ["rain"] * 33}, None, "32"),
        ({"input": "rain", "extra_body": {"inputs": "rain"}}, None, "inputs"),
        ({"input": "rain", "model": "spam"}, None, "text-classification"),
    ],
)
def test_a_request_that_cannot_be_meant_is_a_bad_request_that_names_what_is_wrong(
    asked: dict[str, Any], param: str | None, word: str, client: openai.OpenAI
) -> None:
    with pytest.raises(openai.BadRequestError, match=word) as refused:
        client.embeddings.create(**{"model": "search", **asked})
    assert (refused.value.type, refused.value.param) == ("invalid_request_error", param)
    assert refused.value.request_id


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match=r"'serch'.*'search'") as refused:
        client.embeddings.create(model="serch", input="rain")
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")


def test_a_body_that_is_no_json_or_too_long_is_refused_in_openais_shape(peers: Served) -> None:
    refused = peers.post("/v1/embeddings", content=b"{")
    assert refused.status_code == 400
    assert is_openai_error(refused.json(), type="invalid_request_error")
    for content in (b" " * 20_000, iter([b" " * 10_000] * 2)):
        too_long = peers.post("/v1/embeddings", content=content)
        assert too_long.status_code == 413
        assert is_openai_error(too_long.json(), type="invalid_request_error")


def test_more_tokens_than_allowed_are_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError, match="512") as refused:
        client.embeddings.create(model="search", input=["rain " * 60] * 10)
    assert refused.value.status_code == 413


def test_a_full_queue_is_a_rate_limit(client: openai.OpenAI, peers: Served) -> None:
    with peers.full(), pytest.raises(openai.RateLimitError) as refused:
        client.embeddings.create(model="search", input="rain")
    assert refused.value.code == "rate_limit_exceeded"
    assert int(refused.value.response.headers["retry-after"]) >= 1


def test_a_server_that_stops_is_unavailable(client: openai.OpenAI, peers: Served) -> None:
    with peers.draining(), pytest.raises(openai.InternalServerError, match="stopping") as refused:
        client.embeddings.create(model="search", input="rain")
    assert (refused.value.status_code, refused.value.type) == (503, "server_error")
    assert int(refused.value.response.headers["retry-after"]) >= 1


def test_a_deadline_that_passes_is_a_failure_of_the_server(client: openai.OpenAI, peers: Served) -> None:
    with Blocked(peers.service.engine), pytest.raises(openai.InternalServerError) as refused:
        client.embeddings.create(model="search", input="rain", extra_headers={"X-Request-Timeout-Ms": "50"})
    assert refused.value.status_code == 504


@pytest.mark.parametrize(
    ("kind", "status", "answered", "code"),
    [
        (UnauthorizedError, 401, 401, "invalid_api_key"),
        (ForbiddenError, 403, 403, "insufficient_permissions"),
        (UnsupportedKindError, 501, 400, None),
        (InternalError, 500, 500, None),
    ],
)
def test_other_failures_have_statuses_and_codes_its_clients_know(
    kind: type[ServingError], status: int, answered: int, code: str | None
) -> None:
    failure = failure_of({"headers": []}, kind("what was wrong"))
    assert failure.status == status
    made = shape(replace(failure, headers={"WWW-Authenticate": "Bearer"}))
    assert made.status_code == answered
    assert f'"code":{f"{code!r}" if code else "null"}'.replace("'", '"') in made.body.decode()
    assert made.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("at", "param"),
    [
        ("input", "input"),
        ("input.3", "input"),
        ("inputs.3", "input"),
        ("inputs.3.text", "input"),
        ("dimensions", "dimensions"),
        ("inputs", None),
        ("body", None),
        ("truncation_side", None),
        (None, None),
    ],
)
@pytest.mark.parametrize("kind", [InvalidInputError, TooLargeError])
def test_the_field_named_is_the_one_that_the_error_names(
    kind: type[ServingError], at: str | None, param: str | None
) -> None:
    made = json.loads(shape(failure_of({"headers": []}, kind("dimensions: not what is wrong", at=at))).body)
    message = "dimensions: not what is wrong" if at is None else f"{at}: dimensions: not what is wrong"
    assert is_openai_error(made, message=message, param=param, code=None)


@pytest.mark.parametrize(
    ("path", "type_"),
    [
        ("/v1/models/spamm", "application/json"),
        ("/v1/models/a/b", "application/json"),
        ("/v1/embeddings", "application/json"),
        ("/v1/tasks/spamm", "application/problem+json"),
        ("/v1/modelss", "application/problem+json"),
    ],
)
def test_the_shape_is_openais_under_its_own_paths_only(path: str, type_: str, peers: Served) -> None:
    refused = peers.get(path)
    assert refused.status_code in (404, 405)
    assert refused.headers["content-type"] == type_
    assert ("error" in refused.json()) == (type_ == "application/json")


def test_every_way_to_fail_is_documented_in_openais_shape(peers: Served) -> None:
    paths = peers.get("/openapi.json").json()["paths"]
    for method, path in (("post", "/v1/embeddings"), ("get", "/v1/models"), ("get", "/v1/models/{model}")):
        operation = paths[path][method]
        assert operation["summary"]
        assert operation["description"]
        refusals = {status: made for status, made in operation["responses"].items() if status != "200"}
        assert "422" not in refusals
        assert {"401", "403", "503"} <= refusals.keys()
        for made in refusals.values():
            assert "code" in made["content"]["application/json"]["schema"]["properties"]["error"]["properties"]
    assert paths["/v1/embeddings"]["post"]["requestBody"]["content"]["application/json"]["schema"]["examples"]
