"""Texts of a tiny language model through HAProxy and Ray, asked by the clients that people use."""

from __future__ import annotations

import concurrent.futures
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from huggingface_hub import InferenceClient
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.peers.environments import Environment
from serving.client import ApiError, Client, ClientError, Retries
from serving.launch.server_process import ServerProcess
from serving.store import Store
from tests.e2e.running import settings_on
from tests.tiny_language_tasks import LanguageTasks

pytestmark = pytest.mark.e2e

CLIENTS = Environment(
    "writing-clients",
    (
        "langchain-openai==1.7.4",
        "langchain-huggingface==1.2.3",
        "llama-index-llms-openai-like==0.8.1",
        "litellm==1.110.2",
    ),
    ("langchain-openai", "langchain-huggingface", "llama-index-llms-openai-like", "litellm"),
)

ASK: Any = [{"role": "user", "content": "how far is the city"}]
CHAT: Any = {"model": "poems", "messages": ASK, "max_tokens": 12, "temperature": 0}
MANY: Any = {"model": "poems", "prompt": "the rain", "n": 64, "max_tokens": 240, "stream": True}
ENDLESS = {"ignore_eos": True}
"""Beside `MANY`: texts that take a second or more."""


@pytest.fixture(scope="module")
def language_tasks(work: Path) -> LanguageTasks:
    return LanguageTasks(work / "language-tasks", positions=256)


@pytest.fixture(scope="module")
def writer(work: Path, store_url: str, language_tasks: LanguageTasks) -> Iterator[ServerProcess]:
    """A server with two language models, in a namespace of its own. Its last test stops it."""
    store = Store(store_url, "writers")
    store.tasks.publish("poems", language_tasks.language_model("poems"))
    store.tasks.publish("news", language_tasks.language_model("news"))
    settings = settings_on(language_tasks.path, work / "writer", store_url)
    own = {"namespace": "writers", "drain_seconds": "8", "preload": '["poems"]'}
    with ServerProcess({**settings, **own}, work / "writer.log") as running:
        yield running


@pytest.fixture
def client(writer: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{writer.url}/v1", api_key="any", max_retries=0, timeout=60) as client:
        yield client


def metric(server: ServerProcess, name: str, by: httpx.Client | None = None, **labels: str) -> float:
    text = (by or httpx).get(f"{server.url}/metrics", timeout=30).text
    families = text_string_to_metric_families(text)
    samples = (s for family in families for s in family.samples if s.name == name)
    return sum(s.value for s in samples if labels.items() <= s.labels.items())


def eventually(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.02)


def test_a_preloaded_task_is_on_the_device_before_the_first_request(writer: ServerProcess) -> None:
    assert metric(writer, "ken_cache_bytes", tier="packed") > 0


def test_all_clients_get_the_same_text_at_once_and_bit_by_bit(
    writer: ServerProcess, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    found = {"openai": client.chat.completions.create(**CHAT).choices[0].message.content}
    chunks = client.chat.completions.create(**CHAT, stream=True)
    found["openai, streamed"] = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    hub = InferenceClient(model=f"{writer.url}/models/poems", token="any")
    found["hub"] = hub.chat_completion(ASK, max_tokens=12, temperature=0).choices[0].message.content
    parts = hub.chat_completion(ASK, max_tokens=12, temperature=0, stream=True)
    found["hub, streamed"] = "".join(part.choices[0].delta.content or "" for part in parts)
    with Client(writer.url) as ours:
        asked = {"parameters": {"max_tokens": 12, "temperature": 0}}
        found["ours"] = ours.generate("poems", ASK, **asked).text
        with ours.stream("poems", ASK, **asked) as pieces:
            found["ours, streamed"] = "".join(piece.text for piece in pieces)
            assert pieces.end.usage.generated_tokens == 12
    assert len(set(found.values())) == 1, found
    text = hub.text_generation("the rain", max_new_tokens=9)
    assert "".join(hub.text_generation("the rain", max_new_tokens=9, stream=True)) == text
    completion = client.completions.create(model="poems", prompt="the rain", max_tokens=9, temperature=0)
    assert completion.choices[0].text == text
    other = client.completions.create(model="news", prompt="the rain", max_tokens=9, temperature=0)
    assert other.choices[0].text != text


def test_words_arrive_while_others_are_still_to_be_generated(writer: ServerProcess, client: openai.OpenAI) -> None:
    """Nothing on the way holds events back: with the first of them, the texts are far from complete."""
    with httpx.Client() as other, client.completions.create(**MANY, extra_body=ENDLESS) as stream:
        next(stream)
        assert metric(writer, "ken_running_texts", by=other) > 0
        assert sum(1 for _ in stream) > 240
    eventually(lambda: metric(writer, "ken_kv_bytes") == 0)


@pytest.mark.parametrize("leave", ["stream", "wait"])
def test_a_client_that_leaves_frees_what_its_texts_took(
    leave: str, writer: ServerProcess, client: openai.OpenAI
) -> None:
    gone = metric(writer, "ken_requests_total", task="poems", code="499")
    done = metric(writer, "ken_texts_total", task="poems", finish="length")
    if leave == "stream":
        stream = client.completions.create(**MANY, extra_body=ENDLESS)
        next(stream)
        stream.close()
    else:
        body = json.dumps({**MANY, **ENDLESS, "stream": False}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: ken\r\nContent-Length: {len(body)}\r\n"
        with httpx.Client() as other, socket.create_connection(("127.0.0.1", writer.port), timeout=30) as leaving:
            leaving.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
            eventually(lambda: metric(writer, "ken_running_texts", by=other) > 0)
    eventually(lambda: metric(writer, "ken_requests_total", task="poems", code="499") == gone + 1)
    eventually(lambda: metric(writer, "ken_kv_bytes") == 0)
    assert metric(writer, "ken_texts_total", task="poems", finish="length") == done


def test_what_is_refused_has_the_form_of_the_protocol_though_a_stream_was_asked_for(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**{**CHAT, "max_tokens": 900}, stream=True)
    assert refused.value.param == "max_tokens"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**{**CHAT, "model": "nobody"}, stream=True)


@pytest.mark.slow  # installs the clients
def test_clients_with_pins_of_their_own_get_the_same_texts(
    writer: ServerProcess, client: openai.OpenAI, work: Path
) -> None:
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "HF_HUB_OFFLINE": "0"}
    environment.pop("PYTHONPATH", None)
    command = [CLIENTS.python(work, install=True), Path(__file__).with_name("writing_clients.py"), f"{writer.url}/v1"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    said = json.loads(ended.stdout.splitlines()[-1])
    asked = {"model": "poems", "max_tokens": 12, "temperature": 0}
    chat = client.chat.completions.create(messages=ASK, **asked).choices[0].message.content
    text = client.completions.create(prompt=ASK[0]["content"], **asked).choices[0].text
    for name, answers in said.items():
        for what, answer in answers.items():
            if what.startswith("chat"):
                assert answer == chat, (name, what)
            elif what.startswith("text"):
                assert answer == text, (name, what)
    assert said["langchain"]["tokens"] == 12
    assert "tools: the task's chat template shows no tools" in said["langchain"]["tools"]["message"]
    assert "only text is taken" in said["langchain"]["images"]["message"]
    assert "typical_p" in said["langchain-huggingface"]["by default"]["message"]
    assert said["litellm"]["too long"]["error"] == "BadRequestError"


def test_a_stop_lets_texts_be_completed_in_its_time_and_ends_the_others_with_a_word(writer: ServerProcess) -> None:
    """The last test: it stops the server. What the long texts need altogether is many times the drain."""
    long = {"choices": 64, "max_tokens": 240, "ignore_end": True}
    once = {"timeout": 60, "retries": Retries(attempts=1)}

    def failure() -> str:
        with Client(writer.url, **once) as ours:
            try:
                for _ in ours.stream("poems", "the rain", parameters=long):
                    pass
            except ClientError as error:
                return error.detail if isinstance(error, ApiError) else str(error)
        return "complete"

    with Client(writer.url, **once) as ours, concurrent.futures.ThreadPoolExecutor(10) as pool:
        with ours.stream("poems", "the rain", parameters={"max_tokens": 150, "ignore_end": True}) as pieces:
            reading = iter(pieces)
            next(reading)
            failures = [pool.submit(failure) for _ in range(8)]
            eventually(lambda: metric(writer, "ken_running_texts") > 8)
            stopped = pool.submit(writer.stop)
            list(reading)
        assert pieces.end.usage.generated_tokens == 150
        found = {one.result() for one in failures}
    assert "the server stopped before the text was complete; ask again" in found, found
    assert stopped.result() == 0
