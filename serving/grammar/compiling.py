"""A request's grammar made ready for a tokenizer, within bounds; what it cannot enforce is refused by name."""

from __future__ import annotations

import re

import orjson
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from ken_core.tokenization import Encoder
from serving.errors import InvalidInputError
from serving.grammar.grammar import Grammar
from serving.grammar.vocabulary import LONGEST_FIXED, Vocabularies
from serving.workers.steps import Steps

LIMITS = LLParserLimits(
    max_lexer_states=50_000,  # up to 2 kB each, of one continuation
    verbose_errors=False,
)
"""Where they are not named here, llguidance's own: they end a mask after some tenths of a second at worst."""
_PLACE = re.compile(r"^at \d+\(\d+\): ")
_WRAPPED = "failed to compile JSON schema: "
_UNENFORCED = re.compile(r"Unimplemented keys: (\[.*\])")
_FORMAT = re.compile(r"Unknown format: (.*)")
_LONGEST_REASON = 200


def compiled(grammar: Grammar, encoder: Encoder, vocabularies: Vocabularies) -> Steps[LLMatcher]:
    """The state of a grammar before its first token.

    Raises:
        InvalidInputError: a part cannot be enforced or compiled, or no text fits the grammar.
    """
    yield 1
    vocabulary = vocabularies.of(encoder, grammar.at)
    for part in grammar.parts:
        yield 1
        _started(part, vocabulary)
    yield 1
    return _started(grammar, vocabulary)


def _started(part: Grammar, vocabulary: LLTokenizer) -> LLMatcher:
    matcher = LLMatcher(vocabulary, part.source, log_level=0, limits=LIMITS)
    if not matcher.is_error():
        matcher.compute_bitmask()  # the first mask takes longest, and shows whether any text fits
    if matcher.is_error():
        raise InvalidInputError(refusal(matcher.get_error()), at=part.at)
    return matcher


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
    if reason.startswith("NoExtension"):
        return (
            "found what no text fits, or only one without end, or one that has more than "
            f"{LONGEST_FIXED} characters which are certain; expected what some other text fits"
        )
    return f"it cannot be enforced ({reason[:_LONGEST_REASON]}); send a simpler one"
