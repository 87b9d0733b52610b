"""Text from both clients: at once and piece by piece, from a real server, and from one that stops in the middle."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

import orjson
import pytest
from asking import BOTH, Ask
from listening import CUT, Say, Scripted
from over_http import Served

from serving.client import (
    ApiError,
    AsyncClient,
    Client,
    ClientError,
    Merge,
    ReplyError,
    Retries,
    TextEnd,
    TextPiece,
    UnreachableError,
)
from serving.errors import UnavailableError
from tests.tiny_language_tasks import LanguageTasks

Read = Callable[..., tuple[list[TextPiece], TextEnd]]
ASK: list[Mapping[str, Any]] = [{"role": "user", "content": "how far"}]
PLAIN = {"max_tokens": 10, "temperature": 0}
DIGEST = "ab" * 32
PIECE = b'event: piece\ndata: {"choice":0,"text":"rain","finish":null,"stop":null,"new":1}\n\n'
END = orjson.dumps(
    {"task": "poems", "digest": DIGEST, "usage": {"prompt_tokens": 2, "generated_tokens": 1, "new": 1}, "new": 1}
)
ENDED = b"event: end\ndata: %b\n\n" % END


def waiting(url: str, *asked: Any, client: Mapping[str, Any] | None = None, **named: Any) -> Any:
    """All pieces and the end, by `Client`."""
    with Client(url, **client or {}) as made, made.stream(*asked, **named) as pieces:
        return list(pieces), pieces.end


def awaited(url: str, *asked: Any, client: Mapping[str, Any] | None = None, **named: Any) -> Any:
    """All pieces and the end, by `AsyncClient`."""

    async def read() -> Any:
        async with AsyncClient(url, **client or {}) as made, made.stream(*asked, **named) as pieces:
            return [piece async for piece in pieces], pieces.end

    return asyncio.run(read())


both = pytest.mark.parametrize("ask", BOTH)
either = pytest.mark.parametrize("read", [waiting, awaited])


@both
def test_every_prompt_is_continued_as_over_http(ask: Ask, writers: Served, language_tasks: LanguageTasks) -> None:
    ids = language_tasks.tokenizer("the rain")["input_ids"]
    for prompt, plain in (("the rain", "the rain"), (ids, ids), (ASK, {"messages": ASK})):
        answer = writers.post("/v1/tasks/poems/generate", json={"prompt": plain, "parameters": PLAIN})
        found = ask(writers.url, "generate", "poems", prompt, parameters=PLAIN)
        expected = answer.json()
        assert found.text == found.choices[0].text == expected["choices"][0]["text"]
        assert (found.task, found.digest) == ("poems", expected["digest"])
        assert found.usage.model_dump() == expected["usage"]
        assert set(found.timing) == {"load", "tokenize", "first"}
        assert found.choices[0].tokens is None
        assert found.request_id


@both
def test_tokens_are_told_if_that_is_asked_for(ask: Ask, writers: Served) -> None:
    (choice,) = ask(writers.url, "generate", "poems", "the rain", parameters={**PLAIN, "logprobs": 2}).choices
    assert len(choice.tokens) == 10
    assert all(token.likeliest[0].id == token.id and len(token.likeliest) == 2 for token in choice.tokens)


@either
def test_a_stream_is_the_whole_text_in_pieces(read: Read, writers: Served) -> None:
    asked = {"parameters": {**PLAIN, "choices": 2, "temperature": 1, "seed": 3}}
    whole = waiting_for(writers, **asked)
    pieces, end = read(writers.url, "poems", "the rain", **asked)
    assert len(pieces) > 4
    for number, choice in enumerate(whole.choices):
        assert "".join(piece.text for piece in pieces if piece.choice == number) == choice.text
    assert [piece.finish for piece in pieces if piece.finish] == ["length", "length"]
    assert (end.task, end.digest, end.usage) == (whole.task, whole.digest, whole.usage)


def waiting_for(writers: Served, task: str | Merge = "poems", **asked: Any) -> Any:
    with Client(writers.url) as client:
        return client.generate(task, "the rain", **asked)


@either
def test_a_merge_streams_too(read: Read, writers: Served) -> None:
    merge = Merge({"poems": 1.0, "news": 0.5}, "poems")
    whole = waiting_for(writers, merge, parameters=PLAIN)
    pieces, end = read(writers.url, merge, "the rain", parameters=PLAIN)
    assert "".join(piece.text for piece in pieces) == whole.text
    assert end.merge == whole.merge
    assert whole.merge.method == "linear"


@either
def test_what_is_refused_is_raised_before_the_first_piece(read: Read, writers: Served) -> None:
    with pytest.raises(ApiError, match=r"parameters.max_tokens: found 900") as refused:
        read(writers.url, "poems", "the rain", parameters={"max_tokens": 900})
    assert refused.value.status == 422


@either
def test_a_failure_in_the_middle_is_raised_with_its_status(read: Read, lone_writer: Served) -> None:
    generator = lone_writer.service.generator
    assert generator is not None
    asked = {"parameters": {"max_tokens": 200, "choices": 16, "ignore_end": True}}
    seen: list[TextPiece] = []

    def fail(piece: TextPiece) -> None:
        seen.append(piece)
        if len(seen) == 1:
            generator.abort(UnavailableError("it is gone"))

    def stream() -> None:
        with Client(lone_writer.url) as client:
            for piece in client.stream("poems", "the rain", **asked):
                fail(piece)

    async def astream() -> None:
        async with AsyncClient(lone_writer.url) as client:
            async for piece in client.stream("poems", "the rain", **asked):
                fail(piece)

    with pytest.raises(ApiError, match="it is gone") as failed:
        stream() if read is waiting else asyncio.run(astream())
    assert (failed.value.status, failed.value.title) == (503, "Unavailable")
    assert failed.value.request_id


# A server that does something else


def said(*events: bytes) -> Say:
    return Say(200, b"".join(events), {"Content-Type": "text/event-stream"})


@either
def test_comments_and_what_is_new_are_passed_over(read: Read) -> None:
    with Scripted(said(b": still generating\n\n", PIECE, b": still generating\n\n", PIECE, ENDED)) as server:
        pieces, end = read(server.url, "poems", "the")
    assert [piece.text for piece in pieces] == ["rain", "rain"]
    assert end.usage.generated_tokens == 1
    assert orjson.loads(server.heard[0].body) == {"prompt": "the", "stream": True}


@either
def test_a_stream_that_stops_without_an_end_is_not_taken_for_complete(read: Read) -> None:
    with Scripted(said(PIECE)) as server, pytest.raises(UnreachableError, match="stopped in the middle") as lost:
        read(server.url, "poems", "the")
    assert lost.value.sent


@either
@pytest.mark.parametrize("event", [b"event: song\ndata: {}\n\n", b"event: piece\ndata: <html>\n\n", b"data: {}\n\n"])
def test_what_is_no_event_of_a_server_is_told_from_one(event: bytes, read: Read) -> None:
    with Scripted(said(event)) as server, pytest.raises(ReplyError, match="no event of a ken-serve"):
        read(server.url, "poems", "the")


@either
def test_a_stream_that_did_not_begin_is_tried_again(read: Read) -> None:
    retries = {"retries": Retries(first=0.001)}
    busy = Say(429, b'{"title": "Too many requests", "detail": "later"}', {"Retry-After": "0"})
    with Scripted(CUT, busy, said(PIECE, ENDED)) as server:
        pieces, _ = read(server.url, "poems", "the", client=retries)
    assert len(pieces) == 1
    assert server.lines == ["POST /v1/tasks/poems/generate"] * 3


def test_the_end_is_known_when_all_was_read_and_not_before(writers: Served) -> None:
    with Client(writers.url) as client, client.stream("poems", "the rain", parameters=PLAIN) as pieces:
        with pytest.raises(ClientError, match="all its pieces"):
            _ = pieces.end
        for _ in pieces:
            break
        with pytest.raises(ClientError, match="all its pieces"):
            _ = pieces.end


def test_leaving_the_block_gives_up_the_rest(writers: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = writers.service.generator
    assert generator is not None
    step = generator._decoder.step
    # 200 steps take 10 s, so that the texts are under way when the first piece is there
    monkeypatch.setattr(generator._decoder, "step", lambda chunks: (time.sleep(0.05), step(chunks))[1])
    asked = {"parameters": {"max_tokens": 200, "choices": 16, "ignore_end": True}}
    with Client(writers.url) as client:
        with client.stream("poems", "the rain", **asked) as pieces:
            next(iter(pieces))
            assert generator.running > 0
        deadline = time.monotonic() + 20
        while generator.running:
            assert time.monotonic() < deadline, "the texts were not given up in time"
            time.sleep(0.005)
