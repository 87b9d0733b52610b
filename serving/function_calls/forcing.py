"""The grammar of texts that must be calls."""

from __future__ import annotations

from serving.errors import InvalidInputError
from serving.function_calls.formats import Format
from serving.function_calls.functions import Function, Functions
from serving.grammar.grammar import Described, Grammar, check_size, json_rule, quoted, size_of
from serving.grammar.schema import MOST_SCHEMAS, every

MOST_CALLS = 16
"""In one text. A model that is unsure may call without end."""


def grammar_of(functions: Functions, form: Format, answer: Described | None = None) -> Grammar:
    """Calls of some functions, as a family writes them.

    Args:
        answer: a text of one line of rules that may stand in place of calls; None: only calls.

    Raises:
        InvalidInputError: a function's parameters, or the answer, are refused before they are compiled.
    """
    instead = None if answer is None else answer.grammar()
    _check(functions, len(instead.rule) if instead else 0)
    schemas = [json_rule(_object(one), one.at) for one in functions.some]
    several = functions.several and form.several
    more = f' ("\\n" call){{0,{MOST_CALLS - 1}}}' if several else ""
    choices = " | ".join(f"f{i}" for i in range(len(schemas)))
    lines = [
        f"call{more}" + (" | answer" if instead else ""),
        f"call: {quoted(_before(form))} ({choices}) {quoted(_after(form))}",
        *(f"f{i}: {quoted(_named(one, form))} {schemas[i]}" for i, one in enumerate(functions.some)),
    ]
    parts = [Grammar(schema, one.at) for schema, one in zip(schemas, functions.some, strict=True)]
    if instead is not None:
        lines.append(f"answer: {instead.rule}")
        parts.append(instead)
    return Grammar("\n".join(lines), functions.at, parts)


def _check(functions: Functions, beside: int) -> None:
    """Refuse what is too much in all, before any of it is looked into.

    Args:
        beside: bytes of what else the text may be.
    """
    found = sum(size_of(_object(one), one.at) for one in functions.some)
    check_size(found + beside, functions.at, " in the parameters of all tools" + (" and the answer" if beside else ""))
    schemas = sum(1 for one in functions.some for _ in every(one.parameters))
    if schemas > MOST_SCHEMAS:
        raise InvalidInputError(
            f"found {schemas} schemas in the parameters of all tools; at most {MOST_SCHEMAS} are taken", functions.at
        )


def _before(form: Format) -> str:
    return (f"{form.opens}\n" if form.opens else "") + '{"name": "'


def _named(one: Function, form: Format) -> str:
    return f'{one.name}", "{form.arguments}": '


def _after(form: Format) -> str:
    return "}" + (f"\n{form.closes}" if form.closes else "")


def _object(one: Function) -> dict[str, object]:
    """The parameters, of which only objects are arguments."""
    kind = one.parameters.get("type", "object")
    if kind != "object":
        raise InvalidInputError(
            f"found the type {str(kind)[:40]!r}; the parameters of a function are an object", one.at
        )
    return {"type": "object", **one.parameters}
