"""The grammars of requests, made ready for their tasks' tokenizers on threads of their own."""

from __future__ import annotations

from collections.abc import Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from llguidance import LLMatcher

from ken_core.errors import TemplateError
from ken_core.tokenization import Encoder
from serving.errors import InvalidInputError
from serving.function_calls.forcing import grammar_of
from serving.function_calls.formats import Format, format_of
from serving.generation.query import Chat, GenerationQuery
from serving.grammar.compiling import compiled
from serving.grammar.grammar import Described
from serving.grammar.state import Delay, GrammarState
from serving.grammar.vocabulary import Vocabularies
from serving.workers.pool import WorkerPool
from serving.workers.steps import Steps

_COMPILED_AT_ONCE = 2
_MASKS_AT_ONCE = 2


@dataclass(frozen=True)
class Constraint:
    """A grammar that a query's continuations follow, each by itself."""

    matcher: LLMatcher
    masks: ThreadPoolExecutor
    at: str
    delay: Delay

    def state(self) -> GrammarState:
        """The state of a continuation before its first token."""
        return GrammarState(self.matcher.deep_copy(), self.masks, self.at, self.delay)


class Constraining:
    """Compiles grammars; clients take turns, since a grammar may take a second."""

    def __init__(self) -> None:
        self._vocabularies = Vocabularies()
        self._pool = WorkerPool(_COMPILED_AT_ONCE)
        self._masks = ThreadPoolExecutor(_MASKS_AT_ONCE, thread_name_prefix="ken-mask")

    def start(self) -> None:
        self._pool.start()

    def stop(self) -> None:
        """Compile nothing more; texts under way are followed on."""
        self._pool.stop()

    def close(self) -> None:
        """End the threads that compute masks, once no text is under way."""
        self._masks.shutdown(cancel_futures=True)

    async def __call__(self, query: GenerationQuery, encoder: Encoder, client: Hashable) -> Constraint | None:
        """What a query's continuations follow; None: nothing.

        Raises:
            InvalidInputError: it cannot be enforced, or takes too long.
        """
        described = _described(query, call_format(query, encoder))
        if described is None:
            return None
        matcher = await self._pool.run(client, self._compiled(described, encoder))
        return Constraint(matcher, self._masks, described.at, Delay(described.at))

    def _compiled(self, described: Described, encoder: Encoder) -> Steps[LLMatcher]:
        yield 1
        return (yield from compiled(described.grammar(), encoder, self._vocabularies))


def call_format(query: GenerationQuery, encoder: Encoder) -> Format | None:
    """How the task's model writes the calls that a query asks for; None where it asks for none.

    Raises:
        InvalidInputError: the model may call where it likes, and how it writes calls is not known.
    """
    functions, chat = query.functions, query.prompts[0]
    if functions is None or not isinstance(chat, Chat) or encoder.chat is None:
        return None
    try:
        found = format_of(encoder.chat.text(chat.tools))
    except TemplateError as error:
        raise InvalidInputError(str(error), at="messages") from error
    if not (functions.forced or found.offered):
        raise InvalidInputError(
            "the task's chat template is of no family whose calls are known (hermes, llama), so what its model writes "
            'cannot be told from text; send a tool_choice of "required", a function\'s name, or "none"',
            at="tool_choice",
        )
    return found


def _described(query: GenerationQuery, form: Format | None) -> Described | None:
    if form is None or query.functions is None:
        return query.grammar
    if query.functions.forced:
        return Described(query.functions.at, partial(grammar_of, query.functions, form))
    if query.grammar is not None and not form.opens:
        raise InvalidInputError(
            f"found it beside tools, and as the task's model calls ({form.name}) JSON cannot be told from a call; "
            'send one of them, or a tool_choice of "none" or "required"',
            at=query.grammar.at,
        )
    if query.grammar is None:
        return None
    return Described(query.functions.at, partial(grammar_of, query.functions, form, query.grammar))
