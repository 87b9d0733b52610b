"""Text to token ids, and rows of ids to one padded batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from tokenizers import Tokenizer, normalizers
from transformers import PretrainedConfig

from ken_core.checkpoint import Checkpoint
from ken_core.configs import restore
from ken_core.delta import Delta
from ken_core.templates import Template, longest_first, overlapping
from ken_core.tokenizer_files import load, load_carried

Input = str | tuple[str, str]
_LONGEST = 1 << 16
_LONG_PAIR = 8
"""Characters a position. Shorter pairs leave little over, and are encoded in half the time in one go."""
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
    """A text's token ids without special ones, to be put together with another's.

    Attributes:
        ids: those nearest to the end that is kept when a text is cut, at most the encoder's `max_length`.
        whole: how many the text has.
    """

    ids: Sequence[int]
    whole: int


@dataclass(frozen=True)
class Window:
    """A row, and where in a text some of its tokens come from; the others are special ones or another text's.

    Attributes:
        at: position in the row of the first token that comes from the text.
        offsets: of each that does, the characters of the text it stands for: (start, end).
        words: and the number of the word it belongs to, None where the tokenizer knows no words.
    """

    row: Encoded
    at: int
    offsets: Sequence[tuple[int, int]]
    words: Sequence[int | None]

    @cached_property
    def ids(self) -> Sequence[int]:
        """Of the tokens that come from the text."""
        return self.row.ids[self.at : self.at + len(self.offsets)]


class Encoder:
    """A tokenizer fixed to one truncation length, safe to call from many threads at once.

    Args:
        base: gives the tokenizer files.
        config: of the task; its position count bounds the length.
        files: a task's own tokenizer files, which replace the base's.
        longest: a task's own limit in tokens, in place of the tokenizer's.
        lowercase: whether texts are lower-cased before all else.

    Raises:
        CheckpointError: the checkpoint has no fast tokenizer.
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
        self._fast.enable_truncation(self.max_length, direction=tokenizer.truncation_side)
        self._with_types = "token_type_ids" in tokenizer.model_input_names
        self._cuts_left = self.truncation_side == "left"
        self.pads_left = tokenizer.padding_side == "left"
        self.pad_id = tokenizer.pad_token_id or 0
        self.cls_id: int | None = tokenizer.cls_token_id
        self.unk_id: int | None = tokenizer.unk_token_id
        self._special_ids = frozenset(tokenizer.all_special_ids)

    @classmethod
    def of(cls, base: Checkpoint, delta: Delta) -> Encoder:
        """The tokenizer of a delta's task.

        Raises:
            CheckpointError: what it brings is no usable one.
        """
        own, config = delta.embedding, restore(dict(delta.config))
        if own is None:
            return cls(base, config, delta.files)
        return cls(base, config, delta.files, longest=own.max_length, lowercase=own.lowercase)

    def __call__(self, inputs: Sequence[Input]) -> list[Encoded]:
        """Encode texts or pairs of texts, with special tokens, truncated to `max_length`."""
        long = {i for i, given in enumerate(inputs) if not isinstance(given, str) and self._is_long(*given)}
        direct = [given for i, given in enumerate(inputs) if i not in long] if long else list(inputs)
        rows = (self._encoded(e.ids, e.type_ids, bool(e.overflowing)) for e in self._fast.encode_batch(direct))
        if not long:
            return list(rows)
        parts = iter(self.parts([text for i in sorted(long) for text in inputs[i]]))
        return [self.pair(next(parts), next(parts)) if i in long else next(rows) for i in range(len(inputs))]

    # Rows that somebody else encoded

    def given(self, ids: Sequence[int]) -> Encoded:
        """A row of ids as they are, special ones included; segment ids are those of one text of that length."""
        inside = len(ids) - len(self._single)
        return self._encoded(ids, self._single.fill_types(inside) if inside >= 0 else [0] * len(ids), False)

    def has(self, token_id: int) -> bool:
        """Whether there is such a token; `token_id` is not negative and below 2^32."""
        return self._fast.id_to_token(token_id) is not None

    def prompt_length(self, prompt: str) -> int:
        """How many tokens a prompt takes at the start of a text, those put before any text included.

        As sentence-transformers counts them: all of the prompt alone but a special one at its end.
        """
        ids = self([prompt])[0].ids
        return len(ids) - (bool(ids) and ids[-1] in self._special_ids)

    # Rows of two texts, each of them encoded once however many rows it is in

    def parts(self, texts: Sequence[str]) -> list[Part]:
        """Encode texts without special tokens."""
        return [
            Part(e.ids, len(e) + sum(map(len, e.overflowing)))
            for e in self._fast.encode_batch(list(texts), add_special_tokens=False)
        ]

    def pair(self, first: Part, second: Part) -> Encoded:
        """A row of two texts; of two that are too long, the longer is cut first."""
        room = self.max_length - len(self._pair)
        return self._join(first, second, *longest_first(first.whole, second.whole, room))

    def pair_keeping_second(self, first: Part, second: Part) -> Encoded:
        """A row of two texts; only the first is ever cut.

        Args:
            second: leaves room, see `room_beside`.
        """
        return self._join(first, second, min(first.whole, self.room_beside(second.whole)), second.whole)

    def room_beside(self, tokens: int, length: int | None = None) -> int:
        """How many tokens a row of so many (`max_length` by default) has left beside a text of `tokens`; may be < 0."""
        return (length or self.max_length) - len(self._pair) - tokens

    def cut(self, ids: Sequence[int], most: int) -> Sequence[int]:
        """The part of a text's ids that is kept."""
        if len(ids) <= most:
            return ids
        return ids[len(ids) - most :] if self._cuts_left else ids[:most]

    # Rows whose tokens are known by their place in the text

    def located(self, texts: Sequence[str]) -> list[Window]:
        """As `__call__`, one row a text."""
        at, around = len(self._single.special[0]), len(self._single)
        found = []
        for e in self._fast.encode_batch(list(texts)):
            row = self._encoded(e.ids, e.type_ids, bool(e.overflowing))
            inside = slice(at, at + len(row) - around)
            found.append(Window(row, at, e.offsets[inside], e.word_ids[inside]))
        return found

    def windows(self, text: str, stride: int) -> Iterator[Window]:
        """All of a text, in rows that overlap by `stride` tokens.

        Args:
            stride: less than `room_alone`.
        """
        whole = self._uncut.encode(text, add_special_tokens=False)
        ids, offsets, words, at = whole.ids, whole.offsets, whole.word_ids, len(self._single.special[0])
        for part in overlapping(len(ids), self.room_alone, stride):
            inside = slice(part.start, part.stop)
            row = self._encoded(self._single.fill(ids[inside]), self._single.fill_types(len(part)), False)
            yield Window(row, at, offsets[inside], words[inside])

    @property
    def room_alone(self) -> int:
        """How many tokens of one text a row takes."""
        return self.max_length - len(self._single)

    def windows_beside(self, other: Sequence[int], text: str, room: int, stride: int) -> Iterator[Window]:
        """All of a text, in rows that overlap by `stride` tokens; each has another text too.

        The other comes first, unless the tokenizer pads on the left: such models are trained the other way round.

        Args:
            other: its token ids.
            room: most tokens of the text in a row, see `room_beside`.
            stride: less than `room`.
        """
        whole = self._uncut.encode(text, add_special_tokens=False)
        ids, offsets, words = whole.ids, whole.offsets, whole.word_ids
        before, between, _ = self._pair.special
        at = len(before) if self.pads_left else len(before) + len(other) + len(between)
        for part in overlapping(len(ids), room, stride):
            inside = slice(part.start, part.stop)
            both = (ids[inside], other) if self.pads_left else (other, ids[inside])
            row = self._encoded(self._pair.fill(*both), self._pair.fill_types(*map(len, both)), False)
            yield Window(row, at, offsets[inside], words[inside])

    # Tokens as text

    def token(self, token_id: int) -> str:
        """A token as the vocabulary writes it."""
        return self._fast.id_to_token(token_id) or ""

    def joined(self, tokens: Sequence[str]) -> str:
        """Tokens as the vocabulary writes them, made one text again."""
        decoder = self._fast.decoder
        return " ".join(tokens) if decoder is None else str(decoder.decode(list(tokens)))

    @cached_property
    def marks_continuations(self) -> bool:
        """Whether a token that goes on with a word begins with a mark, as WordPiece's ``##ing`` does."""
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

    @cached_property
    def _uncut(self) -> Tokenizer:
        """A second tokenizer that never cuts: truncation is a setting of the tokenizer, not of a call."""
        uncut = Tokenizer.from_str(self._fast.to_str())
        uncut.no_truncation()
        return uncut

    def _is_long(self, first: str, second: str) -> bool:
        """Whether `tokenizers` itself might take long over a pair, see `ken_core.templates`."""
        return len(first) + len(second) > _LONG_PAIR * self.max_length

    def _join(self, first: Part, second: Part, kept: int, kept_second: int) -> Encoded:
        ids = self._pair.fill(self.cut(first.ids, kept), self.cut(second.ids, kept_second))
        cut = kept < first.whole or kept_second < second.whole
        return self._encoded(ids, self._pair.fill_types(kept, kept_second), cut)

    def _encoded(self, ids: Sequence[int], types: Sequence[int], truncated: bool) -> Encoded:
        return Encoded(ids, types if self._with_types else None, truncated)


def collate(rows: Sequence[Encoded], pad_id: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Pad rows to the longest: int64 tensors of shape (rows, longest) by model input name."""
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
    """The shorter of what the tokenizer declares and the positions the model has."""
    positions = getattr(config, "max_position_embeddings", None) or _LONGEST
    if config.model_type in _OFFSET_BY_PADDING:
        positions -= (config.pad_token_id or 0) + 1
    return int(min(declared, positions, _LONGEST))
