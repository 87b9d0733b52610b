"""What is too much in all tools of a request is refused before any of it is looked into."""

from __future__ import annotations

from typing import Any

import pytest

from serving.errors import InvalidInputError
from serving.function_calls import forcing
from serving.function_calls.forcing import grammar_of
from serving.function_calls.formats import HERMES
from serving.function_calls.functions import Function, Functions
from serving.grammar.grammar import Described, json_of

LARGE = {"type": "object", "x": "x" * 60_000}
MANY = {"type": "object", "x": [{} for _ in range(3000)]}


def functions(*parameters: dict[str, Any], forced: bool = True) -> Functions:
    some = [Function(f"f{i}", one, f"tools.{i}.function.parameters") for i, one in enumerate(parameters)]
    return Functions(some, forced, True, "tool_choice")


def answer(text: str) -> Described:
    return Described("response_format", lambda: json_of({"const": text}, "response_format"))


@pytest.mark.parametrize(
    ("some", "beside", "words"),
    [
        (functions(LARGE, LARGE, LARGE), None, "bytes in the parameters of all tools; at most 131072"),
        (functions(LARGE, LARGE), answer("x" * 12_000), "in the parameters of all tools and the answer; at most"),
        (functions(MANY, MANY), None, "found 6002 schemas in the parameters of all tools; at most 5000"),
    ],
)
def test_the_sum_of_all_tools_is_bounded_before_any_is_looked_into(
    some: Functions, beside: Described | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    monkeypatch.setattr(forcing, "json_rule", lambda _, at: looked.append(at))
    with pytest.raises(InvalidInputError, match=words) as refused:
        grammar_of(some, HERMES, beside)
    assert refused.value.at == "tool_choice"
    assert not looked


def test_tools_that_are_large_in_all_pass() -> None:
    assert grammar_of(functions(LARGE, LARGE), HERMES, answer("x")).source.count("%json") == 3
