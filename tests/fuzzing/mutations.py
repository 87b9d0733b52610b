"""Changes to a sound delta file that keep its structure: every length and digest is right again afterwards.

A mutation changes a `Draft` with nothing but a `random.Random` to choose by, so a case's number is all it takes to
make its file again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np
import zstandard
from safetensors import safe_open
from safetensors.numpy import save

from ken_core import DeltaFile
from tests.fuzzing.values import ARCHITECTURES, CONFIG_KEYS, ODD, STEPS, TOKENIZER_CLASSES, TOKENIZER_CONFIG_KEYS

Json = Any


@dataclass
class Draft:
    """A delta file taken apart."""

    manifest: Json
    streams: dict[str, np.ndarray]
    tail: Callable[[bytes], bytes] = bytes
    """What is done to the finished file."""
    told: list[str] = field(default_factory=list)
    """What was changed, in words."""

    @classmethod
    def of(cls, file: DeltaFile) -> Draft:
        with safe_open(file.path, "np") as container:
            manifest = json.loads(container.metadata()["ken"])
            streams = {name: container.get_tensor(name) for name in container.keys()}  # noqa: SIM118
        return cls(manifest, streams)

    def replace(self, stream: str, data: bytes) -> None:
        """Put other bytes in a stream's place, and tell the manifest their length and digest."""
        self.streams[stream] = np.frombuffer(data, np.uint8)
        described = self._described(stream)
        if isinstance(described, dict):
            described.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    def text(self, name: str) -> Json:
        return json.loads(self.streams[f"files/{name}"].tobytes())

    def bytes(self) -> bytes:
        return self.tail(save(self.streams, {"ken": json.dumps(self.manifest)}))

    def _described(self, stream: str) -> Json:
        part, _, rest = stream.partition("/")
        name, _, leaf = rest.rpartition("/")
        try:
            if part == "files":
                return self.manifest["files"][rest]
            return (
                self.manifest[part][name][leaf] if part in ("sparse", "lowrank") else self.manifest[part][rest]["data"]
            )
        except (KeyError, TypeError, IndexError):
            return None


Mutation = Callable[[Draft, Random], str]


def places(value: Json, depth: int = 0) -> Iterator[tuple[Json, Any]]:
    """Every container with every key or index of it."""
    keys: Any = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        if depth < 12:
            yield from places(value[key], depth + 1)


def _odd(chance: Random) -> Json:
    if chance.random() < 0.02:
        deep: Json = []
        for _ in range(chance.choice((20, 300, 500))):
            deep = [deep]
        return deep
    return json.loads(json.dumps(chance.choice(ODD)))


def _change_somewhere(value: Json, chance: Random) -> str:
    """One place of a JSON value: another value, gone, there twice, or exchanged with another place."""
    # few places near the top and many below: choose a level first, else vocabularies are all that is ever changed
    found = list(places(value))
    tops = [p for p in found if p[0] is value]
    chosen = chance.choice(tops) if tops and chance.random() < 0.3 else chance.choice(found) if found else None
    if chosen is None:
        return "nothing to change"
    holder, key = chosen
    before = holder[key]
    how = chance.random()
    if how < 0.55:
        holder[key] = _odd(chance)
    elif how < 0.7:
        del holder[key]
        return f"[{key!r}] removed"
    elif how < 0.8 and isinstance(before, int | float) and not isinstance(before, bool):
        holder[key] = before + chance.choice((-1, 1, 2, 1000))
    elif how < 0.9:
        other, place = chance.choice(found)
        if (isinstance(other, dict) and place not in other) or (isinstance(other, list) and place >= len(other)):
            return "nothing to exchange with"
        holder[key] = json.loads(json.dumps(other[place]))
    elif isinstance(holder, dict):
        holder[chance.choice(("", "surprise", "0", "9", "type", "\ud800", "[UNK]"))] = before
    else:
        holder.insert(0, before)
    return (
        f"[{key!r}] was {str(before)[:40]!r}, is {str(holder.get(key) if isinstance(holder, dict) else holder)[:60]!r}"
    )


# The manifest


def change_the_manifest(draft: Draft, chance: Random) -> str:
    return _change_somewhere(draft.manifest, chance)


def change_an_entry(draft: Draft, chance: Random) -> str:
    part = chance.choice(
        [p for p in ("sparse", "lowrank", "dense", "head", "files", "base", "budget") if draft.manifest.get(p)]
    )
    return f"{part} {_change_somewhere(draft.manifest[part], chance)}"


def set_a_config_key(draft: Draft, chance: Random) -> str:
    key, value = chance.choice(CONFIG_KEYS), _odd(chance)
    draft.manifest["config"][key] = value
    return f"config.{key} = {str(value)[:40]!r}"


def set_labels(draft: Draft, chance: Random) -> str:
    names = [
        chance.choice(("a", "O", "B-x", "I-x", "entailment", "\ud800", "", "\x00", "é" * 99))
        for _ in range(chance.randrange(6))
    ]
    draft.manifest["config"]["id2label"] = {str(i): name for i, name in enumerate(names)}
    return f"labels {names}"


def set_the_architecture(draft: Draft, chance: Random) -> str:
    draft.manifest["architecture"] = name = chance.choice(ARCHITECTURES)
    kinds = {
        "ForSequenceClassification": "text-classification", "ForTokenClassification": "token-classification",
        "ForQuestionAnswering": "question-answering", "ForMaskedLM": "fill-mask", "LMHeadModel": "text-generation",
        "Model": "feature-extraction",
    }  # fmt: skip
    draft.manifest["kind"] = next((kind for end, kind in kinds.items() if name.endswith(end)), name)
    if chance.random() < 0.5:
        for stream in [s for s in draft.streams if s.startswith("head/")]:
            del draft.streams[stream]
        draft.manifest["head"] = {}
    return f"architecture {name}"


def rename_an_entry(draft: Draft, chance: Random) -> str:
    part = chance.choice([p for p in ("sparse", "lowrank", "dense", "head") if draft.manifest.get(p)])
    names = sorted(
        {
            *draft.manifest["sparse"],
            *draft.manifest["head"],
            "x",
            "embeddings.position_ids",
            "a..b",
            "pooler.dense.bias",
        }
    )
    old, new = chance.choice(sorted(draft.manifest[part])), chance.choice(names)
    draft.manifest[part][new] = draft.manifest[part].pop(old)
    for stream in [s for s in draft.streams if s == f"{part}/{old}" or s.startswith(f"{part}/{old}/")]:
        draft.streams[stream.replace(old, new, 1)] = draft.streams.pop(stream)
    return f"{part} {old} renamed to {new}"


def move_an_entry(draft: Draft, chance: Random) -> str:
    """Among dense and head, whose entries have one form."""
    part, to = chance.sample(("dense", "head"), 2)
    if not draft.manifest[part]:
        part, to = to, part
    if not draft.manifest[part]:
        return "nothing to move"
    name = chance.choice(sorted(draft.manifest[part]))
    draft.manifest[to][name] = draft.manifest[part].pop(name)
    draft.streams[f"{to}/{name}"] = draft.streams.pop(f"{part}/{name}")
    return f"{name} moved from {part} to {to}"


# Streams


def change_a_stream(draft: Draft, chance: Random) -> str:
    stream = chance.choice(sorted(draft.streams))
    data = bytearray(draft.streams[stream].tobytes())
    how = chance.choice(("flip", "cut", "grow", "zero", "ones", "noise", "empty", "again"))
    match how:
        case "flip":
            for _ in range(chance.randrange(1, 4)):
                if data:
                    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        case "cut":
            data = data[: chance.randrange(len(data) + 1)]
        case "grow":
            data += bytes(chance.randrange(1, 64))
        case "zero":
            data = bytearray(len(data))
        case "ones":
            data = bytearray(b"\xff" * len(data))
        case "noise":
            data = bytearray(chance.randbytes(len(data)))
        case "empty":
            data = bytearray()
        case "again":
            data = bytearray(draft.streams[chance.choice(sorted(draft.streams))].tobytes())
    draft.replace(stream, bytes(data))
    return f"{stream}: {how}"


def recompress_a_stream(draft: Draft, chance: Random) -> str:
    """The content a compressed stream stands for, changed and compressed again."""
    stream = chance.choice(sorted(s for s in draft.streams if not s.startswith("files/")))
    raw = draft.streams[stream].tobytes()
    try:
        content = bytearray(zstandard.ZstdDecompressor().decompress(raw, max_output_size=1 << 22))
    except zstandard.ZstdError:
        content = bytearray(raw)
    for _ in range(chance.randrange(1, 6)):
        if content:
            content[chance.randrange(len(content))] = chance.choice((0, 0x7F, 0x80, 0xFF, 0xC0))
    if chance.random() < 0.2:
        content = bytearray(chance.choice((0, 1, 10, 1 << 20)))
    draft.replace(stream, zstandard.ZstdCompressor().compress(bytes(content)))
    return f"{stream}: recompressed, {len(content)} bytes"


def set_numbers(draft: Draft, chance: Random) -> str:
    """Not finite, huge or tiny ones, in a tensor stored as it is."""
    whole = [
        s for p in ("head", "dense") for n, e in draft.manifest[p].items() if (s := f"{p}/{n}") and e["codec"] == "raw"
    ]
    if not whole:
        return "no tensor is stored as it is"
    stream = chance.choice(sorted(whole))
    values = np.frombuffer(draft.streams[stream].tobytes(), np.float32).copy()
    value = chance.choice((np.nan, np.inf, -np.inf, 3e38, -3e38, 1e20, 1e-45))
    values[:: chance.choice((1, 1, 7))] = value
    draft.replace(stream, values.tobytes())
    return f"{stream}: {value}"


def claim_a_shape(draft: Draft, chance: Random) -> str:
    """And bring as many compressed zeros."""
    part = chance.choice([p for p in ("head", "dense") if draft.manifest[p]] or ["head"])
    if not draft.manifest[part]:
        return "no whole tensor"
    name = chance.choice(sorted(draft.manifest[part]))
    entry = draft.manifest[part][name]
    entry["shape"] = [chance.choice((1, 3, 8, 32, 1000, 1 << 20)) for _ in range(chance.randrange(0, 4))]
    entry["codec"] = "zstd"
    nbytes = min(1 << 26, int(np.prod(entry["shape"], dtype=object)) * 4)
    draft.replace(f"{part}/{name}", zstandard.ZstdCompressor().compress(bytes(nbytes)))
    return f"{part}/{name}: zeros of shape {entry['shape']}"


# Tokenizer files


def _edit(draft: Draft, name: str, edit: Callable[[Json], str]) -> str:
    if f"files/{name}" not in draft.streams:
        return f"no {name}"
    try:
        plain = draft.text(name)
    except ValueError:
        return f"{name} is no JSON any more"
    told = edit(plain)
    draft.replace(f"files/{name}", json.dumps(plain).encode())
    return f"{name} {told}"


def change_the_tokenizer(draft: Draft, chance: Random) -> str:
    return _edit(draft, "tokenizer.json", lambda plain: _change_somewhere(plain, chance))


def change_a_part_of_the_tokenizer(draft: Draft, chance: Random) -> str:
    """But the vocabulary, which has most places and matters least."""

    def edit(plain: Json) -> str:
        if not isinstance(plain, dict):
            return "is no object any more"
        model = plain.get("model")
        parts = {k: v for k, v in plain.items() if k != "model"}
        if isinstance(model, dict):
            parts |= {f"model.{k}": v for k, v in model.items() if k not in ("vocab", "merges")}
        key = chance.choice(sorted(parts))
        if isinstance(parts[key], dict | list) and parts[key] and chance.random() < 0.7:
            return f"{key} {_change_somewhere(parts[key], chance)}"
        holder = model if key.startswith("model.") else plain
        holder[key.removeprefix("model.")] = value = _odd(chance)
        return f"{key} = {str(value)[:40]!r}"

    return _edit(draft, "tokenizer.json", edit)


def set_a_step(draft: Draft, chance: Random) -> str:
    def edit(plain: Json) -> str:
        part = chance.choice(("normalizer", "pre_tokenizer", "post_processor", "decoder"))
        step = json.loads(json.dumps(chance.choice(STEPS)))
        if isinstance(plain, dict):
            old = plain.get(part)
            key = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "post_processor": "processors"}.get(
                part, "decoders"
            )
            plain[part] = {"type": "Sequence", key: [old, step] if old else [step]} if chance.random() < 0.4 else step
        return f"{part} {str(step)[:80]}"

    return _edit(draft, "tokenizer.json", edit)


def change_the_vocabulary(draft: Draft, chance: Random) -> str:
    def edit(plain: Json) -> str:
        model = plain.get("model") if isinstance(plain, dict) else None
        vocab = model.get("vocab") if isinstance(model, dict) else None
        if not vocab:
            return "has no vocabulary"
        how = chance.choice(("drop", "drop special", "shift", "clash", "far", "odd token", "odd id", "empty", "few"))
        if isinstance(vocab, list):
            at = chance.randrange(len(vocab))
            change: dict[str, Callable[[], Any]] = {
                "drop": lambda: vocab.pop(at),
                "drop special": lambda: vocab.pop(0),
                "empty": vocab.clear,
                "few": lambda: vocab.__delitem__(slice(2, None)),
                "odd token": lambda: vocab[at].__setitem__(0, _odd(chance)),
                "odd id": lambda: vocab[at].__setitem__(1, _odd(chance)),
                "clash": lambda: vocab.append(vocab[at]),
                "shift": lambda: vocab.insert(0, ["x", 0.0]),
                "far": lambda: vocab.extend([["y" * i, -1.0] for i in range(400)]),
            }
            change[how]()
            return f"vocabulary: {how} at {at}"
        word = chance.choice(sorted(vocab))
        special = [w for w in vocab if w[:1] in "[<"]
        match how:
            case "drop":
                del vocab[word]
            case "drop special":
                vocab.pop(chance.choice(special or [word]))
            case "shift":
                model["vocab"] = {w: i + 1 for w, i in vocab.items()}
            case "clash":
                vocab[word] = 0
            case "far":
                vocab[word] = chance.choice((320, 1000, 2**31, 2**32 - 1, 2**32))
            case "odd token":
                vocab[chance.choice(("", "\ud800", "\x00", "a" * 3000, " "))] = vocab.pop(word)
            case "odd id":
                vocab[word] = _odd(chance)
            case "empty":
                vocab.clear()
            case "few":
                model["vocab"] = dict(list(vocab.items())[:6])
        return f"vocabulary: {how} {word!r}"

    return _edit(draft, "tokenizer.json", edit)


def add_a_token(draft: Draft, chance: Random) -> str:
    def edit(plain: Json) -> str:
        token = {
            "id": chance.choice((0, 1, 5, 319, 320, 10**6, 2**32 - 1, 2**32, -1, "1", None)),
            "content": chance.choice(("", " ", "a", "the", "[X]", "\ud800", "\x00", "[UNK]", "e", "\n", "🏽")),
            **{key: chance.random() < 0.5 for key in ("single_word", "lstrip", "rstrip", "normalized", "special")},
        }
        if isinstance(plain, dict) and isinstance(plain.get("added_tokens"), list):
            plain["added_tokens"].append(token)
        return f"added {token}"

    return _edit(draft, "tokenizer.json", edit)


def set_truncation_or_padding(draft: Draft, chance: Random) -> str:
    def edit(plain: Json) -> str:
        if not isinstance(plain, dict):
            return "is no object any more"
        if chance.random() < 0.5:
            plain["truncation"] = told = {
                "direction": chance.choice(("Left", "Right", "Up")),
                "max_length": chance.choice((0, 1, 2, 3, 512, 2**40, -1)),
                "strategy": chance.choice(("LongestFirst", "OnlyFirst", "OnlySecond", "")),
                "stride": chance.choice((0, 1, 600, 2**40)),
            }
        else:
            plain["padding"] = told = {
                "strategy": chance.choice(("BatchLongest", {"Fixed": 10}, {"Fixed": 2**40}, "")),
                "direction": "Left",
                "pad_to_multiple_of": chance.choice((None, 0, 7, 2**40)),
                "pad_id": chance.choice((0, 10**6)),
                "pad_type_id": chance.choice((0, 9)),
                "pad_token": chance.choice(("", "[PAD]", "zz")),
            }
        return str(told)

    return _edit(draft, "tokenizer.json", edit)


def set_a_tokenizer_config_key(draft: Draft, chance: Random) -> str:
    def edit(plain: Json) -> str:
        key = chance.choice(TOKENIZER_CONFIG_KEYS)
        value = chance.choice(TOKENIZER_CLASSES) if key == "tokenizer_class" else _odd(chance)
        if key == "model_input_names":
            value = chance.choice((["input_ids"], ["token_type_ids"], [], "token_type_ids", None, ["a"], [1], 5))
        if key == "model_max_length":
            value = chance.choice((0, 1, 2, 3, 4, 5, -1, -(10**30), 10**30, 7.5, "9", None, 1e300))
        if key in ("padding_side", "truncation_side"):
            value = chance.choice(("left", "right", "up", None, 1))
        if isinstance(plain, dict):
            plain[key] = value
        return f"{key} = {str(value)[:40]!r}"

    return _edit(draft, "tokenizer_config.json", edit)


def change_the_tokenizer_config(draft: Draft, chance: Random) -> str:
    return _edit(draft, "tokenizer_config.json", lambda plain: _change_somewhere(plain, chance))


# The file itself


def damage_the_file(draft: Draft, chance: Random) -> str:
    place, mask, cut = chance.random(), 1 << chance.randrange(8), chance.random() < 0.3

    def tail(data: bytes) -> bytes:
        at = int(place**3 * len(data))  # more often in the header
        return data[:at] if cut else data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :]

    draft.tail = tail
    return f"file {'cut' if cut else 'flipped'} at {place**3:.4f}"


MUTATIONS: tuple[tuple[Mutation, int], ...] = (
    (change_the_manifest, 4), (change_an_entry, 5), (set_a_config_key, 10), (set_labels, 4), (set_the_architecture, 3),
    (rename_an_entry, 3), (move_an_entry, 2), (change_a_stream, 5), (recompress_a_stream, 5), (set_numbers, 3),
    (claim_a_shape, 3), (change_the_tokenizer, 5), (change_a_part_of_the_tokenizer, 12), (set_a_step, 10),
    (change_the_vocabulary, 8), (add_a_token, 6), (set_truncation_or_padding, 3), (set_a_tokenizer_config_key, 12),
    (change_the_tokenizer_config, 4), (damage_the_file, 1),
)  # fmt: skip
"""Each with how often it is chosen."""


def mutate(draft: Draft, chance: Random) -> Draft:
    """Make one to three changes."""
    ways, weights = zip(*MUTATIONS, strict=True)
    for way in chance.choices(ways, weights, k=chance.choice((1, 1, 1, 2, 3))):
        try:
            draft.told.append(f"{way.__name__}: {way(draft, chance)}")
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            # an earlier change took away what this one needs
            draft.told.append(f"{way.__name__} found nothing to change ({error!r})")
    return draft
