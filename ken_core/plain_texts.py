"""Texts for any task from a file, as one text each: completions with their prompts, and chats as they are rendered.

They are what a delta is fitted to, distilled on and checked on, where nothing needs to know which part is learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ken_core.chat_template import ChatTemplate
from ken_core.checkpoint import Checkpoint
from ken_core.errors import DataError, TemplateError
from ken_core.examples import read_texts
from ken_core.labels import Label
from ken_core.language_examples import (
    Completion,
    Conversation,
    LanguageExample,
    Text,
    has_no_text,
    key_of,
    read_language_examples,
)
from ken_core.manifest import task_kind
from ken_core.tokenization import Encoder, Input

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


def plain_texts(tuned: Checkpoint, given: Sequence[Given]) -> list[Input]:
    """What a fine-tune is given, each as one text.

    Raises:
        DataError: there are completions or chats, and the fine-tune is no language model; or it has no chat template
            for chats, or one that refuses a chat.
    """
    found = type(tuned.model).__name__
    strange = next((one for one in given if isinstance(one, Completion | Conversation)), None)
    if strange is None:
        return [one for one in given if isinstance(one, str | tuple)]
    if task_kind(found) != "text-generation":
        raise DataError(
            f"{strange.where}: found what a language model learns, and {tuned.folder} is a {found}; give its texts in "
            "the field text. A language model that was saved without its head is none"
        )
    template = Encoder(tuned, tuned.config, {}).chat
    return [plain_text(one, template) if isinstance(one, Completion | Conversation) else one for one in given]


def plain_text(example: LanguageExample, template: ChatTemplate | None) -> str:
    """An example of a language model as one text.

    Raises:
        DataError: there is no template for a chat, or it refuses the chat.
    """
    if isinstance(example, Text):
        return example.text
    if isinstance(example, Completion):
        return example.prompt + example.completion
    if template is None:
        raise DataError(
            f"{example.where}: found a chat, and the tokenizer has no chat template; give prompt and completion, or "
            "text"
        )
    try:
        return template.render(example.messages, example.tools, opens_answer=False)
    except TemplateError as error:
        raise DataError(f"{example.where}: {error}") from error
