"""A request's grammar made ready for a tokenizer, within bounds; what it cannot enforce is refused by name."""

from __future__ import annotations

import logging
import re
import time
from functools import partial

import numpy as np
import orjson
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from ken_core.tokenization import Encoder
from serving.errors import InvalidInputError
from serving.grammar.grammar import Grammar
from serving.grammar.patience import Patience
from serving.grammar.vocabulary import Vocabularies
from serving.workers.steps import Steps

_log = logging.getLogger(__name__)

LIMITS = LLParserLimits(
    max_lexer_states=50_000,  # up to 2 kB each, of one continuation
    # With 49,152 tokens an object of 112 properties that may be left out can be followed then, and the slowest mask
    # known takes 0.02 s; with llguidance's own 50,000 it takes 0.4 s.
    step_max_items=10_000,
    verbose_errors=False,
)
"""Where they are not named here, llguidance's own: they end a mask after some tenths of a second at worst."""
_PLACE = re.compile(r"^at \d+\(\d+\): ")
_WRAPPED = "failed to compile JSON schema: "
_UNENFORCED = re.compile(r"Unimplemented keys: (\[.*\])")
_FORMAT = re.compile(r"Unknown format: (.*)")
_GROWN = ("Too many items", "Current row has")
_LONGEST_REASON = 200
_FOLLOWED = 64
"""Tokens of the text that is followed before a grammar is taken."""
_WITHIN_A_TEXT, _CLOSING = "x", '"'
_PREFERRED = ("{", "[", '"', ",", ":")


_PATIENCE = Patience()


def compiled(
    grammar: Grammar, encoder: Encoder, vocabularies: Vocabularies, patience: Patience = _PATIENCE
) -> Steps[LLMatcher]:
    """The state of a grammar before its first token.

    Raises:
        InvalidInputError: a part cannot be enforced or compiled in time, or no text fits the grammar.
        OverloadedError: earlier grammars are still being compiled.
    """
    yield 1
    vocabulary = vocabularies.of(encoder, grammar.at)
    taken = 0.0
    for part in grammar.parts:
        yield 1
        began = time.monotonic()
        patience(partial(_started, part, vocabulary), part.at, taken)
        taken += time.monotonic() - began
    yield 1
    return patience(partial(_started, grammar, vocabulary), grammar.at, taken)


def _started(part: Grammar, vocabulary: LLTokenizer) -> LLMatcher:
    matcher = LLMatcher(vocabulary, part.source, log_level=0, limits=LIMITS)
    if not matcher.is_error():
        matcher.compute_bitmask()  # the first mask takes longest, and shows whether any text fits
    if error := matcher.get_error() or _failure(matcher.deep_copy(), vocabulary):
        raise InvalidInputError(refusal(error), at=part.at)
    return matcher


def _failure(matcher: LLMatcher, vocabulary: LLTokenizer) -> str:
    """Why a text that opens and names what it can could not be followed; empty where it can be.

    What grows beyond the limits does so where much may come next, so it is found before a text has begun.
    """
    letters = (*_PREFERRED, _WITHIN_A_TEXT)
    tokens = {letter: ids[0] for letter in letters if (ids := vocabulary.tokenize_str(letter))}
    for _ in range(_FOLLOWED):
        allowed = np.frombuffer(matcher.compute_logit_bias(), np.uint8)[:-1] != 0
        if matcher.is_error() or not allowed.any():
            break
        possible = {letter: token for letter, token in tokens.items() if allowed[token]}
        preferred = _CLOSING if _WITHIN_A_TEXT in possible else _PREFERRED
        matcher.consume_token(next((possible[a] for a in preferred if a in possible), int(allowed.argmax())))
        if matcher.is_error() or matcher.is_stopped():
            break
    return matcher.get_error()


def refusal(told: str) -> str:
    """What llguidance says of a grammar that it does not take, as a request's sender should read it."""
    first, *further = told.splitlines()
    reason = " ".join([first, *(line for line in further if line.startswith("error: "))])
    reason = _PLACE.sub("", reason).removeprefix(_WRAPPED)
    if found := _UNENFORCED.search(reason):
        names = ", ".join(orjson.loads(found[1]))
        return f"found {names}, which is not enforced; leave it out, and check answers for it yourself"
    if found := _FORMAT.search(reason):
        return f"found format {found[1]!r}, which is not enforced; leave it out, or send a pattern"
    if "oneOf constraints are not supported" in reason:
        return (
            "found oneOf whose alternatives cannot be told apart; send anyOf, or make the property that tells them "
            "apart required in each"
        )
    if any(words in reason for words in _GROWN):
        return (
            "found so many properties that may be left out, or alternatives, that what may come next is not followed; "
            "send fewer of them in one place"
        )
    if reason.startswith("panic"):
        _log.error("a grammar cannot be compiled: %s", told)
        return (
            "it cannot be compiled for the task's tokenizer, which fails on a text that must follow; send another one"
        )
    if reason.startswith("NoExtension"):
        return "found what no text fits, or only one without end; expected what some other text fits"
    return f"it cannot be enforced ({reason[:_LONGEST_REASON]}); send a simpler one"
