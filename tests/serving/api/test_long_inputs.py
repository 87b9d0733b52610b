"""Inputs of any length: answered as if their senders had cut them, or refused by name; never in the way of others."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from holding import deadlines_held
from over_http import Served, alike

from ken_core.long_texts import LongTexts, Read
from serving.errors import DeadlineError, InvalidInputError, TooLargeError
from serving.replica.inference import Prediction
from serving.service import Service
from tests.tiny_checkpoints import Deltas

LONG = "rain " * 350_000
SPACES = " " * 1_000_000
PAIR = {"text": LONG, "text_pair": "sun"}
RERANK = {"query": "sun", "texts": [LONG, "snow"]}
QUESTION = {"question": LONG, "context": "rain and sun"}


def shorter(given: Any) -> Any:
    match given:
        case str():
            return given[:4000]
        case dict():
            return {name: shorter(value) for name, value in given.items()}
        case list():
            return list(map(shorter, given))


def ask(service: Service, task: str, inputs: list[Any], parameters: dict[str, Any], kind: str | None) -> Prediction:
    return asyncio.run(service.predict(service.table.resolve(task), inputs, parameters, 60, kind))


@pytest.mark.parametrize(
    ("task", "kind", "given", "parameters"),
    [
        ("emotion", None, LONG, {}),
        ("emotion", None, PAIR, {}),
        ("search", None, LONG, {}),
        ("tags", None, LONG, {"aggregation_strategy": "simple"}),
        ("ranks", "rerank", RERANK, {}),
        ("entailment", "zero-shot-classification", LONG, {"candidate_labels": ["rain", "sun"]}),
        ("answers", None, QUESTION, {"max_question_len": 20}),
    ],
)
def test_what_is_cut_is_answered_as_its_part_that_is_kept(
    peers: Served, task: str, kind: str | None, given: Any, parameters: dict[str, Any]
) -> None:
    found, expected = (ask(peers.service, task, [one], parameters, kind) for one in (given, shorter(given)))
    assert found.truncated == expected.truncated == [0]
    if kind == "zero-shot-classification":
        assert found.outputs[0].pop("sequence").startswith(expected.outputs[0].pop("sequence"))
    assert alike(found.outputs, expected.outputs)


SUN = {"text": "sun", "text_pair": "sun"}
ZERO_SHOT = "zero-shot-classification"


@pytest.mark.parametrize(
    ("task", "kind", "inputs", "parameters", "where"),
    [
        ("emotion", None, ["sun", SPACES], {}, "inputs.1"),
        ("emotion", None, ["sun", SPACES], {"truncation": False}, "inputs.1"),
        ("emotion", None, [SUN, {"text": "sun", "text_pair": SPACES}], {}, "inputs.1"),
        ("emotion", None, [SUN, {"text": LONG, "text_pair": LONG}], {}, "inputs.1"),
        ("vectors", None, ["sun", SPACES], {}, "inputs.1"),
        ("tags", None, ["sun", SPACES], {}, "inputs.1"),
        ("tags", None, ["sun", SPACES], {"aggregation_strategy": "simple", "stride": 4}, "inputs.1"),
        ("ranks", "rerank", [{"query": SPACES, "texts": ["sun"]}], {}, "inputs.0.query"),
        ("ranks", "rerank", [{"query": "sun", "texts": ["sun", SPACES]}], {}, "inputs.0.texts.1"),
        ("entailment", ZERO_SHOT, ["sun", SPACES], {"candidate_labels": ["sun"]}, "inputs.1"),
        ("entailment", ZERO_SHOT, ["sun"], {"candidate_labels": ["sun", SPACES]}, "candidate_labels"),
        ("answers", None, [{"question": "sun", "context": SPACES}], {}, "inputs.0.context"),
        ("answers", None, [{"question": SPACES, "context": "sun"}], {}, "inputs.0.question"),
    ],
)
def test_what_cannot_be_told_is_refused_by_name(
    peers: Served, task: str, kind: str | None, inputs: list[Any], parameters: dict[str, Any], where: str
) -> None:
    with pytest.raises(TooLargeError, match=rf"^{where}: .*131072"):
        ask(peers.service, task, inputs, parameters, kind)


@pytest.mark.parametrize("text", [LONG, "rain " * 100], ids=["long", "a little long"])
def test_a_text_that_may_not_be_cut_is_refused_alike_however_long_it_is(peers: Served, text: str) -> None:
    with pytest.raises(InvalidInputError, match=r"inputs\.1: longer than the 64 tokens the model takes"):
        ask(peers.service, "emotion", ["sun", text], {"truncation": False}, None)


def test_a_template_is_not_repeated_for_every_label_before_it_is_measured(peers: Served) -> None:
    parameters = {"candidate_labels": ["label"] * 250, "hypothesis_template": "x" * 1_000_000 + "{}"}
    with pytest.raises(TooLargeError, match=r"candidate_labels: .* 250001750 characters"):
        ask(peers.service, "entailment", ["rain"], parameters, ZERO_SHOT)


# Beside others


class Held:
    """Holds up whoever encodes a long text, and counts what was let through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.waiting = 0
        self.passed = 0
        self._let = threading.Event()
        real = LongTexts.read

        def read(texts: LongTexts, text: str, part: slice, more: bool = False) -> Read:
            self.waiting += 1
            assert self._let.wait(20)
            self.passed += 1
            return real(texts, text, part, more)

        monkeypatch.setattr(LongTexts, "read", read)

    def let(self) -> None:
        self._let.set()


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not happened():
            await asyncio.sleep(0.001)


def test_six_clients_with_long_texts_keep_nobody_from_an_answer(
    service: Service, deltas: Deltas, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)

    async def asking() -> list[Prediction]:
        long = ["雨" * 20_000] * 3
        theirs = [
            asyncio.create_task(service.predict(deltas.spam.digest, long, {}, 20, client=f"client {i}"))
            for i in range(6)
        ]
        await until(lambda: held.waiting > 0)
        for client in ("another", "client 0", "another"):
            answer = await service.predict(deltas.topic.digest, ["rain"], {}, 20, client=client)
            assert (len(answer.outputs), held.passed) == (1, 0)
        held.let()
        return await asyncio.gather(*theirs)

    assert [answer.truncated for answer in asyncio.run(asking())] == [[0, 1, 2]] * 6


@pytest.mark.parametrize("how", ["left", "late"])
def test_texts_of_a_request_that_ended_are_not_encoded(
    service: Service, deltas: Deltas, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    held = Held(monkeypatch)

    async def asking() -> None:
        timeout = 20 if how == "left" else 0.05
        with deadlines_held() as let:
            asked = service.predict(deltas.spam.digest, ["雨" * 20_000] * 50, {}, timeout, client="gone")
            gone = asyncio.create_task(asked)
            await until(lambda: held.waiting == 1)
            if how == "left":
                gone.cancel()
            else:
                let()
            with pytest.raises(asyncio.CancelledError if how == "left" else DeadlineError):
                await gone
        held.let()
        await service.predict(deltas.spam.digest, ["雨" * 20_000], {}, 20, client="next")

    asyncio.run(asking())
    assert (held.passed, len(service.workers)) == (2, 0)
    assert service.admission.preparing == 0
