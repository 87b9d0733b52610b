"""Calls are found in texts however these are divided, and what is no call stays text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.function_calls.formats import HERMES, LLAMA, PLAIN, Format
from serving.function_calls.functions import Function, Functions
from serving.function_calls.json_end import JsonEnd
from serving.function_calls.reading import Arguments, Called, Said, reader_of

NAMES = ("weather", "time")


def read(parts: list[str], form: Format, forced: bool = False, several: bool = True) -> tuple[str, list[Any]]:
    """The text, and the calls with their arguments as a text."""
    functions = Functions([Function(name, {}, "") for name in NAMES], forced, several)
    reader = reader_of(form, functions)
    said, calls = "", []
    for part in [found for text in parts for found in reader.add(text)] + list(reader.end()):
        if isinstance(part, Said):
            said += part.text
        elif isinstance(part, Called):
            calls.append([part.name, ""])
        else:
            assert isinstance(part, Arguments)
            calls[-1][1] += part.text
    return said, calls


def call(name: str = "weather", key: str = "arguments", **arguments: Any) -> str:
    return json.dumps({"name": name, key: arguments})


ROME = ["weather", '{"city": "Rome"}']
OFFERED: list[tuple[Format, str, str, list[Any]]] = [
    (HERMES, "It rains.", "It rains.", []),
    (HERMES, f"<tool_call>\n{call(city='Rome')}\n</tool_call>", "", [ROME]),
    (HERMES, f"I look.\n\n<tool_call>{call(city='Rome')}</tool_call>\n", "I look.", [ROME]),
    (
        HERMES,
        f"<tool_call>{call(city='Rome')}</tool_call>\n<tool_call>{call('time')}</tool_call>",
        "",
        [ROME, ["time", "{}"]],
    ),
    (HERMES, f"<tool_call>[{call(city='Rome')}, {call('time')}]</tool_call>", "", [ROME, ["time", "{}"]]),
    (HERMES, f"a <tool_call>{call(city='Rome')}", "a", [ROME]),
    (HERMES, "a <tool_call>{'name': 'weather'}</tool_call> b", "a <tool_call>{'name': 'weather'}</tool_call> b", []),
    (HERMES, f"<tool_call>{call('rm', a=1)}</tool_call>", f"<tool_call>{call('rm', a=1)}</tool_call>", []),
    (HERMES, '<tool_call>{"name": "weather"', '<tool_call>{"name": "weather"', []),
    (HERMES, "1 < 2 <tool", "1 < 2 <tool", []),
    (HERMES, "spaces  \n", "spaces  \n", []),
    (HERMES, "[" * 100_000, "[" * 100_000, []),
    (HERMES, "<tool_call>" + "[" * 100_000 + "</tool_call>", "<tool_call>" + "[" * 100_000 + "</tool_call>", []),
    (LLAMA, call(key="parameters", city="Rome"), "", [ROME]),
    (LLAMA, "\n" + call(city="Rome"), "", [ROME]),
    (LLAMA, "It rains. {}", "It rains. {}", []),
    (LLAMA, '{"a": 1}', '{"a": 1}', []),
    (LLAMA, call(key="parameters", city="Rome") + " done", call(key="parameters", city="Rome") + " done", []),
    (LLAMA, "", "", []),
]


@pytest.mark.parametrize(("form", "text", "said", "calls"), OFFERED, ids=lambda value: str(value)[:40])
def test_calls_are_told_from_text(form: Format, text: str, said: str, calls: list[Any]) -> None:
    assert read([text], form) == (said, calls)
    if len(text) < 1000:
        assert read(list(text), form) == (said, calls)


@given(st.lists(st.sampled_from(["<tool_call>", "</tool_call>", "<tool", "_call>", " ", "\n", "a", call(city="Rome")])))
def test_a_text_is_read_alike_however_it_is_divided(parts: list[str]) -> None:
    assert read(parts, HERMES) == read(["".join(parts)], HERMES) == read(list("".join(parts)), HERMES)


def test_text_is_told_as_it_comes_and_nothing_that_may_be_a_call() -> None:
    reader = reader_of(HERMES, Functions([Function("weather", {}, "")], False, True))
    found = [
        [part.text for part in reader.add(text) if isinstance(part, Said)] for text in ("It ", "rains", " <to", "p>")
    ]
    assert found == [["It"], [" rains"], [], [" <top>"]]


def test_of_several_calls_one_is_told_where_one_is_asked_for() -> None:
    text = f"[{call(city='Rome')}, {call('time')}]"
    assert read([text], LLAMA, several=False) == ("", [ROME])


FORCED = '<tool_call>\n{"name": "weather", "arguments": {"city": "a \\"}{ \\\\"}}\n</tool_call>\n'


@pytest.mark.parametrize("form", [HERMES, PLAIN])
def test_arguments_of_a_forced_call_are_told_as_they_come(form: Format) -> None:
    text = FORCED if form is HERMES else FORCED.removeprefix("<tool_call>\n").removesuffix("</tool_call>\n")
    expected = ["weather", '{"city": "a \\"}{ \\\\"}']
    assert read([text * 2], form, forced=True) == read(list(text * 2), form, forced=True) == ("", [expected, expected])
    functions = Functions([Function("weather", {}, "")], True, True)
    reader = reader_of(form, functions)
    parts = [part for letter in text for part in reader.add(letter)]
    assert len(parts) == 1 + len(expected[1])


def test_a_forced_call_that_was_cut_off_is_told_as_far_as_it_came() -> None:
    assert read(['<tool_call>\n{"name": "wea'], HERMES, forced=True) == ("", [])
    assert read([FORCED[:57]], HERMES, forced=True) == ("", [["weather", '{"city": "a ']])


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ),
    st.integers(0, 40),
)
def test_an_objects_end_is_found(value: Any, cut: int) -> None:
    text = json.dumps({"value": value}, ensure_ascii=False)
    end = JsonEnd()
    first = end.find(text[:cut])
    assert (first if cut >= len(text) else cut + (end.find(text[cut:] + '}, "more"') or 0)) == len(text)
