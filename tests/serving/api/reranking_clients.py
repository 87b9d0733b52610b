"""Asks a server for ranks and vectors by LangChain and LiteLLM. Run by an interpreter that has them; prints JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

import litellm
from huggingface_hub import AsyncInferenceClient, InferenceClient
from langchain_cohere import CohereRerank
from langchain_huggingface import HuggingFaceEndpointEmbeddings

URL, ASKED = sys.argv[1], json.loads(sys.argv[2])
QUERY, DOCUMENTS = ASKED["query"], ASKED["documents"]
RERANK: dict[str, Any] = {"query": QUERY, "documents": DOCUMENTS, "top_n": 2, "api_key": "any"}
EMBED: dict[str, Any] = {"input": DOCUMENTS, "api_key": "any"}


def langchain_ranks() -> list[list[float]]:
    ranker = CohereRerank(model="ranks", base_url=URL, cohere_api_key="any")
    return [[one["index"], one["relevance_score"]] for one in ranker.rerank(DOCUMENTS, QUERY, top_n=2)]


def litellm_ranks(model: str, base: str) -> list[list[float]]:
    answer = litellm.rerank(model=model, api_base=base, **RERANK)
    return [[one["index"], one["relevance_score"]] for one in answer.results]


def litellm_vectors(model: str, base: str, **more: Any) -> list[list[float]]:
    return [one["embedding"] for one in litellm.embedding(model=model, api_base=base, **EMBED, **more).data]


async def litellm_vectors_by_asyncio() -> list[list[float]]:
    answer = await litellm.aembedding(
        model="huggingface/search", api_base=f"{URL}/models/search", input_type="feature-extraction", **EMBED
    )
    return [one["embedding"] for one in answer.data]


def langchain_embedder() -> HuggingFaceEndpointEmbeddings:
    """It refuses a URL, but asks whichever clients it is given afterwards."""
    made = HuggingFaceEndpointEmbeddings(model="any/name", huggingfacehub_api_token="any")
    made.client = InferenceClient(f"{URL}/models/search")
    made.async_client = AsyncInferenceClient(f"{URL}/models/search")
    return made


def refusal(ask: Callable[[], Any]) -> str:
    try:
        return f"it answered {ask()!r}"
    except Exception as error:
        return str(error)


if __name__ == "__main__":
    of_hub = {"input_type": "feature-extraction"}
    embedder = langchain_embedder()
    print(
        json.dumps(
            {
                "ranks": {
                    "langchain-cohere": langchain_ranks(),
                    "litellm cohere/": litellm_ranks("cohere/ranks", URL),
                    "litellm hosted_vllm/": litellm_ranks("hosted_vllm/ranks", f"{URL}/v2"),
                    "litellm huggingface/": litellm_ranks("huggingface/ranks", f"{URL}/models/ranks"),
                },
                "vectors": {
                    "litellm openai/": litellm_vectors("openai/search", f"{URL}/v1"),
                    "litellm huggingface/": litellm_vectors("huggingface/search", f"{URL}/models/search", **of_hub),
                    "litellm huggingface/ of /embed": litellm_vectors(
                        "huggingface/search", f"{URL}/models/search/embed", **of_hub
                    ),
                    "litellm huggingface/ by asyncio": asyncio.run(litellm_vectors_by_asyncio()),
                    "langchain-huggingface with a client": embedder.embed_documents(DOCUMENTS),
                    "langchain-huggingface by asyncio": asyncio.run(embedder.aembed_documents(DOCUMENTS)),
                },
                "langchain-huggingface takes no URL": refusal(
                    lambda: HuggingFaceEndpointEmbeddings(model=f"{URL}/models/search")
                ),
            }
        )
    )
