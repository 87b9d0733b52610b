"""KServe's Open Inference Protocol: what its client library gets, and what is refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from over_http import Served, alike, served

from serving.api.kserve_tensors import RequestInput, items_of
from serving.config import load_settings
from serving.service import Service
from serving.store import Store
from serving.store.embedded import embedded_store
from tests.tiny_checkpoints import TEXTS, Deltas, Tiny

triton = pytest.importorskip("tritonclient.http")
from tritonclient.http import aio  # noqa: E402
from tritonclient.utils import InferenceServerException  # noqa: E402

DIGEST = "0" * 64


@pytest.fixture(scope="module")
def shared_service(
    tiny: Tiny, deltas: Deltas, embedded_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """Tasks spam (two versions, the older one as `old`), topic, and places, which gives embeddings."""
    store = Store(embedded_url, "kserve")
    store.tasks.publish("spam", deltas.spam, "old")
    store.tasks.publish("spam", deltas.spam_2)
    store.tasks.publish("topic", deltas.topic)
    store.tasks.publish("places", tiny.delta(tiny.embedding("places-kserve", seed=80, pooling="mean_tokens")))
    folder = tmp_path_factory.mktemp("kserve")
    settings = load_settings(base=str(tiny.base_folder), data_dir=folder, namespace="kserve", threads=1, max_inputs=16)
    service = Service(settings, embedded_url)
    service.start()
    yield service
    service.stop()


@pytest.fixture(scope="module")
def address(shared_service: Service) -> Iterator[str]:
    """Host and port of a real HTTP server."""
    with served(shared_service) as answering:
        yield answering.url.removeprefix("http://")


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[Any]:
    with triton.InferenceServerClient(address) as made:
        yield made


@pytest.fixture(scope="module")
def http(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://{address}", timeout=30) as made:
        yield made


def tensor(texts: list[str], name: str = "text", shape: tuple[int, ...] = ()) -> Any:
    array = np.array(texts, dtype=object).reshape(shape or (len(texts),))
    made = triton.InferInput(name, list(array.shape), "BYTES")
    made.set_data_from_numpy(array, binary_data=False)
    return made


def wanted(*names: str) -> list[Any]:
    return [triton.InferRequestedOutput(name, binary_data=False) for name in names]


def plain(texts: list[Any], name: str = "text", **other: Any) -> dict[str, Any]:
    return {"name": name, "shape": [len(texts)], "datatype": "BYTES", "data": texts} | other


def is_failure(response: httpx.Response, status: int, *words: str) -> bool:
    """Whether an answer is an error in the protocol's own form, and names what it should."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert list(response.json()) == ["error"]
    assert all(word in response.json()["error"] for word in words), response.text
    return True


# Health and metadata


def test_the_server_is_live_and_ready(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()


def test_the_server_says_its_name_and_that_it_speaks_no_extension(client: Any) -> None:
    told = client.get_server_metadata()
    assert (told["name"], told["extensions"]) == ("ken-serve", [])
    assert told["version"]


def test_a_draining_server_is_live_and_not_ready(client: Any, http: httpx.Client, shared_service: Service) -> None:
    shared_service.admission.draining = True
    try:
        assert client.is_server_live()
        assert not client.is_server_ready()
        assert not client.is_model_ready("spam")
        assert is_failure(http.get("/v2/health/ready"), 503, "stopping")
    finally:
        shared_service.admission.draining = False


def test_a_model_is_ready_by_name_alias_and_digest(client: Any, deltas: Deltas) -> None:
    assert client.is_model_ready("spam")
    assert client.is_model_ready("spam", "old")
    assert client.is_model_ready("spam", deltas.spam.digest)
    assert not client.is_model_ready("spam", "next")
    assert not client.is_model_ready("spam", deltas.topic.digest)
    assert not client.is_model_ready("nobody")


def test_a_classifier_names_its_versions_and_tensors(client: Any, deltas: Deltas) -> None:
    told = client.get_model_metadata("spam")
    assert told["name"] == "spam"
    assert told["versions"] == [deltas.spam.digest, deltas.spam_2.digest]
    assert told["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    shapes = {o["name"]: (o["datatype"], len(o["shape"])) for o in told["outputs"]}
    assert shapes == {
        "label": ("BYTES", 1),
        "score": ("FP32", 1),
        "labels": ("BYTES", 2),
        "scores": ("FP32", 2),
        "json": ("BYTES", 1),
    }


def test_a_version_has_metadata_of_its_own(client: Any, deltas: Deltas) -> None:
    for version in ("old", "live", deltas.spam.digest):
        assert client.get_model_metadata("spam", version)["name"] == "spam"
    with pytest.raises(InferenceServerException, match="has no alias 'next'"):
        client.get_model_metadata("spam", "next")


def test_an_embedding_task_names_its_embedding(client: Any) -> None:
    outputs = client.get_model_metadata("places")["outputs"]
    assert [o["name"] for o in outputs] == ["embedding", "json"]


def test_metadata_of_what_no_kind_answers_for_is_501(shared_service: Service, http: httpx.Client, tiny: Tiny) -> None:
    file = tiny.delta(tiny.filling("words-kserve", seed=81))
    shared_service.store.replicas.wait(shared_service.store.tasks.publish("words", file), 10)
    assert is_failure(http.get("/v2/models/words"), 501, "fill-mask")


def test_metadata_without_the_store_comes_from_the_device_or_the_disk(
    make_service: Callable[..., Service], deltas: Deltas, talk: Callable[..., Any], tmp_path: Path
) -> None:
    with embedded_store(tmp_path / "own") as url:
        for task in ("spam", "topic", "emotion"):
            Store(url).tasks.publish(task, getattr(deltas, task))
        service = make_service(url, namespace="default")
        service.cache.files.open(deltas.topic.digest)

        async def warm(client: httpx.AsyncClient) -> None:
            response = await client.post("/v2/models/spam/infer", json={"inputs": [plain(["rain"])]})
            assert response.status_code == 200

        talk(service, warm)

    async def conversation(client: httpx.AsyncClient) -> list[int]:
        return [(await client.get(f"/v2/models/{task}")).status_code for task in ("spam", "topic", "emotion")]

    assert talk(service, conversation) == [200, 200, 503]


# Inference


def native(http: httpx.Client, task: str, inputs: Any, **parameters: Any) -> list[Any]:
    response = http.post(f"/v1/tasks/{task}/predict", json={"inputs": inputs, "parameters": parameters})
    return response.raise_for_status().json()["outputs"]


def test_texts_get_the_labels_and_scores_of_the_native_protocol(client: Any, http: httpx.Client) -> None:
    result = client.infer("topic", [tensor(list(TEXTS))], outputs=wanted("label", "score", "labels", "scores"))
    labels, scores = result.as_numpy("labels"), result.as_numpy("scores")
    assert labels.shape == scores.shape == (len(TEXTS), 4)
    assert (result.as_numpy("label").tolist(), result.as_numpy("score").tolist()) == (
        labels[:, 0].tolist(),
        scores[:, 0].tolist(),
    )
    for row, found_labels, found_scores in zip(native(http, "topic", list(TEXTS)), labels, scores, strict=True):
        assert [o["label"] for o in row] == found_labels.tolist()
        assert [o["score"] for o in row] == pytest.approx(found_scores.tolist(), abs=1e-6)


def test_embeddings_are_those_of_the_native_protocol(client: Any, http: httpx.Client) -> None:
    result = client.infer("places", [tensor(list(TEXTS))], outputs=wanted("embedding"))
    assert result.as_numpy("embedding").shape == (len(TEXTS), 32)
    np.testing.assert_allclose(result.as_numpy("embedding"), native(http, "places", list(TEXTS)), atol=1e-6)


@pytest.mark.parametrize(
    ("task", "fields", "asked"),
    [
        ("emotion", {"text": "rain"}, {}),
        ("search", {"text": "rain"}, {}),
        ("tags", {"text": TEXTS[0]}, {}),
        ("vectors", {"text": "rain"}, {}),
        ("answers", {"question": TEXTS[3], "context": TEXTS[4]}, {}),
        ("entailment", {"text": TEXTS[0]}, {"kind": "zero-shot-classification", "candidate_labels": ["rain", "city"]}),
        ("ranks", {"query": "rain", "texts": list(TEXTS[:3])}, {"kind": "rerank"}),
    ],
)
def test_every_kind_gives_its_whole_answers_as_json(
    task: str, fields: dict[str, Any], asked: dict[str, Any], peers: Served
) -> None:
    tensors = [plain(value if isinstance(value, list) else [value], name) for name, value in fields.items()]
    request = {"inputs": tensors, "outputs": [{"name": "json"}], "parameters": asked}
    response = peers.post(f"/v2/models/{task}/infer", json=request)
    (output,) = response.json()["outputs"]
    parameters = {name: value for name, value in asked.items() if name != "kind"}
    native = peers.native(task, fields if len(fields) > 1 else fields["text"], parameters, asked.get("kind"))
    assert (output["shape"], output["datatype"]) == ([1], "BYTES")
    assert alike([json.loads(text) for text in output["data"]], native)


def test_a_column_of_texts_is_as_good_as_a_row_of_them(client: Any) -> None:
    row = client.infer("spam", [tensor(list(TEXTS))], outputs=wanted("scores"))
    column = client.infer("spam", [tensor(list(TEXTS), "INPUT0", (-1, 1))], outputs=wanted("scores"))
    np.testing.assert_allclose(row.as_numpy("scores"), column.as_numpy("scores"), atol=1e-6)


def test_data_may_be_nested_as_the_shape_says(http: httpx.Client) -> None:
    nested = {"name": "text", "shape": [2, 1], "datatype": "BYTES", "data": [["rain"], ["sun"]]}
    response = http.post("/v2/models/spam/infer", json={"inputs": [nested], "outputs": [{"name": "label"}]})
    assert response.json()["outputs"][0]["shape"] == [2]


def test_two_tensors_are_pairs(client: Any, http: httpx.Client) -> None:
    pair = [tensor(["rain", "sun"]), tensor(["a city", "a river"], "text_pair")]
    result = client.infer("spam", pair, outputs=wanted("labels", "scores"))
    objects = [{"text": "rain", "text_pair": "a city"}, {"text": "sun", "text_pair": "a river"}]
    for row, found in zip(native(http, "spam", objects), result.as_numpy("scores"), strict=True):
        assert [o["score"] for o in row] == pytest.approx(found.tolist(), abs=1e-6)


def test_parameters_are_the_kinds_own(client: Any) -> None:
    result = client.infer("topic", [tensor(["rain"])], outputs=wanted("labels"), parameters={"top_k": 2})
    assert result.as_numpy("labels").shape == (1, 2)


def test_another_kind_than_the_tasks_own_is_asked_for_by_a_parameter(client: Any) -> None:
    result = client.infer(
        "places", [tensor(["rain"])], outputs=wanted("json"), parameters={"kind": "feature-extraction"}
    )
    assert np.array(json.loads(result.as_numpy("json")[0])).shape == (3, 32)


def test_without_a_choice_all_outputs_are_given(http: httpx.Client) -> None:
    outputs = http.post("/v2/models/spam/infer", json={"inputs": [plain(["rain"])]}).json()["outputs"]
    assert [o["name"] for o in outputs] == ["label", "score", "labels", "scores", "json"]


def test_the_answer_names_model_version_delta_and_the_requests_id(
    client: Any, http: httpx.Client, deltas: Deltas
) -> None:
    result = client.infer("spam", [tensor(["rain"])], outputs=wanted("label"), request_id="mine-7").get_response()
    assert (result["model_name"], result["model_version"], result["id"]) == ("spam", deltas.spam_2.digest, "mine-7")
    response = http.post("/v2/models/spam/infer", json={"inputs": [plain(["rain"])]})
    assert response.headers["x-ken-delta"] == deltas.spam_2.digest
    assert "model;dur=" in response.headers["server-timing"]
    assert "id" not in response.json()


def test_a_version_is_a_digest_or_an_alias(client: Any, deltas: Deltas) -> None:
    for version, digest in {
        "": deltas.spam_2.digest,
        "live": deltas.spam_2.digest,
        "old": deltas.spam.digest,
        deltas.spam.digest: deltas.spam.digest,
    }.items():
        result = client.infer("spam", [tensor(["rain"])], version, outputs=wanted("label"))
        assert result.get_response()["model_version"] == digest


def test_the_asynchronous_client_is_answered_too(address: str) -> None:
    async def ask() -> Any:
        async with aio.InferenceServerClient(address) as client:
            assert await client.is_model_ready("topic")
            asking = [client.infer("topic", [tensor([t])], outputs=wanted("label")) for t in TEXTS]
            return [result.as_numpy("label").shape for result in await asyncio.gather(*asking)]

    assert asyncio.run(ask()) == [(1,)] * len(TEXTS)


# Refusals


def test_the_client_raises_with_our_message(client: Any) -> None:
    with pytest.raises(InferenceServerException, match=r"there is no task 'topik'; did you mean 'topic'") as raised:
        client.infer("topik", [tensor(["rain"])], outputs=wanted("label"))
    assert raised.value.status() == "404"


def test_binary_tensors_are_refused_and_the_way_out_is_named(client: Any) -> None:
    binary = triton.InferInput("text", [1], "BYTES")
    binary.set_data_from_numpy(np.array(["rain"], dtype=object), binary_data=True)
    for inputs, outputs in (
        ([binary], wanted("label")),
        ([tensor(["rain"])], [triton.InferRequestedOutput("label", binary_data=True)]),
        ([tensor(["rain"])], None),
    ):
        with pytest.raises(InferenceServerException, match="binary_data=False") as raised:
            client.infer("spam", inputs, outputs=outputs)
        assert raised.value.status() == "400"


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ([plain(["rain"], shape=[2])], ("1 elements", "[2]", "expects 2")),
        ([plain(["rain"], shape=[2**62, 2**62])], ("[n] or [n, 1]",)),
        ([plain(["rain"], shape=[2**62, 1])], ("1 elements",)),
        ([plain(["rain"], shape=[])], ("[n] or [n, 1]",)),
        ([plain(["rain"], shape=[1, 1, 1])], ("[n] or [n, 1]",)),
        ([plain(["rain", "sun"], shape=[1, 2])], ("[n] or [n, 1]",)),
        ([plain([["rain"], "sun"], shape=[2, 1])], ("another shape",)),
        ([plain([["rain", "sun"]], shape=[2, 1])], ("another shape",)),
        ([plain([["rain"]], shape=[1])], ("list", "expected a text")),
        ([plain(["rain", 5])], ("int at 1", "expected a text")),
        ([plain([1.0], datatype="FP32")], ("'FP32'", "BYTES")),
        ([plain(["rain"], data=None)], ("no data",)),
        ([plain(["rain"], parameters={"shared_memory_region": "a"})], ("shared_memory_region",)),
        ([plain(["rain"], parameters={"binary_data_size": 8})], ("binary_data=False",)),
        ([plain(["rain"]), plain(["sun"])], ("same name",)),
        ([plain(["a"], "query"), plain([], "texts", shape=[2**40, 0])], ("k at least 1",)),
        ([plain(["rain"]), plain(["sun", "sky"], "text_pair")], ("text for 1", "text_pair for 2")),
    ],
)
def test_tensors_that_are_not_what_they_say_are_400(
    inputs: list[dict[str, Any]], words: tuple[str, ...], http: httpx.Client
) -> None:
    assert is_failure(http.post("/v2/models/spam/infer", json={"inputs": inputs}), 400, *words)


@pytest.mark.parametrize(
    ("more", "status", "words"),
    [
        ({"outputs": [{"name": "logits"}]}, 400, ("'logits'", "label", "json")),
        ({"outputs": [{"name": "embedding"}]}, 400, ("'embedding'", "label", "json")),
        ({"outputs": [{"name": "label", "parameters": {"classification": 2}}]}, 400, ("classification",)),
        ({"parameters": {"kind": 5}}, 400, ("kind",)),
        ({"parameters": {"kind": "sentence-embeddings"}}, 422, ("sentence-embeddings", "text-classification")),
        ({"parameters": {"top_k": 0}}, 422, ("top_k",)),
        ({"parameters": {"sequence_id": 5}}, 422, ("sequence_id",)),
        ({"inputs": []}, 422, ("inputs",)),
        ({"inputs": [plain([])]}, 422, ("at least one",)),
        ({"inputs": [plain(["rain"] * 17)]}, 422, ("17", "16")),
        ({"inputs": [plain(["rain"], "question"), plain(["rain"], "context")]}, 422, ("inputs.0",)),
        ({"input": []}, 422, ("input",)),
        ({"id": 5}, 422, ("id",)),
    ],
)
def test_requests_the_task_cannot_answer_are_refused_and_say_why(
    more: dict[str, Any], status: int, words: tuple[str, ...], http: httpx.Client
) -> None:
    response = http.post("/v2/models/spam/infer", json={"inputs": [plain(["rain"])]} | more)
    assert is_failure(response, status, *words)


def test_texts_and_the_query_they_are_ranked_for_are_one_input() -> None:
    def both(query: list[str], texts: dict[str, Any]) -> Any:
        return items_of([RequestInput(**plain(query, "query")), RequestInput(**texts)])

    for texts in (plain(["a", "b"], "texts"), plain(["a", "b"], "texts", shape=[1, 2])):
        assert both(["q"], texts) == [{"query": "q", "texts": ["a", "b"]}]
    nested = plain([["a", "b"], ["c", "d"]], "texts", shape=[2, 2])
    assert both(["q", "r"], nested) == [{"query": "q", "texts": ["a", "b"]}, {"query": "r", "texts": ["c", "d"]}]


@pytest.mark.parametrize(
    ("path", "status", "word"),
    [
        ("/v2/models/nobody", 404, "nobody"),
        ("/v2/models/spam/versions/" + DIGEST, 404, DIGEST),
        ("/v2/models/spam/versions/a%20b", 422, "version"),
        ("/v2/models/spam/stats", 404, "Not Found"),
        ("/v2/models/spam/infer", 405, "Method Not Allowed"),
        ("/v2/repository/index", 404, "Not Found"),
    ],
)
def test_paths_that_lead_nowhere_fail_in_the_protocols_own_form(
    path: str, status: int, word: str, http: httpx.Client
) -> None:
    assert is_failure(http.get(path), status, word)


@pytest.mark.parametrize(("content", "status"), [(b"", 400), (b"{", 400), (b"[]", 422), (b" " * (3 << 20), 413)])
def test_bodies_that_are_no_requests_fail_in_the_protocols_own_form(
    content: bytes, status: int, http: httpx.Client
) -> None:
    assert is_failure(http.post("/v2/models/spam/infer", content=content), status)


def test_the_openapi_document_tells_of_every_route_its_answers_and_its_failures(http: httpx.Client) -> None:
    paths = {
        p: r for p, r in http.get("/openapi.json").json()["paths"].items() if p.startswith("/v2") and p != "/v2/rerank"
    }
    assert len(paths) == 9
    for path, routes in paths.items():
        for route in routes.values():
            assert route["responses"]["200"]["content"]["application/json"]["schema"]
            for status, response in route["responses"].items():
                if status != "200":
                    assert list(response["content"]["application/json"]["schema"]["properties"]) == ["error"], path
            assert path in ("/v2",) or "503" in route["responses"]
            if path.endswith("/infer"):
                assert route["requestBody"]["content"]["application/json"]["schema"]["examples"]
                assert {"400", "401", "404", "413", "422", "429", "501", "503", "504"} <= set(route["responses"])
