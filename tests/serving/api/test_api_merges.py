"""Merges of tasks that a request asks for, over HTTP: what they answer, and what is refused."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import httpx
import numpy as np
import pytest
from merging import RECIPES, merged

from ken_core import DeltaFile, MergeRecipe
from serving.routing.routes import Route
from serving.security.keys import new_key
from serving.service import Service
from tests.tiny_checkpoints import TEXTS, Deltas, Tiny, scores

Ask = Callable[..., httpx.Response]
MakeService = Callable[..., Service]
Publish = Callable[..., None]
Talk = Callable[..., Any]

PREDICT = "/v1/tasks/spam/predict"
WEIGHTS = {"spam": 0.7, "spam@canary": 0.3}


@pytest.fixture
def both(service: Service, publish: Publish, deltas: Deltas) -> Service:
    """The task spam has a live version and a canary."""
    publish("spam", deltas.spam_2, "canary")
    return service


def of_spam(merge: Mapping[str, float] = WEIGHTS, inputs: Any = TEXTS[0], **more: Any) -> dict[str, Any]:
    return {"inputs": inputs, "model": {"merge": dict(merge), **more}}


def near(found: list[dict[str, Any]], expected: Mapping[str, float]) -> bool:
    got = scores(found)
    return got.keys() == expected.keys() and all(abs(got[label] - expected[label]) < 1e-5 for label in got)


def detail_of(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    detail: str = answer.json()["detail"]
    return detail


# What it answers


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: f"{recipe.method}-{recipe.normalizes}")
def test_a_merge_answers_as_the_folder_that_is_applied_from_the_merged_file(
    recipe: MergeRecipe,
    both: Service,
    post: Ask,
    deltas: Deltas,
    tiny: Tiny,
    dedicated: Callable[[DeltaFile, str], dict[str, float]],
) -> None:
    file = merged(tiny, [(deltas.spam, 0.7), (deltas.spam_2, 0.3)], recipe)
    asked = asdict(recipe)
    del asked["seed"]
    answer = post(PREDICT, json=of_spam(inputs=list(TEXTS), **asked)).json()
    assert all(near(found, dedicated(file, text)) for text, found in zip(TEXTS, answer["outputs"], strict=True))


@pytest.mark.parametrize("mixed", ["auto", "off"])
def test_a_merge_answers_as_the_merged_file_published_as_a_task(
    mixed: str, make_service: MakeService, publish: Publish, deltas: Deltas, tiny: Tiny, talk: Talk
) -> None:
    publish("spam", deltas.spam)
    publish("spam", deltas.spam_2, "canary")
    publish("file", merged(tiny, [(deltas.spam_2, -0.5), (deltas.spam, 1.5)]))
    service = make_service(mixed=mixed)

    async def conversation(client: httpx.AsyncClient) -> list[Any]:
        asked = of_spam({"spam": 1.5, "spam@canary": -0.5}, list(TEXTS))
        paths = ["/v1/tasks/file/predict", "/v1/tasks/spam@canary/predict", "/v1/tasks/spam/predict"] * 2
        bodies = [{"inputs": list(TEXTS)}, asked, {"inputs": list(TEXTS)}] * 2
        asking = [client.post(path, json=body) for path, body in zip(paths, bodies, strict=True)]
        return [answer.json()["outputs"] for answer in await asyncio.gather(*asking)]

    file, on_request, alone, *again = talk(service, conversation)
    for expected, found in [*zip(file, on_request, strict=True), *zip(again[0], again[1], strict=True)]:
        assert near(found, scores(expected))
    assert alone != file


def test_the_answer_pins_what_answered_and_can_be_asked_for_again(both: Service, post: Ask, deltas: Deltas) -> None:
    answer = post(PREDICT, json=of_spam(method="ties", density=0.5))
    told = answer.json()
    live, canary = f"spam@{deltas.spam.digest}", f"spam@{deltas.spam_2.digest}"
    assert told["model"] == {
        "merge": {live: 0.7, canary: 0.3},
        "head": live,
        "method": "ties",
        "density": 0.5,
        "normalize": True,
    }
    assert (told["task"], told["digest"]) == ("spam", answer.headers["x-ken-delta"])
    assert json.loads(answer.headers["x-ken-merge"]) == told["model"]
    again = post(PREDICT, json={"inputs": TEXTS[0], "model": told["model"]})
    assert again.json() == told


def test_an_answer_of_one_version_tells_of_no_merge(service: Service, post: Ask) -> None:
    answer = post(PREDICT, json={"inputs": TEXTS[0], "model": None})
    assert "model" not in answer.json()
    assert "x-ken-merge" not in answer.headers


def test_requests_that_mean_the_same_share_one_merge(both: Service, post: Ask, deltas: Deltas) -> None:
    canary = f"spam@{deltas.spam_2.digest[:12]}"
    asked = [
        of_spam(),
        of_spam({"spam@canary": 0.3, "spam": 0.7}),
        of_spam({canary: 0.3, "spam": 0.7}, head="spam"),
        of_spam(method="linear", density=None, normalize=False),
    ]
    digests = {post(PREDICT, json=body).json()["digest"] for body in asked}
    assert len(digests) == 1
    others = [
        of_spam({"spam": 0.7, "spam@canary": 0.31}),
        of_spam(head="spam@canary"),
        of_spam(normalize=True),
        of_spam(method="dare-linear", density=0.5),
    ]
    different = [post(PREDICT, json=body).json()["digest"] for body in others]
    assert len({*different, *digests}) == 5
    assert len(both.cache.merges) == 5


def test_the_head_may_be_of_a_task_with_other_labels(both: Service, post: Ask) -> None:
    body = {"inputs": TEXTS[0], "model": {"merge": {"emotion": 0.0, "topic": 1.0}}}
    (output,) = post("/v1/tasks/emotion/predict", json=body).json()["outputs"]
    assert set(scores(output)) == {"anger", "joy", "fear"}


def test_a_promotion_holds_for_the_next_request(both: Service, post: Ask, deltas: Deltas) -> None:
    before = post(PREDICT, json=of_spam({"spam": 1.0, "topic": 0.5})).json()
    store = both.store
    assert not store.replicas.wait(store.tasks.promote("spam", deltas.spam_2.digest), 10).pending
    after = post(PREDICT, json=of_spam({"spam": 1.0, "topic": 0.5})).json()
    assert f"spam@{deltas.spam_2.digest}" in after["model"]["merge"]
    assert after["digest"] != before["digest"]
    assert not store.replicas.wait(store.tasks.rollback("spam"), 10).pending
    assert post(PREDICT, json=of_spam({"spam": 1.0, "topic": 0.5})).json() == before


def test_a_task_alone_is_its_live_version_whatever_its_route(both: Service, post: Ask, deltas: Deltas) -> None:
    store = both.store
    routed = store.tasks.set_route("spam", Route({"canary": 1}, shadow="live"))
    assert not store.replicas.wait(routed, 10).pending
    told = post(PREDICT, json=of_spam({"spam": 1.0, "topic": 0.1})).json()
    assert f"spam@{deltas.spam.digest}" in told["model"]["merge"]
    assert not len(both.shadows)


# Other protocols


def test_embeddings_of_a_merge_over_every_protocol_that_names_a_model(
    make_service: MakeService, publish: Publish, tiny: Tiny, talk: Talk
) -> None:
    first, second = (tiny.delta(tiny.embedding(f"merge-search-{seed}", seed, "mean_tokens")) for seed in (81, 82))
    publish("search", first)
    publish("find", second)
    publish("file", merged(tiny, [(first, 0.5), (second, 0.5)]))
    model = {"merge": {"search": 0.5, "find": 0.5}, "head": "search"}
    service = make_service()

    async def conversation(client: httpx.AsyncClient) -> list[httpx.Response]:
        ask = client.post
        return [
            await ask("/v1/tasks/file/predict", json={"inputs": "rain", "parameters": {"normalize": False}}),
            await ask("/v1/embeddings", json={"model": model, "input": "rain"}),
            await ask("/v1/embeddings", json={"model": model, "input": "rain", "encoding_format": "base64"}),
            await ask("/embed", json={"model": model, "inputs": "rain", "normalize": False}),
            await ask(
                "/models/search/embed",
                json={"model": {"merge": model["merge"]}, "inputs": "rain", "normalize": False},
            ),
        ]

    file, openai, encoded, tei, at_task = talk(service, conversation)
    (expected,) = file.json()["outputs"]
    assert openai.json()["model"] == openai.headers["x-ken-delta"] == tei.headers["x-ken-delta"]
    vectors = [
        openai.json()["data"][0]["embedding"],
        np.frombuffer(base64.b64decode(encoded.json()["data"][0]["embedding"]), "<f4"),
        *tei.json(),
        *at_task.json(),
    ]
    for vector in vectors:
        np.testing.assert_allclose(vector, expected, atol=1e-6)


def test_protocols_without_merges_refuse_them_by_name(both: Service, post: Ask) -> None:
    model = {"merge": WEIGHTS}
    many = post("/v1/predict", json={"tasks": [{"merge": WEIGHTS}], "inputs": "rain"})
    assert "a merge of tasks is asked by itself" in detail_of(many, 422)
    hub = post("/models/spam", json={"inputs": "rain", "model": model})
    assert (hub.status_code, hub.json()["error"][:6]) == (422, "model:")
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["rain"]}
    kserve = post("/v2/models/spam/infer", json={"inputs": [tensor], "model": model})
    assert (kserve.status_code, kserve.json()["error"][:6]) == (422, "model:")
    parameters = post("/v2/models/spam/infer", json={"inputs": [tensor], "parameters": {"model": model}})
    assert parameters.status_code == 422
    assert "the path names the task" in detail_of(post(PREDICT, json={"inputs": "rain", "model": "topic"}), 422)


# Refusals


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ({"merge": {}}, "at least 1 item"),
        ({"merge": {f"t{i}": 1 for i in range(9)}}, "at most 8 items"),
        ({"merge": {"spam": 4.1}}, "less than or equal to 4"),
        ({"merge": {"spam": -5}}, "greater than or equal to -4"),
        ({"merge": {"spam": "1"}}, "valid number"),
        ({"merge": {"spam": True}}, "valid number"),
        ({"merge": {"spam": None}}, "valid number"),
        ({"merge": {"../spam": 1}}, "pattern"),
        ({"merge": {"spam": 1}, "method": "slerp"}, "model.method"),
        ({"merge": {"spam": 1}, "density": 0.5}, "linear keeps shifts whole"),
        ({"merge": {"spam": 1}, "method": "ties", "density": 0}, "greater than 0"),
        ({"merge": {"spam": 1}, "head": "topic"}, "the path names 'spam'"),
        ({"merge": {"topic": 1}}, "none of the tasks that are merged"),
        ({"merge": {"spam": 1, "spam@live": 1}}, "'spam' and 'spam@live' are the same version"),
        ({"merge": {"spam": 0}}, "all weights are 0"),
        ({"merge": {"spam": 1}, "parts": 2}, "model.parts"),
        ({"head": "spam"}, "model.merge"),
    ],
)
def test_what_is_no_merge_is_refused(model: dict[str, Any], told: str, service: Service, post: Ask) -> None:
    assert told in detail_of(post(PREDICT, json={"inputs": "rain", "model": model}), 422)


def test_without_a_path_the_head_must_be_named(service: Service, post: Ask) -> None:
    asked = {"model": {"merge": {"spam": 1, "topic": 1}}, "inputs": "rain"}
    answer = post("/predict", json=asked)
    assert answer.status_code == 422
    assert "model.head: expected one of the tasks" in answer.json()["error"]
    one = post("/predict", json={"model": {"merge": {"spam": 1}}, "inputs": "rain"})
    assert one.status_code == 200


def test_no_number_of_python_alone_is_a_weight(service: Service, post: Ask) -> None:
    for weight in ("NaN", "Infinity", "1e999"):
        body = f'{{"inputs": "rain", "model": {{"merge": {{"spam": {weight}}}}}}}'
        assert post(PREDICT, content=body).status_code in (400, 422)


def test_a_task_that_is_not_there_is_named(both: Service, post: Ask) -> None:
    assert "there is no task 'spa'; did you mean 'spam'?" in detail_of(
        post(PREDICT, json=of_spam({"spam": 1, "spa": 1})), 404
    )
    assert "no alias 'next'" in detail_of(post(PREDICT, json=of_spam({"spam": 1, "topic@next": 1})), 404)
    store = both.store
    assert post(PREDICT, json=of_spam({"spam": 1, "topic": 1})).status_code == 200
    assert not store.replicas.wait(store.tasks.delete("topic", force=True), 10).pending
    assert "there is no task 'topic'" in detail_of(post(PREDICT, json=of_spam({"spam": 1, "topic": 1})), 404)


def test_a_header_cannot_pin_a_version_of_a_merge(service: Service, post: Ask, deltas: Deltas) -> None:
    answer = post(PREDICT, json=of_spam({"spam": 1, "topic": 1}), headers={"X-Ken-Delta": deltas.spam.digest})
    assert "X-Ken-Delta pins a version of one task" in detail_of(answer, 400)


def test_tasks_of_different_kinds_are_refused_and_remembered(
    make_service: MakeService, publish: Publish, of_every_kind: dict[str, DeltaFile], talk: Talk
) -> None:
    for task in ("spam", "tags", "search", "vectors"):
        publish(task, of_every_kind[task])
    service = make_service(merges_per_minute=2)

    async def conversation(client: httpx.AsyncClient) -> list[httpx.Response]:
        tagging = of_spam({"spam": 1, "tags": 1})
        vectors = of_spam({"search": 1, "vectors": 1}, head="search")
        return [
            await client.post(PREDICT, json=tagging),
            await client.post(PREDICT, json=tagging),
            await client.post("/v1/tasks/search/predict", json=vectors),
            await client.post("/v1/tasks/search/predict", json=vectors),
        ]

    reasons = ["it is a BertForTokenClassification"] * 2 + ["it has other settings for vectors"] * 2
    for answer, why in zip(talk(service, conversation), reasons, strict=True):
        assert answer.json()["title"] == "Cannot be merged"
        assert why in detail_of(answer, 422)
    assert not service.cache.files.nbytes  # no part was fetched


# Limits


def test_a_server_may_make_no_merges(make_service: MakeService, publish: Publish, deltas: Deltas, talk: Talk) -> None:
    publish("spam", deltas.spam)
    service = make_service(max_merges=0)

    async def conversation(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post(PREDICT, json=of_spam({"spam": 1}))

    assert "KEN_MAX_MERGES is 0" in detail_of(talk(service, conversation), 403)


def test_a_client_may_have_so_many_merges_made_a_minute(
    make_service: MakeService, publish: Publish, deltas: Deltas, talk: Talk
) -> None:
    publish("spam", deltas.spam)
    service = make_service(merges_per_minute=2)

    async def conversation(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [await client.post(PREDICT, json=of_spam({"spam": weight})) for weight in (1, 1, 0.5, 0.25, 0.5)]

    *made, refused, again = talk(service, conversation)
    assert [answer.status_code for answer in (*made, again)] == [200] * 4
    assert "KEN_MERGES_PER_MINUTE" in detail_of(refused, 429)
    assert 0 < int(refused.headers["Retry-After"]) <= 60


# Keys


def test_a_key_must_see_every_task_of_a_merge(
    make_service: MakeService, publish: Publish, deltas: Deltas, talk: Talk
) -> None:
    for task in ("emotion", "spam", "topic"):
        publish(task, getattr(deltas, task))
    service = make_service(admin_token="of-the-admin")
    store = service.store
    key, token = new_key("ana", ["predict"], ["spam", "emo*"])
    assert not store.replicas.wait(store.keys.put(key.id, key.record()), 10).pending

    async def conversation(client: httpx.AsyncClient) -> list[httpx.Response]:
        headers = {"Authorization": f"Bearer {token}"}
        asked = ({"spam": 1, "emotion": 1}, {"spam": 1, "topic": 1}, {"spam": 1, "nothing": 1})
        answers = [await client.post(PREDICT, json=of_spam(merge), headers=headers) for merge in asked]
        nobody = await client.post(PREDICT, json=of_spam({"spam": 1}))
        embeddings = {"model": {"merge": {"topic": 1, "spam": 1}, "head": "topic"}, "input": "rain"}
        return [*answers, nobody, await client.post("/v1/embeddings", json=embeddings, headers=headers)]

    allowed, hidden, absent, nobody, embedding = talk(service, conversation)
    assert allowed.status_code == 200
    assert detail_of(hidden, 404) == detail_of(absent, 404).replace("nothing", "topic")
    assert nobody.status_code == 401
    assert embedding.status_code == 404
    assert embedding.json()["error"]["message"] == detail_of(hidden, 404)


# What is counted


def test_merges_count_under_one_label(both: Service, post: Ask, metric: Callable[..., float]) -> None:
    for weight in (0.5, 0.6, 0.6):
        assert post(PREDICT, json=of_spam({"spam": weight, "topic": 0.1})).status_code == 200
    post(PREDICT, json=of_spam({"spam": 1, "nothing": 1}))
    assert metric(both, "ken_requests_total", task="@merge", code="200") == 3
    assert metric(both, "ken_requests_total", task="@merge", code="404") == 1
    assert metric(both, "ken_version_requests_total", task="@merge", version="other") == 3
    assert metric(both, "ken_requests_total", task="spam") == 0
    assert metric(both, "ken_merges") == 2
    assert metric(both, "ken_load_seconds_count", tier="merge") == 2
    assert metric(both, "ken_cache_misses_total") == 2
