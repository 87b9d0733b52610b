"""Texts for any task from a file, as its model is given them: completions and chats of a language model as rows.

They are what a delta is fitted to, distilled on and checked on, where nothing needs to know which part is learned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ken_core.checkpoint import Checkpoint
from ken_core.errors import DataError
from ken_core.examples import read_texts
from ken_core.labels import Label
from ken_core.language_examples import Completion, Conversation, Text, has_no_text, key_of, read_language_examples
from ken_core.learned_rows import LONGEST, RowMaker, end_ids
from ken_core.manifest import task_kind
from ken_core.tokenization import Encoder, Input, Readable

Given = Input | Completion | Conversation
"""What a line of a file gives: a text, a pair of texts, or an example of a language model."""


def read_given(path: Path) -> tuple[list[Given], list[Label] | None]:
    """Read texts with a label in every row or in none; or, in a file without texts, completions or chats.

    Raises:
        DataError: the file is missing or empty, or a row has another form; the message names its line.
    """
    if has_no_text(path):
        return [one for one in read_language_examples(path) if not isinstance(one, Text)], None
    texts, labels = read_texts(path)
    return list(texts), labels


def same_key(given: Given) -> Input:
    """The same for what says the same."""
    return key_of(given) if isinstance(given, Completion | Conversation) else given


def inputs_of(tuned: Checkpoint, given: Sequence[Given]) -> list[Readable]:
    """What a fine-tune is given: texts as they are, and of completions and chats the rows that it learns from, as
    `ken_core.learned_rows` makes them, of 512 tokens at most.

    Raises:
        DataError: there are completions or chats, and the fine-tune is no language model; or one that no row can be
            made of, see `ken_core.learned_rows`.
        CheckpointError: the fine-tune names no token that ends a text, or has no usable tokenizer.
    """
    return list(_inputs(tuned, given))


def _inputs(tuned: Checkpoint, given: Sequence[Given]) -> Iterator[Readable]:
    rows_of: RowMaker | None = None
    for one in given:
        if not isinstance(one, Completion | Conversation):
            yield one
            continue
        if rows_of is None:
            _check_learns(tuned, one.where)
            encoder = Encoder(tuned, tuned.config, {})
            rows_of = RowMaker(encoder, end_ids(tuned), LONGEST)
        yield from (encoder.given(row.ids) for row in rows_of([one]).rows)


def _check_learns(tuned: Checkpoint, where: str) -> None:
    found = type(tuned.model).__name__
    if task_kind(found) != "text-generation":
        raise DataError(
            f"{where}: found what a language model learns, and {tuned.folder} is a {found}; give its texts in the "
            "field text. A language model that was saved without its head is none"
        )
