"""Token ids in place of a text, for clients that tokenize by themselves.

Only ids of the task's own tokenizer mean anything to the task. Ids of another tokenizer look alike and give vectors of
another text, so a server takes ids only where it was told to (`accept_token_ids`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from serving.errors import InvalidInputError
from serving.pipelines.base import Prepared, TaskSpec
from serving.workers.steps import Steps


@dataclass(frozen=True)
class TokenIds:
    """One input as its task's tokenizer gives it, special tokens included: nothing is added, and nothing cut."""

    ids: tuple[int, ...]


def encode_ids(inputs: Sequence[TokenIds], task: TaskSpec) -> Steps[list[Prepared]]:
    """One row an input.

    Raises:
        InvalidInputError: an id that is no token of the task, no id at all, or more ids than the model takes.
    """
    for where, one in enumerate(inputs):
        yield len(one.ids)
        _check(one, f"inputs.{where}", task)
    return [Prepared((task.encoder.given(one.ids),), False) for one in inputs]


def _check(given: TokenIds, where: str, task: TaskSpec) -> None:
    most = task.encoder.max_length
    if not given.ids:
        raise InvalidInputError("there is no token id in it; send at least one", at=where)
    if len(given.ids) > most:
        raise InvalidInputError(
            f"found {len(given.ids)} token ids, the model takes {most}, and ids are not cut; send fewer, or a text",
            at=where,
        )
    check_range(given.ids, where, task)


def check_range(ids: Sequence[int], where: str, task: TaskSpec, *, of_prompt: bool = True) -> None:
    """Raises `InvalidInputError` for an id that is no token of the task.

    Args:
        of_prompt: whether the ids are a prompt, so that a text could be sent in their place.
    """
    rows = task.config.get_text_config().vocab_size
    for position, token in enumerate(ids):
        if not (0 <= token < rows and task.encoder.has(token)):
            place, instead = (f" at {position}", ", or texts") if of_prompt else ("", "")
            raise InvalidInputError(
                f"{token}{place} is no token of this task, whose vocabulary has {rows}; send ids of the task's own "
                f"tokenizer{instead}",
                at=where,
            )
