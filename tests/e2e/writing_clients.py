"""Asks a server for texts by LangChain, its Hugging Face package, LlamaIndex and LiteLLM.

Run by an interpreter that has them; prints JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

import litellm
from langchain_core.tools import tool
from langchain_huggingface import HuggingFaceEndpoint
from langchain_openai import ChatOpenAI, OpenAI
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

URL = sys.argv[1]
HOST = URL.removesuffix("/v1")
PROMPT = "how far is the city"
AT: dict[str, Any] = {"base_url": URL, "api_key": "any", "model": "poems", "max_tokens": 12, "temperature": 0}
LITE: dict[str, Any] = {"api_base": URL, "api_key": "any", "max_tokens": 12, "temperature": 0}


@tool
def weather(city: str) -> str:
    """The weather of a city."""
    return city


def langchain() -> dict[str, Callable[[], Any]]:
    chat, text = ChatOpenAI(**AT), OpenAI(**AT)

    async def streamed() -> str:
        return "".join([str(part.content) async for part in chat.astream(PROMPT)])

    def tokens() -> int:
        parts = list(ChatOpenAI(**AT, stream_usage=True).stream(PROMPT))
        return sum(part.usage_metadata["output_tokens"] for part in parts if part.usage_metadata)

    return {
        "chat": lambda: chat.invoke(PROMPT).content,
        "chat, streamed": lambda: "".join(str(part.content) for part in chat.stream(PROMPT)),
        "chat, streamed by asyncio": lambda: asyncio.run(streamed()),
        "text": lambda: text.invoke(PROMPT),
        "text, streamed": lambda: "".join(text.stream(PROMPT)),
        "tokens": tokens,
        "tools": lambda: chat.bind_tools([weather]).invoke(PROMPT),
        "images": lambda: chat.invoke(
            [("human", [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}])]
        ),
    }


def langchain_huggingface() -> dict[str, Callable[[], Any]]:
    """By default it asks for typical sampling, which is refused; 1.0 turns that off."""
    asked: dict[str, Any] = {"endpoint_url": f"{HOST}/models/poems", "max_new_tokens": 12, "do_sample": False}
    greedy: dict[str, Any] = {"top_k": None, "top_p": None, "temperature": None}
    text = HuggingFaceEndpoint(**asked, **greedy, typical_p=1.0, huggingfacehub_api_token="any")
    by_default = HuggingFaceEndpoint(**asked, **greedy, huggingfacehub_api_token="any")
    return {
        "text": lambda: text.invoke(PROMPT),
        "text, streamed": lambda: "".join(text.stream(PROMPT)),
        "by default": lambda: by_default.invoke(PROMPT),
    }


def llamaindex() -> dict[str, Callable[[], Any]]:
    made: dict[str, Any] = {"api_base": URL, **{name: value for name, value in AT.items() if name != "base_url"}}
    chat, text = OpenAILike(**made, is_chat_model=True), OpenAILike(**made, is_chat_model=False)
    messages = [ChatMessage(role="user", content=PROMPT)]
    return {
        "chat": lambda: chat.chat(messages).message.content,
        "chat, streamed": lambda: "".join(part.delta or "" for part in chat.stream_chat(messages)),
        "text": lambda: text.complete(PROMPT).text,
        "text, streamed": lambda: "".join(part.delta or "" for part in text.stream_complete(PROMPT)),
    }


def lite() -> dict[str, Callable[[], Any]]:
    asked = {**LITE, "messages": [{"role": "user", "content": PROMPT}]}

    def streamed(model: str) -> str:
        parts = litellm.completion(model=model, stream=True, stream_options={"include_usage": True}, **asked)
        return "".join(choice.delta.content or "" for part in parts for choice in part.choices)

    return {
        "chat": lambda: litellm.completion(model="openai/poems", **asked).choices[0].message.content,
        "chat, streamed": lambda: streamed("openai/poems"),
        "chat, as of vllm": lambda: litellm.completion(model="hosted_vllm/poems", **asked).choices[0].message.content,
        "chat, streamed, as of vllm": lambda: streamed("hosted_vllm/poems"),
        "text": lambda: (
            litellm.text_completion(model="text-completion-openai/poems", prompt=PROMPT, **LITE).choices[0].text
        ),
        "too long": lambda: litellm.completion(model="openai/poems", **{**asked, "max_tokens": 900}),
    }


def said(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except Exception as error:
        return {"error": type(error).__name__, "message": str(error)}


if __name__ == "__main__":
    clients = {
        "langchain": langchain(),
        "langchain-huggingface": langchain_huggingface(),
        "llamaindex": llamaindex(),
        "litellm": lite(),
    }
    print(json.dumps({name: {what: said(ask) for what, ask in asks.items()} for name, asks in clients.items()}))
