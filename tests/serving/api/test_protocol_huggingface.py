"""Hugging Face's inference protocol, asked by its own client."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from holding import Blocked
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from over_http import Served, alike

from tests.tiny_checkpoints import TEXTS, scores

Client = Callable[[str], InferenceClient]


@pytest.fixture
def client(peers: Served, monkeypatch: pytest.MonkeyPatch) -> Client:
    """The client of a task. It goes nowhere but to the URL it is given, which its offline mode keeps it from too."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return lambda task: InferenceClient(model=f"{peers.url}/models/{task}", token="any")


def post(peers: Served, task: str, **body: Any) -> Any:
    answer = peers.post(f"/models/{task}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


# Kinds


@pytest.mark.parametrize("text", TEXTS)
def test_texts_are_classified_as_by_the_native_protocol(text: str, client: Client, peers: Served) -> None:
    labels = client("emotion").text_classification(text)
    assert scores(labels) == pytest.approx(scores(peers.native("emotion", text)[0]), abs=1e-5)


def test_its_parameters_are_taken(client: Client, peers: Served) -> None:
    labels = client("emotion").text_classification("rain", top_k=2, function_to_apply="none")
    native = peers.native("emotion", "rain", {"top_k": 2, "function_to_apply": "none"})
    assert scores(labels) == pytest.approx(scores(native[0]), abs=1e-5)


def test_an_alias_is_asked_for_behind_an_at_sign(client: Client, peers: Served) -> None:
    canary, live = (scores(client(task).text_classification("rain")) for task in ("spam@canary", "spam"))
    assert canary == pytest.approx(scores(peers.native("spam@canary", "rain")[0]), abs=1e-5)
    assert canary != pytest.approx(live, abs=1e-3)


@pytest.mark.parametrize("texts", [TEXTS[0], list(TEXTS)])
def test_embeddings_are_those_of_the_native_protocol(texts: str | list[str], client: Client, peers: Served) -> None:
    got = client("search").feature_extraction(texts)
    assert got == pytest.approx(np.array(peers.native("search", texts)), abs=1e-5)


def test_a_task_without_pooling_gives_a_vector_a_token(client: Client, peers: Served) -> None:
    got = client("vectors").feature_extraction("rain city")
    assert got.shape == (1, 4, 32)
    assert got == pytest.approx(np.array(peers.native("vectors", "rain city")), abs=1e-5)


def test_what_its_client_asks_of_embeddings_is_done(client: Client, peers: Served) -> None:
    got = client("search").feature_extraction(
        "rain", normalize=True, dimensions=4, truncate=True, truncation_direction="right", encoding_format="float"
    )
    native = peers.native("search", "rain", {"normalize": True, "dimensions": 4})
    assert got == pytest.approx(np.array(native), abs=1e-5)


def test_sentences_are_compared_by_the_angle_between_their_embeddings(client: Client, peers: Served) -> None:
    got = client("search").sentence_similarity(TEXTS[0], other_sentences=list(TEXTS))
    vectors = np.array(peers.native("search", list(TEXTS), {"normalize": True}))
    assert got == pytest.approx(vectors @ vectors[0], abs=1e-5)
    assert got[0] == pytest.approx(1.0)


@pytest.mark.parametrize("strategy", [None, "simple", "max"])
def test_tokens_are_classified_as_by_the_native_protocol(strategy: str | None, client: Client, peers: Served) -> None:
    got = client("tags").token_classification(TEXTS[2], aggregation_strategy=strategy, ignore_labels=["O"])
    parameters = {"ignore_labels": ["O"]} | ({"aggregation_strategy": strategy} if strategy else {})
    native = peers.native("tags", TEXTS[2], parameters)[0]
    assert native
    assert [(e.word, e.start, e.end, e.score, e.entity or e.entity_group) for e in got] == [
        (e["word"], e["start"], e["end"], pytest.approx(e["score"], abs=1e-5), e.get("entity") or e["entity_group"])
        for e in native
    ]


@pytest.mark.parametrize("asked", [{}, {"top_k": 3, "max_answer_len": 5, "handle_impossible_answer": False}])
def test_questions_are_answered_as_by_the_native_protocol(asked: dict[str, Any], client: Client, peers: Served) -> None:
    one = {"question": TEXTS[3], "context": TEXTS[4]}
    native = peers.native("answers", one, asked)[0]
    got = client("answers").question_answering(**one, **asked)
    assert alike(got, native)
    assert isinstance(got, list) == ("top_k" in asked)


@pytest.mark.parametrize("asked", [{}, {"multi_label": True, "hypothesis_template": "it is on {}."}])
def test_labels_of_the_request_are_judged_as_by_the_native_protocol(
    asked: dict[str, Any], client: Client, peers: Served
) -> None:
    labels = ["rain", "city", "film"]
    native = peers.native("entailment", TEXTS[0], {"candidate_labels": labels, **asked}, "zero-shot-classification")[0]
    got = client("entailment").zero_shot_classification(TEXTS[0], labels, **asked)
    assert alike([one.label for one in got], native["labels"])
    assert alike([one.score for one in got], native["scores"])


def test_a_list_of_texts_gets_labels_a_text(peers: Served) -> None:
    parameters = {"candidate_labels": ["rain", "city"]}
    both = post(peers, "entailment", inputs=["rain", "sun"], parameters=parameters)
    alone = [post(peers, "entailment", inputs=text, parameters=parameters) for text in ("rain", "sun")]
    assert [scores(labels) for labels in both] == [pytest.approx(scores(labels), abs=1e-5) for labels in alone]


# Plain requests


def test_a_list_gets_an_answer_an_input_in_order(peers: Served) -> None:
    pair = {"text": TEXTS[0], "text_pair": TEXTS[1]}
    answers = post(peers, "spam", inputs=["rain", pair], parameters={"top_k": 1}, options={"use_cache": False})
    assert alike(answers, peers.native("spam", ["rain", pair], {"top_k": 1}))


def test_the_answer_names_delta_stages_and_request(peers: Served) -> None:
    answer = peers.post("/models/spam", json={"inputs": "rain"}, headers={"X-Request-Id": "mine-7"})
    assert answer.headers["x-ken-delta"] == peers.service.table.resolve("spam")
    assert "model;dur=" in answer.headers["server-timing"]
    assert answer.headers["x-request-id"] == "mine-7"


# Refusals


def is_hub_error(response: Any, status: int, error_type: str, *words: str) -> bool:
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error", "error_type"}
    assert response.json()["error_type"] == error_type
    assert all(word in response.json()["error"] for word in words), response.text
    return True


@pytest.mark.parametrize(
    ("task", "body", "words"),
    [
        ("search", {"inputs": "rain", "prompt_name": "title"}, ("prompt_name", "'document', 'query'")),
        ("vectors", {"inputs": "rain", "prompt_name": "query"}, ("prompt_name",)),
        ("search", {"inputs": "rain", "truncation_direction": "left"}, ("truncation_side", "right")),
        ("search", {"inputs": "rain " * 100, "truncate": False}, ("64 tokens",)),
        ("search", {"inputs": "rain", "encoding_format": "base64"}, ("encoding_format", "float")),
        ("search", {"inputs": {"source_sentence": "rain"}}, ("sentences",)),
        ("vectors", {"inputs": "rain", "normalize": True}, ("normalize",)),
        ("spam", {"inputs": "rain", "normalize": True}, ("normalize",)),
        ("spam", {"inputs": {"source_sentence": "rain", "sentences": ["sun"]}}, ("sentence-embeddings",)),
        ("spam", {"inputs": "rain", "parameters": {"top_n": 1}}, ("top_n",)),
        ("spam", {"inputs": "rain", "top_k": 1}, ("top_k",)),
        ("spam", {"inputs": 5}, ("inputs",)),
        ("spam", {}, ("inputs",)),
    ],
)
def test_what_cannot_be_meant_is_refused_and_named(
    task: str, body: dict[str, Any], words: tuple[str, ...], peers: Served
) -> None:
    assert is_hub_error(peers.post(f"/models/{task}", json=body), 422, "Validation", *words)


def test_a_prompt_by_name_is_put_before_the_text(peers: Served) -> None:
    asked = post(peers, "search", inputs="city", prompt_name="query")
    assert alike(asked, peers.native("search", "where is the city"))
    assert alike(asked, peers.native("search", "city", {"prompt_name": "query"}))
    assert not alike(asked, peers.native("search", "city"))


def test_null_stands_for_what_is_not_asked(peers: Served) -> None:
    nothing = dict.fromkeys(("parameters", "options", "normalize", "prompt_name", "truncation_direction"))
    assert alike(post(peers, "search", inputs="rain", **nothing), peers.native("search", "rain"))


def test_its_client_shows_what_was_wrong(client: Client) -> None:
    with pytest.raises(HfHubHTTPError, match="did you mean 'spam'") as refused:
        client("spamm").text_classification("rain")
    assert refused.value.response.status_code == 404


def test_a_body_that_is_no_json_or_too_long_is_refused_in_its_shape(peers: Served) -> None:
    assert is_hub_error(peers.post("/models/spam", content=b"a text"), 400, "Validation", "JSON")
    for content in (b" " * 20_000, iter([b" " * 10_000] * 2)):
        assert is_hub_error(peers.post("/models/spam", content=content), 413, "Validation", "16384")
    tokens = peers.post("/models/spam", json={"inputs": ["rain " * 60] * 10})
    assert is_hub_error(tokens, 413, "Validation", "512")


def test_load_and_time_are_told_in_its_shape(peers: Served) -> None:
    request = {"json": {"inputs": "rain"}}
    with peers.full():
        refused = peers.post("/models/spam", **request)
        assert is_hub_error(refused, 429, "Overloaded")
        assert int(refused.headers["retry-after"]) >= 1
    with peers.draining():
        refused = peers.post("/models/spam", **request)
        assert is_hub_error(refused, 503, "Unhealthy", "stopping")
        assert int(refused.headers["retry-after"]) >= 1
    with Blocked(peers.service.engine):
        refused = peers.post("/models/spam", **request, headers={"X-Request-Timeout-Ms": "50"})
        assert is_hub_error(refused, 504, "Backend", "0.05 s")


@pytest.mark.parametrize(("method", "path"), [("GET", "/models/spam"), ("POST", "/models"), ("POST", "/models/a/b")])
def test_paths_that_lead_nowhere_are_refused_in_its_shape(method: str, path: str, peers: Served) -> None:
    refused = peers.get(path) if method == "GET" else peers.post(path)
    assert is_hub_error(refused, refused.status_code, "Validation")
    assert refused.status_code in (404, 405)


def test_every_way_to_fail_is_documented_in_its_shape(peers: Served) -> None:
    operation = peers.get("/openapi.json").json()["paths"]["/models/{task}"]["post"]
    assert operation["summary"]
    assert operation["description"]
    assert operation["requestBody"]["content"]["application/json"]["schema"]["examples"]
    refusals = {status: made for status, made in operation["responses"].items() if status != "200"}
    assert {"400", "401", "403", "404", "413", "422", "429", "500", "501", "503", "504"} <= refusals.keys()
    for made in refusals.values():
        assert "error_type" in made["content"]["application/json"]["schema"]["properties"]
