"""The protocol of text-embeddings-inference: its documented bodies, and Hugging Face's client on its paths."""

from __future__ import annotations

from typing import Any

import httpx
import numpy as np
import pytest
from holding import Blocked
from huggingface_hub import InferenceClient
from over_http import Served, alike

from tests.tiny_checkpoints import TEXTS, Tiny

TASK_OF = {"/embed": "search", "/predict": "emotion", "/rerank": "ranks"}


@pytest.fixture
def own_client(monkeypatch: pytest.MonkeyPatch) -> type[InferenceClient]:
    """It goes nowhere but to the URL it is given, which its offline mode keeps it from too."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return InferenceClient


def ask(peers: Served, path: str, **body: Any) -> Any:
    answer = peers.post(path, json=body, headers={"X-Ken-Task": TASK_OF[path]})
    assert answer.status_code == 200, answer.text
    return answer.json()


def is_tei_error(response: httpx.Response, status: int, error_type: str, *words: str) -> bool:
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error", "error_type"}
    assert response.json()["error_type"] == error_type
    assert all(word in response.json()["error"] for word in words), response.text
    return True


# Which task


@pytest.mark.parametrize(
    ("path", "body", "headers"),
    [
        ("/embed", {}, {"X-Ken-Task": "search"}),
        ("/embed", {"model": "search"}, {}),
        ("/embed", {"model": "search@live"}, {"X-Ken-Task": "spam"}),
        ("/models/search/embed", {}, {}),
        ("/models/search@live/embed", {"model": "spam"}, {"X-Ken-Task": "spam"}),
    ],
)
def test_the_task_is_named_by_path_then_body_then_header(
    path: str, body: dict[str, str], headers: dict[str, str], peers: Served
) -> None:
    answer = peers.post(path, json={"inputs": "rain", **body}, headers=headers)
    assert answer.headers["x-ken-delta"] == peers.service.table.resolve("search")
    assert answer.status_code == 200


def test_without_a_task_a_request_says_where_to_name_one(peers: Served) -> None:
    assert is_tei_error(peers.post("/embed", json={"inputs": "rain"}), 400, "Validation", "X-Ken-Task")


# Embed


@pytest.mark.parametrize("texts", [TEXTS[0], list(TEXTS)])
def test_embeddings_have_length_one_and_are_those_of_the_native_protocol(texts: str | list[str], peers: Served) -> None:
    got = np.array(ask(peers, "/embed", inputs=texts))
    assert got == pytest.approx(np.array(peers.native("search", texts, {"normalize": True})), abs=1e-5)
    assert np.linalg.norm(got, axis=1) == pytest.approx(1.0)


def test_embeddings_as_they_are_when_not_normalised(peers: Served) -> None:
    got = ask(peers, "/embed", inputs="rain", normalize=False, dimensions=5)
    assert got == [pytest.approx(peers.native("search", "rain", {"normalize": False, "dimensions": 5})[0], abs=1e-5)]


def test_a_prompt_by_name_is_put_before_the_text(peers: Served) -> None:
    got = ask(peers, "/embed", inputs=["city", "river"], prompt_name="query", normalize=False)
    assert alike(got, peers.native("search", ["where is the city", "where is the river"]))


def test_hugging_faces_client_gets_embeddings(own_client: type[InferenceClient], peers: Served) -> None:
    got = own_client(model=f"{peers.url}/models/search/embed", token="any").feature_extraction(
        list(TEXTS), truncate=True, truncation_direction="right"
    )
    assert got == pytest.approx(np.array(peers.native("search", list(TEXTS), {"normalize": True})), abs=1e-5)


# Predict


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize(
    ("inputs", "native"),
    [
        (TEXTS[0], TEXTS[0]),
        ([TEXTS[0]], TEXTS[0]),
        ([TEXTS[0], TEXTS[1]], {"text": TEXTS[0], "text_pair": TEXTS[1]}),
    ],
)
def test_one_text_or_pair_gets_its_labels(raw: bool, inputs: Any, native: Any, peers: Served) -> None:
    parameters = {"function_to_apply": "none"} if raw else {}
    got = ask(peers, "/predict", inputs=inputs, raw_scores=raw)
    assert alike(got, peers.native("emotion", native, parameters)[0])


@pytest.mark.parametrize("inputs", [[["rain"], ["rain", "sun"]], [["rain"], "sun"]])
def test_a_batch_gets_lists_of_labels(inputs: list[Any], peers: Served) -> None:
    natives = [{"text": "rain", "text_pair": "sun"} if i == ["rain", "sun"] else "".join(i) for i in inputs]
    got = ask(peers, "/predict", inputs=inputs)
    assert alike(got, peers.native("emotion", natives))
    assert all(rows == sorted(rows, key=lambda row: -row["score"]) for rows in got)


# Rerank


@pytest.mark.parametrize("asked", [{}, {"raw_scores": True}, {"return_text": True, "truncate": True}])
def test_texts_are_put_in_order_as_by_the_native_protocol(asked: dict[str, bool], peers: Served) -> None:
    parameters = {name: value for name, value in asked.items() if name != "truncate"}
    query = {"query": TEXTS[0], "texts": list(TEXTS[1:])}
    got = ask(peers, "/rerank", **query, **asked)
    assert alike(got, peers.native("ranks", query, parameters, "rerank")[0])
    assert sorted(rank["index"] for rank in got) == list(range(len(TEXTS) - 1))
    assert got == sorted(got, key=lambda rank: -rank["score"])
    assert all(rank.get("text") == (TEXTS[1 + rank["index"]] if "return_text" in asked else None) for rank in got)


def test_a_task_of_many_labels_does_not_rerank(peers: Served) -> None:
    refused = peers.post("/models/spam/rerank", json={"query": "rain", "texts": ["sun"]})
    assert is_tei_error(refused, 422, "Validation", "one label")


# Info


def test_info_tells_the_resident_base_and_the_limits(peers: Served, tiny: Tiny) -> None:
    info = peers.get("/info").json()
    assert (info["model_id"], info["model_dtype"], info["max_input_length"]) == ("tiny-bert", "float32", 64)
    assert info["model_sha"] == peers.service.resident.fingerprint.digest
    assert (info["max_client_batch_size"], info["auto_truncate"]) == (32, True)
    assert str(tiny.base_folder.parent) not in str(info)


def test_info_of_a_task_names_its_delta(own_client: type[InferenceClient], peers: Served) -> None:
    info = own_client(model=f"{peers.url}/models/spam@canary", provider="hf-inference", token="any").get_endpoint_info()
    assert (info["model_id"], info["model_sha"]) == ("spam", peers.service.table.resolve("spam", "canary"))
    assert is_tei_error(peers.get("/models/spamm/info"), 404, "Validation", "'spam'")


# Refusals


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/embed", {"inputs": []}, ("inputs", "at least 1")),
        ("/embed", {"inputs": [1, 2]}, ("inputs", "token ids")),
        ("/embed", {"inputs": "rain", "prompt_name": "title"}, ("prompt_name", "'document', 'query'")),
        ("/embed", {"inputs": "rain", "truncation_direction": "Left"}, ("truncation_side", "right")),
        ("/embed", {"inputs": "rain", "truncation_direction": "up"}, ("truncation_direction",)),
        ("/embed", {"inputs": "rain " * 100, "truncate": False}, ("64 tokens",)),
        ("/embed", {"inputs": "rain", "dimensions": 0}, ("dimensions",)),
        ("/embed", {"inputs": "rain", "input": "rain"}, ("input",)),
        ("/predict", {"inputs": ["a", "b", "c"]}, ("[text, text]",)),
        ("/predict", {"inputs": [["a", "b", "c"]]}, ("[text, text]",)),
        ("/predict", {"inputs": [[]]}, ("[text, text]",)),
        ("/predict", {"inputs": []}, ("[text, text]",)),
        ("/predict", {"inputs": {"text": "a"}}, ("expected a text",)),
        ("/predict", {"inputs": [["a"], 5]}, ("[text, text]",)),
        ("/predict", {"inputs": "rain " * 100, "truncate": False}, ("64 tokens",)),
        ("/rerank", {"query": "rain", "texts": []}, ("texts", "at least 1")),
        ("/rerank", {"texts": ["rain"]}, ("query",)),
        ("/rerank", {"query": "rain", "texts": ["rain " * 100], "truncate": False}, ("64 tokens",)),
    ],
)
def test_what_cannot_be_meant_is_refused_and_named(
    path: str, body: dict[str, Any], words: tuple[str, ...], peers: Served
) -> None:
    assert is_tei_error(peers.post(f"/models/{TASK_OF[path]}{path}", json=body), 422, "Validation", *words)


@pytest.mark.parametrize(("task", "path"), [("spam", "/embed"), ("search", "/predict")])
def test_a_task_of_another_kind_is_refused(task: str, path: str, peers: Served) -> None:
    refused = peers.post(path, json={"inputs": "rain", "model": task})
    assert is_tei_error(refused, 422, "Validation", "cannot be asked of a task")


@pytest.mark.parametrize("path", ["/predict", "/models/spam/predict"])
def test_every_failure_has_its_shape(path: str, peers: Served) -> None:
    request = {"json": {"inputs": "rain", "model": "spam"}}
    unknown = {"json": {"inputs": "rain", "model": "spamm"}}
    assert is_tei_error(peers.post(path.replace("spam", "spamm"), **unknown), 404, "Validation", "'spam'")
    assert is_tei_error(peers.post(path, content=b"{"), 400, "Validation", "JSON")
    for content in (b" " * 20_000, iter([b" " * 10_000] * 2)):
        assert is_tei_error(peers.post(path, content=content), 413, "Validation", "16384")
    with peers.full():
        refused = peers.post(path, **request)
        assert is_tei_error(refused, 429, "Overloaded")
        assert int(refused.headers["retry-after"]) >= 1
    with peers.draining():
        assert is_tei_error(peers.post(path, **request), 503, "Unhealthy", "stopping")
    with Blocked(peers.service.engine):
        late = peers.post(path, **request, headers={"X-Request-Timeout-Ms": "50", "X-Request-Id": "mine-7"})
        assert is_tei_error(late, 504, "Backend", "0.05 s")
        assert late.headers["x-request-id"] == "mine-7"
    assert is_tei_error(peers.get(path), 405, "Validation")


def test_every_way_to_fail_is_documented_in_its_shape(peers: Served) -> None:
    paths = peers.get("/openapi.json").json()["paths"]
    for path in ("/embed", "/predict", "/rerank"):
        for operation in (paths[path]["post"], paths[f"/models/{{task}}{path}"]["post"]):
            assert operation["summary"]
            assert operation["description"]
            assert operation["requestBody"]["content"]["application/json"]["schema"]["examples"]
            refusals = {status: made for status, made in operation["responses"].items() if status != "200"}
            assert {"400", "401", "403", "404", "413", "422", "429", "500", "501", "503", "504"} <= refusals.keys()
            for made in refusals.values():
                assert "error_type" in made["content"]["application/json"]["schema"]["properties"]
