"""One question to many tasks: ``POST /v1/predict``."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from holding import Blocked, until
from over_http import alike
from problems import is_problem

from ken_core import DeltaFile
from ken_core.tokenization import Encoder, Input
from serving.api.fan_out import expanded, is_pattern
from serving.config import load_settings
from serving.routing.routes import Route
from serving.security.keys import Scope, new_key
from serving.service import Service
from serving.store import Store
from tests.tiny_checkpoints import Deltas, Tiny

Client = httpx.AsyncClient
Metric = Callable[..., float]
Talk = Callable[..., Any]
Post = Callable[..., httpx.Response]

MANY = "/v1/predict"
ALL = ["emotion", "topic", "spam"]


@pytest.fixture(scope="module")
def every(
    tiny: Tiny, of_every_kind: dict[str, DeltaFile], embedded_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """A service with a task a kind."""
    namespace = f"many-{uuid.uuid4().hex[:12]}"
    store = Store(embedded_url, namespace)
    for task, file in of_every_kind.items():
        store.tasks.publish(task, file)
    folder = tmp_path_factory.mktemp("many")
    service = Service(
        load_settings(base=str(tiny.base_folder), data_dir=folder, namespace=namespace, threads=1), embedded_url
    )
    service.start()
    yield service
    service.stop()


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Counter[Input]:
    """How often each text was encoded whole."""
    seen: Counter[Input] = Counter()
    encode = Encoder.__call__

    def counting(self: Encoder, texts: Any) -> Any:
        seen.update(texts)
        return encode(self, texts)

    monkeypatch.setattr(Encoder, "__call__", counting)
    return seen


async def asked(client: Client, tasks: str | list[str], inputs: Any = "rain", **more: Any) -> list[dict[str, Any]]:
    """The results of a request that is sound as a whole."""
    answer = await client.post(MANY, json={"tasks": tasks, "inputs": inputs, **more})
    assert answer.status_code == 200, answer.text
    results: list[dict[str, Any]] = answer.json()["results"]
    return results


def named(results: list[dict[str, Any]]) -> list[str]:
    return [result["task"] for result in results]


def codes(results: list[dict[str, Any]]) -> list[int]:
    return [result["error"]["status"] if "error" in result else 200 for result in results]


# Answers


def test_each_task_answers_as_it_does_alone_in_the_order_asked(service: Service, talk: Talk) -> None:
    inputs = ["rain", {"text": "who is it", "text_pair": "the king"}, "a good film " * 40]

    async def conversation(client: Client) -> None:
        results = await asked(client, ALL, inputs, parameters={"top_k": 2})
        assert named(results) == ALL
        for result in results:
            body = {"inputs": inputs, "parameters": {"top_k": 2}}
            alone = (await client.post(f"/v1/tasks/{result['task']}/predict", json=body)).json()
            assert alike(result, alone)
            assert result["truncated"] == [2]

    talk(service, conversation)


def test_tasks_of_all_kinds_that_take_a_text_answer_side_by_side(every: Service, talk: Talk) -> None:
    async def conversation(client: Client) -> None:
        results = {one["task"]: one for one in await asked(client, "*")}
        assert list(results) == sorted(results)
        assert {task: one["kind"] for task, one in results.items() if "kind" in one} == {
            "emotion": "text-classification",
            "entailment": "text-classification",
            "ranks": "text-classification",
            "search": "sentence-embeddings",
            "spam": "text-classification",
            "tags": "token-classification",
            "vectors": "feature-extraction",
        }
        for task, one in results.items():
            alone = (await client.post(f"/v1/tasks/{task}/predict", json={"inputs": "rain"})).json()
            if task == "answers":
                assert (one["error"]["status"], one["error"]["detail"]) == (alone["status"], alone["detail"])
            else:
                assert alike(one, alone)

    talk(every, conversation)


def test_aliases_digests_and_routes_choose_versions_as_for_one_task(
    service: Service, publish: Callable[..., None], deltas: Deltas, talk: Talk
) -> None:
    publish("spam", deltas.spam_2, "canary")
    tasks = service.store.tasks
    assert not service.store.replicas.wait(tasks.set_route("spam", Route({"live": 1, "canary": 1})), 10).pending
    digests = [deltas.spam.digest, deltas.spam_2.digest]

    async def conversation(client: Client) -> None:
        results = await asked(client, ["spam@live", "spam@canary", f"spam@{digests[1][:12]}"])
        assert named(results) == ["spam@live", "spam@canary", f"spam@{digests[1][:12]}"]
        assert [one["digest"] for one in results] == [digests[0], digests[1], digests[1]]
        chosen = set()
        for key in map(str, range(12)):
            body = {"tasks": "spam", "inputs": "rain"}
            found = {
                (await client.post(MANY, json=body, headers={"X-Ken-Key": key})).json()["results"][0]["digest"]
                for _ in range(2)
            }
            assert len(found) == 1
            alone = await client.post("/v1/tasks/spam/predict", json={"inputs": "rain"}, headers={"X-Ken-Key": key})
            assert found == {alone.headers["x-ken-delta"]}
            chosen |= found
        assert chosen == set(digests)

    talk(service, conversation)


def test_stages_are_those_of_the_slowest_task(post: Post) -> None:
    answer = post(MANY, json={"tasks": ALL, "inputs": "rain"}, headers={"X-Request-Id": "many-1"})
    stages = [part.partition(";")[0] for part in answer.headers["server-timing"].split(", ")]
    assert stages == ["load", "tokenize", "queue", "swap", "model", "batch"]
    assert answer.headers["x-request-id"] == "many-1"
    assert "x-ken-delta" not in answer.headers


# Names and patterns


@pytest.mark.parametrize(
    ("tasks", "found"),
    [
        ("*", ["emotion", "spam", "topic"]),
        ("[et]*", ["emotion", "topic"]),
        (["topic", "*o*", "topic"], ["topic", "emotion"]),
        (["sp?m@live", "spam"], ["spam@live", "spam"]),
    ],
)
def test_patterns_stand_for_tasks_by_name_and_each_task_answers_once(
    tasks: Any, found: list[str], service: Service, talk: Talk
) -> None:
    async def conversation(client: Client) -> None:
        results = await asked(client, tasks)
        assert named(results) == found
        assert codes(results) == [200] * len(found)

    talk(service, conversation)


def test_what_is_asked_for_is_expanded_without_a_server() -> None:
    assert expanded(["b", "a*", "b"], ["a1", "a2", "b"]) == ["b", "a1", "a2"]
    assert expanded(["a*@canary", "z*"], ["a1", "b"]) == ["a1@canary", "z*"]
    assert [is_pattern(one) for one in ("*", "a?", "a[bc]", "a", "a@live", "a@*")] == [True] * 3 + [False] * 3


def test_a_pattern_chooses_among_the_tasks_that_the_key_may_ask(
    make_service: Callable[..., Service], publish: Callable[..., None], deltas: Deltas, talk: Talk
) -> None:
    service = make_service()
    for task in ALL:
        publish(task, getattr(deltas, task))
    scopes: list[Scope] = ["predict"]
    key, token = new_key("guard", scopes, ["t*", "s*"])
    assert not service.store.replicas.wait(service.store.keys.put(key.id, key.record()), 10).pending

    async def conversation(client: Client) -> None:
        body = {"tasks": ["*", "emotion", "e*"], "inputs": "rain"}
        assert is_problem(await client.post(MANY, json=body), 401)
        results = (await client.post(MANY, json=body, headers={"X-Api-Key": token})).json()["results"]
        assert named(results) == ["spam", "topic", "emotion", "e*"]
        assert codes(results) == [200, 200, 404, 404]
        assert "no task 'emotion' for this key" in results[2]["error"]["detail"]

    talk(service, conversation)


# Failures of one task alone


def test_a_task_that_fails_leaves_the_others_their_answers(
    service: Service, publish: Callable[..., None], of_every_kind: dict[str, DeltaFile], talk: Talk
) -> None:
    publish("vectors", of_every_kind["vectors"])
    tasks = ["topik", "emotion", "vectors", "spam@canary", "spam", "z*"]

    async def conversation(client: Client) -> None:
        results = await asked(client, tasks, parameters={"top_k": 1})
        assert named(results) == tasks
        assert codes(results) == [404, 200, 422, 404, 200, 404]
        unknown, refused, nothing = results[0]["error"], results[2]["error"], results[5]["error"]
        assert "did you mean 'topic'" in unknown["detail"]
        assert "top_k" in refused["detail"]
        assert "'z*'" in nothing["detail"]
        alone = await client.post("/v1/tasks/topik/predict", json={"inputs": "rain", "parameters": {"top_k": 1}})
        assert is_problem(alone, 404)
        assert unknown.keys() == {*alone.json(), "retry_after"}
        assert {**unknown, "request_id": ""} == {**alone.json(), "request_id": "", "retry_after": None}

    talk(service, conversation)


def test_a_task_whose_delta_cannot_be_served_fails_alone(
    service: Service, monkeypatch: pytest.MonkeyPatch, deltas: Deltas, talk: Talk
) -> None:
    load = service.cache.load

    def failing(digest: str) -> Any:
        if digest == deltas.topic.digest:
            raise RuntimeError("a secret of the server")
        return load(digest)

    monkeypatch.setattr(service.cache, "load", failing)

    async def conversation(client: Client) -> None:
        results = await asked(client, ALL)
        assert codes(results) == [200, 500, 200]
        assert "secret" not in str(results)

    talk(service, conversation)


# Encoding


def test_tasks_with_one_tokenizer_and_kind_encode_a_text_once(
    every: Service, talk: Talk, encoded: Counter[Input]
) -> None:
    async def conversation(client: Client) -> None:
        classifiers = ["emotion", "spam", "entailment", "ranks"]
        assert codes(await asked(client, classifiers, ["what river", "which city"])) == [200] * 4
        assert encoded == {"what river": 1, "which city": 1}
        await client.post("/v1/tasks/spam/predict", json={"inputs": "what river"})
        assert encoded["what river"] == 2

    talk(every, conversation)


def test_a_kind_that_reads_more_of_a_task_than_its_tokenizer_encodes_for_itself(
    every: Service, talk: Talk, encoded: Counter[Input]
) -> None:
    async def conversation(client: Client) -> None:
        assert codes(await asked(client, ["search", "vectors", "spam"], "what river")) == [200] * 3
        assert encoded["what river"] == 3

    talk(every, conversation)


def test_a_text_that_no_task_can_read_fails_for_each(service: Service, talk: Talk) -> None:
    async def conversation(client: Client) -> None:
        results = await asked(client, ALL, ["a film " * 60], parameters={"truncation": False})
        assert codes(results) == [422] * 3
        assert all("truncation" in one["error"]["detail"] for one in results)

    talk(service, conversation)


# Requests that are refused as a whole


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": "rain"},
        {"tasks": [], "inputs": "rain"},
        {"tasks": "", "inputs": "rain"},
        {"tasks": ["spam", "a task"], "inputs": "rain"},
        {"tasks": ["s" * 257], "inputs": "rain"},
        {"tasks": "spam", "inputs": []},
        {"tasks": "spam", "inputs": "rain", "kind": "rerank"},
    ],
)
def test_a_request_of_another_form_is_refused(body: dict[str, Any], post: Post) -> None:
    assert is_problem(post(MANY, json=body), 422)


def test_a_body_that_is_no_json_and_a_pin_that_only_one_task_can_have_are_refused(post: Post, deltas: Deltas) -> None:
    assert is_problem(post(MANY, content=b"{"), 400)
    pinned = post(MANY, json={"tasks": ALL, "inputs": "rain"}, headers={"X-Ken-Delta": deltas.spam.digest})
    assert is_problem(pinned, 400, "X-Ken-Delta", "task@digest")


def test_more_tasks_than_a_request_may_name_are_refused_before_and_after_patterns_are_read(
    make_service: Callable[..., Service], publish: Callable[..., None], deltas: Deltas, talk: Talk, metric: Metric
) -> None:
    service = make_service(max_tasks_per_request=2)
    for task in ALL:
        publish(task, getattr(deltas, task))

    async def conversation(client: Client) -> None:
        for tasks in (ALL, "*", ["nobody", "emotion", "z"]):
            refused = await client.post(MANY, json={"tasks": tasks, "inputs": "rain"})
            assert is_problem(refused, 422, "tasks: found 3", "at most 2", "KEN_MAX_TASKS_PER_REQUEST")
        assert codes(await asked(client, ["emotion", "s*"])) == [200, 200]

    talk(service, conversation)
    assert metric(service, "ken_requests_total", code="422", task="unknown") == 3
    assert metric(service, "ken_requests_total") == 5


def test_inputs_and_tokens_count_for_each_task(
    make_service: Callable[..., Service], publish: Callable[..., None], deltas: Deltas, talk: Talk, metric: Metric
) -> None:
    service = make_service(max_inputs=6, max_tokens=16)
    for task in ALL:
        publish(task, getattr(deltas, task))

    async def conversation(client: Client) -> None:
        refused = await client.post(MANY, json={"tasks": ALL, "inputs": ["rain"] * 3})
        assert is_problem(refused, 422, "inputs: found 3 for each of 3 tasks", "at most 6")
        assert codes(await asked(client, ALL, ["a"])) == [200] * 3
        results = await asked(client, ALL, ["a", "a"])  # 6 tokens each, 18 together
        assert codes(results) == [413] * 3
        assert "6 tokens for each of 3 tasks" in results[0]["error"]["detail"]
        assert codes(await asked(client, ALL[:2], ["a", "a"])) == [200] * 2

    talk(service, conversation)
    assert metric(service, "ken_batch_rows_sum") == 7


# Load, time and stopping


def test_each_task_is_a_prediction_in_flight_and_takes_no_place_that_is_not_there(
    make_service: Callable[..., Service], publish: Callable[..., None], deltas: Deltas, talk: Talk, metric: Metric
) -> None:
    service = make_service(max_requests=2)
    for task in ALL:
        publish(task, getattr(deltas, task))

    async def conversation(client: Client) -> None:
        assert codes(await asked(client, ALL[:2])) == [200, 200]
        with Blocked(service.engine):
            running = asyncio.create_task(client.post(MANY, json={"tasks": ALL, "inputs": "rain"}))
            await until(lambda: service.engine.waiting == 2)
            assert service.admission.predictions == 2
            refused = await client.post(MANY, json={"tasks": ALL, "inputs": "rain"})
            alone = await client.post("/v1/tasks/spam/predict", json={"inputs": "rain"})
        for one in (refused, alone):
            assert is_problem(one, 429, "2 requests are in flight")
            assert int(one.headers["retry-after"]) >= 1
        results = (await running).json()["results"]
        assert codes(results) == [200, 200, 429]
        assert results[2]["error"]["retry_after"] >= 1
        assert service.admission.predictions == 0

    talk(service, conversation)
    assert metric(service, "ken_requests_total", task="spam", code="429") == 1
    assert metric(service, "ken_requests_total", task="unknown", code="429") == 2


def test_rows_for_which_there_is_no_room_fail_alone_and_the_request_if_there_is_none_at_all(
    make_service: Callable[..., Service], publish: Callable[..., None], deltas: Deltas, talk: Talk
) -> None:
    service = make_service(queue_rows=5)
    for task in ALL:
        publish(task, getattr(deltas, task))

    async def conversation(client: Client) -> None:
        assert codes(await asked(client, ALL)) == [200] * 3
        with Blocked(service.engine):
            first = asyncio.create_task(client.post(MANY, json={"tasks": ALL, "inputs": ["rain"] * 2}))
            await until(lambda: service.engine.waiting == 4)
            refused = await client.post(MANY, json={"tasks": [*ALL, "nobody"], "inputs": ["rain"] * 2})
        assert is_problem(refused, 429, "4 inputs wait already")
        assert int(refused.headers["retry-after"]) >= 1
        assert codes((await first).json()["results"]) == [200, 200, 429]
        assert service.admission.preparing == 0

    talk(service, conversation)


def test_a_request_that_no_task_answers_in_time_gets_504_and_one_that_some_answer_does_not(
    service: Service, monkeypatch: pytest.MonkeyPatch, deltas: Deltas, talk: Talk, metric: Metric
) -> None:
    load = service.cache.load
    soon = {"X-Request-Timeout-Ms": "300"}

    async def conversation(client: Client) -> None:
        assert codes(await asked(client, ["emotion", "spam"])) == [200] * 2
        with Blocked(service.engine):
            late = await client.post(MANY, json={"tasks": ["emotion", "spam"], "inputs": "rain"}, headers=soon)
            assert is_problem(late, 504, "0.3 s")
        loop, go = asyncio.get_running_loop(), asyncio.Event()

        def slow(digest: str) -> Any:
            asyncio.run_coroutine_threadsafe(go.wait(), loop).result(20)
            return load(digest)

        monkeypatch.setattr(service.cache, "load", slow)
        headers = {"X-Request-Timeout-Ms": "3000"}
        partly = await client.post(MANY, json={"tasks": ["emotion", "topic"], "inputs": "rain"}, headers=headers)
        go.set()
        assert codes(partly.json()["results"]) == [200, 504]

    talk(service, conversation)
    assert metric(service, "ken_requests_total", task="spam", code="504") == 1
    assert metric(service, "ken_requests_total", task="emotion", code="504") == 1
    assert metric(service, "ken_requests_total", task="topic", code="504") == 1
    assert metric(service, "ken_requests_total", task="unknown") == 0


def test_a_client_that_goes_ends_the_work_for_all_its_tasks(service: Service, talk: Talk, metric: Metric) -> None:
    async def conversation(client: Client) -> None:
        await asked(client, ALL)
        with Blocked(service.engine):
            leaving = asyncio.create_task(client.post(MANY, json={"tasks": ALL, "inputs": "rain"}))
            await until(lambda: service.engine.waiting == 3)
            leaving.cancel()
            await asyncio.wait([leaving])
            assert service.engine.wanted == 0
        assert (service.admission.predictions, service.admission.preparing) == (0, 0)
        assert codes(await asked(client, ALL)) == [200] * 3

    talk(service, conversation)
    assert metric(service, "ken_requests_total", code="499") == 3


def test_a_drain_waits_for_all_tasks_of_a_request_and_takes_no_other(service: Service, talk: Talk) -> None:
    async def conversation(client: Client) -> None:
        await asked(client, ALL)
        with Blocked(service.engine):
            accepted = asyncio.create_task(client.post(MANY, json={"tasks": ALL, "inputs": "rain"}))
            await until(lambda: service.engine.waiting == 3)
            draining = asyncio.create_task(service.drain(20))
            await until(lambda: service.admission.draining)
            assert is_problem(await client.post(MANY, json={"tasks": ALL, "inputs": "rain"}), 503, "stopping")
        assert await draining == 0
        assert codes((await accepted).json()["results"]) == [200] * 3

    talk(service, conversation)


# What is counted


def test_each_task_is_counted_as_if_it_had_been_asked_alone(service: Service, talk: Talk, metric: Metric) -> None:
    async def conversation(client: Client) -> None:
        await asked(client, [*ALL, "nobody"])

    talk(service, conversation)
    for task in ALL:
        assert metric(service, "ken_requests_total", task=task, code="200") == 1
        assert metric(service, "ken_request_seconds_count", task=task, stage="model") == 1
        assert metric(service, "ken_version_requests_total", task=task, code="200") == 1
    assert metric(service, "ken_requests_total", task="unknown", code="404") == 1
    assert metric(service, "ken_requests_total") == 4


def test_a_routes_shadow_gets_its_copy(
    service: Service, publish: Callable[..., None], deltas: Deltas, talk: Talk, metric: Metric
) -> None:
    publish("spam", deltas.spam_2, "next")
    tasks = service.store.tasks
    assert not service.store.replicas.wait(tasks.set_route("spam", Route({"live": 1}, "next")), 10).pending

    async def conversation(client: Client) -> None:
        await asked(client, ["spam", "spam@live", "topic"])
        await until(lambda: metric(service, "ken_shadow_inputs_total") == 1)

    talk(service, conversation)
    assert metric(service, "ken_shadow_inputs_total", task="spam") == 1


def test_many_requests_to_many_tasks_at_once_never_mix_their_answers(every: Service, talk: Talk) -> None:
    texts = ["rain", "who is the king", "a good film", "what price", "how many rivers", "war of the city"]
    tasks = ["emotion", "spam", "entailment", "ranks", "tags", "search"]

    async def conversation(client: Client) -> None:
        together = await asyncio.gather(*(asked(client, tasks, text) for text in texts))
        for text, results in zip(texts, together, strict=True):
            for result in results:
                alone = (await client.post(f"/v1/tasks/{result['task']}/predict", json={"inputs": text})).json()
                assert alike(result, alone)

    talk(every, conversation)
