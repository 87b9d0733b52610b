"""Calls of tools, asked for by OpenAI's own client."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jsonschema
import openai
import pytest
from language_models_served import answering
from over_http import Served
from pydantic import BaseModel

from tests.chat_templates import TOOLS
from tests.tiny_language_tasks import LanguageTasks

ASK: list[Any] = [{"role": "user", "content": "how far is the city"}]
CHAT: dict[str, Any] = {"model": "callers", "messages": ASK, "max_tokens": 400, "temperature": 0}
WEATHER = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"enum": [1, 2]}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TIME = {
    "type": "object",
    "properties": {"zone": {"enum": ["UTC"]}},
    "required": ["zone"],
    "additionalProperties": False,
}
PARAMETERS = {"weather": WEATHER, "time": TIME, "ping": {"type": "object", "maxProperties": 0}}


def tool(name: str, **told: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **told}}


SOME: Any = [
    tool("weather", description="of a city", parameters=WEATHER, strict=True),
    tool("time", parameters=TIME),
    tool("ping"),
]
First = Callable[[str], dict[str, int]]
ONE = {"parallel_tool_calls": False}


@pytest.fixture(scope="module")
def callers(embedded_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Tasks whose templates show tools: one of a known family, and one of none; and one that does not show them."""
    deaf = TOOLS.replace("message in messages", "message in messages if message.role in ['user', 'assistant']")
    llama = TOOLS.replace("Call with", 'Respond in the format {"name": function name, "parameters": dictionary}')
    unknown = TOOLS.replace("<tool_call>", "<call>").replace("</tool_call>", "</call>")
    made = LanguageTasks(tmp_path_factory.mktemp("language-tasks"), positions=2048)
    tasks = {
        "callers": made.language_model("callers", template=TOOLS, model_max_length=2048),
        "others": made.language_model("others", template=unknown, model_max_length=2048),
        "mute": made.language_model("mute"),
        "deaf": made.language_model("deaf", template=deaf, model_max_length=2048),
        "llama": made.language_model("llama", template=llama.replace("tool_call>", "call>"), model_max_length=2048),
        "named": made.language_model("named", template={"rag": TOOLS, "other": TOOLS}),
    }
    with answering(made, tasks, embedded_url, tmp_path_factory.mktemp("callers")) as found:
        yield found


@pytest.fixture
def first(callers: Served) -> First:
    """A bias for texts that begin with a letter."""
    encoder = callers.service.engine.tiers.base_encoder
    return lambda letter: {str(encoder.prompt(letter, special=False)[0]): 100}


@pytest.fixture
def client(callers: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{callers.url}/v1", api_key="any", max_retries=0, timeout=60) as client:
        yield client


def fits(call: Any) -> bool:
    jsonschema.validate(json.loads(call.function.arguments), PARAMETERS[call.function.name])
    return True


# Calls that must be


@pytest.mark.parametrize("task", ["callers", "others"])
@pytest.mark.parametrize("seed", range(4))
def test_a_required_call_is_of_one_of_the_tools_with_arguments_that_fit(
    task: str, seed: int, client: openai.OpenAI
) -> None:
    asked = {**CHAT, "model": task, "temperature": 1.2, "seed": seed, "tools": SOME, "tool_choice": "required", **ONE}
    (choice,) = client.chat.completions.create(**asked).choices
    (call,) = choice.message.tool_calls or ()
    assert (choice.message.content, choice.finish_reason, call.type) == (None, "tool_calls", "function")
    assert call.id.startswith("call_")
    assert fits(call)


def test_several_calls_are_told_one_by_one(client: openai.OpenAI) -> None:
    found = client.chat.completions.create(
        **CHAT | {"temperature": 1, "seed": 1, "n": 8}, tools=SOME, tool_choice="required"
    )
    calls = [choice.message.tool_calls or [] for choice in found.choices if choice.finish_reason == "tool_calls"]
    assert max(map(len, calls)) > 1
    assert all(fits(call) for some in calls for call in some)
    ids = [call.id for some in calls for call in some]
    assert len(set(ids)) == len(ids)


def test_a_named_call_is_of_that_tool(client: openai.OpenAI) -> None:
    for name in ("weather", "ping"):
        (choice,) = client.chat.completions.create(**CHAT, tools=SOME, tool_choice=tool(name)).choices
        (call,) = choice.message.tool_calls or ()
        assert (call.function.name, choice.finish_reason) == (name, "stop")
        assert fits(call)


def test_allowed_tools_bound_the_choice(client: openai.OpenAI) -> None:
    allowed: Any = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [tool("time")]}}
    for seed in range(4):
        asked = {**CHAT, "temperature": 1.5, "seed": seed}
        (choice,) = client.chat.completions.create(**asked, tools=SOME, tool_choice=allowed).choices
        assert {call.function.name for call in choice.message.tool_calls or ()} == {"time"}


def test_a_stream_has_a_calls_name_first_and_then_its_arguments(client: openai.OpenAI) -> None:
    asked = {**CHAT, "tools": SOME, "tool_choice": tool("weather")}
    (call,) = client.chat.completions.create(**asked).choices[0].message.tool_calls or ()
    chunks = [chunk.choices[0] for chunk in client.chat.completions.create(**asked, stream=True)]
    first, begun, *middle, last = chunks
    assert (first.delta.role, first.delta.content) == ("assistant", None)
    (opened,) = begun.delta.tool_calls or ()
    assert (opened.index, opened.type) == (0, "function")
    assert opened.function is not None
    assert (opened.function.name, opened.function.arguments) == ("weather", "")
    assert (opened.id or "").startswith("call_")
    parts = [part for choice in middle for part in choice.delta.tool_calls or ()]
    assert all((part.index, part.id, part.type) == (0, None, None) for part in parts)
    arguments = [(part.function and part.function.arguments) or "" for part in parts]
    assert "".join(arguments) == call.function.arguments
    assert len(arguments) > 3
    assert all(choice.delta.content is None for choice in chunks)
    assert last.finish_reason == "stop"


def test_a_stream_of_the_clients_own_helper_is_read(client: openai.OpenAI) -> None:
    asked = {**CHAT, "tools": SOME[:1], "tool_choice": "required", **ONE}
    with client.chat.completions.stream(**asked) as stream:
        events = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "tool_calls.function.arguments.delta" in events
    assert fits((final.choices[0].message.tool_calls or ())[0])
    assert final.choices[0].finish_reason == "tool_calls"


def test_a_call_that_is_cut_off_says_so(client: openai.OpenAI) -> None:
    asked = {**CHAT, "tools": SOME, "tool_choice": tool("weather")}
    whole = client.chat.completions.create(**asked)
    assert whole.usage is not None
    for most in (3, whole.usage.completion_tokens - 12):
        (cut,) = client.chat.completions.create(**asked | {"max_tokens": most}).choices
        assert (cut.finish_reason, cut.message.content) == ("length", None)
    (call,) = cut.message.tool_calls or ()
    (complete,) = whole.choices[0].message.tool_calls or ()
    assert complete.function.arguments.startswith(call.function.arguments)


def test_a_call_that_a_stop_cuts_off_is_no_call_that_could_be_made(client: openai.OpenAI) -> None:
    asked = {**CHAT, "tools": SOME, "tool_choice": "required", "stop": ['"city"', '"zone"'], **ONE}
    seen = set()
    for seed in range(6):
        sampled = asked | {"temperature": 1, "seed": seed}
        choice = client.chat.completions.create(**sampled).choices[0]
        called = [call.function.arguments for call in choice.message.tool_calls or ()]
        whole = all(text.rstrip().endswith("}") for text in called)
        assert choice.finish_reason == ("tool_calls" if whole else "stop")
        *_, last = client.chat.completions.create(**sampled, stream=True)
        assert last.choices[0].finish_reason == choice.finish_reason
        seen.add(whole)
    assert False in seen


def test_tools_forced_by_a_llama(client: openai.OpenAI) -> None:
    for stream in (False, True):
        choice = answered(client, stream, **CHAT | {"model": "llama"}, tools=SOME, tool_choice="required")
        (call,) = choice.message.tool_calls
        assert fits(call)


# Calls that may be


CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome", "days": 1}}\n</tool_call>'


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("text", "said", "calls", "finish"),
    [
        (f"I look.\n{CALL}\n{CALL}", "I look.", 2, "tool_calls"),
        (f"I look.\n{CALL}", "I look.", 1, "tool_calls"),
        ("It rains.", "It rains.", 0, "stop"),
        ("I " + CALL.replace("weather", "rm"), "I " + CALL.replace("weather", "rm"), 0, "stop"),
        ("I " + CALL.replace("}}", "}"), "I " + CALL.replace("}}", "}"), 0, "stop"),
    ],
)
def test_a_model_may_call_or_answer(
    text: str, said: str, calls: int, finish: str, stream: bool, client: openai.OpenAI, first: First
) -> None:
    """What the model would write is put into its mouth, by a grammar that allows one text beside calls."""
    extra = {"guided_choice": [text]}
    choice = answered(client, stream, **CHAT, tools=SOME, logit_bias=first("I"), extra_body=extra)
    assert (choice.message.content, choice.finish_reason) == (said, finish)
    made = choice.message.tool_calls or ()
    assert [call.function.name for call in made] == ["weather"] * calls
    assert all(json.loads(call.function.arguments) == {"city": "Rome", "days": 1} for call in made)


def test_an_answer_of_a_schema_leaves_calls_to_the_model(client: openai.OpenAI, first: First) -> None:
    """With a response format, an answer is JSON of it or calls."""
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": [True, False]}}}
    for letter, called in (("<", True), ("t", False)):
        bias = first(letter)
        choice = answered(client, False, **CHAT, tools=SOME, logit_bias=bias, response_format=schema, **ONE)
        assert bool(choice.message.tool_calls) is called
        assert called or choice.message.content == "true"


@pytest.mark.parametrize("stream", [False, True])
def test_of_calls_that_may_not_be_several_the_first_ends_the_answer(
    stream: bool, client: openai.OpenAI, first: First
) -> None:
    extra = {"guided_choice": [f"I look.\n{CALL}\n{CALL}"]}
    choice = answered(client, stream, **CHAT, **ONE, tools=SOME, logit_bias=first("I"), extra_body=extra)
    assert [call.function.name for call in choice.message.tool_calls or ()] == ["weather"]
    assert choice.finish_reason == "tool_calls"


def answered(client: openai.OpenAI, stream: bool, **asked: Any) -> Any:
    if not stream:
        return client.chat.completions.create(**asked).choices[0]
    with client.chat.completions.stream(**asked) as events:
        for _ in events:
            pass
        return events.get_final_completion().choices[0]


# What is shown, and what is refused


def test_tools_and_calls_are_part_of_the_prompt(client: openai.OpenAI) -> None:
    def tokens(**more: Any) -> int:
        usage = client.chat.completions.create(**{**CHAT, "max_tokens": 1, **more}).usage
        assert usage is not None
        return usage.prompt_tokens

    call = {"id": "call_1", "type": "function", "function": {"name": "time", "arguments": '{"zone": "UTC"}'}}
    history = [
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    ]
    assert tokens(tools=SOME) > tokens() == tokens(tools=SOME, tool_choice="none")
    assert tokens(messages=history) > tokens() + 20


def test_a_dialogue_of_calls_goes_on(client: openai.OpenAI) -> None:
    asked = {**CHAT, "tools": SOME, "tool_choice": "required", **ONE}
    said = client.chat.completions.create(**asked).choices[0].message
    (call,) = said.tool_calls or ()
    history = [*ASK, said.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
    assert client.chat.completions.create(**CHAT | {"messages": history, "max_tokens": 5}).choices[0].message.content


def test_what_the_client_parsed_is_taken_back(client: openai.OpenAI) -> None:
    class Weather(BaseModel):
        city: Literal["Rome", "Oslo"]

    tools = [openai.pydantic_function_tool(Weather)]
    said = client.chat.completions.parse(**CHAT, tools=tools, tool_choice="required", **ONE).choices[0].message
    (call,) = said.tool_calls or ()
    assert isinstance(call.function.parsed_arguments, Weather)
    parsed = client.chat.completions.parse(**CHAT, response_format=Weather).choices[0].message
    result = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
    for messages in ([*ASK, said, result], [*ASK, said.model_dump(), result], [*ASK, parsed.model_dump(), *ASK]):
        assert client.chat.completions.create(**CHAT | {"messages": messages, "max_tokens": 3}).choices


BAD: list[tuple[dict[str, Any], str | None, str]] = [
    ({"tools": [tool("")]}, "tools.0.function.name", "match pattern"),
    ({"tools": [{"type": "function", "function": {}}]}, "tools.0.function.name", "required"),
    ({"tools": [{"type": "web_search"}]}, "tools.0.type", "'function'"),
    ({"tools": [tool("a b")]}, "tools.0.function.name", "match pattern"),
    ({"tools": [tool("time"), tool("time")]}, "tools", "two tools named 'time'"),
    ({"tools": [tool("a")] * 129}, "tools", "at most 128"),
    (
        {"tools": SOME, "tool_choice": {"type": "allowed_tools", "allowed_tools": {"tools": [tool("time")] * 129}}},
        "tool_choice",
        "at most 128",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 1025}] * 4},
        "messages",
        "found 4100 parts and calls in all messages; at most 4096",
    ),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "a"}}] * 4097}]},
        "messages",
        "found 4097 parts and calls",
    ),
    ({f"x{i}": 1 for i in range(1100)}, None, "at most 1024 are taken"),
    ({"tools": [tool("a", parameters={"not": {}})], "tool_choice": "required"}, "tools.0.function.parameters", "not"),
    (
        {"tools": [*SOME, tool("a", parameters={"type": "array"})], "tool_choice": "required"},
        "tools.3.function.parameters",
        "are an object",
    ),
    ({"tool_choice": "required"}, "tool_choice", "found no tools"),
    ({"tools": SOME, "tool_choice": tool("rm")}, "tool_choice", "none of the tools"),
    ({"tools": SOME, "tool_choice": "any"}, "tool_choice", "expected none, auto, required"),
    ({"tools": SOME, "tool_choice": {"type": "custom", "name": "a"}}, "tool_choice", "expected none, auto, required"),
    ({"tools": SOME, "tool_choice": "required", "guided_choice": ["a"]}, "tool_choice", "beside guided_choice"),
    ({"model": "others", "tools": SOME}, "tool_choice", "no family whose calls are known"),
    ({"model": "mute", "tools": SOME, "tool_choice": "required"}, "tools", "shows no tools"),
    ({"model": "mute", "tools": SOME}, "tools", "shows no tools"),
    ({"model": "named", "tools": SOME}, "messages", "chat templates named other, rag"),
    ({"model": "llama", "tools": SOME, "guided_choice": ["a"]}, "guided_choice", "cannot be told from a call"),
    (
        {"model": "deaf", "messages": [*ASK, {"role": "tool", "tool_call_id": "c", "content": "it rains"}]},
        "messages",
        "messages.1.role: the task's chat template leaves out results of tools",
    ),
    (
        {"model": "deaf", "messages": [*ASK, {"role": "tool", "tool_call_id": "c", "content": "city"}]},
        "messages",
        "messages.1.role: the task's chat template leaves out results of tools",
    ),
    (
        {"model": "deaf", "messages": [*ASK, {"role": "tool", "tool_call_id": "c", "content": ""}]},
        "messages",
        "messages.1.role: the task's chat template leaves out results of tools",
    ),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("bad", "param", "words"), BAD, ids=lambda value: str(value)[:60])
def test_what_cannot_be_called_is_refused_by_name_before_anything_is_sent(
    bad: dict[str, Any], param: str | None, words: str, stream: bool, callers: Served
) -> None:
    answer = callers.post("/v1/chat/completions", json={**CHAT, **bad, "stream": stream})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert words in error["message"]
