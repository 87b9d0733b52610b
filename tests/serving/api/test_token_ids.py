"""Token ids in place of texts: refused, unless the server was told that they are the tasks' own."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
import torch
from over_http import Served, served
from transformers import AutoTokenizer, BertModel

import ken_core
from ken_core import DeltaFile, Selection, deltafile, open_base, open_tuned
from ken_core.tokenization import Encoder
from serving.config import load_settings
from serving.service import Service
from serving.store import Store
from tests.tiny_checkpoints import POSITIONS, TEXTS, WORDS, Tiny, write_tokenizer
from tests.tiny_tokenizers import write_byte_level, write_word_piece

OF_TIKTOKEN = [[4438, 3117, 374, 433, 311, 22898, 30]]
"""What LangChain makes of "How far is it to Denver?" before it asks, by default."""
MORE_WORDS = (*WORDS, "zebra", "yacht")


@pytest.fixture(scope="module")
def with_more_words(tiny: Tiny) -> DeltaFile:
    """A task for embeddings that brings a tokenizer of its own, and its embedding whole."""
    folder = tiny.folder / "embeds-more-words"
    torch.manual_seed(81)
    model = BertModel.from_pretrained(tiny.base_folder)
    model.resize_token_embeddings(model.config.vocab_size + 2, mean_resizing=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    write_tokenizer(folder, MORE_WORDS)
    delta = ken_core.extract(tiny.base, open_tuned(str(folder)), Selection())
    return deltafile.write(delta, tiny.base, folder.with_suffix(".ken"))


@pytest.fixture(scope="module")
def taking(
    tiny: Tiny,
    of_every_kind: dict[str, DeltaFile],
    with_more_words: DeltaFile,
    embedded_url: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Served]:
    """A replica that takes token ids."""
    namespace = f"ids-{uuid.uuid4().hex[:12]}"
    store = Store(embedded_url, namespace)
    for task in ("search", "spam", "emotion"):
        store.tasks.publish(task, of_every_kind[task])
    store.tasks.publish("more-words", with_more_words)
    chosen = {"base": str(tiny.base_folder), "data_dir": tmp_path_factory.mktemp("ids"), "namespace": namespace}
    service = Service(load_settings(**chosen, threads=1, max_tokens=512, accept_token_ids=True), embedded_url)
    service.start()
    with served(service) as answering:
        yield answering
    service.stop()


@pytest.fixture
def client(taking: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{taking.url}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def ids(tiny: Tiny) -> list[list[int]]:
    """Of the texts, as the base's tokenizer gives them."""
    found = AutoTokenizer.from_pretrained(tiny.base_folder)(list(TEXTS), truncation=True, max_length=POSITIONS)
    return found["input_ids"]


def vectors(answer: openai.types.CreateEmbeddingResponse) -> np.ndarray:
    return np.array([one.embedding for one in answer.data])


# Taken


def test_ids_of_the_tasks_tokenizer_get_the_vectors_of_the_texts(client: openai.OpenAI, ids: list[list[int]]) -> None:
    asked, told = (client.embeddings.create(model="search", input=given) for given in (ids, list(TEXTS)))
    assert vectors(asked) == pytest.approx(vectors(told), abs=1e-6)
    assert asked.usage == told.usage
    alone = client.embeddings.create(model="search", input=ids[0])
    assert vectors(alone) == pytest.approx(vectors(told)[:1], abs=1e-6)


def test_nothing_is_added_to_them(client: openai.OpenAI, ids: list[list[int]]) -> None:
    bare = client.embeddings.create(model="search", input=ids[0][1:-1])
    whole = client.embeddings.create(model="search", input=ids[0])
    assert whole.usage.prompt_tokens - bare.usage.prompt_tokens == 2
    assert np.abs(vectors(bare) - vectors(whole)).max() > 1e-3


def test_text_embeddings_inference_takes_them_as_well(taking: Served, ids: list[list[int]]) -> None:
    told = taking.post("/models/search/embed", json={"inputs": list(TEXTS)}).json()
    asked = taking.post("/models/search/embed", json={"inputs": ids})
    assert asked.status_code == 200, asked.text
    assert np.array(asked.json()) == pytest.approx(np.array(told), abs=1e-6)
    alone = taking.post("/embed", json={"inputs": ids[1], "model": "search"}).json()
    assert np.array(alone) == pytest.approx(np.array(told[1:2]), abs=1e-6)


def test_texts_are_still_texts(client: openai.OpenAI, taking: Served) -> None:
    told = client.embeddings.create(model="search", input="rain")
    assert vectors(told)[0] == pytest.approx(np.array(taking.native("search", "rain")[0]), abs=1e-6)


def test_each_task_has_a_vocabulary_of_its_own(client: openai.OpenAI, tiny: Tiny) -> None:
    found = AutoTokenizer.from_pretrained(tiny.folder / "embeds-more-words")("rainz yacht")["input_ids"]
    assert max(found) >= tiny.base.config.vocab_size
    asked, told = (client.embeddings.create(model="more-words", input=given) for given in (found, "rainz yacht"))
    assert vectors(asked) == pytest.approx(vectors(told), abs=1e-6)
    with pytest.raises(openai.BadRequestError, match=rf"{max(found)} at 2 is no token of this task"):
        client.embeddings.create(model="search", input=found)


# Refused where they are taken


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (OF_TIKTOKEN, "4438 at 0 is no token of this task, whose vocabulary has"),
        ([2, -1], "-1 at 1 is no token"),
        ([[2, 3], [2, 2**31]], "inputs.1: 2147483648 at 1 is no token"),
        ([2**63], "no token"),
        ([[2, 3], []], "inputs.1: there is no token id"),
        ([[]], "no token id"),
        ([], "at least 1"),
        ([2] * (POSITIONS + 1), rf"found {POSITIONS + 1} token ids, the model takes {POSITIONS}"),
        ([2, "rain"], "token ids"),
        (["rain", [2, 3]], "only texts, or only lists of token ids"),
        ([[2, "rain"]], "only lists of token ids"),
        ([[2, True]], "only lists of token ids"),
        ([[2, 3.0]], "only lists of token ids"),
        ([[2, None]], "only lists of token ids"),
        ([[[2]]], "only lists of token ids"),
        ([True, False], "token ids"),
        ({"ids": [2]}, "a text or a list of texts"),
        ([{"ids": [2]}], "string"),
    ],
)
def test_what_is_no_row_of_the_tasks_tokens_is_a_bad_request_about_the_input(
    given: Any, words: str, client: openai.OpenAI, taking: Served
) -> None:
    with pytest.raises(openai.BadRequestError, match=words) as refused:
        client.embeddings.create(model="search", input=given)
    assert refused.value.param == "input"
    assert taking.post("/models/search/embed", json={"inputs": given}).status_code == 422


def test_more_ids_than_one_request_may_have_are_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError, match="512") as refused:
        client.embeddings.create(model="search", input=[[2] * POSITIONS] * (512 // POSITIONS + 1))
    assert refused.value.status_code == 413


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/tasks/search/predict", {"inputs": [2, 3]}),
        ("/v1/tasks/search/predict", {"inputs": [[2, 3]]}),
        ("/v1/tasks/search/predict", {"inputs": {"ids": [2, 3]}}),
        ("/v1/tasks/spam/predict", {"inputs": [[2, 3]]}),
        ("/models/search", {"inputs": [2, 3]}),
        ("/models/search", {"inputs": [[2, 3]]}),
        ("/models/spam/predict", {"inputs": [[2, 3]]}),
        ("/models/spam/rerank", {"query": [2], "texts": [[2]]}),
        ("/v2/models/search/infer", {"inputs": [{"name": "a", "shape": [2], "datatype": "INT64", "data": [2, 3]}]}),
    ],
)
def test_no_other_protocol_or_route_takes_them(path: str, body: dict[str, Any], taking: Served) -> None:
    assert taking.post(path, json=body).status_code in (400, 422)


# Refused by default


@pytest.mark.parametrize("given", [OF_TIKTOKEN, OF_TIKTOKEN[0]])
def test_langchains_request_is_refused_with_the_way_out_of_it(given: list[Any], peers: Served) -> None:
    sent = {"input": given, "model": "search", "encoding_format": "base64"}
    refused = peers.post("/v1/embeddings", json=sent)
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert (error["param"], error["type"]) == ("input", "invalid_request_error")
    assert "check_embedding_ctx_length=False" in error["message"]
    assert "KEN_ACCEPT_TOKEN_IDS" in error["message"]
    of_tei = peers.post("/models/search/embed", json={"inputs": given})
    assert of_tei.status_code == 422
    assert "KEN_ACCEPT_TOKEN_IDS" in of_tei.json()["error"]


def test_the_document_tells_of_ids_where_they_are_taken(taking: Served, peers: Served) -> None:
    for path, field in (("/v1/embeddings", "input"), ("/embed", "inputs"), ("/models/{task}/embed", "inputs")):
        known = []
        for server in (taking, peers):
            told = server.get("/openapi.json").json()["paths"][path]["post"]
            form = told["requestBody"]["content"]["application/json"]["schema"]["properties"][field]
            known.append("integer" in str(form))
        assert known == [True, False], path


# Rows


@pytest.mark.parametrize("write", [write_word_piece, write_byte_level])
def test_a_row_of_given_ids_is_that_of_the_text(write: Any, tiny_base: Any, tmp_path: Any) -> None:
    folder = shutil.copytree(tiny_base, tmp_path / "base")
    write(folder)
    base = open_base(str(folder))
    encoder = Encoder(base, base.config, {})
    for text in TEXTS:
        (row,) = encoder([text])
        assert encoder.given(row.ids).ids == row.ids
        assert encoder.given(row.ids).type_ids == row.type_ids
        assert all(encoder.has(token) for token in row.ids)
    assert len(encoder.given([3])) == 1
    assert not encoder.has(10**6)
