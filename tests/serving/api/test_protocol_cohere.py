"""Cohere's protocol for reranking, asked by Cohere's own client."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cohere
import httpx
import pytest
from over_http import Served, alike

from benchmarks.peers.environments import Environment
from tests.tiny_checkpoints import TEXTS, WORDS

QUERY = TEXTS[0]
DOCUMENTS = [*TEXTS[1:], "the rain in the city", " ".join(WORDS)]
OTHERS = Environment(
    "reranking-clients",
    ("langchain-cohere==0.6.0", "langchain-huggingface==1.2.3", "litellm==1.110.2", "numpy>=2.0"),
    ("langchain-cohere", "langchain-huggingface", "litellm"),
)


@pytest.fixture(scope="module")
def client(peers: Served) -> Iterator[cohere.ClientV2]:
    with httpx.Client(timeout=30) as sender:
        yield cohere.ClientV2("any", base_url=peers.url, httpx_client=sender)


def ranks(peers: Served, **parameters: Any) -> Any:
    """What the native protocol answers."""
    question = [{"query": QUERY, "texts": DOCUMENTS}]
    return peers.native("ranks", question, {"raw_scores": False, **parameters}, "rerank")[0]


def test_documents_have_the_scores_of_the_native_protocol(client: cohere.ClientV2, peers: Served) -> None:
    found = client.rerank(model="ranks", query=QUERY, documents=DOCUMENTS)
    scores = [{"index": one.index, "score": one.relevance_score} for one in found.results]
    assert alike(scores, ranks(peers))
    assert found.id
    assert found.meta is not None
    assert found.meta.api_version is not None
    assert found.meta.api_version.version == "2"


def test_only_the_most_relevant_are_given_as_many_as_asked_for(client: cohere.ClientV2, peers: Served) -> None:
    found = client.rerank(model="ranks@live", query=QUERY, documents=DOCUMENTS, top_n=2)
    assert [one.index for one in found.results] == [one["index"] for one in ranks(peers)][:2]


def test_a_document_is_cut_to_as_many_tokens_as_asked_for(client: cohere.ClientV2, peers: Served) -> None:
    cut = client.rerank(model="ranks", query=QUERY, documents=[" ".join(WORDS)], max_tokens_per_doc=3)
    short = client.rerank(model="ranks", query=QUERY, documents=[" ".join(WORDS[:3])])
    whole = client.rerank(model="ranks", query=QUERY, documents=[" ".join(WORDS)])
    assert cut.results[0].relevance_score == pytest.approx(short.results[0].relevance_score, abs=1e-6)
    assert cut.results[0].relevance_score != pytest.approx(whole.results[0].relevance_score, abs=1e-6)
    answer = peers.post(
        "/v1/tasks/ranks/predict",
        json={
            "inputs": [{"query": QUERY, "texts": [" ".join(WORDS)]}],
            "kind": "rerank",
            "parameters": {"max_tokens_per_text": 3},
        },
    )
    assert answer.json()["truncated"] == [0], "the native protocol says that something was cut"


def test_a_document_that_has_no_more_tokens_than_asked_for_is_not_cut(peers: Served) -> None:
    body = {"inputs": [{"query": QUERY, "texts": [WORDS[0]]}], "kind": "rerank"}
    answer = peers.post("/v1/tasks/ranks/predict", json={**body, "parameters": {"max_tokens_per_text": 1}})
    assert answer.json()["truncated"] == []


def test_version_1_takes_documents_as_objects_and_gives_them_again(peers: Served) -> None:
    with httpx.Client(timeout=30) as sender:
        client = cohere.Client("any", base_url=peers.url, httpx_client=sender)
        documents: Any = [{"text": text, "title": str(i)} for i, text in enumerate(DOCUMENTS)]
        found = client.rerank(model="ranks", query=QUERY, documents=documents, return_documents=True)
    given = [(one.document.text, one.document.title) for one in found.results if one.document]  # type: ignore[attr-defined]
    assert given == [(DOCUMENTS[one.index], str(one.index)) for one in found.results]
    assert found.meta is not None
    assert found.meta.api_version is not None
    assert found.meta.api_version.version == "1"


def test_clients_of_jina_and_vllm_find_the_model_and_what_was_used(peers: Served) -> None:
    asked = {"model": "ranks", "query": QUERY, "documents": DOCUMENTS, "return_documents": True}
    answer = peers.post("/v1/rerank", json=asked).json()
    assert answer["model"] == "ranks"
    assert answer["usage"]["total_tokens"] == answer["meta"]["tokens"]["input_tokens"] > len(DOCUMENTS)
    assert {one["document"]["text"] for one in answer["results"]} == set(DOCUMENTS)


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
def test_what_litellm_sends_without_being_asked_changes_nothing(path: str, peers: Served) -> None:
    body = {"model": "ranks", "query": QUERY, "documents": DOCUMENTS}
    bare = peers.post(path, json=body).json()["results"]
    sent = peers.post(path, json={**body, "return_documents": True, "priority": 3, "max_chunks_per_doc": 1}).json()
    assert alike([{k: v for k, v in one.items() if k != "document"} for one in sent["results"]], bare)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rank_fields", ["title"]),
        ("max_chunks_per_doc", 4),
        ("instruction", "be kind"),
        ("documents", [{"title": "x"}]),
    ],
)
def test_what_would_change_scores_and_is_not_served_is_refused_by_name(field: str, value: Any, peers: Served) -> None:
    body = {"model": "ranks", "query": QUERY, "documents": DOCUMENTS, field: value}
    refused = peers.post("/v2/rerank", json=body)
    assert refused.status_code == 422, refused.text
    assert set(refused.json()) == {"message"}
    assert field in refused.json()["message"]


def test_failures_raise_what_the_client_has_for_them(client: cohere.ClientV2) -> None:
    with pytest.raises(cohere.NotFoundError) as unknown:
        client.rerank(model="nobody", query=QUERY, documents=DOCUMENTS)
    assert "nobody" in unknown.value.body["message"]
    with pytest.raises(cohere.UnprocessableEntityError) as unfit:
        client.rerank(model="emotion", query=QUERY, documents=DOCUMENTS)
    assert "needs a task with one label" in unfit.value.body["message"]


def test_a_merge_answers_in_place_of_a_task(peers: Served) -> None:
    body = {"query": QUERY, "documents": DOCUMENTS}
    merged = peers.post("/v2/rerank", json={**body, "model": {"merge": {"ranks": 1.0}, "head": "ranks"}})
    assert merged.status_code == 200, merged.text
    assert "x-ken-merge" in merged.headers


@pytest.mark.slow  # installs the clients
def test_clients_with_pins_of_their_own_get_the_same_scores_and_vectors(peers: Served, tmp_path: Path) -> None:
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "HF_HUB_OFFLINE": "0"}
    environment.pop("PYTHONPATH", None)
    command = [OTHERS.python(tmp_path, install=True), Path(__file__).with_name("reranking_clients.py"), peers.url]
    asked = json.dumps({"query": QUERY, "documents": DOCUMENTS})
    ended = subprocess.run([*command, asked], env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    said = json.loads(ended.stdout.splitlines()[-1])
    expected = [[one["index"], one["score"]] for one in ranks(peers)]
    for name, found in said["ranks"].items():
        assert alike(found, expected[:2]), (name, found)
    for name, found in said["vectors"].items():
        normalised = name.endswith("/embed")  # as text-embeddings-inference does by default
        assert alike(found, peers.native("search", DOCUMENTS, {"normalize": normalised})), (name, found)
    assert "must be a HuggingFace repo ID, not a URL" in said["langchain-huggingface takes no URL"]
