"""From a query to its continuations: prompts become sequences, the generator runs them, tokens become text."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Hashable, Sequence
from contextlib import asynccontextmanager

from ken_core.errors import UndecodableError
from ken_core.generation_settings import GenerationSettings
from ken_core.tokenization import Encoder
from serving.admission import Admission, Line
from serving.errors import ContextLengthError, DeadlineError, InvalidInputError, UnsupportedKindError
from serving.function_calls.formats import Format
from serving.generation.asked import Asked, Asking
from serving.generation.generator import Generator
from serving.generation.pieces import Piece
from serving.generation.query import GenerationQuery, SamplingParameters
from serving.generation.sampling import Sampler, Sampling
from serving.generation.sequence import Continuation
from serving.generation.stream import Event, Inbox, Text
from serving.pipelines.text_generation import TEXT_GENERATION, USUAL_TOKENS, TextGenerationParameters
from serving.pipelines.token_ids import check_range
from serving.replica.constraining import Constraining, Constraint, call_format
from serving.replica.prompting import encode, render
from serving.telemetry.generation_metrics import GenerationFacts
from serving.tiers.loaded import Loaded
from serving.workers.pool import WorkerPool

MOST_CHOICES = 64
MOST_STOPS, LONGEST_STOP = 16, 256
MOST_LOGPROBS = 20
_MOST_PROBABILITIES = 1 << 18
_RENDERED_AT_ONCE = 2
_TOP_K_OF_GENERATE = 50


class Generation:
    """Continuations while they are generated, piece by piece.

    Attributes:
        digest: of the delta that generates.
        prompts: token ids of the prompts.
        facts: what is counted of it; complete once all pieces were read.
        calls: how the task's model writes calls of functions; None where the query asks for none.
    """

    def __init__(
        self,
        loaded: Loaded,
        query: GenerationQuery,
        prompts: Sequence[Sequence[int]],
        texts: Sequence[Text],
        asked: Sequence[Asking],
        events: asyncio.Queue[Event],
        facts: GenerationFacts,
        calls: Format | None,
    ) -> None:
        self.digest = loaded.digest
        self.prompts = prompts
        self.facts = facts
        self.calls = calls
        self._query = query
        self._encoder = loaded.spec.encoder
        self._texts = texts
        self._asked = asked
        self._events = events
        self._open = set(range(len(texts)))

    @property
    def prompt_tokens(self) -> int:
        """Of all prompts; a prompt with several continuations counts once."""
        return self.facts.prompt_tokens

    @property
    def generated(self) -> int:
        """Tokens of all continuations so far."""
        return self.facts.generated

    def prompt_text(self, prompt: int) -> str:
        """A prompt as the request has it; of token ids or a chat, the text of its tokens, special ones included."""
        asked = self._query.prompts[prompt]
        return asked if isinstance(asked, str) else self._encoder.text_of(self.prompts[prompt])

    async def __aiter__(self) -> AsyncIterator[Piece]:
        """Pieces as they come, until all continuations have ended.

        Raises:
            ServingError: there will be no further piece.
        """
        while self._open:
            number, chosen, finish, error = await self._events.get()
            if number not in self._open:
                continue
            if error is not None or chosen is None:
                raise error or DeadlineError("the text was not completed")
            piece = self._texts[number].add(chosen, finish)
            self.facts.note(number, time.monotonic(), piece.finish)
            if piece.finish is not None:
                self._open.discard(number)
                self._asked[number].abandoned = True  # a text that ended it is known here alone
            yield piece


class Continuing:
    """Continues texts with tasks that are on the device.

    Args:
        generator: None: the base does not generate; `why_not` says why.
        line: the engine's.
    """

    def __init__(
        self,
        generator: Generator | None,
        why_not: UndecodableError | None,
        line: Line,
        workers: WorkerPool,
        admission: Admission,
    ) -> None:
        self._line = line
        self._generator = generator
        self._why_not = why_not
        self._workers = workers
        self._templates = WorkerPool(_RENDERED_AT_ONCE)
        self._constraining = Constraining()
        self._admission = admission

    def start(self) -> None:
        """Start the threads that wait for chat templates, where tasks take turns, since a template may be slow; and
        those that compile grammars."""
        self._templates.start()
        self._constraining.start()

    def stop(self) -> None:
        """Prepare nothing more. Texts under way go on while the engine does."""
        self._templates.stop()
        self._constraining.stop()

    def close(self) -> None:
        """End the threads that texts under way need, once the engine has ended."""
        self._constraining.close()

    @asynccontextmanager
    async def __call__(
        self, loaded: Loaded, query: GenerationQuery, started: float, deadline: float, client: Hashable
    ) -> AsyncIterator[Generation]:
        """Continue a query's prompts. Leaving the context gives up what is unfinished.

        Args:
            started: when the request came, on the clock of `time.monotonic`.
            deadline: on the same clock.

        Raises:
            InvalidInputError: the task generates no text, or does not take such a query.
            TooLargeError: a prompt is too long to be encoded.
            OverloadedError: too many texts wait to be continued.
        """
        generator = self._checked(loaded, query)
        acquired = time.monotonic()
        with self._admission.preparation(self._line, len(query.prompts)):
            texts_or_ids = await self._templates.run(loaded.digest, render(query.prompts, loaded))
            constraint = await self._constraining(query, loaded.spec.encoder, client)
            prompts = await self._workers.run(client, encode(texts_or_ids, loaded))
        self._admission.check_tokens(sum(map(len, prompts)) * query.choices)
        tokenizing, tokens = time.monotonic() - acquired, sum(map(len, prompts))
        facts = GenerationFacts(started, acquired - started, tokenizing, tokens, len(prompts) * query.choices)
        events: asyncio.Queue[Event] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        calls = call_format(query, loaded.spec.encoder)
        texts: list[Text] = []
        asked: list[Asking] = []
        for place, prompt in enumerate(prompts):
            most = _most(query, place, len(prompt), loaded.spec.encoder.max_length, generator.most_tokens)
            for choice in range(query.choices):
                inbox = Inbox(len(asked), events, loop)
                asked.append(_asking(loaded, query, prompt, choice, most, inbox, deadline, constraint))
                texts.append(_text(loaded.spec.encoder, query, prompt, len(texts), calls))
        _check_probabilities(query, sum(one.most for one in asked))
        generator.add(asked)
        try:
            yield Generation(loaded, query, prompts, texts, asked, events, facts, calls)
        finally:
            generator.abandon(asked)

    def _checked(self, loaded: Loaded, query: GenerationQuery) -> Generator:
        if loaded.head != TEXT_GENERATION:
            raise InvalidInputError(
                f"the task has a {loaded.head} head, which generates no text; expected the fine-tune of a causal "
                "language model",
                at="model",
            )
        if self._generator is None:
            raise UnsupportedKindError(str(self._why_not))
        _check(query, loaded)
        self._admission.check_count(len(query.prompts) * query.choices)
        return self._generator


def query_of(texts: Sequence[str], wanted: TextGenerationParameters, settings: GenerationSettings) -> GenerationQuery:
    """The query that a task's inputs and the parameters of its kind make.

    Where nobody names a `top_k`, tokens are sampled from as many as by Transformers' `generate`.
    """
    asked = {name: getattr(wanted, name) for name in SamplingParameters.model_fields}
    if wanted.do_sample is False:
        asked["temperature"] = 0.0
    if wanted.top_k is None and settings.top_k is None:
        asked["top_k"] = _TOP_K_OF_GENERATE
    sampling = SamplingParameters.model_validate(asked)
    return GenerationQuery(
        texts,
        sampling,
        max_tokens=wanted.max_new_tokens,
        usual_tokens=USUAL_TOKENS,
        min_tokens=wanted.min_new_tokens,
        stop=(wanted.stop,) if isinstance(wanted.stop, str) else tuple(wanted.stop),
        sampled=bool(wanted.do_sample) or wanted.temperature is not None,
    )


def _check_probabilities(query: GenerationQuery, tokens: int) -> None:
    """Refuse what would hold up other requests while it is written."""
    asked = tokens * (1 + (query.logprobs or 0))
    if query.logprobs is not None and asked > _MOST_PROBABILITIES:
        raise InvalidInputError(
            f"{asked} probabilities could be told; at most {_MOST_PROBABILITIES} are in one request; ask for fewer "
            "tokens or continuations, or for fewer alternatives",
            at="logprobs",
        )


def _check(query: GenerationQuery, loaded: Loaded) -> None:
    if not 1 <= query.choices <= MOST_CHOICES:
        raise InvalidInputError(f"found {query.choices}; from 1 to {MOST_CHOICES} are made of a prompt", at="n")
    if query.max_tokens is not None and query.max_tokens < 1:
        raise InvalidInputError(f"found {query.max_tokens}; expected at least 1", at="max_tokens")
    if query.max_tokens is not None and query.min_tokens > query.max_tokens:
        raise InvalidInputError(f"found {query.min_tokens}, more than max_tokens", at="min_tokens")
    if len(query.stop) > MOST_STOPS:
        raise InvalidInputError(f"found {len(query.stop)} texts; at most {MOST_STOPS} are taken", at="stop")
    if odd := [text for text in query.stop if not 0 < len(text) <= LONGEST_STOP]:
        raise InvalidInputError(
            f"found a text of {len(odd[0])} characters; expected 1 to {LONGEST_STOP} of them", at="stop"
        )
    if query.logprobs is not None and not 0 <= query.logprobs <= MOST_LOGPROBS:
        raise InvalidInputError(f"found {query.logprobs}; expected 0 to {MOST_LOGPROBS}", at="logprobs")
    if len(query.stop_ids) > MOST_STOPS:
        raise InvalidInputError(f"found {len(query.stop_ids)} ids; at most {MOST_STOPS} are taken", at="stop_token_ids")
    check_range(query.stop_ids, "stop_token_ids", loaded.spec, of_prompt=False)
    check_range(tuple(query.sampling.logit_bias or {}), "logit_bias", loaded.spec, of_prompt=False)


def _most(query: GenerationQuery, place: int, prompt: int, context: int, room: int) -> int:
    """Tokens that a continuation may have."""
    where = f"prompts.{place}"
    if prompt >= context:
        raise ContextLengthError(
            f"found a prompt of {prompt} tokens; the model takes {context}, at least one of them generated", at=where
        )
    if prompt >= room:
        raise ContextLengthError(
            f"found a prompt of {prompt} tokens; this server has room for the keys and values of {room} tokens; "
            "shorten it, or raise KEN_KV_BYTES",
            at=where,
        )
    most = min(context, room) - prompt
    if query.max_tokens is None:
        return most if query.usual_tokens is None else min(query.usual_tokens, most)
    if query.max_tokens > most:
        limit = "the model takes" if context <= room else "KEN_KV_BYTES on this server has room for"
        raise ContextLengthError(
            f"found {query.max_tokens} after a prompt of {prompt} tokens; {limit} {min(context, room)} in all, so at "
            f"most {most} can follow",
            at="max_tokens",
        )
    return query.max_tokens


def _asking(
    loaded: Loaded,
    query: GenerationQuery,
    prompt: Sequence[int],
    choice: int,
    most: int,
    inbox: Inbox,
    deadline: float,
    constraint: Constraint | None,
) -> Asking:
    settings = loaded.spec.generation
    own = () if query.ignores_end else settings.end_ids
    ends = (*own, *query.stop_ids)
    seed = query.sampling.seed
    sampler = Sampler(
        Sampling.of(query.sampling, settings, query.sampled),
        prompt,
        None if seed is None else seed + choice,
        query.logprobs,
        (ends, query.min_tokens),
        None if constraint is None else constraint.state(),
    )
    asked = Asked(loaded, sampler, frozenset(ends), query.min_tokens, inbox)
    return Continuation(loaded.digest, prompt, most, time.monotonic(), deadline, asked)


def _text(encoder: Encoder, query: GenerationQuery, prompt: Sequence[int], number: int, calls: Format | None) -> Text:
    marks = () if calls is None else (calls.opens, calls.closes)
    return Text(number, encoder, prompt, query.stop, query.stop_ids, query.min_tokens, query.plain, marks)
