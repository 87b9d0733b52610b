"""Rows of tokens that a language model learns from, and which of their tokens are learned.

A prompt is made as it is when the model is asked later: a text with the tokenizer's special tokens, or what the chat
template renders. What follows is learned, up to the token that ends it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ken_core.chat_template import ChatTemplate
from ken_core.checkpoint import Checkpoint
from ken_core.errors import CheckpointError, DataError, TemplateError, TextTooLongError
from ken_core.generation_settings import FILE, settings_of
from ken_core.language_examples import ANSWERS, Completion, Conversation, LanguageExample, Text
from ken_core.messages import LeftOutError, check_shown
from ken_core.tokenization import Encoder

LONGEST = 512
"""Tokens of a row where nothing else is said."""
Part = tuple[str, bool]
"""A part of a text, and whether it is learned."""


@dataclass(frozen=True)
class LearnedRow:
    """Tokens, and for each of them whether the model learns to give it."""

    ids: Sequence[int]
    learned: Sequence[bool]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def targets(self) -> int:
        """How many tokens are learned. Nothing comes before the first token, so it is never one of them."""
        return sum(self.learned[1:])


@dataclass(frozen=True)
class LearnedRows:
    """The rows of examples.

    Attributes:
        cut: how many completions and chats were cut.
        divided: how many whole texts were divided.
    """

    rows: Sequence[LearnedRow]
    cut: int
    divided: int


def end_ids(opened: Checkpoint) -> list[int]:
    """The tokens that end a text, by a model's settings of generation.

    Raises:
        CheckpointError: there is none.
    """
    found = settings_of(opened).get("eos_token_id")
    ends = [found] if isinstance(found, int) else list(found or ())
    if not ends:
        raise CheckpointError(
            f"{opened.folder} names no token that ends a text, so it cannot be told where one stops; write "
            f"eos_token_id to its {FILE}"
        )
    return ends


class RowMaker:
    """Makes rows of examples.

    Args:
        end_ids: the tokens that end a text, the one that is learned first.
        longest: tokens of a row. Whole texts that are longer become several rows; others are cut.

    Attributes:
        longest: tokens of a row, no more than the model takes.
        at_limit: whether the model takes no longer rows.
    """

    def __init__(self, encoder: Encoder, end_ids: Sequence[int], longest: int) -> None:
        self._encoder = encoder
        self._end_ids = end_ids
        self.longest = min(longest, encoder.max_length)
        self.at_limit = self.longest == encoder.max_length

    def __call__(self, examples: Sequence[LanguageExample]) -> LearnedRows:
        """The rows of examples.

        Raises:
            DataError: the tokenizer has no chat template, or one with which the assistant's part of a chat cannot be
                told; the template refuses a chat; or an example is so long that nothing is left to learn.
        """
        found = list(map(self.of_one, examples))
        rows = [row for one in found for row in one.rows]
        if not rows:
            raise DataError("the examples have no token to learn")
        return LearnedRows(rows, sum(one.cut for one in found), sum(one.divided for one in found))

    def of_one(self, example: LanguageExample) -> LearnedRows:
        """The rows of an example, none of a text without a token to learn. Raises as `__call__` does."""
        whole = self._whole(example)
        if isinstance(example, Text):
            rows = [row for row in _divided(whole, self.longest) if row.targets]
            return LearnedRows(rows, cut=0, divided=int(len(whole) > self.longest))
        row = LearnedRow(whole.ids[: self.longest], whole.learned[: self.longest])
        if not row.targets:
            longer = "the model takes no longer ones, so" if self.at_limit else "allow longer ones (--max-length), or"
            raise DataError(
                f"{example.where}: a row of {self.longest} tokens has no room for what is to be learned, of "
                f"{len(whole)} in all; {longer} leave this example out"
            )
        return LearnedRows([row], cut=int(len(row) < len(whole)), divided=0)

    def _whole(self, example: LanguageExample) -> LearnedRow:
        """All tokens of an example, with one that ends it."""
        try:
            if isinstance(example, Conversation):
                row = self._joined(_parts(example, self._template()), special=False)
            elif isinstance(example, Completion):
                row = self._joined([(example.prompt, False), (example.completion, True)], special=True)
            else:
                row = self._joined([(example.text, True)], special=True)
        except TextTooLongError as error:
            raise DataError(f"{example.where}: {error}") from None
        last = list(zip(row.ids, row.learned, strict=True))[-2:]  # a template may write a line break after its end
        ended = any(learned and token in self._end_ids for token, learned in last)
        return row if ended else LearnedRow([*row.ids, self._end_ids[0]], [*row.learned, True])

    def _template(self) -> ChatTemplate:
        if self._encoder.chat is None:
            raise DataError(
                "the base's tokenizer has no chat template; write the examples with prompt and completion, or use a "
                "base that was trained on chats"
            )
        return self._encoder.chat

    def _joined(self, parts: Sequence[Part], special: bool) -> LearnedRow:
        pieces = self._in_one(parts, special) or self._one_by_one(parts, special)
        learned = [is_learned for piece, (_, is_learned) in zip(pieces, parts, strict=True) for _ in piece]
        return LearnedRow([token for piece in pieces for token in piece], learned)

    def _in_one(self, parts: Sequence[Part], special: bool) -> list[Sequence[int]] | None:
        """The tokens of parts that are encoded as one text; None where a token stands across the border of two."""
        texts = [text for text, _ in parts]
        whole = self._encoder.prompt("".join(texts), special)
        borders = [0]
        for count in range(1, len(texts)):
            before = self._encoder.prompt("".join(texts[:count]), special)
            if whole[: len(before)] != before:
                return None
            borders.append(len(before))
        return [whole[start:stop] for start, stop in pairwise([*borders, len(whole)])]

    def _one_by_one(self, parts: Sequence[Part], special: bool) -> list[Sequence[int]]:
        """The tokens of parts that are encoded each by itself: a prompt has its last token before an answer begins."""
        return [self._encoder.prompt(text, special and place == 0) for place, (text, _) in enumerate(parts)]


def _parts(example: Conversation, template: ChatTemplate) -> list[Part]:
    """What a chat template makes of a chat, divided where an answer of the assistant begins and ends."""
    answers = [place for place, message in enumerate(example.messages) if message["role"] == ANSWERS]
    chat = example.messages[: answers[-1] + 1]
    parts: list[Part] = []
    try:
        check_shown(
            template, chat, example.tools, lambda some: template.render(some, example.tools, opens_answer=False)
        )
        whole, done = template.render(chat, example.tools, opens_answer=False), 0
        for place in answers:
            before = template.render(chat[:place], example.tools)
            through = template.render(chat[: place + 1], example.tools, opens_answer=False)
            if not (through.startswith(before) and whole.startswith(through) and done <= len(before)):
                raise DataError(
                    f"{example.where}: the base's chat template writes what comes before an answer otherwise once the "
                    "answer is there, so the answer's part cannot be told; end the chat after its first answer, or "
                    "write it with prompt and completion"
                )
            parts += [(whole[done : len(before)], False), (whole[len(before) : len(through)], True)]
            done = len(through)
    except LeftOutError as error:
        raise DataError(
            f"{example.where}, {error.at}: the base's {error}; write it into the messages' contents, or leave it out"
        ) from error
    except TemplateError as error:
        raise DataError(f"{example.where}: {error}") from error
    return parts


def _divided(row: LearnedRow, longest: int) -> Iterator[LearnedRow]:
    for start in range(0, len(row), longest):
        yield LearnedRow(row.ids[start : start + longest], row.learned[start : start + longest])
