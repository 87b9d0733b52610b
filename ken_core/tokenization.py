"""Tokenization: texts become rows of token ids, and rows become one padded batch."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from tokenizers import Encoding, normalizers
from transformers import PretrainedConfig

from ken_core.chat_template import ChatTemplate
from ken_core.checkpoint import Checkpoint
from ken_core.configs import restore
from ken_core.delta import Delta
from ken_core.errors import TextTooLongError
from ken_core.long_texts import LongTexts, Read, Tokens
from ken_core.templates import Template, longest_first, overlapping
from ken_core.text_stream import TextStream, TokenBytes
from ken_core.tokenizer_files import load, load_carried

Input = str | tuple[str, str]
_LONGEST = 1 << 16
_OFFSET_BY_PADDING = ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer")


@dataclass(frozen=True)
class Encoded:
    """One input's token ids (and segment ids where the model takes them)."""

    ids: Sequence[int]
    type_ids: Sequence[int] | None
    truncated: bool

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Part:
    """A text's token ids without special ones, to be joined with another text's.

    Attributes:
        ids: the ids nearest to the end that is kept when a text is cut, at most the encoder's `max_length`.
        whole: how many tokens the text has; with `more`, how many of them are known, which is more than `max_length`.
        more: whether the text has an unknown number of further tokens.
    """

    ids: Sequence[int]
    whole: int
    more: bool = False

    @property
    def lengths(self) -> tuple[int, ...]:
        """The least and the most tokens the text may have; a single number where it is known."""
        return (self.whole, sys.maxsize) if self.more else (self.whole,)


Readable = Input | Encoded
"""A text or a pair of texts, or a row that is made of them already."""


@dataclass(frozen=True)
class Window:
    """A row that contains consecutive tokens of one text, and their places in the text.

    The row's other tokens are special ones or another text's.

    Attributes:
        at: position in the row of the first token that comes from the text.
        offsets: for each token of the text, the characters it stands for: (start, end).
        words: for each token of the text, the number of the word it belongs to, None where the tokenizer knows no
            words. In a text that was cut on the left, words are counted from the first one that was read.
    """

    row: Encoded
    at: int
    offsets: Sequence[tuple[int, int]]
    words: Sequence[int | None]

    @cached_property
    def ids(self) -> Sequence[int]:
        """The ids of the tokens that come from the text."""
        return self.row.ids[self.at : self.at + len(self.offsets)]


class Encoder:
    """A tokenizer fixed to one truncation length, safe to call from many threads at once.

    Args:
        base: the source of the tokenizer files.
        config: the task's config; its number of positions bounds the length.
        files: the task's own tokenizer files, which replace the base's.
        longest: the task's own limit in tokens, in place of the tokenizer's.
        lowercase: whether texts are lower-cased before anything else.

    Raises:
        CheckpointError: the checkpoint has no fast tokenizer, or its tokenizer would take too long over a text.
    """

    def __init__(
        self,
        base: Checkpoint,
        config: PretrainedConfig,
        files: Mapping[str, bytes],
        *,
        longest: int | None = None,
        lowercase: bool = False,
    ) -> None:
        tokenizer = load_carried(base, files) if files else load(base.folder, base.config)
        self._fast = tokenizer.backend_tokenizer
        if lowercase:
            then = self._fast.normalizer
            first = normalizers.Lowercase()
            self._fast.normalizer = first if then is None else normalizers.Sequence([first, then])
        self.max_length = _max_length(longest or tokenizer.model_max_length, config)
        self.truncation_side: str = tokenizer.truncation_side
        self._fast.no_padding()
        self._fast.no_truncation()  # this class cuts rows itself: `tokenizers` makes rows of the cut-off rest too
        self._with_types = "token_type_ids" in tokenizer.model_input_names
        self._cuts_left = self.truncation_side == "left"
        self.long_texts = LongTexts(self._fast, self.max_length, self._cuts_left)
        self.pads_left = tokenizer.padding_side == "left"
        self.pad_id = tokenizer.pad_token_id or 0
        self.cls_id: int | None = tokenizer.cls_token_id
        self.unk_id: int | None = tokenizer.unk_token_id
        self.chat = ChatTemplate.of(tokenizer)
        self._special_ids = frozenset(tokenizer.all_special_ids)

    @classmethod
    def of(cls, base: Checkpoint, delta: Delta) -> Encoder:
        """The tokenizer of a delta's task.

        Raises:
            CheckpointError: the delta's tokenizer files are not usable.
        """
        own, config = delta.embedding, restore(dict(delta.config), base.config)
        if own is None:
            return cls(base, config, delta.files)
        return cls(base, config, delta.files, longest=own.max_length, lowercase=own.lowercase)

    def __call__(self, inputs: Sequence[Input]) -> list[Encoded]:
        """Encode texts or pairs of texts, with special tokens, truncated to `max_length`.

        Raises:
            TextTooLongError: a text is so long that its kept tokens cannot be known, see `ken_core.long_texts`.
        """
        whole = iter(self._fast.encode_batch([given for given in inputs if not self._is_long(given)]))
        return [self._cut(given) if self._is_long(given) else self._row(given, next(whole)) for given in inputs]

    def rows(self, given: Sequence[Readable]) -> list[Encoded]:
        """Rows of texts, as `__call__` makes them, among rows that are made already. Raises as `__call__` does."""
        made = iter(self([one for one in given if not isinstance(one, Encoded)]))
        return [one if isinstance(one, Encoded) else next(made) for one in given]

    # Rows that a client encoded, and prompts

    def given(self, ids: Sequence[int]) -> Encoded:
        """A row of the given ids, which include special ones; segment ids are those of one text of that length."""
        inside = len(ids) - len(self._single)
        return self._encoded(ids, self._single.fill_types(inside) if inside >= 0 else [0] * len(ids), False)

    def has(self, token_id: int) -> bool:
        """Whether the vocabulary has a token of this id, which must be at least 0 and below 2^32."""
        return self._fast.id_to_token(token_id) is not None

    def prompt(self, text: str, special: bool) -> list[int]:
        """All tokens of a text that is to be continued; nothing is cut.

        Args:
            special: whether the tokenizer adds its special tokens.

        Raises:
            TextTooLongError: the text has more characters than are encoded in one go.
        """
        most = self.long_texts.most_characters
        if len(text) > most:
            raise TextTooLongError(f"found {len(text)} characters; at most {most} are taken of a text to continue")
        ids: list[int] = self._fast.encode(text, add_special_tokens=special).ids
        return ids

    def stream(self, before: Sequence[int], plain: bool, kept: Collection[str] = ()) -> TextStream:
        """The text of tokens as they come.

        Args:
            before: the tokens before the first one.
            plain: whether special tokens are left out.
            kept: special tokens that are part of the text nevertheless.
        """
        if not plain:
            return TextStream(self._fast, before)
        return TextStream(self._fast, before, self.bytes_of.special - {self._fast.token_to_id(token) for token in kept})

    def text_of(self, ids: Sequence[int]) -> str:
        """The text of tokens, special ones included."""
        return str(self._fast.decode(list(ids), skip_special_tokens=False))

    def is_special(self, token: int) -> bool:
        """Whether a token is one of the special ones, such as the end of a text."""
        return token in self._special_ids

    @cached_property
    def vocabulary_digest(self) -> str:
        """The same for all tokenizers that make the same tokens of every text, whatever their templates and limits."""
        told = (self._fast.to_str(), sorted(self._special_ids))
        return hashlib.sha256(repr(told).encode()).hexdigest()

    @cached_property
    def bytes_of(self) -> TokenBytes:
        """Gives the bytes that a token stands for by itself."""
        return TokenBytes(self._fast)

    def prompt_length(self, prompt: str) -> int:
        """How many tokens a prompt takes at the start of a text, special tokens before the text included.

        They are counted as sentence-transformers does: the tokens of the prompt alone, without a special one at the
        end.
        """
        ids = self([prompt])[0].ids
        return len(ids) - (bool(ids) and ids[-1] in self._special_ids)

    # Rows of two texts; each text is encoded once, however many rows it is in

    def parts(self, texts: Sequence[str]) -> list[Part]:
        """Encode texts without special tokens. Raises as `__call__` does."""
        most = self.long_texts.most_characters
        whole = iter(self._fast.encode_batch([t for t in texts if len(t) <= most], add_special_tokens=False))
        read = (Read(next(whole)) if len(t) <= most else self.long_texts.kept(t) for t in texts)
        return [self._part(one.encoding.ids, one.more) for one in read]

    def shortened(self, part: Part, most: int) -> Part:
        """A text of which at most `most` tokens are kept, at the end that is kept when a text is cut."""
        return part if part.whole <= most else Part(self.cut(part.ids, most), most)

    def pair(self, first: Part, second: Part) -> Encoded:
        """A row of two texts; where they do not fit, the longer one is cut first.

        Raises:
            TextTooLongError: the row depends on which text is longer, and that is not known.
        """
        room = self.max_length - len(self._pair)
        possible = {longest_first(a, b, room) for a in first.lengths for b in second.lengths}
        if len(possible) > 1:
            raise TextTooLongError(
                "found a pair whose texts must both be cut; which has more tokens decides how far, and the tokens of a "
                f"text of more than {self.long_texts.most_characters} characters are not counted; shorten that text"
            )
        return self._join(first, second, *possible.pop())

    def pair_keeping_second(self, first: Part, second: Part) -> Encoded:
        """A row of two texts; only the first is ever cut.

        Args:
            second: a text short enough to leave room for the first, see `room_beside`.
        """
        return self._join(first, second, min(first.whole, self.room_beside(second.whole)), second.whole)

    def room_beside(self, tokens: int, length: int | None = None) -> int:
        """How many tokens of a second text fit beside a text of `tokens` in a row of `length`; may be negative.

        Args:
            length: the row's length in tokens; by default `max_length`.
        """
        return (length or self.max_length) - len(self._pair) - tokens

    def cut(self, ids: Sequence[int], most: int) -> Sequence[int]:
        """The part of a text's ids, at most `most`, that is kept."""
        return ids if len(ids) <= most else ids[self._kept(len(ids), most)]

    # Rows with the places of their tokens in the text

    def located(self, texts: Sequence[str]) -> list[Window]:
        """Encode texts as `__call__` does, into one row for each text."""
        whole = iter(self._fast.encode_batch([t for t in texts if not self._is_long(t)], add_special_tokens=False))
        read = (self.long_texts.kept(t) if self._is_long(t) else Read(next(whole)) for t in texts)
        return [self._window(one.tokens) for one in read]

    def windows(self, text: Tokens, stride: int) -> Iterator[Window]:
        """All of a text, in rows that overlap by `stride` tokens.

        Args:
            stride: less than `room_alone`.
        """
        for part in overlapping(len(text), self.room_alone, stride):
            yield self._window(text[part.start : part.stop])

    @property
    def room_alone(self) -> int:
        """How many tokens of one text fit into a row."""
        return self.max_length - len(self._single)

    def windows_beside(self, other: Sequence[int], text: Tokens, room: int, stride: int) -> Iterator[Window]:
        """All of a text, in rows that overlap by `stride` tokens and also hold another text.

        The other text comes first, unless the tokenizer pads on the left: such models are trained the other way round.

        Args:
            other: the other text's token ids.
            room: the most tokens of the text in a row, see `room_beside`.
            stride: less than `room`.
        """
        before, between, _ = self._pair.special
        at = len(before) if self.pads_left else len(before) + len(other) + len(between)
        for part in overlapping(len(text), room, stride):
            some = text[part.start : part.stop]
            both = (some.ids, other) if self.pads_left else (other, some.ids)
            row = self._encoded(self._pair.fill(*both), self._pair.fill_types(*map(len, both)), False)
            yield Window(row, at, some.offsets, some.words)

    # Tokens as text

    def token(self, token_id: int) -> str:
        """A token as the vocabulary writes it; empty where there is no token of this id."""
        return self._fast.id_to_token(token_id) or ""

    def joined(self, tokens: Sequence[str]) -> str:
        """The text that tokens, as the vocabulary writes them, stand for."""
        decoder = self._fast.decoder
        return " ".join(tokens) if decoder is None else str(decoder.decode(list(tokens)))

    @cached_property
    def plain_ids(self) -> list[int]:
        """The ids of all tokens that stand for text, in order."""
        return sorted(set(self._fast.get_vocab(with_added_tokens=True).values()) - self._special_ids)

    @cached_property
    def marks_continuations(self) -> bool:
        """Whether a token that continues a word begins with a mark, as WordPiece's ``##ing`` does."""
        return bool(getattr(self._fast.model, "continuing_subword_prefix", None))

    @cached_property
    def largest_ids(self) -> tuple[int, int]:
        """The largest token id and the largest segment id that a row can have."""
        around = (self._single, self._pair)
        special = [i for template in around for run in template.special for i in run]
        types = [i for t in around for run in (t.types, *t.special_types) for i in run] if self._with_types else []
        words = self._fast.get_vocab(with_added_tokens=True).values()
        return max(self.pad_id, *words, *special), max(types, default=0)

    @cached_property
    def _single(self) -> Template:
        return Template.of(self._fast.encode("a"), 1)

    @cached_property
    def _pair(self) -> Template:
        return Template.of(self._fast.encode("a", "a"), 2)

    def _is_long(self, given: Input) -> bool:
        return self.long_texts.is_long(given) if isinstance(given, str) else self.long_texts.is_long(*given)

    def _kept(self, length: int, most: int) -> slice:
        return slice(max(0, length - most), length) if self._cuts_left else slice(0, most)

    def _row(self, given: Input, whole: Encoding) -> Encoded:
        """A row made of an encoding with special tokens, which is cut where it is too long."""
        ids = whole.ids
        if len(ids) <= self.max_length:
            return self._encoded(ids, whole.type_ids, False)
        if isinstance(given, str):
            before, after = self._single.special
            return self._alone(ids[len(before) : len(ids) - len(after)])
        before, between, _ = self._pair.special
        of = whole.sequence_ids
        first, second = of.count(0), of.count(1)
        at, at_second = len(before), len(before) + first + len(between)
        return self.pair(self._part(ids[at : at + first]), self._part(ids[at_second : at_second + second]))

    def _cut(self, given: Input) -> Encoded:
        """A row of texts so long that only a part of them is encoded."""
        if isinstance(given, str):
            return self._alone(self.long_texts.kept(given).encoding.ids)
        return self.pair(*self.parts(given))

    def _alone(self, ids: Sequence[int]) -> Encoded:
        kept = self.cut(ids, self.room_alone)
        filled = self._single.fill(kept)
        return self._encoded(filled, self._single.fill_types(len(kept)), len(kept) < len(ids))

    def _window(self, tokens: Tokens) -> Window:
        kept = tokens[self._kept(len(tokens), self.room_alone)]
        return Window(self._alone(tokens.ids), len(self._single.special[0]), kept.offsets, kept.words)

    def _part(self, ids: Sequence[int], more: bool = False) -> Part:
        return Part(self.cut(ids, self.max_length), len(ids), more)

    def _join(self, first: Part, second: Part, kept: int, kept_second: int) -> Encoded:
        ids = self._pair.fill(self.cut(first.ids, kept), self.cut(second.ids, kept_second))
        cut = kept < first.whole or kept_second < second.whole
        return self._encoded(ids, self._pair.fill_types(kept, kept_second), cut)

    def _encoded(self, ids: Sequence[int], types: Sequence[int], truncated: bool) -> Encoded:
        return Encoded(ids, types if self._with_types else None, truncated)


def collate(rows: Sequence[Encoded], pad_id: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Pad rows to the longest one: int64 tensors of shape (rows, longest), by the name of the model's input."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad_id, dtype=torch.int64)
    attention = torch.zeros((len(rows), longest), dtype=torch.int64)
    types = torch.zeros((len(rows), longest), dtype=torch.int64) if rows[0].type_ids is not None else None
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row.ids)
        attention[i, : len(row)] = 1
        if types is not None and row.type_ids is not None:
            types[i, : len(row)] = torch.tensor(row.type_ids)
    batch = {"input_ids": ids, "attention_mask": attention}
    if types is not None:
        batch["token_type_ids"] = types
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def _max_length(declared: int, config: PretrainedConfig) -> int:
    """The smaller of the limit that the tokenizer declares and the number of positions that the model has."""
    positions = getattr(config, "max_position_embeddings", None) or _LONGEST
    if config.model_type in _OFFSET_BY_PADDING:
        positions -= (config.pad_token_id or 0) + 1
    return int(min(declared, positions, _LONGEST))
