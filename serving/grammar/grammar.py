"""What a text must be, as a request says it: JSON of a schema, a match of a regular expression, or one of some texts.

A grammar is written in llguidance's variant of Lark. Nothing is compiled here. Checking what a request says and
writing it as a grammar may take a tenth of a second; so requests carry it as they have it, and a thread makes it one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import orjson
from llguidance import regex_to_lark

from serving.errors import InvalidInputError
from serving.grammar.bounds import lets_a_bound_through
from serving.grammar.closing import closed
from serving.grammar.optional import MOST_OPTIONAL, most_optional
from serving.grammar.schema import check_schema

Schema = Mapping[str, Any] | bool
"""A JSON schema as plain JSON."""
ANY_OBJECT: Schema = MappingProxyType({"type": "object"})
MOST_BYTES = 1 << 17
"""Of what a request says of its texts."""
MOST_CHOICES = 1000
_OPTIONS = {
    # a model that is unsure may write white space without end
    "whitespace_flexible": True,
    "whitespace_pattern": r"( |\n[ \t]{0,20})?",
    # one way to write a text, so that no other spelling of a name gets past what is said of that name
    "json_allowed_escapes": '"\\bfnrt',
    "lenient": False,
    "coerce_one_of": False,
}


@dataclass(frozen=True)
class Grammar:
    """The texts that a continuation may be.

    Attributes:
        rule: what its text is; further rules may follow on lines of their own.
        at: the part of the request that says so.
        parts: from which it is made; each is tried by itself, so that a refusal names the one that is wrong.
    """

    rule: str
    at: str
    parts: Sequence[Grammar] = ()

    @property
    def source(self) -> str:
        return f"start: {self.rule}"


@dataclass(frozen=True)
class Described:
    """A grammar as a request describes it, not looked into yet.

    Attributes:
        at: the part of the request that says so.
        grammar: makes it, on a thread; raises `InvalidInputError` for what is refused before it is compiled.
    """

    at: str
    grammar: Callable[[], Grammar]


def json_of(schema: Schema, at: str) -> Grammar:
    """JSON that fits a schema, with at most a line break and 20 spaces between its tokens.

    Raises:
        InvalidInputError: the schema is too large, or reads another document.
    """
    return Grammar(json_rule(schema, at), at)


def json_rule(schema: Schema, at: str) -> str:
    """JSON of a schema as a part of a rule; objects are closed (see `closed`). Raises as `json_of` does."""
    if schema is False:
        raise InvalidInputError("nothing fits the schema false; send one that something fits", at=at)
    plain = {} if schema is True else dict(schema)
    check_size(size_of(plain, at), at)
    check_schema(plain, at)
    _check_together(plain, at)
    return f"%json {_written({**closed(plain), 'x-guidance': _OPTIONS}, at).decode()}"


def match_of(pattern: str, at: str) -> Grammar:
    """Texts that a regular expression matches as a whole.

    Raises:
        InvalidInputError: it is too long, or ends within an escape.
    """
    check_size(len(pattern.encode()), at)
    if (len(pattern) - len(pattern.rstrip("\\"))) % 2:
        raise InvalidInputError("found a backslash that nothing follows; write two for a backslash", at=at)
    inline = regex_to_lark(pattern, use_ascii="d").replace("\n", "\\n")
    return Grammar(f"/{inline}/", at)


def one_of(texts: Sequence[str], at: str) -> Grammar:
    """One of some texts.

    Raises:
        InvalidInputError: there are too many of them, or none, or an empty one.
    """
    if not 1 <= len(texts) <= MOST_CHOICES:
        raise InvalidInputError(f"found {len(texts)} choices; expected 1 to {MOST_CHOICES}", at=at)
    if "" in texts:
        raise InvalidInputError("found an empty choice; expected texts of at least one character", at=at)
    check_size(sum(len(text.encode()) for text in texts), at)
    return Grammar(" | ".join(quoted(text) for text in texts), at)


def check_size(found: int, at: str, of: str = "") -> None:
    """Refuse what is too large to be compiled.

    Args:
        found: its bytes.
        of: what has so many, where `at` alone does not say it.

    Raises:
        InvalidInputError: it has more than `MOST_BYTES`.
    """
    if found > MOST_BYTES:
        raise InvalidInputError(f"found {found} bytes{of}; at most {MOST_BYTES} are taken", at=at)


def size_of(schema: Mapping[str, Any], at: str) -> int:
    """The bytes of a schema as JSON. Raises `InvalidInputError` where it is nested deeper than JSON is written."""
    return len(_written(schema, at))


def quoted(text: str) -> str:
    """A text as Lark has it."""
    return orjson.dumps(text).decode()


def _check_together(schema: Mapping[str, Any], at: str) -> None:
    """Refuse what shows only where schemas are put together."""
    if lets_a_bound_through(schema):
        raise InvalidInputError(
            "found an exclusive bound at a whole number less than 1 from the other bound, in one schema or in two that "
            "are put together, which is not enforced; send minimum and maximum",
            at=at,
        )
    if (found := most_optional(schema)) > MOST_OPTIONAL:
        raise InvalidInputError(
            f"found an object of {found} properties that may be left out; at most {MOST_OPTIONAL} are taken of one; "
            "name more of them in required, or put some into an object of their own",
            at=at,
        )


def _written(plain: Mapping[str, Any], at: str) -> bytes:
    try:
        return orjson.dumps(plain)
    except TypeError:
        raise InvalidInputError("it is nested too deeply; send a flatter schema", at=at) from None
