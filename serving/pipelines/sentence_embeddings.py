"""Sentence embeddings: one vector a text, as `SentenceTransformer.encode` gives it for the task's own folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field, InstanceOf
from transformers.utils.generic import ModelOutput

from ken_core.embedder import Embedder
from ken_core.embedding import PLAIN, Pooling, PromptName, PromptText
from ken_core.heads import Grafted
from ken_core.stand_in import Inputs
from serving.errors import InvalidInputError
from serving.pipelines.base import Parameters, Pipeline, Prepared, Probe, Raw, TaskSpec, encode_whole, finite
from serving.pipelines.hidden_states import last_hidden_states
from serving.pipelines.token_ids import TokenIds, encode_ids
from serving.workers.steps import Steps

_PLAIN = Embedder(PLAIN, {})


class EmbeddingParameters(Parameters):
    pooling: Pooling | None = Field(
        None, description="how token vectors become one; default: the task's own, else mean"
    )
    normalize: bool | None = Field(None, description="scale vectors to length 1; default: the task's own, else not")
    dimensions: int | None = Field(None, ge=1, description="only the first so many, for models trained for that")
    prompt_name: PromptName | None = Field(
        None, description="which of the task's own prompts is put before every text; default: the task's default one"
    )
    prompt: PromptText | None = Field(
        None, description="put before every text in place of the task's own prompts; empty: none is"
    )


class SentenceEmbeddings:
    kind = "sentence-embeddings"
    head = "feature-extraction"
    encodes_by_tokenizer_alone = False  # puts the task's prompt before each text
    input = str | InstanceOf[TokenIds]  # no JSON is token ids by itself: a protocol makes them, where it may
    parameters = EmbeddingParameters

    def probes(self, texts: Sequence[str]) -> list[Probe]:
        return [Probe(text) for text in texts]

    def prepare(
        self, inputs: Sequence[str | TokenIds], task: TaskSpec, parameters: EmbeddingParameters
    ) -> Steps[list[Prepared]]:
        """Encode texts, or take over token ids; a request has the one or the other."""
        given = [one for one in inputs if isinstance(one, TokenIds)]
        if given and len(given) < len(inputs):
            raise InvalidInputError("found texts and token ids in one request; send the one or the other", at="inputs")
        embedder = _embedder(task)
        _refuse_unfit(embedder, task, parameters)
        if given:
            return (yield from _given(given, embedder, task, parameters))
        prompt = _prompt(embedder, parameters)
        texts = [prompt + text for text in inputs if isinstance(text, str)]
        prepared = yield from encode_whole(texts, task, parameters)
        skip = task.encoder.prompt_length(prompt) if prompt and not embedder.embedding.include_prompt else 0
        for where, one in enumerate(prepared):
            if len(one.rows[0]) <= skip:
                raise InvalidInputError(
                    "nothing is left of it beside the prompt, whose tokens this task does not pool; "
                    "send a text, and a shorter prompt",
                    at=f"inputs.{where}",
                )
        return [Prepared(one.rows, one.truncated, skip) for one in prepared]

    def run_head(self, model: Grafted, output: ModelOutput | None, inputs: Inputs) -> list[Raw]:
        """Last hidden states, shape (tokens, width) a row."""
        return last_hidden_states(model, output, inputs)

    def present(self, prepared: Prepared, raws: Sequence[Raw], task: TaskSpec, parameters: EmbeddingParameters) -> Any:
        states, embedder = finite(raws[0]), _embedder(task)
        width, wanted = embedder.width(states.shape[-1], parameters.pooling), parameters.dimensions
        if wanted and wanted > width:
            raise InvalidInputError(f"found {wanted}, but the model's vectors have {width}", at="dimensions")
        vector = embedder(
            states,
            skip=prepared.source or 0,
            pooling=parameters.pooling,
            normalize=parameters.normalize,
            dimensions=wanted,
        )
        return finite(vector).tolist()


PIPELINE: Pipeline = SentenceEmbeddings()


def _given(
    ids: Sequence[TokenIds], embedder: Embedder, task: TaskSpec, parameters: EmbeddingParameters
) -> Steps[list[Prepared]]:
    """Inputs whose every token is given as an id: no prompt can be put before them.

    Raises:
        InvalidInputError: a prompt is asked for, or the task pools only the tokens behind its own prompt.
    """
    own = embedder.embedding
    if parameters.prompt or parameters.prompt_name:
        raise InvalidInputError("cannot be put before token ids; send texts, or ids that begin with it", at="prompt")
    if own.default_prompt is not None and not own.include_prompt:
        raise InvalidInputError(
            "this task does not pool the tokens of its prompt, which cannot be told from the others among "
            "token ids; send texts",
            at="inputs",
        )
    return encode_ids(ids, task)


def _embedder(task: TaskSpec) -> Embedder:
    return task.embedder or _PLAIN


def _prompt(embedder: Embedder, parameters: EmbeddingParameters) -> str:
    """The prompt that is put before every text.

    Raises:
        InvalidInputError: the task has no prompt of the name asked for.
    """
    own = embedder.embedding
    if parameters.prompt is not None:
        if parameters.prompt_name is not None:
            raise InvalidInputError("give a prompt or the name of one, not both", at="prompt")
        return parameters.prompt
    name = parameters.prompt_name or own.default_prompt
    if name is None:
        return ""
    if name not in own.prompts:
        known = ", ".join(map(repr, sorted(own.prompts))) or "none"
        raise InvalidInputError(f"found {name!r}; the task has {known}", at="prompt_name")
    return own.prompts[name]


def _refuse_unfit(embedder: Embedder, task: TaskSpec, parameters: EmbeddingParameters) -> None:
    """Raises `InvalidInputError` for a pooling that gives another width than the task's projections take."""
    takes = embedder.embedding.takes
    if parameters.pooling and takes not in (None, task.config.hidden_size):
        raise InvalidInputError(
            f"the task's projection takes {takes} numbers, which {parameters.pooling!r} alone does not give; "
            "leave it to the task",
            at="pooling",
        )
