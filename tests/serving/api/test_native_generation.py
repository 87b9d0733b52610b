"""The server's own protocol for text."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from over_http import Served

from ken_core import DeltaFile
from serving.errors import UnavailableError
from tests.tiny_language_tasks import LanguageTasks

PLAIN = {"max_tokens": 10, "temperature": 0}
ASK = {"prompt": "the rain", "parameters": PLAIN}
PATH = "/v1/tasks/poems/generate"


def made(served: Served, **asked: Any) -> Any:
    answer = served.post(PATH, json={**ASK, **asked})
    assert answer.status_code == 200, answer.text
    return answer.json()


def events(text: str) -> list[tuple[str, Any]]:
    """Names and data of the events in a stream."""
    blocks = [block.split("\n") for block in text.strip().split("\n\n")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]


def test_a_text_is_continued_by_the_tasks_own_model(
    writers: Served, language_deltas: dict[str, DeltaFile], language_tasks: LanguageTasks
) -> None:
    answer = made(writers)
    (choice,) = answer["choices"]
    assert (answer["task"], answer["digest"]) == ("poems", language_deltas["poems"].digest)
    assert answer["usage"] == {"prompt_tokens": len(ids_of("the rain", language_tasks)), "generated_tokens": 10}
    assert (choice["finish"], choice["stop"]) == ("length", None)
    assert choice["text"]
    assert "tokens" not in choice
    other = writers.post("/v1/tasks/news/generate", json=ASK).json()
    assert other["choices"][0]["text"] != choice["text"]


def ids_of(text: str, tasks: LanguageTasks) -> list[int]:
    ids: list[int] = tasks.tokenizer(text)["input_ids"]
    return ids


def test_token_ids_and_messages_are_prompts_too(writers: Served, language_tasks: LanguageTasks) -> None:
    assert made(writers, prompt=ids_of("the rain", language_tasks))["choices"] == made(writers)["choices"]
    messages = [{"role": "user", "content": "how far"}]
    for chat, told in (
        ({"messages": messages}, {"add_generation_prompt": True}),
        (
            {"messages": [*messages, {"role": "assistant", "content": "it is"}], "continues_last": True},
            {"continue_final_message": True},
        ),
    ):
        ids = language_tasks.tokenizer.apply_chat_template(chat["messages"], **told)["input_ids"]
        assert made(writers, prompt=chat)["choices"] == made(writers, prompt=list(ids))["choices"]


def test_a_stream_is_the_whole_in_pieces(writers: Served) -> None:
    asked = {"parameters": {**PLAIN, "choices": 2, "temperature": 1, "seed": 4, "logprobs": 1}}
    whole = made(writers, **asked)
    answer = writers.post(PATH, json={**ASK, **asked, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    *pieces, (last, end) = events(answer.text)
    assert {name for name, _ in pieces} == {"piece"}
    for number, choice in enumerate(whole["choices"]):
        own = [piece for _, piece in pieces if piece["choice"] == number]
        assert "".join(piece["text"] for piece in own) == choice["text"]
        assert [token for piece in own for token in piece["tokens"]] == choice["tokens"]
        assert [piece["finish"] for piece in own] == [None] * (len(own) - 1) + [choice["finish"]]
    assert last == "end"
    assert end == {name: whole[name] for name in ("task", "digest", "usage")}


def test_a_piece_without_anything_to_say_is_not_sent(writers: Served) -> None:
    *pieces, _ = events(writers.post(PATH, json={**ASK, "stream": True}).text)
    assert all(piece["text"] or piece["finish"] for _, piece in pieces)


def test_a_text_says_what_stopped_it(writers: Served, language_tasks: LanguageTasks) -> None:
    whole = made(writers)["choices"][0]["text"]
    stop = whole[3:6]
    (choice,) = made(writers, parameters={**PLAIN, "stop": [stop]})["choices"]
    assert (choice["text"], choice["finish"], choice["stop"]) == (whole[: whole.index(stop)], "stop", stop)
    tokens = made(writers, parameters={**PLAIN, "logprobs": 0})["choices"][0]["tokens"]
    (choice,) = made(writers, parameters={**PLAIN, "stop_token_ids": [tokens[1]["id"]]})["choices"]
    assert (choice["finish"], choice["stop"]) == ("stop", tokens[1]["id"])


def test_tokens_are_told_with_the_likeliest_at_their_place(writers: Served, language_tasks: LanguageTasks) -> None:
    (choice,) = made(writers, parameters={**PLAIN, "logprobs": 2})["choices"]
    assert len(choice["tokens"]) == 10
    for token in choice["tokens"]:
        assert token["likeliest"][0]["id"] == token["id"]
        assert len(token["likeliest"]) == 2
    assert language_tasks.tokenizer.decode([token["id"] for token in choice["tokens"]]) == choice["text"]


def test_a_merge_writes_and_says_what_it_is_made_of(writers: Served) -> None:
    asked = {"model": {"merge": {"poems": 1, "news": 0.5}}}
    answer = made(writers, **asked)
    assert answer["model"]["method"] == "linear"
    assert answer["digest"] not in (made(writers)["digest"], None)
    *_, (_, end) = events(writers.post(PATH, json={**ASK, **asked, "stream": True}).text)
    assert end["model"] == answer["model"]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"prompt": 5}, "prompt: expected one text, one list of token ids, or an object with messages"),
        ({"prompt": ["a", "b"]}, "prompt: expected one text"),
        ({"prompt": {"messages": [{"role": "robot", "content": "a"}]}}, "prompt.messages.0.role"),
        ({"prompt": {"messages": []}}, "prompt.messages"),
        ({"prompt": [99999]}, "prompt: 99999 at 0 is no token"),
        ({"prompt": "rain " * 900}, "prompt: found a prompt of"),
        ({"parameters": {"max_tokens": 900}}, "parameters.max_tokens: found 900"),
        ({"parameters": {"choices": 65}}, "parameters.choices"),
        ({"parameters": {"n": 2}}, "parameters.n"),
        ({"parameters": {"temperature": -1}}, "parameters.temperature"),
        ({"parameters": {"stop": ["a"] * 17}}, "parameters.stop"),
        ({"parameters": {"stop_token_ids": [99999]}}, "parameters.stop_token_ids: 99999"),
        ({"parameters": {"max_tokens": 3, "min_tokens": 4}}, "parameters.min_tokens: found 4"),
    ],
)
def test_what_cannot_be_done_is_refused_by_the_name_it_was_asked_by(
    asked: dict[str, Any], words: str, writers: Served
) -> None:
    for stream in (False, True):
        answer = writers.post(PATH, json={**ASK, **asked, "stream": stream})
        assert answer.status_code == 422
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["detail"].startswith(words)


def test_a_task_that_does_not_write_says_so(writers: Served) -> None:
    answer = writers.post("/v1/tasks/spam/generate", json=ASK)
    assert answer.status_code == 422
    assert "task: the task has a text-classification head, which generates no text" in answer.json()["detail"]


def test_a_failure_in_the_middle_is_an_event_with_the_problem(lone_writer: Served, slowly: Callable[..., None]) -> None:
    slowly(lone_writer.service)
    asked = {**ASK, "parameters": {"max_tokens": 200, "choices": 16, "ignore_end": True}, "stream": True}
    generator = lone_writer.service.generator
    assert generator is not None
    with httpx.stream("POST", f"{lone_writer.url}{PATH}", json=asked, timeout=30) as response:
        lines = response.iter_lines()
        read = [next(lines)]
        generator.abort(UnavailableError("it is gone"))
        read += lines
    name, problem = events("\n".join(read))[-1]
    assert name == "error"
    assert (problem["status"], problem["detail"]) == (503, "it is gone")
    assert problem["request_id"] == response.headers["x-request-id"]
